"""How a training step is made to fit into memory, by what `tracing` says that it needs; bytes are those of tensors."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

from fixres_poc.config.provenance import kept
from fixres_poc.config.settings import ADAPTED, PairSettings, TrainSettings
from fixres_poc.model.tracing import adapting_trace, can_recompute, trace_of_batch, training_trace

CARD_SHARE = 0.9  # of a card's memory, for tensors: shapes know nothing of the allocator's gaps and cuDNN's workspace


@dataclass(frozen=True)
class StepPlan:
    """A way to run a training step."""

    micro_batch_size: int  # images in the network at once; gradients of a batch add up over its micro-batches
    gradient_checkpointing: bool  # recompute activations instead of storing them
    peak_bytes: int  # predicted, of tensors

    def __str__(self) -> str:
        """The plan in words."""
        recomputed = ", activations recomputed" if self.gradient_checkpointing else ""
        return f"{self.micro_batch_size} images at once{recomputed}"


def training_bytes(settings: TrainSettings, size: int, classes: int, micro_batch_size: int, recompute: bool) -> int:
    """Predicted peak of tensor bytes in a step that trains all weights.

    Weights, gradients, momentum, buffers, input, activations and temporary tensors, without those inside a kernel. fp16
    is taken for bf16: as many bytes.

    Raises:
        InputError: `recompute` for a network that cannot.
    """
    how = (settings.backbone, classes, size, settings.precision != "fp32", recompute)
    return _peak("training", micro_batch_size, micro_batch_size < settings.batch_size, *how)


def adapting_bytes(settings: PairSettings, classes: int) -> int:
    """Predicted peak of tensor bytes of stage 2 at the test resolution, all tails; evaluation needs no more."""
    tails = max(1, len(set(settings.adaptations) & set(ADAPTED)))
    how = (settings.backbone, classes, settings.test_size, settings.precision != "fp32", tails)
    return _peak("adapting", settings.batch_size, False, *how)


@kept
def _peak(step: str, images: int, accumulating: bool, *how: Any) -> int:
    """Peak bytes of a step of `images`, traced by the function for `step`, to which `how` is given."""
    trace = training_trace if step == "training" else adapting_trace
    return trace_of_batch(functools.partial(trace, *how), images).peak(accumulating)


def micro_batches(batch_size: int) -> list[int]:
    """The batch, its half, quarter and so on, down to 1 image; rounded up."""
    return [-(-batch_size // 2**power) for power in range((batch_size - 1).bit_length() + 1)]


def step_plans(settings: TrainSettings, size: int, classes: int, budget_bytes: int) -> Iterator[StepPlan]:
    """Plans for a step of all weights in order, from the first predicted to fit; the last one if none is.

    In order: the whole batch; the whole batch with gradient checkpointing, which gives the same results; then ever
    smaller micro-batches with checkpointing, whose batch norms see fewer images. `settings.gradient_checkpointing`
    True leaves out the first, False all that checkpoint ("auto" as well for networks that cannot).

    Raises:
        InputError: `gradient_checkpointing` is True for a network that cannot.
    """
    wish = settings.gradient_checkpointing
    recompute = can_recompute(settings.backbone) if wish == "auto" else wish
    ways = [(each, recompute) for each in micro_batches(settings.batch_size)]
    if wish == "auto" and recompute:
        ways.insert(0, (settings.batch_size, False))
    fits = False
    for micro, checkpointing in ways:
        peak = training_bytes(settings, size, classes, micro, checkpointing)
        fits = fits or peak <= budget_bytes
        if fits or (micro, checkpointing) == ways[-1]:
            yield StepPlan(micro, checkpointing, peak)


def step_table(settings: TrainSettings, classes: int) -> pd.DataFrame:
    """Predicted peak bytes of a step of stage 1, by precision and checkpointing, for the batch and its parts.

    Returns:
        Columns train_size, precision, checkpointing and micro_<images at once>_bytes.
    """
    size, sizes = settings.train_size, micro_batches(settings.batch_size)
    rows = []
    for precision, recompute in itertools.product(("fp32", "bf16"), (False, True)):
        if not recompute or can_recompute(settings.backbone):
            each = settings.model_copy(update={"precision": precision})
            peaks = {f"micro_{n}_bytes": training_bytes(each, size, classes, n, recompute) for n in sizes}
            rows.append({"train_size": size, "precision": precision, "checkpointing": recompute, **peaks})
    return pd.DataFrame(rows)


def budget_bytes() -> int:
    """Bytes that a run's tensors may take here; the same at every call, whatever else is running.

    A GPU: 0.9 of its memory. Else half of the machine's memory, or of the control group's limit where that is lower:
    two runs of a sweep work side by side.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory * CARD_SHARE)
    return int(min([psutil.virtual_memory().total, *group_limits()]) * 0.5)


def group_limits(own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Memory limits of this process' control group and of those around it (cgroup v2)."""
    try:
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    inner = groups / name.strip().lstrip("/")
    files = [each / "memory.max" for each in (inner, *inner.parents) if each.is_relative_to(groups)]
    limits = [each.read_text().strip() for each in files if each.is_file()]
    return [int(each) for each in limits if each != "max"]

"""How a training step is made to fit into memory, by what `tracing` says that it needs; bytes are those of tensors."""

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import ADAPTED, PairSettings, TrainSettings
from fixres_poc.model import backbones
from fixres_poc.model.trunk import Tail, Trunk

# batch sizes; others follow from them. 1 is special to batch norm and to memory formats
TRACED = (2, 4)
_loss = functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of every storage that comes, and of those that go before the next one comes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.came, self.went, self.born = list[int](), list[int](), dict[int, int]()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.born:
            self.born[key] = len(self.came)
            self.came.append(size)
            self.went.append(0)
            weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        del self.born[key]
        self.went[-1] += size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor):
                self.add(each)
        return out


@dataclass(frozen=True)
class _Trace:
    """Storages of a step in order of birth, (T,) each."""

    came: np.ndarray  # their bytes
    went: np.ndarray  # bytes that were freed between this birth and the next
    gradients: np.ndarray  # which are gradients of parameters, that stay to the step's end

    def peak(self, accumulating: bool) -> int:
        """Highest number of bytes; `accumulating`: the gradients of earlier micro-batches are there from the start."""
        live = self.came.cumsum() - self.went.cumsum() + self.went
        if accumulating:
            # a new gradient lives on until it is added
            fresh = np.where(self.gradients, self.came, 0)
            live = live - fresh.cumsum() + fresh.sum() + fresh
        return int(live.max())


def _trace(models: list[nn.Module], step: Callable[..., None], size: int, batch: int) -> _Trace:
    """Run a step of the trainable parameters of models on the meta device."""
    recorder = _Recorder()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for model in models:
            model.to_empty(device="cpu")
        parameters = [each for model in models for each in model.parameters()]
        trained = [each for each in parameters if each.requires_grad]
        # Fused SGD needs no temporary tensors but has no fake form; the plain one has one
        # parameter's at a time.
        sgd = torch.optim.SGD(trained, 0.01, 0.9, weight_decay=1e-4, nesterov=True, foreach=False)
        momentum = [torch.zeros_like(each) for each in trained]
        for each, buffer in zip(trained, momentum, strict=True):
            sgd.state[each]["momentum_buffer"] = buffer
        images, labels = torch.empty(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)
        buffers = [buffer for model in models for buffer in model.buffers()]
        for tensor in (*parameters, *momentum, images, labels, *buffers):
            recorder.add(tensor)
        with recorder:
            step(images, labels)
            sgd.step()
    born = [
        recorder.born[each.grad.untyped_storage()._cdata]
        for each in trained
        if each.grad is not None
    ]
    came, went = np.array([recorder.came, recorder.went], dtype=np.int64)
    return _Trace(came, went, np.isin(np.arange(len(came)), born))


def _network(backbone: str, classes: int) -> nn.Module:
    """A network without any memory. Built on the meta device, since some compute numbers when they are built."""
    with torch.device("meta"):
        return backbones.create(backbone, classes, pretrained=False)


@functools.cache
def training_trace(
    backbone: str, classes: int, size: int, half: bool, recompute: bool, batch: int
) -> _Trace:
    """A step that trains all weights; `half`: in bf16, `recompute`: with gradient checkpointing."""
    model = _network(backbone, classes).train()
    if recompute:
        backbones.recompute(model)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = _loss(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    return _trace([model], step, size, batch)


@functools.cache
def adapting_trace(
    backbone: str, classes: int, size: int, half: bool, tails: int, batch: int
) -> _Trace:
    """A step of stage 2 with `tails` of all weights on one trunk; `half`: in bf16."""
    model = _network(backbone, classes).eval()
    frozen, copies = Trunk(model), [Tail(model).train() for _ in range(tails)]
    model.requires_grad_(False)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            maps = frozen(images)
            for tail in copies:
                _loss(tail(*maps), labels).backward()  # type: ignore[no-untyped-call]

    return _trace([model, *copies], step, size, batch)


def trace_of_batch(trace: Callable[[int], _Trace], batch: int) -> _Trace:
    """The trace of any batch size: the same tensors come and go in the same order, each affine in the batch size."""
    low, high = TRACED
    first, second = trace(low), trace(high)
    # a network that does other things at another batch size
    if len(first.came) != len(second.came):
        return trace(batch)
    a, b = (np.array([each.came, each.went]) for each in (first, second))
    came, went = (b - a) // (high - low) * (batch - low) + a
    return _Trace(came, went, first.gradients)


@functools.cache
def parameters_and_flops(backbone: str, classes: int, size: int) -> tuple[int, int]:
    """Number of parameters, and FLOPs of one image's forward pass at `size` px."""
    # Not of the backward pass: torch's counter takes that of grouped convolutions for that of full
    # ones.
    model = _network(backbone, classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return sum(each.numel() for each in model.parameters()), counter.get_total_flops()


@functools.cache
def can_recompute(backbone: str) -> bool:
    """Whether the network can do gradient checkpointing."""
    try:
        backbones.recompute(_network(backbone, 10))
    except InputError:
        return False
    return True


# of a card's memory, for tensors: shapes know nothing of the allocator's gaps and cuDNN's workspace
CARD_SHARE = 0.9


@dataclass(frozen=True)
class StepPlan:
    """A way to run a training step."""

    # images in the network at once; gradients of a batch add up over its micro-batches
    micro_batch_size: int
    gradient_checkpointing: bool  # recompute activations instead of storing them
    peak_bytes: int  # predicted, of tensors

    def __str__(self) -> str:
        """The plan in words."""
        recomputed = ", activations recomputed" if self.gradient_checkpointing else ""
        return f"{self.micro_batch_size} images at once{recomputed}"


def training_bytes(
    settings: TrainSettings, size: int, classes: int, micro_batch_size: int, recompute: bool
) -> int:
    """Predicted peak of tensor bytes in a step that trains all weights.

    Weights, gradients, momentum, buffers, input, activations and temporary tensors, without those
    inside a kernel. fp16 is taken for bf16: as many bytes.

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


@functools.cache
def _peak(step: str, images: int, accumulating: bool, *how: Any) -> int:
    """Peak bytes of a step of `images`, traced by the function for `step`, to which `how` is given."""
    trace = training_trace if step == "training" else adapting_trace
    return trace_of_batch(functools.partial(trace, *how), images).peak(accumulating)


def micro_batches(batch_size: int) -> list[int]:
    """The batch, its half, quarter and so on, down to 1 image; rounded up."""
    return [-(-batch_size // 2**power) for power in range((batch_size - 1).bit_length() + 1)]


def step_plans(
    settings: TrainSettings, size: int, classes: int, budget_bytes: int
) -> Iterator[StepPlan]:
    """Plans for a step of all weights in order, from the first predicted to fit; the last one if none is.

    In order: the whole batch; the whole batch with gradient checkpointing, which gives the same
    results; then ever smaller micro-batches with checkpointing, whose batch norms see fewer images.
    `settings.gradient_checkpointing` True leaves out the first, False all that checkpoint ("auto"
    as well for networks that cannot).

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
            peaks = {
                f"micro_{n}_bytes": training_bytes(each, size, classes, n, recompute) for n in sizes
            }
            rows.append(
                {"train_size": size, "precision": precision, "checkpointing": recompute, **peaks}
            )
    return pd.DataFrame(rows)


def budget_bytes() -> int:
    """Bytes that a run's tensors may take here; the same at every call, whatever else is running.

    A GPU: 0.9 of its memory. Else half of the machine's memory, or of the control group's limit
    where that is lower: two runs of a sweep work side by side.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory * CARD_SHARE)
    return int(min([psutil.virtual_memory().total, *group_limits()]) * 0.5)


def group_limits(
    own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Memory limits of this process' control group and of those around it (cgroup v2)."""
    try:
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    inner = groups / name.strip().lstrip("/")
    files = [each / "memory.max" for each in (inner, *inner.parents) if each.is_relative_to(groups)]
    limits = [each.read_text().strip() for each in files if each.is_file()]
    return [int(each) for each in limits if each != "max"]

"""How a training step is made to fit into memory: predicted bytes, and plans of steps."""

import contextlib
import functools
import itertools
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import PairSettings, TrainSettings
from fixres_poc.model import backbones, device
from fixres_poc.model.trunk import Tail, Trunk


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that live, and how many were the most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.known: set[int] = set()  # identities of the storages that live

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001  a fake one has no address
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor):
                self.add(each)
        return out


def _network(backbone: str, classes: int) -> nn.Module:
    """A network without any memory."""
    with torch.device("meta"):  # some compute numbers when they are built
        return backbones.create(backbone, classes, pretrained=False)


@functools.cache
def traced_step(
    backbone: str, classes: int, size: int, half: bool, recompute: bool, tails: int, images: int
) -> tuple[int, int, int]:
    """Bytes of a training step, whose forward and backward pass are run without memory.

    Args:
        half: in bf16.
        recompute: with gradient checkpointing.
        tails: how many tails stage 2 trains on one frozen trunk, all their weights; 0 for a step
            that trains the whole network.
        images: in the network at once.

    Returns:
        Peak for a batch's first part; for later ones, which find the gradients of earlier ones
        there; and of the weights that are trained. An optimizer's moments are not in the peaks.
    """
    model = _network(backbone, classes)
    if recompute:
        device.recompute(model)
    device.spare_single_values(model)
    modules = [model, *(Tail(model).train() for _ in range(tails))]
    model.train(not tails).requires_grad_(not tails)
    recorder, peaks = _Recorder(), []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in modules:
            module.to_empty(device="cpu")
        batch, labels = torch.empty(images, 3, size, size), torch.zeros(images, dtype=torch.long)
        parameters = [each for module in modules for each in module.parameters()]
        buffers = [each for module in modules for each in module.buffers()]
        for tensor in (*parameters, *buffers, batch, labels):
            recorder.add(tensor)
        held = recorder.live
        with recorder:
            for _ in range(2):
                recorder.peak = 0
                _pass(modules, batch, labels, half)
                peaks.append(recorder.peak)
    trained = [each.nbytes for each in parameters if each.grad is not None]
    # the optimizer takes two temporary tensors for one weight after another
    step = held + sum(trained) + 2 * max(trained)
    return max(peaks[0], step), max(peaks[1], step), sum(trained)


def _pass(modules: list[nn.Module], images: torch.Tensor, labels: torch.Tensor, half: bool) -> None:
    """Forward and backward pass of a network, or of tails on its trunk."""
    model, *tails = modules
    lower = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=half)
    with lower():
        inputs = Trunk(model)(images) if tails else (images,)
    for module in tails or [model]:
        with lower():
            loss = nn.functional.cross_entropy(module(*inputs), labels, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]


@functools.cache
def parameters_and_flops(backbone: str, classes: int, size: int) -> tuple[int, int]:
    """Number of parameters, and FLOPs of one image's forward pass at `size` px."""
    # not of the backward pass, where torch's counter takes grouped convolutions for full ones
    model = _network(backbone, classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return sum(each.numel() for each in model.parameters()), counter.get_total_flops()


@functools.cache
def can_recompute(backbone: str) -> bool:
    """Whether the network can do gradient checkpointing."""
    with contextlib.suppress(InputError):
        device.recompute(_network(backbone, 10))
        return True
    return False


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

    Weights, gradients, moments, buffers, input, activations and temporary tensors, without those
    inside a kernel. fp16 is taken for bf16: as many bytes.

    Raises:
        InputError: `recompute` for a network that cannot.
    """
    half = settings.precision != "fp32"
    how = (settings.backbone, classes, size, half, recompute, 0, micro_batch_size)
    first, later, trained = traced_step(*how)
    moments = 2 if settings.optimizer == "adamw" else 1
    return (later if micro_batch_size < settings.batch_size else first) + moments * trained


def adapting_bytes(settings: PairSettings, classes: int) -> int:
    """Predicted peak of tensor bytes of stage 2 at the test resolution, all tails of its grids.

    Evaluation needs no more. A `conv_head` that is trained as well is not counted.
    """
    tails = max(1, sum(len(settings.grid(name)) for name in settings.adapted))
    how = (settings.backbone, classes, settings.test_size, settings.precision != "fp32", False)
    peak, _, trained = traced_step(*how, tails, settings.batch_size)
    return peak + trained  # its SGD has one moment


def micro_batches(batch_size: int) -> list[int]:
    """The batch, its half, quarter and so on, down to 1 image; rounded up."""
    return [-(-batch_size // 2**power) for power in range((batch_size - 1).bit_length() + 1)]


def step_plans(
    settings: TrainSettings, size: int, classes: int, budget_bytes: int
) -> Iterator[StepPlan]:
    """Plans for a step of all weights, from the first predicted to fit, or the last one alone.

    In order: the whole batch; the whole batch with gradient checkpointing, which gives the same
    results; then ever smaller micro-batches with checkpointing, whose batch norms see fewer images.
    `settings.gradient_checkpointing` True leaves out the first, False all that checkpoint ("auto"
    as well for networks that cannot).

    Raises:
        InputError: `gradient_checkpointing` is True for a network that cannot.
    """
    wish = settings.gradient_checkpointing
    recompute = can_recompute(settings.backbone) if wish == "auto" else wish
    ways = [(images, recompute) for images in micro_batches(settings.batch_size)]
    if wish == "auto" and recompute:
        ways.insert(0, (settings.batch_size, False))
    plans = (StepPlan(*way, training_bytes(settings, size, classes, *way)) for way in ways)
    return itertools.dropwhile(
        lambda plan: plan.peak_bytes > budget_bytes and plan.micro_batch_size > 1, plans
    )


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
    found = re.search(r"^0::/(.*)$", own.read_text(), re.MULTILINE) if own.is_file() else None
    if found is None:
        return []
    inner = groups / found[1]
    files = [folder / "memory.max" for folder in (inner, *inner.parents)]
    limits = [file.read_text().strip() for file in files if file.is_file()]
    return [int(limit) for limit in limits if limit != "max"]

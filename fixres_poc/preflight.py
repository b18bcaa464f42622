"""What a training needs, from shapes alone: memory, FLOPs and how to make it fit. Nothing is downloaded or trained.

A step is run once on fake tensors, which have shapes and no content, while a recorder notes every storage that comes
and goes. Memory is in bytes of tensors. A multiply-add counts as 2 FLOPs.
"""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fixres_poc import backbones
from fixres_poc.config import InputError, PairSettings, TrainSettings

CARD_SHARE = 0.9
"""Share of a card's memory that tensors may take: shapes know nothing of the allocator's gaps and cuDNN's workspace."""
MACHINE_SHARE = 0.5
"""Share of a machine's memory: two runs of a sweep work side by side."""
TRACED = (2, 4)
"""Batch sizes that are traced; others follow from them. 1 is special to batch norm and to memory formats."""
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Fit:
    """How a training step is run so that it fits.

    Attributes:
        micro_batch_size: pictures in the network at once; gradients of a batch are accumulated over its micro-batches.
        gradient_checkpointing: recompute activations instead of storing them.
        peak_bytes: predicted peak of tensor bytes.
        fits: False where even the smallest way needs more than the budget.
    """

    micro_batch_size: int
    gradient_checkpointing: bool
    peak_bytes: int
    fits: bool


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of every storage that comes, and of those that go before the next one comes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.came: list[int] = []
        self.went: list[int] = []
        self.born: dict[int, int] = {}

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
    """Storages of a step in order of birth, (T,) each.

    Attributes:
        came: their bytes.
        went: bytes that were freed between this birth and the next.
        gradients: which are gradients of parameters, that stay to the step's end.
    """

    came: np.ndarray
    went: np.ndarray
    gradients: np.ndarray

    def peak(self, accumulating: bool) -> int:
        """Highest number of bytes; `accumulating`: the gradients of earlier micro-batches are there from the start."""
        live = self.came.cumsum() - self.went.cumsum() + self.went
        if accumulating:
            fresh = np.where(self.gradients, self.came, 0)  # a new gradient lives on until it is added
            live = live - fresh.cumsum() + fresh.sum() + fresh
        return int(live.max())


def _trace(
    models: list[nn.Module], step: Callable[[torch.Tensor, torch.Tensor], None], size: int, batch: int
) -> _Trace:
    """Run a step of the models' trainable parameters; called within a FakeTensorMode.

    Fused SGD needs no temporary tensors but has no fake form, so the plain one is run, with one parameter's at a time.
    """
    parameters = [each for model in models for each in model.parameters()]
    trained = [each for each in parameters if each.requires_grad]
    sgd = torch.optim.SGD(trained, 0.01, 0.9, weight_decay=1e-4, nesterov=True, foreach=False)
    for each in trained:
        sgd.state[each]["momentum_buffer"] = torch.zeros_like(each)
    images, labels = torch.empty(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)
    recorder = _Recorder()
    for tensor in parameters + [sgd.state[each]["momentum_buffer"] for each in trained] + [images, labels]:
        recorder.add(tensor)
    for tensor in (buffer for model in models for buffer in model.buffers()):
        recorder.add(tensor)
    with recorder:
        step(images, labels)
        sgd.step()
    born = [recorder.born[each.grad.untyped_storage()._cdata] for each in trained if each.grad is not None]
    came, went = np.array(recorder.came, dtype=np.int64), np.array(recorder.went, dtype=np.int64)
    return _Trace(came, went, np.isin(np.arange(len(came)), born))


def _network(backbone: str, classes: int) -> nn.Module:
    """A network without any memory. Built on the meta device, since some compute numbers when they are built."""
    with torch.device("meta"):
        return backbones.create(backbone, classes, pretrained=False)


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)


@functools.cache
def _training(backbone: str, classes: int, size: int, half: bool, recompute: bool, batch: int) -> _Trace:
    model = _network(backbone, classes).train()
    if recompute:
        backbones.recompute(model)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = _loss(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    with FakeTensorMode(allow_non_fake_inputs=True):
        return _trace([model.to_empty(device="cpu")], step, size, batch)


@functools.cache
def _adapting(backbone: str, classes: int, size: int, half: bool, tails: int, batch: int) -> _Trace:
    model = _network(backbone, classes).eval()
    copies = [backbones.Tail(model).train() for _ in range(tails)]
    model.requires_grad_(False)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            features = backbones.trunk(model, images)
            for tail in copies:
                _loss(tail(*features), labels).backward()  # type: ignore[no-untyped-call]

    with FakeTensorMode(allow_non_fake_inputs=True):
        return _trace([each.to_empty(device="cpu") for each in (model, *copies)], step, size, batch)


def _at(trace: Callable[[int], _Trace], batch: int) -> _Trace:
    """The trace of any batch size: the same tensors come and go in the same order, each affine in the batch size."""
    low, high = TRACED
    first, second = trace(low), trace(high)
    if len(first.came) != len(second.came):  # a network that does other things at another batch size
        return trace(batch)
    came, went = (
        (b - a) // (high - low) * (batch - low) + a for a, b in ((first.came, second.came), (first.went, second.went))
    )
    return _Trace(came, went, first.gradients)


def training_bytes(settings: TrainSettings, classes: int, micro_batch_size: int, recompute: bool) -> int:
    """Predicted peak of tensor bytes in a step of stage 1.

    Weights, gradients, momentum, buffers, input, activations and temporary tensors, without those inside a kernel.

    Args:
        settings: backbone, train size, precision (fp16 is taken for bf16: as many bytes) and batch size.
        classes: number of classes.
        micro_batch_size: pictures at once; fewer than a batch means that gradients are accumulated.
        recompute: with gradient checkpointing.

    Raises:
        InputError: `recompute` for a network that cannot.
    """
    half = settings.precision != "fp32"
    trace = functools.partial(_training, settings.backbone, classes, settings.train_size, half, recompute)
    return _at(trace, micro_batch_size).peak(accumulating=micro_batch_size < settings.batch_size)


def adapting_bytes(settings: PairSettings, classes: int) -> int:
    """Predicted peak of tensor bytes of stage 2 at the test size, with all its tails; evaluation needs no more."""
    tails = max(1, len(set(settings.adaptations) - {"none", "control", "equalised", "full"}))
    half = settings.precision != "fp32"
    trace = functools.partial(_adapting, settings.backbone, classes, settings.test_size, half, tails)
    return _at(trace, settings.batch_size).peak(accumulating=False)


@functools.cache
def parameters_and_flops(backbone: str, classes: int, size: int) -> tuple[int, int]:
    """Number of parameters, and FLOPs of one picture's forward pass at `size` px.

    Only the forward pass is counted, since torch's counter takes the backward pass of grouped convolutions for that of
    full ones.
    """
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


def micro_batches(batch_size: int) -> list[int]:
    """The batch, its half, quarter and so on, down to 1 picture; rounded up."""
    return [-(-batch_size // 2**power) for power in range((batch_size - 1).bit_length() + 1)]


def fit(settings: TrainSettings, classes: int, budget_bytes: int) -> Fit:
    """The first way to run a step of stage 1 that fits, else the smallest one with `fits` False.

    In order: the whole batch; the whole batch with gradient checkpointing, which gives the same results; then ever
    smaller micro-batches with checkpointing, whose batch norms see fewer pictures. `settings.gradient_checkpointing`
    True leaves out the first, False all that checkpoint ("auto" as well for networks that cannot).

    Args:
        settings: of the training.
        classes: number of classes.
        budget_bytes: what tensors may take, such as `budget_bytes()`.

    Raises:
        InputError: `gradient_checkpointing` is True for a network that cannot.
    """
    wish = settings.gradient_checkpointing
    recompute = can_recompute(settings.backbone) if wish == "auto" else wish
    ways = [(each, recompute) for each in micro_batches(settings.batch_size)]
    if wish == "auto" and recompute:
        ways.insert(0, (settings.batch_size, False))
    for micro, checkpointing in ways:
        peak = training_bytes(settings, classes, micro, checkpointing)
        if peak <= budget_bytes:
            break
    return Fit(micro, checkpointing, peak, peak <= budget_bytes)


def budget_bytes() -> int:
    """Bytes that a run's tensors may take here; the same at every call, whatever else is running.

    A GPU: 0.9 of its memory. Else half of the machine's memory, or of the control group's limit where that is lower.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory * CARD_SHARE)
    return int(min([psutil.virtual_memory().total, *_limits()]) * MACHINE_SHARE)


def _limits(own: Path = Path("/proc/self/cgroup"), groups: Path = CGROUPS) -> list[int]:
    """Memory limits of this process' control group and of those around it (cgroup v2)."""
    try:
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    inner = groups / name.strip().lstrip("/")
    files = [each / "memory.max" for each in (inner, *inner.parents) if each.is_relative_to(groups)]
    return [int(each.read_text()) for each in files if each.is_file() and each.read_text().strip() != "max"]

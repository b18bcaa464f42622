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

import numpy as np
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

# batch sizes; others follow from them. 1 is special to batch norm and to memory formats
TRACED = (2, 4)
_loss = functools.partial(nn.functional.cross_entropy, label_smoothing=0.1)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many bytes live whenever a storage is born, and which storage it is."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.at_birth: list[int] = []
        self.births: dict[int, int] = {}  # of living storages, in order

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage_of(tensor), storage.nbytes()
        if key not in self.births:
            self.births[key] = len(self.at_birth)
            self.live += size
            self.at_birth.append(self.live)
            weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        del self.births[key]
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor):
                self.add(each)
        return out


def storage_of(tensor: torch.Tensor) -> int:
    """Identity of a tensor's storage, for as long as that lives."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  a fake one has no address


def _network(backbone: str, classes: int) -> nn.Module:
    """A network without any memory."""
    with torch.device("meta"):  # some compute numbers when they are built
        return backbones.create(backbone, classes, pretrained=False)


@functools.cache
def traced_step(
    backbone: str, classes: int, size: int, half: bool, recompute: bool, tails: int, batch: int
) -> np.ndarray:
    """Bytes that live in a training step of `batch` images, which is run without memory.

    Args:
        half: in bf16.
        recompute: with gradient checkpointing.
        tails: how many tails stage 2 trains on one frozen trunk, all their weights; 0 for a step
            that trains the whole network.

    Returns:
        (2, T): at the birth of each of T storages; for a batch's first part, and for later ones,
        which find the gradients of earlier ones there.
    """
    model = _network(backbone, classes)
    if recompute:
        device.recompute(model)
    modules = [model, *(Tail(model).train() for _ in range(tails))]
    model.train(not tails).requires_grad_(not tails)
    recorder = _Recorder()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in modules:
            module.to_empty(device="cpu")
        parameters = [each for module in modules for each in module.parameters()]
        sgd = _optimizer([each for each in parameters if each.requires_grad])
        momentum = [state["momentum_buffer"] for state in sgd.state.values()]
        buffers = [buffer for module in modules for buffer in module.buffers()]
        images, labels = torch.empty(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)
        for tensor in (*parameters, *momentum, images, labels, *buffers):
            recorder.add(tensor)
        with recorder:
            _backward(modules, images, labels, half)
            sgd.step()
    live = np.array(recorder.at_birth, dtype=np.int64)
    gradients = np.zeros_like(live)
    for gradient in [each.grad for each in parameters if each.grad is not None]:
        gradients[recorder.births[storage_of(gradient)]] = gradient.nbytes
    # a new gradient lives on until it is added
    return np.stack([live, live - gradients.cumsum() + gradients.sum() + gradients])


def _optimizer(trained: list[nn.Parameter]) -> torch.optim.SGD:
    """SGD after its first step.

    Fused SGD needs no temporary tensors but has no fake form; this one has one parameter's at a
    time.
    """
    sgd = torch.optim.SGD(trained, 0.01, 0.9, weight_decay=1e-4, nesterov=True, foreach=False)
    for each in trained:
        sgd.state[each]["momentum_buffer"] = torch.zeros_like(each)
    return sgd


def _backward(
    modules: list[nn.Module], images: torch.Tensor, labels: torch.Tensor, half: bool
) -> None:
    """Forward and backward pass of a network, or of tails on its trunk."""
    model, *tails = modules
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        if not tails:
            loss = _loss(model(images), labels)
        else:
            maps = Trunk(model)(images)
            for tail in tails:
                _loss(tail(*maps), labels).backward()  # type: ignore[no-untyped-call]
    if not tails:
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
    how = (settings.backbone, classes, size, settings.precision != "fp32", recompute, 0)
    # SGD's momentum is traced; AdamW keeps a second moment for every weight all the time
    second = 4 * parameters_and_flops(*how[:3])[0] * (settings.optimizer == "adamw")
    return _peak_bytes(micro_batch_size, micro_batch_size < settings.batch_size, *how) + second


def adapting_bytes(settings: PairSettings, classes: int) -> int:
    """Predicted peak of tensor bytes of stage 2 at the test resolution, all tails of its grids.

    Evaluation needs no more. A `conv_head` that is trained as well is not counted.
    """
    tails = max(1, sum(len(settings.grid(name)) for name in settings.adapted))
    how = (settings.backbone, classes, settings.test_size, settings.precision != "fp32")
    return _peak_bytes(settings.batch_size, False, *how, False, tails)


def _peak_bytes(images: int, part: bool, *how: Any) -> int:
    """Peak of a step of any number of images, or of part of a batch; `how`: see `traced_step`.

    The same tensors come and go in the same order, each affine in the number of images.
    """
    low, high = TRACED
    first, second = traced_step(*how, low), traced_step(*how, high)
    if first.shape == second.shape:
        live = first + (second - first) // (high - low) * (images - low)
    else:  # a network that does other things at another batch size
        live = traced_step(*how, images)
    return int(live[int(part)].max())


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

"""Memory of a training step: predicted bytes, and plans that fit into a budget."""

import functools
import itertools
import math
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
    """Counts the bytes of all live storages, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.known: set[int] = set()  # identities of the live storages

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001  a fake storage has no address
        size = storage.nbytes()
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
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return out


def _network(backbone: str, classes: int) -> nn.Module:
    """A network on the meta device, which takes no memory."""
    with torch.device("meta"):  # no fake tensors: some networks compute numbers when built
        return backbones.create(backbone, classes, pretrained=False)


@functools.cache
def traced_step(
    backbone: str, classes: int, size: int, half: bool, recompute: bool, tails: int, images: int
) -> tuple[int, int, int]:
    """Bytes of a training step, from a forward and a backward pass with fake tensors.

    Args:
        half: autocast to bf16.
        recompute: gradient checkpointing.
        tails: number of tails that stage 2 trains, with all their weights, on one frozen trunk; 0
            trains the whole network.
        images: number of images at once.

    Returns:
        Peak for the first micro-batch, peak for later ones, which add to existing gradients, and
        bytes of the trained weights. The peaks do not include the optimizer's moments.
    """
    model = _network(backbone, classes)
    if recompute:
        device.recompute(model)
    device.spare_single_values(model)
    modules = [model, *(Tail(model).train() for _ in range(tails))]
    model.train(not tails).requires_grad_(not tails)
    recorder = _Recorder()
    peaks = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in modules:
            module.to_empty(device="cpu")
        batch = torch.empty(images, 3, size, size)
        labels = torch.zeros(images, dtype=torch.long)
        parameters = [tensor for module in modules for tensor in module.parameters()]
        buffers = [tensor for module in modules for tensor in module.buffers()]
        for tensor in (*parameters, *buffers, batch, labels):
            recorder.add(tensor)
        before = recorder.live
        with recorder:
            for _ in range(2):
                recorder.peak = 0
                _pass(modules, batch, labels, half)
                peaks.append(recorder.peak)
    trained = [parameter.nbytes for parameter in parameters if parameter.grad is not None]
    # the optimizer updates one weight after another, with two temporary tensors
    update = before + sum(trained) + 2 * max(trained)
    return max(peaks[0], update), max(peaks[1], update), sum(trained)


def _pass(modules: list[nn.Module], images: torch.Tensor, labels: torch.Tensor, half: bool) -> None:
    """Forward and backward pass of a network, or of tails on its trunk."""
    model, *tails = modules
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=half)
    with autocast():
        inputs = Trunk(model)(images) if tails else (images,)
    for module in tails or [model]:
        with autocast():
            loss = nn.functional.cross_entropy(module(*inputs), labels, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]


@functools.cache
def parameters_and_flops(backbone: str, classes: int, size: int) -> tuple[int, int]:
    """Number of parameters, and FLOPs of the forward pass of one image at `size` px."""
    # Of the backward pass torch counts too many: it ignores the groups of convolutions.
    model = _network(backbone, classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, counter.get_total_flops()


@functools.cache
def can_recompute(backbone: str) -> bool:
    """Whether the network supports gradient checkpointing."""
    try:
        device.recompute(_network(backbone, 10))
    except InputError:
        return False
    return True


# Share of a card's memory for tensors; the rest is for gaps of the allocator and cuDNN's workspace.
CARD_SHARE = 0.9


@dataclass(frozen=True)
class StepPlan:
    """A way to run a training step."""

    micro_batch_size: int  # images at once; the gradients of a batch's micro-batches add up
    gradient_checkpointing: bool  # recompute activations instead of storing them
    peak_bytes: int  # predicted, of tensors

    def __str__(self) -> str:
        """Describe the plan."""
        recomputed = ", activations recomputed" if self.gradient_checkpointing else ""
        return f"{self.micro_batch_size} images at once{recomputed}"


def training_bytes(
    settings: TrainSettings, size: int, classes: int, micro_batch_size: int, recompute: bool
) -> int:
    """Predicted peak of tensor bytes in a step that trains all weights.

    The peak includes weights, gradients, moments, buffers, input, activations and temporary
    tensors, except those inside a kernel. fp16 counts as bf16, which takes as many bytes.

    Raises:
        InputError: `recompute` for a network that does not support it.
    """
    half = settings.precision != "fp32"
    first, later, trained = traced_step(
        settings.backbone, classes, size, half, recompute, 0, micro_batch_size
    )
    peak = later if micro_batch_size < settings.batch_size else first
    moments = 2 if settings.optimizer == "adamw" else 1
    return peak + moments * trained


def adapting_bytes(settings: PairSettings, classes: int) -> int:
    """Predicted peak of tensor bytes of stage 2 at the test resolution, with all tails at once.

    Evaluation needs at most as much. The prediction does not include a trained `conv_head`.
    """
    tails = max(1, sum(len(settings.grid(name)) for name in settings.adapted))
    half = settings.precision != "fp32"
    peak, _, trained = traced_step(
        settings.backbone, classes, settings.test_size, half, False, tails, settings.batch_size
    )
    return peak + trained  # SGD has one moment


def micro_batches(batch_size: int) -> list[int]:
    """The batch size, its half, quarter and so on, rounded up, down to 1 image."""
    halvings = (batch_size - 1).bit_length()
    return [math.ceil(batch_size / 2**count) for count in range(halvings + 1)]


def step_plans(
    settings: TrainSettings, size: int, classes: int, budget_bytes: int
) -> Iterator[StepPlan]:
    """Plans for a step of all weights, from the first one predicted to fit; otherwise the last.

    In order: the whole batch; the whole batch with gradient checkpointing, which gives the same
    results; then smaller and smaller micro-batches with checkpointing, whose batch norms see fewer
    images. `settings.gradient_checkpointing` True drops the first plan. False drops checkpointing
    from all plans, and so does "auto" for networks that do not support it.

    Raises:
        InputError: `gradient_checkpointing` is True for a network that does not support it.
    """
    checkpointing = settings.gradient_checkpointing
    recompute = can_recompute(settings.backbone) if checkpointing == "auto" else checkpointing
    options = [(images, recompute) for images in micro_batches(settings.batch_size)]
    if checkpointing == "auto" and recompute:
        options.insert(0, (settings.batch_size, False))
    plans = (
        StepPlan(*option, training_bytes(settings, size, classes, *option)) for option in options
    )
    return itertools.dropwhile(
        lambda plan: plan.peak_bytes > budget_bytes and plan.micro_batch_size > 1, plans
    )


def budget_bytes() -> int:
    """Bytes for a run's tensors on this machine, independent of its current load.

    On a GPU, 0.9 of its memory. On a CPU, half of the machine's memory or of the lowest limit of
    the control groups, so that two runs of a sweep fit side by side.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory * CARD_SHARE)
    return min([int(psutil.virtual_memory().total), *group_limits()]) // 2


def group_limits(
    membership: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Memory limits, in bytes, of this process' control group and its parents (cgroup v2)."""
    text = membership.read_text() if membership.is_file() else ""
    match = re.search(r"^0::/(.*)$", text, re.MULTILINE)
    if match is None:
        return []
    group = groups / match[1]
    files = [folder / "memory.max" for folder in (group, *group.parents)]
    limits = [file.read_text().strip() for file in files if file.is_file()]
    return [int(limit) for limit in limits if limit != "max"]

"""What a training needs, from shapes alone: memory, FLOPs and how to make it fit. Nothing is downloaded or trained.

A step is run once on fake tensors, which have shapes and no content, while a recorder notes every storage that comes
and goes. Memory is in bytes of tensors. A multiply-add counts as 2 FLOPs.
"""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fixres_poc.config.errors import InputError
from fixres_poc.config.provenance import kept
from fixres_poc.model import backbones
from fixres_poc.model.trunk import Tail, Trunk

TRACED = (2, 4)  # batch sizes; others follow from them. 1 is special to batch norm and to memory formats
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
            fresh = np.where(self.gradients, self.came, 0)  # a new gradient lives on until it is added
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
        # Fused SGD needs no temporary tensors but has no fake form; the plain one has one parameter's at a time.
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
    born = [recorder.born[each.grad.untyped_storage()._cdata] for each in trained if each.grad is not None]
    came, went = np.array([recorder.came, recorder.went], dtype=np.int64)
    return _Trace(came, went, np.isin(np.arange(len(came)), born))


def _network(backbone: str, classes: int) -> nn.Module:
    """A network without any memory. Built on the meta device, since some compute numbers when they are built."""
    with torch.device("meta"):
        return backbones.create(backbone, classes, pretrained=False)


@functools.cache
def training_trace(backbone: str, classes: int, size: int, half: bool, recompute: bool, batch: int) -> _Trace:
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
def adapting_trace(backbone: str, classes: int, size: int, half: bool, tails: int, batch: int) -> _Trace:
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
    if len(first.came) != len(second.came):  # a network that does other things at another batch size
        return trace(batch)
    a, b = (np.array([each.came, each.went]) for each in (first, second))
    came, went = (b - a) // (high - low) * (batch - low) + a
    return _Trace(came, went, first.gradients)


@kept
def parameters_and_flops(backbone: str, classes: int, size: int) -> tuple[int, int]:
    """Number of parameters, and FLOPs of one image's forward pass at `size` px."""
    # Not of the backward pass: torch's counter takes that of grouped convolutions for that of full ones.
    model = _network(backbone, classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return sum(each.numel() for each in model.parameters()), counter.get_total_flops()


@kept
def can_recompute(backbone: str) -> bool:
    """Whether the network can do gradient checkpointing."""
    try:
        backbones.recompute(_network(backbone, 10))
    except InputError:
        return False
    return True

"""The device of a network: precision, memory format, clock, loader processes and memory."""

import logging
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs, broadcast
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from fixres_poc.config.errors import InputError
from fixres_poc.config.provenance import cores
from fixres_poc.config.settings import ModelSettings

log = logging.getLogger(__name__)
Maps = tuple[torch.Tensor, ...]
FOR_CACHES = 8  # images at once on a CPU, so that activations stay in its caches


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that the device or the machine ran out of memory."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


@dataclass
class Portions:
    """A frozen network that processes a batch in portions.

    If a portion does not fit into memory, this and all later ones get half the size. The size
    changes no result.

    Attributes:
        network: maps images (N, 3, H, W) to tensors whose first dimension is N.
        size: images at once; on a CPU `FOR_CACHES` at most.
        device: the network's device.
    """

    network: Callable[[torch.Tensor], Maps]
    size: int
    device: torch.device

    def __post_init__(self) -> None:
        """Limit the size."""
        if not torch.cuda.is_available():
            self.size = min(self.size, FOR_CACHES)

    def __call__(self, images: torch.Tensor) -> Maps:
        """The network's outputs for all images.

        Raises:
            MemoryError, RuntimeError: one image does not fit, or the network fails otherwise.
        """
        while True:
            try:
                outputs = [
                    self.network(portion.to(self.device, non_blocking=True))
                    for portion in torch.split(images, self.size)
                ]
                return tuple(map(torch.cat, zip(*outputs, strict=True)))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.size == 1:
                    raise
            self.size //= 2
            log.warning("out of memory: now %d images at once, with the same results", self.size)
            clear_device_cache(garbage_collection=True)


def spare_single_values(model: nn.Module) -> list[RemovableHandle]:
    """Let batch norms in train mode accept a single value per channel, in place.

    One image has a single value per channel in maps of 1 x 1. It has no variance, so torch refuses
    it. With these hooks the norm then applies its running statistics, and does not update them. For
    all other inputs nothing changes.

    Returns:
        The hooks.
    """
    hooks = []
    for norm in filter(is_batch_norm, model.modules()):
        hooks.append(norm.register_forward_pre_hook(_pause_training))
        # always_call: recomputation leaves a forward pass with an exception
        hooks.append(norm.register_forward_hook(_resume_training, always_call=True))
    return hooks


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm of any dimension."""
    return isinstance(module, _BatchNorm)


def _pause_training(norm: Any, inputs: tuple[torch.Tensor]) -> None:
    norm.paused = norm.training and inputs[0].numel() <= inputs[0].shape[1]
    norm.training ^= norm.paused


def _resume_training(norm: Any, *_: Any) -> None:
    norm.training |= norm.paused


def share_buffers(module: nn.Module, accelerator: Accelerator) -> None:
    """Copy the buffers of the first process to all others, in place.

    They differ because each process trains on other images.
    """
    if accelerator.num_processes > 1:
        for buffer in module.buffers():
            buffer.copy_(broadcast(buffer))


FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
WIDE_GROUP = 16  # channels


def accelerator_for(precision: str) -> Accelerator:
    """The GPU, or the CPU of a machine without one, with precision "fp32", "bf16" or "fp16".

    Raises:
        InputError: fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError(
            "precision = 'fp16': needs a CUDA GPU, and none was found; allowed here: fp32, bf16"
        )
    AcceleratorState._reset_state(reset_partial_state=False)  # noqa: SLF001
    # with split_batches the schedule advances by one a step, for any number of processes
    loading = DataLoaderConfiguration(split_batches=True)
    # the other processes wait while one downloads or draws
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=3))
    mixed = "no" if precision == "fp32" else precision
    return Accelerator(mixed_precision=mixed, dataloader_config=loading, kwargs_handlers=[waiting])


def now(accelerator: Accelerator) -> float:
    """A clock in seconds, read after the device has finished its queue."""
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
    return time.perf_counter()


def workers() -> int:
    """Number of loader processes: 0 on a CPU, where the network needs all cores, else 8 at most."""
    return min(8, cores()) if torch.cuda.is_available() else 0


def memory_format(
    model: nn.Module, settings: ModelSettings, accelerator: Accelerator
) -> torch.memory_format:
    """The memory format of `settings.memory_format`; "auto" chooses the faster one.

    On a CPU that is channels_last: 1.5 times as fast for EfficientNet-Lite0. On a GPU it is
    channels_last too, except for networks whose grouped convolutions all have at least `WIDE_GROUP`
    channels a group; depthwise convolutions do not count. In timm's benchmark (AMP training, RTX
    3090, 224 px; results/benchmark-train-amp-{nhwc,nchw}-pt112-cu113-rtx3090.csv) channels_last and
    NCHW reach, in images/s: EfficientNet-B5 114 and 94; ResNeXt-101 with groups of 4 channels in
    its first stage 609 and 427, of 8: 313 and 276, of 16: 66 and 130, of 32: 21 and 63, of 48: 11
    and 32; RegNetX-040, of 40: 442 and 625. RegNetZ-040, of 64, is an exception: 472 and 375.
    """
    if settings.memory_format != "auto":
        return FORMATS[settings.memory_format]
    widths = [
        layer.in_channels // layer.groups
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d) and 1 < layer.groups < layer.in_channels
    ]
    wide = accelerator.device.type != "cpu" and min(widths, default=0) >= WIDE_GROUP
    return FORMATS["nchw" if wide else "channels_last"]


def format_name(model: nn.Module) -> str:
    """Name of the memory format of a network's weights."""
    kernels = (parameter for parameter in model.parameters() if parameter.dim() == 4)
    return "nchw" if all(kernel.is_contiguous() for kernel in kernels) else "channels_last"


def place(model: nn.Module, settings: ModelSettings, accelerator: Accelerator) -> nn.Module:
    """The model on its device, in the memory format of `memory_format`."""
    format = memory_format(model, settings, accelerator)
    return model.to(accelerator.device, memory_format=format)  # type: ignore[call-overload, no-any-return]


def peak_memory_bytes() -> int:
    """Peak memory so far: of tensors on the GPU, or without one the resident set of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name() -> str | None:
    """Name of the GPU, None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def recompute(model: nn.Module) -> None:
    """Turn on gradient checkpointing, in place: activations are recomputed, not stored.

    Results stay the same, memory shrinks, and work grows by a third. Batch norms see a batch twice,
    and update their statistics once.

    Raises:
        InputError: timm does not support it for this network.
    """
    try:
        cast(Any, model).set_grad_checkpointing()
    except (AttributeError, AssertionError):
        raise InputError(
            f"gradient_checkpointing = True: timm cannot do it for {type(model).__name__}; "
            "allowed for this network: false, or auto"
        ) from None
    for norm in filter(is_batch_norm, model.modules()):
        if norm.track_running_stats:
            norm.register_forward_pre_hook(partial(_count_batch_once, norm.momentum))


def _count_batch_once(momentum: Any, norm: Any, _: Any) -> None:
    """Keep running statistics in a recomputation, which is a forward pass inside a backward pass.

    Momentum 0 keeps them, and the norm still saves the same tensors for backward. torch has no
    public function that tells whether backward runs; its own checkpointing reads the same value.
    """
    recomputing = norm.training and torch._C._current_graph_task_id() != -1  # noqa: SLF001
    norm.momentum = 0.0 if recomputing else momentum
    if recomputing:
        norm.num_batches_tracked.sub_(1)

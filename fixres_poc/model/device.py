"""The device that networks run on: precision, memory format, clock, loader processes, memory."""

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
# images at once on a CPU: the activations of a few stay in its caches
FOR_CACHES = 8


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the memory of the device or of the machine did not suffice."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


@dataclass
class Portions:
    """A frozen network that takes a batch in portions, halved for good if they do not fit.

    The portion's size changes no result.

    Attributes:
        network: from images (N, 3, H, W) to tensors whose first dimension is N.
        size: images at once; on a CPU `FOR_CACHES` at most.
        device: where images are put.
    """

    network: Callable[[torch.Tensor], Maps]
    size: int
    device: torch.device

    def __post_init__(self) -> None:
        """Limit the size."""
        if not torch.cuda.is_available():
            self.size = min(self.size, FOR_CACHES)

    def __call__(self, images: torch.Tensor) -> Maps:
        """What the network gives for all images.

        Raises:
            MemoryError, RuntimeError: not even one image fits, or an error of another kind.
        """
        while True:
            try:
                parts = [
                    self.network(part.to(self.device, non_blocking=True))
                    for part in torch.split(images, self.size)
                ]
                return tuple(torch.cat(each) for each in zip(*parts, strict=True))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.size == 1:
                    raise
            self.size //= 2
            log.warning("out of memory: now %d images at once, with the same results", self.size)
            clear_device_cache(garbage_collection=True)


def spare_single_values(model: nn.Module) -> list[RemovableHandle]:
    """Let batch norms in train mode take a single value per channel, in place.

    One image has such values where maps are 1 px wide. They have no variance, so torch refuses to
    normalise them: now running statistics are used, and stay as they are. For all other inputs
    nothing changes.

    Returns:
        The hooks that do so.
    """
    hooks = []
    for norm in filter(is_batch_norm, model.modules()):
        hooks.append(norm.register_forward_pre_hook(_pause_training))
        # always: recomputation leaves a forward pass by an exception
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
    """Give all processes, which have seen other images, the first one's statistics, in place."""
    if accelerator.num_processes > 1:
        for buffer in module.buffers():
            buffer.copy_(broadcast(buffer))


FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
WIDE_GROUP = 16


def accelerator_for(precision: str) -> Accelerator:
    """The GPU where there is one, else the CPU, with a precision: "fp32", "bf16" or "fp16".

    Raises:
        InputError: fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError(
            "precision = 'fp16': needs a CUDA GPU, and none was found; allowed here: fp32, bf16"
        )
    AcceleratorState._reset_state(reset_partial_state=False)  # noqa: SLF001
    # so that the schedule goes on by one a step, on any number
    loading = DataLoaderConfiguration(split_batches=True)
    # others wait while one downloads or draws
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=3))
    mixed = "no" if precision == "fp32" else precision
    return Accelerator(mixed_precision=mixed, dataloader_config=loading, kwargs_handlers=[patient])


def now(accelerator: Accelerator) -> float:
    """A clock in seconds, read once the device has done all that it was told to."""
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
    return time.perf_counter()


def workers() -> int:
    """Loader processes: none on the CPU, where the network needs every core, else 8 at most."""
    return min(8, cores()) if torch.cuda.is_available() else 0


def memory_format(
    model: nn.Module, settings: ModelSettings, accelerator: Accelerator
) -> torch.memory_format:
    """The memory format of `settings.memory_format`; "auto" is the faster one.

    On a CPU that is channels_last: 1.5 times as fast for EfficientNet-Lite0. On a GPU channels_last
    as well, but for networks whose grouped convolutions have `WIDE_GROUP` channels a group or more.
    In timm's benchmark (AMP training, RTX 3090, 224 px;
    results/benchmark-train-amp-{nhwc,nchw}-pt112-cu113-rtx3090.csv) channels_last against NCHW
    gives, in images/s: EfficientNet-B5 114 and 94; ResNeXt-101 with groups of 4 channels in its
    first stage 609 and 427, of 8: 313 and 276, of 16: 66 and 130, of 32: 21 and 63, of 48: 11 and
    32; RegNetX-040, of 40: 442 and 625. RegNetZ-040, of 64, is an exception: 472 and 375.
    """
    if settings.memory_format != "auto":
        return FORMATS[settings.memory_format]
    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    grouped = [each for each in convolutions if 1 < each.groups < each.in_channels]
    widths = [each.in_channels // each.groups for each in grouped]
    # depthwise ones do not count
    wide = accelerator.device.type != "cpu" and min(widths, default=0) >= WIDE_GROUP
    return FORMATS["nchw" if wide else "channels_last"]


def format_name(model: nn.Module) -> str:
    """Name of the memory format that a network's weights have."""
    for kernel in model.parameters():
        if kernel.dim() == 4 and not kernel.is_contiguous():
            return "channels_last"
    return "nchw"


def place(model: nn.Module, settings: ModelSettings, accelerator: Accelerator) -> nn.Module:
    """The model on its device, in the memory format of `memory_format`."""
    format = memory_format(model, settings, accelerator)
    return model.to(accelerator.device, memory_format=format)  # type: ignore[call-overload, no-any-return]


def peak_memory_bytes() -> int:
    """Highest memory so far: of tensors on the GPU, without one of this process (resident)."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name() -> str | None:
    """Name of the GPU, None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def recompute(model: nn.Module) -> None:
    """Turn on gradient checkpointing, in place: activations are recomputed, not stored.

    Same results, less memory, a third more work. Batch norms count a batch once, although they see
    it twice.

    Raises:
        InputError: timm cannot do so for this network.
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
    """Leave running statistics as they are in a recomputation: a forward within a backward pass.

    They are still handed in, since a recomputation must save the same tensors for backward. torch
    has no public name for the question whether backward is running; its own checkpointing asks it
    in the same way.
    """
    again = norm.training and torch._C._current_graph_task_id() != -1  # noqa: SLF001
    norm.momentum = 0.0 if again else momentum
    if again:
        norm.num_batches_tracked.sub_(1)

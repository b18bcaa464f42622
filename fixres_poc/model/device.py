"""The device that networks run on: precision, memory format, clock, loader processes, memory used."""

import ctypes
import logging
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from torch.utils.hooks import RemovableHandle

from fixres_poc.config.errors import InputError
from fixres_poc.config.provenance import cores
from fixres_poc.config.settings import ModelSettings

Way = TypeVar("Way")
Done = TypeVar("Done")
log = logging.getLogger(__name__)
Maps = tuple[torch.Tensor, ...]
# images at once on a CPU: what they leave behind a layer stays nearer to it than that of more
FOR_CACHES = 8


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device or of the machine did not suffice."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, Exception) and should_reduce_batch_size(error))


def release() -> None:
    """Give back what nothing refers to any more."""
    clear_device_cache(garbage_collection=True)


def first_that_fits(ways: Iterable[Way], attempt: Callable[[Way], Done]) -> tuple[Done, list[str]]:
    """Try ways to do a thing until memory suffices for one of them.

    Returns:
        What the attempt gave, and a line for every way that was given up.

    Raises:
        InputError: none fits.
    """
    failed: Way | None = None
    said: list[str] = []
    for way in ways:
        if failed is not None:
            release()
            said.append(f"out of memory with {failed}: on with {way}")
            log.warning(said[-1])
        try:
            return attempt(way), said
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        failed = way
    raise InputError(f"not even one image fits into memory: {failed} was the last that was tried")


def keep_freed() -> None:
    """Let this process keep freed memory for its next tensors, with GNU's C library; elsewhere nothing is done.

    By default tensors of more than 32 MiB go back to the system when freed, and the next ones are
    new pages, each of which the system must clear first: half the time of a CPU network at 224 px
    and 32 images.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX in malloc.h: no block from the system alone
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: none back


@dataclass
class Portion:
    """How many images pass a frozen network at once, which changes no result; halved, for good, if they do not fit."""

    size: int

    def __post_init__(self) -> None:
        """On a CPU, `FOR_CACHES` at most."""
        self.size = self.size if torch.cuda.is_available() else min(self.size, FOR_CACHES)

    def run(self, network: Callable[[torch.Tensor], Maps], images: torch.Tensor) -> Maps:
        """What the network gives for all images (N, 3, H, W): tensors whose first dimension is N.

        Raises:
            MemoryError, RuntimeError: not even one image fits, or an error of another kind.
        """
        while True:
            try:
                parts = [network(part) for part in torch.split(images, self.size)]
                return (
                    parts[0]
                    if len(parts) == 1
                    else tuple(torch.cat(each) for each in zip(*parts, strict=True))
                )
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.size == 1:
                    raise
            self.size //= 2
            log.warning(
                "out of memory: on with %d images at once, which changes no result", self.size
            )
            release()


def spare_single_values(model: nn.Module) -> list[RemovableHandle]:
    """Let batch norms in train mode use their running statistics for a single value per channel, in place.

    torch refuses to normalise such a value, which one image has where maps are 1 px wide: it has no
    variance. It changes no statistics. For all other inputs nothing changes.

    Returns:
        The hooks that do so.
    """
    norms = [
        module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    # always: recomputation leaves a forward pass by an exception
    after = [norm.register_forward_hook(_resume_training, always_call=True) for norm in norms]
    return after + [norm.register_forward_pre_hook(_pause_training) for norm in norms]


def _pause_training(norm: Any, inputs: tuple[torch.Tensor]) -> None:
    norm.paused = norm.training and inputs[0].numel() <= inputs[0].shape[1]
    norm.training ^= norm.paused


def _resume_training(norm: Any, *_: Any) -> None:
    norm.training |= norm.paused


FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
WIDE_GROUP = 16


def accelerator_for(precision: str) -> Accelerator:
    """Device and mixed precision ("fp32", "bf16", "fp16") of this machine: the GPU where there is one, else the CPU.

    Raises:
        InputError: fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError(
            "precision = 'fp16': needs a CUDA GPU, and none was found; allowed here: fp32, bf16"
        )
    if not torch.cuda.is_available():
        keep_freed()
    AcceleratorState._reset_state(reset_partial_state=False)
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
    """Loader processes: none on the CPU, where the network needs every core, else one a core of ours, at most 8."""
    return min(8, cores()) if torch.cuda.is_available() else 0


def memory_format(
    model: nn.Module, settings: ModelSettings, accelerator: Accelerator
) -> torch.memory_format:
    """The memory format of `settings.memory_format`; "auto" knows which one is the faster for a network on a device.

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
    widths = [
        each.in_channels // each.groups
        for each in convolutions
        if 1 < each.groups < each.in_channels
    ]
    # depthwise ones do not count
    wide = accelerator.device.type != "cpu" and min(widths, default=0) >= WIDE_GROUP
    return FORMATS["nchw" if wide else "channels_last"]


def format_name(model: nn.Module) -> str:
    """Name of the memory format that a network's weights have."""
    kernels = [each for each in model.parameters() if each.dim() == 4]
    last = any(
        each.is_contiguous(memory_format=torch.channels_last) and not each.is_contiguous()
        for each in kernels
    )
    return "channels_last" if last else "nchw"


def place(model: nn.Module, settings: ModelSettings, accelerator: Accelerator) -> nn.Module:
    """The model on its device, in the memory format of `memory_format`."""
    format = memory_format(model, settings, accelerator)
    return model.to(accelerator.device, memory_format=format)  # type: ignore[call-overload, no-any-return]


def peak_memory_bytes() -> int:
    """Highest memory so far: tensors on the GPU where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name() -> str | None:
    """Name of the GPU, None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None

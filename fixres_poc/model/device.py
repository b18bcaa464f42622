"""The device that networks run on: precision, memory format, clock, loader processes, memory used."""

import resource
import sys
import time
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.provenance import cores
from fixres_poc.config.settings import ModelSettings
from fixres_poc.model.micro_batches import keep_freed

FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
WIDE_GROUP = 16


def accelerator_for(precision: str) -> Accelerator:
    """Device and mixed precision ("fp32", "bf16", "fp16") of this machine: the GPU where there is one, else the CPU.

    Raises:
        InputError: fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("precision = 'fp16': needs a CUDA GPU, and none was found; allowed here: fp32, bf16")
    if not torch.cuda.is_available():
        keep_freed()
    AcceleratorState._reset_state(reset_partial_state=False)
    loading = DataLoaderConfiguration(split_batches=True)  # so that the schedule goes on by one a step, on any number
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=3))  # others wait while one downloads or draws
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


def memory_format(model: nn.Module, settings: ModelSettings, accelerator: Accelerator) -> torch.memory_format:
    """The memory format of `settings.memory_format`; "auto" knows which one is the faster for a network on a device.

    On a CPU that is channels_last: 1.5 times as fast for EfficientNet-Lite0. On a GPU channels_last as well, but for
    networks whose grouped convolutions have `WIDE_GROUP` channels a group or more. In timm's benchmark (AMP training,
    RTX 3090, 224 px; results/benchmark-train-amp-{nhwc,nchw}-pt112-cu113-rtx3090.csv) channels_last against NCHW gives,
    in images/s: EfficientNet-B5 114 and 94; ResNeXt-101 with groups of 4 channels in its first stage 609 and 427, of 8:
    313 and 276, of 16: 66 and 130, of 32: 21 and 63, of 48: 11 and 32; RegNetX-040, of 40: 442 and 625. RegNetZ-040, of
    64, is an exception: 472 and 375.
    """
    if settings.memory_format != "auto":
        return FORMATS[settings.memory_format]
    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    widths = [each.in_channels // each.groups for each in convolutions if 1 < each.groups < each.in_channels]
    wide = accelerator.device.type != "cpu" and min(widths, default=0) >= WIDE_GROUP  # depthwise ones do not count
    return FORMATS["nchw" if wide else "channels_last"]


def format_name(model: nn.Module) -> str:
    """Name of the memory format that a network's weights have."""
    kernels = [each for each in model.parameters() if each.dim() == 4]
    last = any(each.is_contiguous(memory_format=torch.channels_last) and not each.is_contiguous() for each in kernels)
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

"""Retries with fewer images when memory runs out; freed memory that is used again."""

import ctypes
import logging
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from torch.utils.hooks import RemovableHandle

from fixres_poc.config.errors import InputError

Way = TypeVar("Way")
Done = TypeVar("Done")
log = logging.getLogger(__name__)
Maps = tuple[torch.Tensor, ...]
FOR_CACHES = 8  # images at once on a CPU: what they leave behind a layer stays nearer to it than that of more


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

    By default tensors of more than 32 MiB go back to the system when freed, and the next ones are new pages, each of
    which the system must clear first: half the time of a CPU network at 224 px and 32 images.
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
                return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.size == 1:
                    raise
            self.size //= 2
            log.warning("out of memory: on with %d images at once, which changes no result", self.size)
            release()


def spare_single_values(model: nn.Module) -> list[RemovableHandle]:
    """Let batch norms in train mode use their running statistics for a single value per channel, in place.

    torch refuses to normalise such a value, which one image has where maps are 1 px wide: it has no variance. It
    changes no statistics. For all other inputs nothing changes.

    Returns:
        The hooks that do so.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    # always: recomputation leaves a forward pass by an exception
    after = [norm.register_forward_hook(_resume_training, always_call=True) for norm in norms]
    return after + [norm.register_forward_pre_hook(_pause_training) for norm in norms]


def _pause_training(norm: Any, inputs: tuple[torch.Tensor]) -> None:
    norm.paused = norm.training and inputs[0].numel() <= inputs[0].shape[1]
    norm.training ^= norm.paused


def _resume_training(norm: Any, *_: Any) -> None:
    norm.training |= norm.paused

"""What to do when memory runs out, fewer pictures at once, and how to be spared the cost of getting it each time."""

import ctypes
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

log = logging.getLogger(__name__)
Maps = tuple[torch.Tensor, ...]
FOR_CACHES = 8  # pictures at once on a CPU: what they leave behind a layer stays nearer to it than that of more
MALLOC_OPTIONS = {-4: 0, -1: -1}  # malloc.h: M_MMAP_MAX, no block from the system alone; M_TRIM_THRESHOLD, none back


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the device or of the machine did not suffice."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, Exception) and should_reduce_batch_size(error))


def release() -> None:
    """Give back what nothing refers to any more."""
    clear_device_cache(garbage_collection=True)


def keep_freed() -> None:
    """Let this process keep freed memory for its next tensors, with GNU's C library; elsewhere nothing is done.

    By default tensors of more than 32 MiB go back to the system when freed, and the next ones are new pages, each of
    which the system must clear first: half the time of a CPU network at 224 px and 32 pictures.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for parameter, value in MALLOC_OPTIONS.items():
            library.mallopt(parameter, value)


@dataclass
class Portion:
    """How many pictures pass a frozen network at once; halved, for good, whenever they do not fit.

    A frozen network in eval mode gives the same result for a picture whatever passes beside it.
    """

    size: int

    def __post_init__(self) -> None:
        """On a CPU, `FOR_CACHES` at most."""
        self.size = self.size if torch.cuda.is_available() else min(self.size, FOR_CACHES)

    def run(self, network: Callable[[torch.Tensor], Maps], images: torch.Tensor) -> Maps:
        """What the network gives for all images.

        Args:
            network: takes (n, 3, H, W), gives tensors whose first dimension is n.
            images: (N, 3, H, W).

        Raises:
            MemoryError, RuntimeError: not even one picture fits, or an error of another kind.
        """
        while True:
            try:
                parts = [network(part) for part in torch.split(images, self.size)]
                return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.size == 1:
                    raise
            self.size //= 2
            log.warning("out of memory: on with %d pictures at once, which changes no result", self.size)
            release()

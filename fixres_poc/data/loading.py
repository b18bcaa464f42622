"""Images of a table as batches of tensors."""

import functools
import hashlib
import math
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

from fixres_poc.config.errors import InputError
from fixres_poc.data import decoding
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.transforms import Transform


def read_image(path: Path) -> torch.Tensor:
    """One image as uint8 (3, H, W), in the form that `decoding.as_rgb` describes.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    with decoding.opened(path) as image:
        return cast(torch.Tensor, F.pil_to_tensor(decoding.as_rgb(image)))


class DecodedImages:
    """Decoded images that stay in memory, for all epochs and test resolutions of one process.

    The first images that fit stay: dropping the least recently used one would drop every image just
    before its next use, since each epoch reads all of them. A changed file is decoded again.
    """

    def __init__(self, most_bytes: int) -> None:
        """Keep at most so many bytes."""
        self.images: dict[tuple[Path, int, int], torch.Tensor] = {}
        self.left_bytes = most_bytes

    def read(self, path: Path) -> torch.Tensor:
        """One image, see `read_image`; nobody may change it in place."""
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        if key in self.images:
            return self.images[key]
        image = read_image(path)
        # what a loader process keeps would end with its epoch
        if image.nbytes <= self.left_bytes and get_worker_info() is None:
            self.images[key] = image
            self.left_bytes -= image.nbytes
        return image


@functools.cache
def decoded_images() -> DecodedImages:
    """The decoded images of this process, FIXRES_IMAGE_CACHE_MIB of them, or 512 MiB.

    Raises:
        InputError: that is no number of MiB.
    """
    size = os.environ.get("FIXRES_IMAGE_CACHE_MIB", "512")
    if not size.isdecimal():
        raise InputError(f"FIXRES_IMAGE_CACHE_MIB = {size!r}: allowed is a number of MiB, or 0")
    return DecodedImages(int(size) * 2**20)


class SplitImages(Dataset[tuple[torch.Tensor, int, int]]):
    """Rows of an image table: (image (3, K, K), label, row number).

    A random transform is a function of (seed, epoch, image), whatever the number of workers and the
    order of images.
    """

    def __init__(
        self, data: ImageDataset, split: str, transform: Transform, seed: int | None = None
    ) -> None:
        """Keep the rows of one split; `seed` None stands for a transform that draws nothing."""
        own = data.only(split)
        self.table, self.paths = own.table, own.paths
        self.names: list[str] = own.table["image"].tolist()
        self.labels = torch.tensor(own.table["label"].to_numpy())
        self._own, self._common = _divided(transform)
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        """Read and transform one image."""
        images, labels, rows = self.__getitems__([index])
        return images[0], int(labels), int(rows)

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read and transform a batch; what treats all values alike is done once for all of it."""
        images = self._common(torch.stack([self._transformed(index) for index in rows]))
        return images, self.labels[rows], torch.tensor(rows)

    def _transformed(self, index: int) -> torch.Tensor:
        image = decoded_images().read(self.paths[index])
        if self.seed is None:
            return self._own(image)
        key = hashlib.sha256(f"{self.seed}:{self.epoch}:{self.names[index]}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which keeps a stack trace of every call for GPUs that are not
            # in use yet
            torch.default_generator.manual_seed(int.from_bytes(key[:8], "little", signed=True))
            return self._own(image)


def _divided(transform: Transform) -> tuple[Transform, Transform]:
    """A transform's steps on single images, and trailing steps that treat all values alike."""
    steps = list(getattr(transform, "transforms", [transform]))
    common: list[Any] = [torch.as_tensor]
    while steps and isinstance(steps[-1], v2.ToDtype | v2.Normalize):
        step = steps.pop()
        if isinstance(step, v2.Normalize):  # on a batch of our own
            step = v2.Normalize(step.mean, step.std, inplace=True)
        common.insert(0, step)
    return v2.Compose([*steps, torch.as_tensor]), v2.Compose(common)


def batches(samples: SplitImages, batch_size: int) -> list[list[int]]:
    """Row numbers of every batch of an epoch.

    With a seed, for training, they are shuffled by (seed, epoch), else in order. For training the
    sizes differ by one image at most (see `parts_of`): a last batch of a few images would count as
    much as a full one, and its batch norm would be noise.
    """
    count = len(samples)
    if samples.seed is None:
        parts = torch.arange(count).tensor_split(list(range(batch_size, count, batch_size)))
    else:
        shuffle = torch.Generator().manual_seed(samples.seed * 1_000_003 + samples.epoch)
        order = torch.randperm(count, generator=shuffle)
        parts = order.tensor_split(parts_of(count, batch_size))
    return [part.tolist() for part in parts if len(part)]


def parts_of(images: int, most: int) -> int:
    """Number of parts of about equal size, of `most` images each, that images are trained in.

    None has one image alone, with which batch norm cannot train: it joins another part, which then
    has `most` + 1 (2 images at a time, 13 in all: a part of 3 and five of 2). With `most` = 1 every
    part has one image.
    """
    return max(1, images if most == 1 else min(math.ceil(images / most), images // 2))


def loader(
    samples: SplitImages, rows: list[list[int]], workers: int = 0, rank: int = 0, processes: int = 1
) -> DataLoader[tuple[torch.Tensor, int, int]]:
    """Images (n, 3, K, K), labels (n,) and row numbers (n,) of batches.

    Process `rank` gets its part of each batch.
    """
    return DataLoader(
        samples,
        batch_sampler=[
            batch[len(batch) * rank // processes : len(batch) * (rank + 1) // processes]
            for batch in rows
        ],
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=tuple,  # the dataset makes whole batches
    )

"""Batches of tensors from the images of a dataset."""

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
    """Read an image as uint8 (3, H, W), converted by `decoding.as_rgb`.

    Raises:
        InputError: the file is missing or unreadable.
    """
    with decoding.opened(path) as image:
        return cast(torch.Tensor, F.pil_to_tensor(decoding.as_rgb(image)))


class DecodedImages:
    """A cache of decoded images for all epochs and test resolutions of one process.

    It keeps the first images that fit. Each epoch reads all images, so a cache that drops the least
    recently used one would drop every image just before its next use. A changed file is read again.
    """

    def __init__(self, most_bytes: int) -> None:
        """Create an empty cache of at most `most_bytes`."""
        self.images: dict[tuple[Path, int, int], torch.Tensor] = {}
        self.left_bytes = most_bytes

    def read(self, path: Path) -> torch.Tensor:
        """An image as `read_image` returns it; do not change it in place."""
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        if key in self.images:
            return self.images[key]
        image = read_image(path)
        # a loader process ends with its epoch, so its cache would be lost
        if image.nbytes <= self.left_bytes and get_worker_info() is None:
            self.images[key] = image
            self.left_bytes -= image.nbytes
        return image


@functools.cache
def decoded_images() -> DecodedImages:
    """The cache of this process, of FIXRES_IMAGE_CACHE_MIB MiB, by default 512.

    Raises:
        InputError: the variable is not a whole number.
    """
    size = os.environ.get("FIXRES_IMAGE_CACHE_MIB", "512")
    if not size.isdecimal():
        raise InputError(f"FIXRES_IMAGE_CACHE_MIB = {size!r}: allowed is a number of MiB, or 0")
    return DecodedImages(int(size) * 2**20)


class SplitImages(Dataset[tuple[torch.Tensor, int, int]]):
    """The images of one split: (image (3, K, K), label, row number).

    The result of a random transform depends on (seed, epoch, image), not on the number of workers
    or the order of images.
    """

    def __init__(
        self, data: ImageDataset, split: str, transform: Transform, seed: int | None = None
    ) -> None:
        """Select a split; `seed` is None for a transform without randomness."""
        images = data.only(split)
        self.table, self.paths = images.table, images.paths
        self.names: list[str] = self.table["image"].tolist()
        self.labels = torch.tensor(self.table["label"].to_numpy())
        self._image_transform, self._batch_transform = _divided(transform)
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        """Read and transform one image."""
        images, labels, rows = self.__getitems__([index])
        return images[0], int(labels), int(rows)

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read and transform a batch; see `_divided`."""
        images = self._batch_transform(torch.stack([self._transformed(index) for index in rows]))
        return images, self.labels[rows], torch.tensor(rows)

    def _transformed(self, index: int) -> torch.Tensor:
        image = decoded_images().read(self.paths[index])
        if self.seed is None:
            return self._image_transform(image)
        key = hashlib.sha256(f"{self.seed}:{self.epoch}:{self.names[index]}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would store a stack trace of every call until CUDA is initialised
            torch.default_generator.manual_seed(int.from_bytes(key[:8], "little", signed=True))
            return self._image_transform(image)


def _divided(transform: Transform) -> tuple[Transform, Transform]:
    """Divide a transform into steps for single images and trailing steps for a whole batch."""
    image_steps = list(getattr(transform, "transforms", [transform]))
    batch_steps: list[Any] = [torch.as_tensor]
    while image_steps and isinstance(image_steps[-1], v2.ToDtype | v2.Normalize):
        step = image_steps.pop()
        if isinstance(step, v2.Normalize):  # in place, since `torch.stack` has made a copy
            step = v2.Normalize(step.mean, step.std, inplace=True)
        batch_steps.insert(0, step)
    return v2.Compose([*image_steps, torch.as_tensor]), v2.Compose(batch_steps)


def batches(samples: SplitImages, batch_size: int) -> list[list[int]]:
    """Row numbers of every batch of an epoch.

    With a seed, for training, they are shuffled by (seed, epoch), and batch sizes differ by at most
    one (see `parts_of`): a last batch of a few images would weigh as much as a full one, and its
    batch statistics would be noise. Without a seed they are in order.
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
    """Number of training batches, or micro-batches, of about `most` images each.

    Batch norm cannot train on one image, so a single image joins another part, which then has
    `most` + 1: 13 images, 2 at a time, give a part of 3 and five of 2. With `most` = 1 every part
    has one image.
    """
    if most == 1:
        return max(1, images)
    return max(1, min(math.ceil(images / most), images // 2))


def loader(
    samples: SplitImages, rows: list[list[int]], workers: int = 0, rank: int = 0, processes: int = 1
) -> DataLoader[tuple[torch.Tensor, int, int]]:
    """Load images (n, 3, K, K), labels (n,) and row numbers (n,) of the batches `rows`.

    Of several processes each loads its share of every batch.
    """
    shares = [
        batch[len(batch) * rank // processes : len(batch) * (rank + 1) // processes]
        for batch in rows
    ]
    return DataLoader(
        samples,
        batch_sampler=shares,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=tuple,  # the dataset makes whole batches
    )

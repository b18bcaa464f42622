"""Pictures of a table as batches of tensors."""

import hashlib
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F  # noqa: N812  the name torchvision's own examples use

from fixres_poc.config import DataSettings, InputError, resolve
from fixres_poc.datasets import Pictures, image_folder, stanford_dogs, synthetic
from fixres_poc.transforms import Transform

# torchvision 0.29 announces that its decoders will move to another package; no message a reader of a notebook can use
warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def read_image(path: Path) -> torch.Tensor:
    """One picture as uint8 (3, H, W), in the form that `image_folder.as_rgb` describes.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as picture:  # reads the header alone, and refuses more pixels than memory should hold
            if picture.format == "JPEG" and image_folder.orientation(picture) == 1:
                try:
                    return cast(torch.Tensor, decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB))
                except RuntimeError:
                    pass  # what libjpeg refuses, such as odd colour spaces, goes to Pillow
            return cast(torch.Tensor, F.pil_to_tensor(image_folder.as_rgb(picture)))
    except Exception as error:  # damaged files raise errors of many kinds
        raise InputError(f"{path}: not a readable picture ({type(error).__name__}); repair or remove it") from None


def shown(settings: DataSettings, names: Iterable[str]) -> list[torch.Tensor]:
    """Pictures to show to a reader, uint8 (3, H, W) each.

    Args:
        settings: of the data set that the names belong to.
        names: paths relative to its folder.

    Returns:
        The pictures; nothing where they may not be shown or are no longer at hand. Drawn ones are always at hand.
    """
    if not settings.show_pictures:
        return []
    if settings.dataset == "synthetic":
        return [F.pil_to_tensor(synthetic.open_picture(settings.split_seed, name)) for name in names]
    if not resolve(settings.dataset).is_dir():
        return []
    root = image_folder.root(stanford_dogs.images(resolve(settings.dataset)))
    paths = [root / name for name in names]
    return [read_image(path) for path in paths] if all(path.is_file() for path in paths) else []


class PictureDataset(Dataset[tuple[torch.Tensor, int, int]]):
    """Rows of a picture table: (image (3, K, K), label, row number).

    A random transform is a function of (seed, epoch, picture), so it depends neither on the number of workers nor on
    the order of the pictures.
    """

    def __init__(self, pictures: Pictures, split: str, transform: Transform, seed: int | None = None) -> None:
        """Keep the rows of one split; `seed` None stands for a transform that draws nothing."""
        self.root = pictures.root
        self.table = pictures.split(split)
        self.names: list[str] = self.table["picture"].tolist()
        self.labels: list[int] = self.table["label"].tolist()
        self._own, self._common = _split(transform)
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        """Read and transform one picture."""
        images, labels, rows = self.__getitems__([index])
        return images[0], int(labels), int(rows)

    def __getitems__(self, rows: list[int]) -> Batch:
        """Read and transform a batch; what treats all values alike is done once for all of it."""
        images = self._common(torch.stack([self._transformed(index) for index in rows]))
        return images, torch.tensor([self.labels[index] for index in rows]), torch.tensor(rows)

    def _transformed(self, index: int) -> torch.Tensor:
        image = read_image(self.root / self.names[index])
        if self.seed is None:
            return self._own(image)
        key = hashlib.sha256(f"{self.seed}:{self.epoch}:{self.names[index]}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which keeps a stack trace of every call for GPUs that are not in use yet
            torch.default_generator.manual_seed(int.from_bytes(key[:8], "little", signed=True))
            return self._own(image)


def _split(transform: Transform) -> tuple[Transform, Transform]:
    """A transform's steps on single pictures, and those at its end that may as well change a whole batch in place."""
    steps = list(transform.transforms) if isinstance(transform, v2.Compose) else [transform]
    common: list[Any] = []
    while steps and isinstance(steps[-1], v2.ToDtype | v2.Normalize):
        last = steps.pop()
        common.insert(0, v2.Normalize(last.mean, last.std, inplace=True) if isinstance(last, v2.Normalize) else last)
    return v2.Compose([*steps, torch.as_tensor]), v2.Compose([*common, torch.as_tensor])


def batches(dataset: PictureDataset, batch_size: int) -> list[list[int]]:
    """Row numbers of every batch of an epoch.

    Args:
        dataset: with a seed, for training, they are shuffled by (seed, epoch); otherwise they are in order.
        batch_size: the largest batch. For training all are of one size, but for one picture: a last batch of a few
            pictures would count as much as a full one, and its batch norm would be noise.
    """
    count = len(dataset)
    if dataset.seed is None:
        return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    shuffle = torch.Generator().manual_seed(dataset.seed * 1_000_003 + dataset.epoch)
    order = torch.randperm(count, generator=shuffle)
    return [part.tolist() for part in order.tensor_split(max(1, math.ceil(count / batch_size)))]


def loader(
    dataset: PictureDataset, rows: list[list[int]], workers: int = 0, rank: int = 0, processes: int = 1
) -> DataLoader[tuple[torch.Tensor, int, int]]:
    """Batches of images (n, 3, K, K), labels (n,) and row numbers (n,).

    Args:
        dataset: the pictures.
        rows: from `batches`.
        workers: loader processes.
        rank: which process of several this is; each gets its part of every batch, in order.
        processes: how many there are.
    """
    own = [batch[len(batch) * rank // processes : len(batch) * (rank + 1) // processes] for batch in rows]
    pinned, whole = torch.cuda.is_available(), tuple  # the data set makes whole batches
    return DataLoader(dataset, batch_sampler=own, num_workers=workers, pin_memory=pinned, collate_fn=whole)

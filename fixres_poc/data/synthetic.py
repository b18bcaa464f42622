"""A synthetic dataset of ten made-up dog breeds, for FixRes without any download.

An image is a pure function of (seed, split, label, index), see `drawing`. Image sizes and class
imbalance are those of Stanford Dogs. Labels count from 0.
"""

import functools
import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice, product
from pathlib import Path
from typing import Any

from PIL import Image

from fixres_poc.config.files import home, replacing
from fixres_poc.config.provenance import cores
from fixres_poc.config.run_state import bar
from fixres_poc.data.drawing import BREEDS, Drawing, draw

VERSION = 2
SHARES = {"train": 50, "val": 12, "test": 38}  # share of the images, in percent
CLASSES = tuple(f"{number:02d}-{breed.name}" for number, breed in enumerate(BREEDS, 1))


def counts(limit: int | None) -> Counter[tuple[str, int]]:
    """Number of images of each (split, label) in a dataset of `limit` images, by default 1,600.

    Webster's (Sainte-Laguë) method distributes exactly `limit` images, and a larger limit only adds
    images. From 30 images on, all numbers are positive.
    """
    turns = heapq.merge(*(_turns(*cell) for cell in product(SHARES, range(len(BREEDS)))))
    return Counter((split, label) for _, split, label in islice(turns, limit or 1600))


def _turns(split: str, label: int) -> Iterator[tuple[float, str, int]]:
    """Keys that order the images of a cell among all cells; the smallest key comes first."""
    yield -math.inf, split, label
    for index in count(1):
        yield -SHARES[split] * BREEDS[label].images / (2 * index + 1), split, label


def relative_path(split: str, label: int, index: int) -> str:
    """Path of an image below `folder`, for example test/03-marbled_harrier/00012.jpg."""
    return f"{split}/{CLASSES[label]}/{index:05d}.jpg"


def folder(seed: int) -> Path:
    """Folder of the images drawn with a seed."""
    return home() / "data" / "synthetic" / f"seed{seed}-v{VERSION}"


def _drawing(seed: int, relative: str) -> Drawing:
    split, name, file = relative.split("/")
    return draw(seed, split, CLASSES.index(name), int(file.removesuffix(".jpg")))


def _is_drawn(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0  # a power cut may leave an empty file


def prepare(seed: int, limit: int | None, workers: int | None = None) -> list[str]:
    """Draw the images that are not on the disk yet; other processes may do the same.

    Args:
        seed: of the drawing, 0 or above.
        limit: number of images, by default 1,600.
        workers: number of threads, by default one a core.

    Returns:
        Paths of all images below `folder`, sorted.
    """
    root = folder(seed)
    wanted = sorted(
        relative_path(*cell, index)
        for cell, number in counts(limit).items()
        for index in range(number)
    )
    missing = [relative for relative in wanted if not _is_drawn(root / relative)]

    def store(relative: str) -> None:
        if not _is_drawn(root / relative):  # another process may have drawn it
            with replacing(root / relative, lasting=False) as file:
                Image.fromarray(_drawing(seed, relative).image).save(file, "JPEG", quality=92)

    if missing:
        with ThreadPoolExecutor(workers or cores()) as pool:
            list(bar(pool.map(store, missing), f"drawing {len(missing)} images", len(missing)))
    return wanted


def boxes(seed: int, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Boxes of the dogs in images, by paths from `prepare`; this draws each image, in 10 ms.

    Returns:
        One tuple per image: name, left, top, right and bottom of the box, width and height of the
        image, in px.
    """
    return [_box(seed, name) for name in names]


@functools.cache  # the pairs of a training ask for the same ones
def _box(seed: int, name: str) -> tuple[Any, ...]:
    drawing = _drawing(seed, name)
    return (name, *drawing.box, *drawing.image.shape[1::-1])

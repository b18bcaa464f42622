"""A synthetic dataset of ten made-up dog breeds, to study FixRes without any download.

An image is a pure function of (seed, split, label, index), drawn where it is missing; `drawing`
says what it shows. Image sizes and class imbalance are those of Stanford Dogs. Labels count from 0.
"""

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
    """Number of images of each (split, label) in a dataset of `limit` images, 1,600 for None.

    Shares follow Webster's (Sainte-Laguë) method, which gives exactly `limit` and never takes an
    image back when the limit grows. From 30 images on none is 0.
    """
    turns = heapq.merge(*(_turns(*cell) for cell in product(SHARES, range(len(BREEDS)))))
    return Counter((split, label) for _, split, label in islice(turns, limit or 1600))


def _turns(split: str, label: int) -> Iterator[tuple[float, str, int]]:
    """When each image of a cell is given, the least number first."""
    yield -math.inf, split, label
    for given in count(1):
        yield -SHARES[split] * BREEDS[label].images / (2 * given + 1), split, label


def relative_path(split: str, label: int, index: int) -> str:
    """Path of an image below `folder`, such as test/03-marbled_harrier/00012.jpg."""
    return f"{split}/{CLASSES[label]}/{index:05d}.jpg"


def folder(seed: int) -> Path:
    """Folder of the images drawn with a seed."""
    return home() / "data" / "synthetic" / f"seed{seed}-v{VERSION}"


def _drawing(seed: int, relative: str) -> Drawing:
    split, name, file = relative.split("/")
    return draw(seed, split, CLASSES.index(name), int(file.removesuffix(".jpg")))


def _there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0  # a power cut may leave an empty file


def prepare(seed: int, limit: int | None, workers: int | None = None) -> list[str]:
    """Draw the images that are not on disk yet, as other processes may at once.

    Args:
        seed: of the drawing, 0 or above.
        limit: number of images, 1,600 for None.
        workers: threads that draw, by default one a core.

    Returns:
        Paths of all images below `folder`, sorted.
    """
    root = folder(seed)
    wanted = sorted(
        relative_path(*cell, index)
        for cell, number in counts(limit).items()
        for index in range(number)
    )
    missing = [relative for relative in wanted if not _there(root / relative)]

    def store(relative: str) -> None:
        if not _there(root / relative):  # another process may have been faster
            with replacing(root / relative, lasting=False) as file:
                Image.fromarray(_drawing(seed, relative).image).save(file, "JPEG", quality=92)

    if missing:
        with ThreadPoolExecutor(workers or cores()) as pool:
            list(bar(pool.map(store, missing), f"drawing {len(missing)} images", len(missing)))
    return wanted


def boxes(seed: int, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The dogs of images whose paths `prepare` gives; each image is drawn again, about 10 ms.

    Returns:
        For each image its name, left, top, right, bottom (the box), width and height, in px.
    """
    drawn = [(name, _drawing(seed, name)) for name in names]
    return [(name, *drawing.box, *drawing.image.shape[1::-1]) for name, drawing in drawn]

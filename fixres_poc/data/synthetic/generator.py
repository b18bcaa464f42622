"""A synthetic dataset of ten made-up dog breeds, to study FixRes without any download.

An image is a pure function of (seed, split, label, index), drawn where it is missing; `dogs` has
the drawing. Image sizes and class imbalance are those of Stanford Dogs. Labels count from 0.
"""

import functools
import heapq
import io
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from itertools import count, islice, product
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

from PIL import Image

from fixres_poc.config.files import home, write_atomically
from fixres_poc.config.provenance import cores
from fixres_poc.config.run_state import bar
from fixres_poc.data.synthetic.dogs import BREEDS, Drawing, draw

VERSION = 2
SHARES = {"train": 50, "val": 12, "test": 38}  # share of the images, in percent
FEW = 40  # images that are drawn before a pool of processes has started
AT_ONCE = 4  # images that a process is told to draw
CLASSES = tuple(f"{number:02d}-{breed.name}" for number, breed in enumerate(BREEDS, start=1))


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


def _jpeg(seed: int, relative: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_drawing(seed, relative).image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0  # a power cut may leave an empty file


def _store(root: Path, seed: int, relative: str) -> None:
    if not _there(root / relative):  # another process may have been faster
        write_atomically(root / relative, _jpeg(seed, relative), lasting=False)


def prepare(seed: int, limit: int | None, workers: int | None = None) -> list[str]:
    """Draw the images that are not on disk yet, as other processes may at once.

    Args:
        seed: of the drawing, 0 or above.
        limit: number of images, 1,600 for None.
        workers: processes that draw, by default one a core.

    Returns:
        Paths of all images below `folder`, sorted.
    """
    root, cells = folder(seed), counts(limit).items()
    wanted = sorted(relative_path(*cell, index) for cell, most in cells for index in range(most))
    missing = [relative for relative in wanted if not _there(root / relative)]
    store, workers = partial(_store, root, seed), workers or cores()
    if workers > 1 and len(missing) >= FEW:
        # No process can be started from a script on standard input.
        with suppress(BrokenProcessPool):
            _store_in_pool(store, missing, workers)
    for relative in missing:
        store(relative)
    return wanted


def _store_in_pool(store: Callable[[str], None], names: list[str], workers: int) -> None:
    # "spawn", since forking a process that runs threads, as Jupyter's does, can hang.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent) as pool:
        parts = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
        # not pool.map, which cancels at Ctrl-C what the pool would then declare to be broken
        drawn = [pool.submit(_store_all, store, part) for part in parts]
        try:
            for part in bar(as_completed(drawn), f"drawing {len(names)} images", len(parts)):
                part.result()
        except BaseException:
            # At once: a second Ctrl-C while the pool winds up would leave it waiting for ever.
            for process in active_children():
                process.kill()
            raise


def _store_all(store: Callable[[str], None], names: list[str]) -> None:
    for name in names:
        store(name)


def _end_with_parent() -> None:
    """Exit with the parent; otherwise workers block, since they hold both ends of their queue."""

    def watch() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def open_image(seed: int, relative: str) -> Image.Image:
    """Image of a path that `prepare` gives, drawn again, as it may not be on this disk."""
    return Image.open(io.BytesIO(_jpeg(seed, relative)))


@functools.cache
def boxes(seed: int, *names: str) -> tuple[tuple[Any, ...], ...]:
    """The dogs of images whose paths `prepare` gives; each image is drawn again, about 10 ms.

    Returns:
        For each image its name, left, top, right, bottom (the box), width and height, in px.
    """
    drawn = ((name, _drawing(seed, name)) for name in names)
    return tuple((name, *drawing.box, *drawing.image.shape[1::-1]) for name, drawing in drawn)

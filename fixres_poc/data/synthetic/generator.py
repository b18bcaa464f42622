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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fixres_poc.config.files import home, write_atomically
from fixres_poc.config.provenance import cores
from fixres_poc.data.synthetic.dogs import BREEDS, Drawing, draw

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
SHARES = {"train": 50, "val": 12, "test": 38}  # share of the images, in percent
AT_ONCE = 4  # images that a process is told to draw
CLASSES = tuple(f"{number:02d}-{breed.name}" for number, breed in enumerate(BREEDS, start=1))


def counts(limit: int | None) -> dict[tuple[str, int], int]:
    """Number of images of each (split, label) in a dataset of `limit` images, 1,600 for None.

    Shares follow Webster's (Sainte-Laguë) method, which gives exactly `limit` and never takes an
    image back when the limit grows. From 30 images on none is 0.

    Raises:
        ValueError: a limit below 1.
    """
    limit = 1600 if limit is None else limit
    if limit < 1:
        raise ValueError(f"limit = {limit!r}: 1 image or more")
    given = {(split, label): 0 for split in SHARES for label in range(len(BREEDS))}
    queue = [(-math.inf, split, label) for split, label in given]
    heapq.heapify(queue)
    for _ in range(limit):
        _, split, label = queue[0]
        given[split, label] += 1
        priority = SHARES[split] * BREEDS[label].images / (2 * given[split, label] + 1)
        heapq.heapreplace(queue, (-priority, split, label))
    return given


def relative_path(split: str, label: int, index: int) -> str:
    """Path of an image below `folder`, such as test/03-vermicel_harrier/00012.jpg."""
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


def _store(root: Path, seed: int, *names: str) -> None:
    for relative in names:
        path = root / relative
        if not (path.exists() and path.stat().st_size):  # another process may have been faster
            write_atomically(path, _jpeg(seed, relative), lasting=False)


def prepare(
    seed: int,
    limit: int | None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Draw the images that are not on disk yet, as other processes may at once; give all paths below `folder`, sorted.

    Args:
        seed: of the drawing, 0 or above.
        limit: number of images, 1,600 for None.
        workers: processes that draw, by default one a core.
        progress: called after each image with the numbers drawn and to be drawn.
    """
    root = folder(seed)
    wanted = sorted(
        relative_path(*cell, index)
        for cell, number in counts(limit).items()
        for index in range(number)
    )
    there = {
        path.relative_to(root).as_posix() for path in root.glob("*/*/*.jpg") if path.stat().st_size
    }
    missing = [relative for relative in wanted if relative not in there]
    drawn, report = 0, progress or (lambda done, total: None)
    for drawn, _ in enumerate(_stored(root, seed, missing, workers or cores()), start=1):
        report(drawn, len(missing))
    # Where no process can be started, as from a script on standard input, the pool has stopped
    # short.
    for done, relative in enumerate(missing[drawn:], start=drawn + 1):
        _store(root, seed, relative)
        report(done, len(missing))
    return wanted


def _stored(root: Path, seed: int, missing: list[str], workers: int) -> Iterator[str]:
    """Draw images in a pool of processes, and name each; stop where they are too few for one, or it breaks."""
    if len(missing) < 40 or workers < 2:  # so few are drawn before a pool has started
        return
    # "spawn", since forking a process that runs threads, as Jupyter's does, can hang.
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_end_with_parent
    )
    try:
        parts = [missing[start : start + AT_ONCE] for start in range(0, len(missing), AT_ONCE)]
        for part, each in [(part, pool.submit(_store, root, seed, *part)) for part in parts]:
            each.result()
            yield from part
    except BrokenProcessPool:
        return
    except (
        BaseException
    ):  # at once: a second Ctrl-C while the pool winds up would leave it waiting for ever
        for process in active_children():
            process.kill()
        raise
    finally:
        pool.shutdown()


def _end_with_parent() -> None:
    """A pool's processes hold both ends of its queue, and so would wait for work for ever once the parent is killed."""

    def watch() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def open_image(seed: int, relative: str) -> Image.Image:
    """Image of a path that `prepare` gives: from disk, or drawn where it is not there."""
    try:
        content = (folder(seed) / relative).read_bytes()
    except FileNotFoundError:
        content = _jpeg(seed, relative)
    return Image.open(io.BytesIO(content), formats=["JPEG"]).convert("RGB")


def boxes(seed: int, names: Iterable[str]) -> "pd.DataFrame":
    """The dogs of images whose paths `prepare` gives; each image is drawn again for it (about 10 ms), once for ever.

    Returns:
        Columns image, left, top, right, bottom (the box), width, height (the image), all in px.
    """
    import pandas as pd  # not for the processes that draw

    columns = ["image", "left", "top", "right", "bottom", "width", "height"]
    return pd.DataFrame(_boxes(seed, *names), columns=columns)


@functools.cache
def _boxes(seed: int, *names: str) -> tuple[tuple[Any, ...], ...]:
    drawn = ((name, _drawing(seed, name)) for name in names)
    return tuple((name, *drawing.box, *drawing.image.shape[1::-1]) for name, drawing in drawn)

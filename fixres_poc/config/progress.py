"""Progress bars: shown where a person watches, written to a file where a sweep's foreground process shows them.

A sweep sets $FIXRES_PROGRESS to a file per run; tqdm then writes its bar there, so that executed notebooks hold none.
That bar is the text one: inside a kernel `tqdm.auto` is a widget, which ignores the file.
"""

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm
from tqdm.std import tqdm as text_tqdm

T = TypeVar("T")


def watched() -> bool:
    """Whether a person may be watching: $FIXRES_PROGRESS is not set, as a sweep, nbval and `make notebooks` set it."""
    return "FIXRES_PROGRESS" not in os.environ


def bar(iterable: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The same items, with a bar that says how many are done and how long the rest takes.

    Args:
        total: number of items, where `iterable` has no length.
    """
    if watched():
        # disable=None: no bar where a log takes what a terminal would show; a notebook's widget is always shown
        return tqdm(iterable, desc=description, total=total, leave=False, file=sys.stderr, disable=None)
    return _written(iterable, description, total, os.environ["FIXRES_PROGRESS"])


def _written(iterable: Iterable[T], description: str, total: int | None, target: str) -> Iterable[T]:
    with open(target, "a", encoding="utf-8") as file:
        yield from text_tqdm(iterable, desc=description, total=total, file=file, ncols=79, mininterval=1, ascii=True)

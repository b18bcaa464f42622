"""The cells of a sweep's grid (sizes, adaptation, view, crop), and the columns of results.csv.

Each cell has a row per seed and test part.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fixres_poc.config.errors import InputError
from fixres_poc.config.geometry import CROP_PCT
from fixres_poc.config.settings import CONTROL, EQUAL_FLOPS

COLUMNS = [
    *("train_size", "test_size", "size_ratio", "crop_pct", "crop_pct_chosen", "adaptation", "view"),
    *("test_part", "seed"),
    *("n_val", "val_top1", "n_test", "top1", "top1_low", "top1_high", "top5", "macro_accuracy"),
    *("ece", "train_seconds", "adapt_seconds", "eval_images_per_second", "peak_memory_bytes"),
    *("status", "error"),
]
COUNTS = dict.fromkeys(["train_size", "n_val", "n_test", "peak_memory_bytes"], "Int64")
MEASURED = dict.fromkeys(["train_seconds", "adapt_seconds", "eval_images_per_second"], "float64")
IMAGE_COLUMNS = ["image", "label", "split", "width", "height"]
TEXT = ["image", "split", "adaptation", "view", "test_part", "status", "error"]
KEY = ["train_size", "test_size", "adaptation", "seed", "view", "crop_pct"]
GRID = ["train_size", "test_size", "adaptation", "view", "crop_pct"]
PAIR = ["train_size", "test_size"]
# where validation accuracies are equal, the smaller value wins, in this order
TIES = ["test_size", "crops", "rank", "train_size"]
CANDIDATES = ("none", "equalised", "bn_stats", "head", "head_bn_stats", "head_bn", "conv_head_bn")
"""Adaptations that may be chosen, the simplest first."""


WORDS = {"none": "unadapted", "head_bn": "adapted", "probe": "linear probe"}
WORDS |= {"zero_shot": "zero-shot", "head": "adapted (head)"}
WORDS |= {CONTROL + name: "its control" for name in ("head_bn", "head")}
"""Names in the report of the arms that the questions are about; others keep their own."""


class Cell(NamedTuple):
    """A place in the grid, for all seeds; sizes in px, `crop_pct` as in timm.

    The linear probe and zero-shot are not trained at a resolution, and run once for all seeds:
    their `train_size` is None.
    """

    train_size: int | None
    test_size: int
    adaptation: str
    view: str = "center"
    crop_pct: float = CROP_PCT

    def same_size(self) -> "Cell":
        """The same training at test = train, unadapted, on one crop of the same `crop_pct`."""
        return self._replace(test_size=self.train_size or 0, adaptation="none", view="center")

    def named(self, framing: bool = True) -> str:
        """The cell in words, such as '96 \N{RIGHTWARDS ARROW} 120 px, adapted'.

        Args:
            framing: whether to name a `crop_pct` that is not the usual one.
        """
        crop = f", crop_pct {self.crop_pct:g}" if framing and self.crop_pct != CROP_PCT else ""
        name = self.adaptation.removeprefix(EQUAL_FLOPS)
        if self.train_size is None:
            return f"{WORDS[name]} at {self.test_size} px{crop}"
        short = ", cut to equal FLOPs" if name != self.adaptation else ""
        view = "" if self.view == "center" else f", {self.view}"
        same_size = self.train_size == self.test_size
        sizes = "" if same_size else f"{self.train_size} \N{RIGHTWARDS ARROW} "
        arm = "" if same_size and name == "none" else f", {WORDS.get(name, name)}"
        return f"{sizes}{self.test_size} px{arm}{short}{view}{crop}"

    def against(self, other: "Cell") -> str:
        """A comparison in words, such as '96 \N{RIGHTWARDS ARROW} 120, adapted, against 120'."""
        reference = other.named(framing=False)
        if self[:2] == other[:2] or other.train_size is None:
            reference = WORDS.get(other.adaptation, other.adaptation)
        values = dict.fromkeys(f"{cell.crop_pct:g}" for cell in (self, other))
        usual = self.crop_pct == other.crop_pct == CROP_PCT
        crops = "" if usual else f" ({', '.join(values)})"
        return f"{self.named(framing=False)}, against {reference}{crops}".replace(" px", "")


def cell_of(row: "Mapping[Any, Any] | pd.Series[Any]") -> Cell:
    """The cell of a row that has, among others, the columns `GRID`."""
    train, test, *others = (row[name] for name in GRID)
    return Cell(None if pd.isna(train) else int(train), int(test), *others)


def keys(table: pd.DataFrame) -> list[Cell]:
    """The cell of each row of a table with the columns `GRID`."""
    return [cell_of(row) for row in table[GRID].to_dict("records")]


UNSAFE = ("=", "+", "-", "@", "\t", "\r", "'")
"""Characters that begin a formula in a spreadsheet, and the mark that prevents it."""


def guarded(text: str) -> str:
    """The text for a shared CSV file, marked if a spreadsheet would take it for a formula."""
    return f"'{text}" if text.startswith(UNSAFE) else text


def unguarded(text: str) -> str:
    """The text without the mark of `guarded`."""
    return text.removeprefix("'")


def read_table(file: Path) -> pd.DataFrame:
    """A CSV table of ours: text as written (`NA`, `007`, `TRUE`), empty cells as missing numbers.

    Raises:
        InputError: it cannot be read as a table.
    """
    try:
        table = pd.read_csv(
            file, dtype=dict.fromkeys(TEXT, "str") | COUNTS, keep_default_na=False, na_values=[""]
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: cannot be read as a table ({type(error).__name__}: {error})"
        ) from None
    return table.fillna(dict.fromkeys(TEXT, ""))


def same_images(*hits: "pd.Series[bool]") -> NDArray[np.bool_]:
    """Correctness (R, N) of R classifiers on the N images that all of them have, in equal order."""
    return pd.concat(hits, axis=1, join="inner").to_numpy().T

"""Comparisons of classifiers on the same images: rows and verdicts, steps, test sizes.

docs/design/evaluation_protocol.md fixes level, delta and order of the verdicts. Accuracies and
differences are fractions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from fixres_poc.analysis.cells import Cell, cell_of, keys
from fixres_poc.analysis.results import Results, training_cost
from fixres_poc.analysis.statistics import Difference, paired_gains
from fixres_poc.config.settings import CONTROL

Verdict = Literal["better", "as good", "worse", "can't tell", "not run"]
LEVEL = 0.95
ENOUGH_CHEAPER = 0.95
"""Share of the reference's training FLOPs up to which a cell counts as cheaper."""


class Bounds(NamedTuple):
    """An interval of a difference, and the largest difference that does not matter."""

    low: float
    high: float
    delta: float


def verdict_of(bounds: Sequence[Bounds]) -> Verdict:
    """The verdict against all references, in the protocol's order.

    Args:
        bounds: of each reference; nan if it or the cell was not run.
    """
    if not bounds or any(math.isnan(interval.low) for interval in bounds):
        return "not run"
    if all(interval.low > 0 for interval in bounds):
        return "better"
    if all(interval.low > -interval.delta for interval in bounds):
        return "as good"
    return "worse" if any(interval.high < 0 for interval in bounds) else "can't tell"


@dataclass(frozen=True)
class Row:
    """A cell against one reference.

    Attributes:
        difference: the cell's accuracy minus the reference's; nan if one of them was not run.
        level: of the interval, 0.95 for the primary row, else 1 - 0.05 / planned rows.
        delta: the largest difference that does not matter.
        cost_ratio: training cost of the cell over the reference's, in FLOPs and in seconds; nan if
            unknown.
    """

    cell: Cell
    reference: Cell
    difference: Difference
    level: float
    delta: float
    cost_ratio: tuple[float, float] = (math.nan, math.nan)

    @property
    def bounds(self) -> Bounds:
        """The interval at the row's level."""
        return Bounds(*self.difference.at(self.level), self.delta)

    @property
    def verdict(self) -> Verdict:
        """Against this reference alone."""
        return verdict_of([self.bounds])

    def as_json(self) -> dict[str, Any]:
        """Cell, reference and numbers for answers.json; unknown numbers are None."""
        numbers = {
            "estimate": self.difference.estimate,
            **self.bounds._asdict(),
            "level": self.level,
            "flops_ratio": self.cost_ratio[0],
            "seconds_ratio": self.cost_ratio[1],
            "detectable": self.difference.detectable(),
        }
        return {
            **self.cell._asdict(),
            "reference": self.reference._asdict(),
            "verdict": self.verdict,
            **{name: None if math.isnan(value) else value for name, value in numbers.items()},
        }


@dataclass(frozen=True)
class Comparison:
    """A cell against its references: a row of one of the questions."""

    rows: tuple[Row, ...]
    primary: bool = False

    @property
    def cell(self) -> Cell:
        """The cell that is compared with its references."""
        return self.rows[0].cell

    @property
    def verdict(self) -> Verdict:
        """Against all references."""
        return verdict_of([row.bounds for row in self.rows])

    @property
    def deciding(self) -> Row:
        """The row that decides the verdict: that of the least favourable bound."""
        if self.verdict == "worse":
            return min(self.rows, key=lambda row: row.bounds.high)
        if self.verdict == "better":
            return min(self.rows, key=lambda row: row.bounds.low)
        return min(self.rows, key=lambda row: row.bounds.low + row.delta)

    @property
    def below_delta(self) -> bool:
        """Whether an interval excludes a gain of delta or more over one of the references."""
        return any(row.bounds.high < row.delta for row in self.rows)

    @property
    def detectable(self) -> float:
        """The smallest true gain over all references that is found with 80 % power."""
        return max(row.difference.detectable() for row in self.rows)


def compared(
    results: Results,
    asked: Sequence[tuple[Cell, Sequence[Cell]]],
    primary: Cell | None,
    planned: int,
    with_cost: bool = False,
) -> tuple[Comparison, ...]:
    """Every cell against its references on `results.part`.

    The spread between trainings is pooled over the rows with the same kind of reference.

    Args:
        asked: the planned cells, each with its references, in the same order of kinds for all.
        primary: the cell whose row has the level 0.95.
        planned: number of the question's rows; those other than the primary one share 5 %.
    """
    cells = [cell for cell, _ in asked]
    kinds = []
    for references in zip(*(references for _, references in asked), strict=True):
        pairs = list(zip(cells, references, strict=True))
        hits = {pair: results.paired_hits(*pair) for pair in pairs}
        ran = {pair: correct for pair, correct in hits.items() if correct is not None}
        gains = dict(zip(ran, paired_gains(list(ran.values())), strict=True))
        rows = []
        for cell, reference in pairs:
            difference = gains.get((cell, reference), Difference())
            level = LEVEL if cell == primary else 1 - 0.05 / planned
            delta = largest_unimportant(results.validation, reference)
            ratio = _cost_ratio(results, cell, reference) if with_cost else (math.nan, math.nan)
            rows.append(Row(cell, reference, difference, level, delta, ratio))
        kinds.append(rows)
    return tuple(Comparison(rows, rows[0].cell == primary) for rows in zip(*kinds, strict=True))


def largest_unimportant(validation: Results, reference: Cell) -> float:
    """Delta: the smaller of the sweep's and a quarter of the reference's errors on validation."""
    errors = 1 - validation.accuracy(reference).estimate
    return float(np.fmin(validation.settings["delta"], errors / 4))


def _cost_ratio(results: Results, cell: Cell, reference: Cell) -> tuple[float, float]:
    costs = zip(training_cost(results, cell), training_cost(results, reference), strict=True)
    flops, seconds = (cost / base if base else math.nan for cost, base in costs)
    return flops, seconds


def gain_path(results: Results, chosen: Cell) -> pd.DataFrame:
    """A trained cell's gain over the linear probe, split into steps on the same images.

    Returns:
        One row per step: step, top1, against (the last step before it that was run), gain, gain_low
        and gain_high (paired, 95 %); nan if a step was not run. Several seeds give means.
    """
    train, test, adaptation, view, _ = chosen
    start = chosen.same_size()
    one_crop = chosen._replace(view="center")
    plain = one_crop._replace(adaptation="none")
    steps = {
        f"linear probe at {train}": results.once("probe", start.test_size),
        f"stage 1 at {train}, tested there": start,
        f"tested at {test} instead": plain,
        f"control: adapted at {train}": plain._replace(adaptation=CONTROL + adaptation),
        f"adapted at {test}": one_crop,
        f"{view} instead of one crop": chosen,
    }
    planned = {start, plain, *keys(results.table)}
    path = dict[Cell, str]()
    for step, cell in steps.items():
        if cell in planned:
            path.setdefault(cell, step)  # a second step to the same cell changes nothing
    columns = ["step", "top1", "against", "gain", "gain_low", "gain_high"]
    rows = []
    last = next(iter(path))
    for cell, step in path.items():
        row: dict[str, Any] = {"step": step, "top1": results.accuracy(cell).estimate}
        if gain := results.difference(cell, last):
            row |= {"against": path[last], **dict(zip(columns[3:], gain[:3], strict=True))}
        rows.append(row)
        last = cell if results.hits(cell) else last
    return pd.DataFrame(rows, columns=columns)


def best_sizes(results: Results) -> list[tuple[Any, Any, Difference | None]]:
    """By train resolution the test resolution of equal apparent size, and the best one.

    Networks are unadapted, in the usual crop: the paper's adapted optimum lies above the ratio 1.

    Returns:
        For each train resolution the row of `Results.usual` whose mean ratio of apparent sizes is
        nearest to 1, the row that is best on validation, and the second one's accuracy minus the
        first one's; None if they are the same row.
    """
    cells = results.usual
    ran = cells[(cells["seeds"] > 0) & (cells["adaptation"] == "none")]
    sizes = []
    for _, rows in ran.groupby("train_size"):
        distance = np.log(rows["size_ratio"].to_numpy(dtype=float))
        near = rows.iloc[int(np.abs(distance).argmin())]
        best = rows.iloc[int(rows["val_top1"].argmax())]
        sizes.append((near, best, results.difference(cell_of(best), cell_of(near))))
    return sizes

"""A classifier held against one or two others on the same images, and the verdict.

docs/design/evaluation_protocol.md fixes level, delta and order of the verdicts. Fractions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.cost import training_cost
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference, paired_gains

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
    """The verdict against all references: by both bounds, in the protocol's order.

    Bounds that are nan stand for what was not run.
    """
    if not bounds or any(math.isnan(each.low) for each in bounds):
        return "not run"
    if all(each.low > 0 for each in bounds):
        return "better"
    if all(each.low > -each.delta for each in bounds):
        return "as good"
    return "worse" if any(each.high < 0 for each in bounds) else "can't tell"


@dataclass(frozen=True)
class Row:
    """A cell against one reference.

    Attributes:
        difference: the cell's accuracy minus the reference's; nan where one of them was not run.
        level: of the interval: 0.95 for the primary row, else 1 - 0.05 / planned rows.
        delta: the largest difference that does not matter.
        cost_ratio: training cost of the cell over the reference's, in FLOPs and in seconds; nan
            where it is not known.
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

    def points(self) -> str:
        """Estimate and interval at the row's level in points, marked where it is not 95 %."""
        if math.isnan(self.difference.estimate):
            return "n/a"
        low, high, _ = self.bounds
        at_level = self.difference._replace(low=low, high=high)
        return at_level.points(brief=True) + ("" if self.level == LEVEL else " †")


@dataclass(frozen=True)
class Comparison:
    """A cell against its references: a row of one of the questions."""

    rows: tuple[Row, ...]
    primary: bool = False

    @property
    def cell(self) -> Cell:
        """What is compared."""
        return self.rows[0].cell

    @property
    def verdict(self) -> Verdict:
        """Against all references."""
        return verdict_of([row.bounds for row in self.rows])

    @property
    def below_delta(self) -> bool:
        """Whether a gain of delta or more over one of the references is excluded."""
        return any(row.bounds.high < row.delta for row in self.rows)

    @property
    def detectable(self) -> float:
        """The smallest true gain over all references that is found with 80 % power."""
        return max(row.difference.detectable() for row in self.rows)

    @property
    def cheaper(self) -> bool:
        """Whether the training costs at most 0.95 of each reference's FLOPs."""
        return all(row.cost_ratio[0] <= ENOUGH_CHEAPER for row in self.rows)


def compared(
    results: Results,
    asked: Sequence[tuple[Cell, Sequence[Cell]]],
    primary: Cell | None,
    with_cost: bool = False,
) -> tuple[Comparison, ...]:
    """Every cell against its references on `results.part`; what was not run is nan.

    The spread between trainings is pooled over the rows with the same kind of reference.

    Args:
        asked: the planned cells, each with its references: the same number for all.
        primary: the cell whose row has the level 0.95.
    """
    rows: list[list[Row]] = [[] for _ in asked]
    validation = results.on("val")
    for kind in range(max((len(references) for _, references in asked), default=0)):
        places = [place for place, (_, references) in enumerate(asked) if len(references) > kind]
        pairs = [(asked[place][0], asked[place][1][kind]) for place in places]
        hits = [results.paired_hits(*pair) for pair in pairs]
        known = iter(paired_gains([(each[0], each[1]) for each in hits if each is not None]))
        for place, pair, each in zip(places, pairs, hits, strict=True):
            difference = Difference() if each is None else next(known)
            level = LEVEL if pair[0] == primary else 1 - 0.05 / len(asked)
            delta = largest_unimportant(validation, pair[1])
            ratio = _cost_ratio(results, *pair) if with_cost else (math.nan, math.nan)
            rows[place].append(Row(*pair, difference, level, delta, ratio))
    return tuple(
        Comparison(tuple(own), cell == primary)
        for own, (cell, _) in zip(rows, asked, strict=True)
        if own
    )


def largest_unimportant(validation: Results, reference: Cell) -> float:
    """Delta: the smaller of the sweep's and a quarter of the reference's errors on validation."""
    errors = 1 - validation.accuracy(reference).estimate
    return float(np.fmin(validation.sweep["settings"].get("delta", 0.01), errors / 4))


def _cost_ratio(results: Results, cell: Cell, reference: Cell) -> tuple[float, float]:
    own, other = training_cost(results, cell), training_cost(results, reference)
    flops, seconds = (a / b if b else math.nan for a, b in zip(own, other, strict=True))
    return flops, seconds

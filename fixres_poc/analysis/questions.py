"""The five questions of a report; docs/design/evaluation_protocol.md fixes each estimate.

What is compared is chosen on validation, and averaged over train resolutions with equal weight.
Accuracies are fractions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from fixres_poc.analysis.cells import KEY, Cell, keys
from fixres_poc.analysis.cost import training_cost
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.config.settings import ADAPTED, CONTROL

Verdict = Literal["gain", "loss", "equivalent", "can't tell", "not asked"]
Contrast = tuple[Cell, Cell]


@dataclass(frozen=True)
class Answer:
    """The answer to one question, on one test part.

    Attributes:
        differences: what is credited is the smallest, by estimate and by each bound; none where it
            could not be asked.
        compared: for each difference the pairs of cells, one per train resolution.
        delta: the largest difference that does not matter.
        ratio: training cost of the first cells over the second ones', in FLOPs and in seconds; nan
            where not known.
        apart: for each difference its estimate at every pair of cells, of which it is the mean.
        ratios: `ratio` at every pair of cells.
    """

    question: Literal["size", "adaptation", "claim", "training"]
    differences: tuple[Difference, ...] = ()
    compared: tuple[tuple[Contrast, ...], ...] = ()
    delta: float = 0.01
    ratio: tuple[float, float] = (math.nan, math.nan)
    apart: tuple[tuple[float, ...], ...] = ()
    ratios: tuple[tuple[float, float], ...] = ()

    @property
    def binding(self) -> tuple[tuple[Contrast, ...], tuple[float, ...]]:
        """The pairs of cells of the smallest difference, and what each of them has."""
        ways = zip(self.differences, self.compared, self.apart, strict=False)
        return min(ways, key=lambda way: way[0].estimate, default=(None, (), ()))[1:]

    @property
    def difference(self) -> Difference:
        """The credited difference, nan where the question could not be asked."""
        if not self.differences:
            return Difference()
        smallest = min(self.differences, key=lambda each: each.estimate)
        low, high = (min(each[bound] for each in self.differences) for bound in (1, 2))
        return smallest._replace(low=low, high=high)

    @property
    def seeds(self) -> int:
        """Number of trainings per train resolution that all pairs have."""
        return min((each.seeds for each in self.differences), default=0)

    def within(self, level: float = 0.90) -> tuple[float, float]:
        """Bounds of the credited difference at another level."""
        bounds = [each.at(level) for each in self.differences] or [(math.nan, math.nan)]
        return min(low for low, _ in bounds), min(high for _, high in bounds)

    @property
    def verdict(self) -> Verdict:
        """Gain or loss by the 95 % interval; equivalent: the 90 % one is within ± delta."""
        if not self.differences:
            return "not asked"
        if self.difference.low > 0:
            return "gain"
        if self.difference.high < 0:
            return "loss"
        return "equivalent" if self.smallest_delta <= self.delta else "can't tell"

    @property
    def smallest_delta(self) -> float:
        """The smallest delta with which the two would count as equivalent."""
        return max(abs(bound) for bound in self.within())

    @property
    def detectable(self) -> float:
        """The smallest true difference that would be found with 80 % power."""
        return max((each.detectable() for each in self.differences), default=math.nan)

    @property
    def holds(self) -> bool | None:
        """Of the claim: not worse by delta or more, for less training; None if it can't be told."""
        if not self.differences:
            return None
        if self.difference.low > -self.delta:
            return None if math.isnan(self.ratio[0]) else self.ratio[0] < 1
        return False if self.difference.high < -self.delta else None

    @property
    def said(self) -> str:
        """The verdict; of the question "claim" whether it holds."""
        if self.question != "claim" or not self.differences:
            return self.verdict
        return {True: "holds", False: "does not hold", None: "can't tell"}[self.holds]


def answers(results: Results) -> list[Answer]:
    """Size, adaptation, claim (whose ratio is the cost) and training, on `results.part`."""
    ranked = results.ranked(by_train_size=True)
    ranked = ranked[ranked["view"] == "center"]
    delta = float(results.sweep["settings"].get("delta", 0.01))
    size, adapted, trained = list[Contrast](), list[Contrast](), list[Contrast]()
    for train, own in ranked.groupby("train_size"):
        larger = own[own["test_size"] > train]
        plain = _first(larger[larger["adaptation"] == "none"])
        size += [(cell, cell.same_size()) for cell in plain]
        best = _first(larger[larger["adaptation"].isin(ADAPTED)])
        adapted += [(cell, cell._replace(adaptation="none")) for cell in best]
        trained += [(cell, results.once("probe", cell.test_size)) for cell in _first(own)]
    controls = [(cell, cell._replace(adaptation=CONTROL + cell.adaptation)) for cell, _ in adapted]
    known = [(cell, results.once("zero_shot", cell.test_size)) for cell, _ in trained]
    all_known = _ran(results, known) == known
    return [
        _answer(results, "size", delta, _ran(results, size)),
        _answer(results, "adaptation", delta, adapted, controls),
        _answer(results, "claim", delta, _ran(results, _claim(ranked))),
        _answer(results, "training", delta, trained, *([known] if all_known else [])),
    ]


def _ran(results: Results, contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Those of which the second cell was run."""
    return [pair for pair in contrasts if results.seeds(pair[1])]


def _claim(ranked: pd.DataFrame) -> list[Contrast]:
    """At each test resolution: trained smaller and adapted, against train = test, adapted alike."""
    contrasts = list[Contrast]()
    for test in sorted(set(ranked["test_size"]) & set(ranked["train_size"])):
        smaller = (ranked["test_size"] == test) & (ranked["train_size"] < test)
        best = _first(ranked[smaller & ranked["adaptation"].isin(ADAPTED)])
        contrasts += [(cell, cell._replace(train_size=test)) for cell in best]
    return contrasts


def _first(rows: pd.DataFrame) -> list[Cell]:
    """The cell that validation prefers, as a list of one; none of no rows."""
    return keys(rows.head(1))


def _answer(results: Results, question: Any, delta: float, *ways: Sequence[Contrast]) -> Answer:
    found = [results.mean_difference(way) for way in ways]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return Answer(question, delta=delta)
    costs = []
    if question == "claim":
        costs = [[training_cost(results, cell) for cell in pair] for pair in ways[0]]
    return Answer(
        question,
        tuple(known),
        tuple(map(tuple, ways)),
        delta,
        ratio=_ratio(costs),
        apart=tuple(
            tuple(results.mean_difference([pair]).estimate for pair in way)  # type: ignore[union-attr]
            for way in ways
        ),
        ratios=tuple(_ratio([each]) for each in costs),
    )


def _ratio(costs: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Sum of the first costs over the sum of the second ones, in FLOPs and in seconds."""
    if not costs:
        return math.nan, math.nan
    first, second = np.sum(costs, axis=0)
    flops, seconds = np.divide(first, second, out=np.full(2, math.nan), where=second != 0)
    return float(flops), float(seconds)


def gain_path(results: Results) -> pd.DataFrame:
    """The chosen cell's gain over the linear probe, split into steps on the same images.

    Returns:
        One row per step: step, train_size, test_size, adaptation, view, top1, against (the last
        step before it that was run), gain, gain_low, gain_high (paired, 95 %) and p (McNemar's
        mid-p); nan where a step was not run. Over several seeds these are means, and there is no p.
    """
    chosen = results.choose()
    start, train, test = chosen.same_size(), chosen.train_size, chosen.test_size
    one_crop = chosen._replace(view="center")
    plain = one_crop._replace(adaptation="none")
    steps = {f"linear probe at {train}": results.once("probe", start.test_size)}
    steps[f"stage 1 at {train}, tested there"] = start
    if train != test:
        steps[f"tested at {test} instead"] = plain
        if chosen.adaptation in ADAPTED:
            steps[f"control: adapted at {train}"] = plain._replace(
                adaptation=CONTROL + chosen.adaptation
            )
    if chosen.adaptation != "none":
        steps[f"adapted at {test} ({chosen.adaptation})"] = one_crop
    if chosen != one_crop:
        steps[f"{chosen.view} instead of one crop"] = chosen
    names = ["gain", "gain_low", "gain_high", "p"]
    rows, last = [], ""
    for step, cell in steps.items():
        row: dict[str, Any] = {"step": step, **cell._asdict()}
        if results.seeds(cell):
            row["top1"] = results.accuracy(cell).estimate
            if last and (gain := results.difference(cell, steps[last])):
                values = [*gain[:3], results.p_value(cell, steps[last])]
                row |= {"against": last} | dict(zip(names, values, strict=True))
            last = step
        rows.append(row)
    return pd.DataFrame(rows, columns=["step", *KEY, "top1", "against", *names])

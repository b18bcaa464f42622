"""The first four questions of a report: what is compared, and the verdict of each.

docs/design/evaluation_protocol.md fixes rows, primary row and verdicts; the fifth question is
`recommendation`'s. Sizes are in px.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from fixres_poc.analysis.cells import PAIR, Cell
from fixres_poc.analysis.comparisons import Comparison, Verdict, compared
from fixres_poc.analysis.results import Results
from fixres_poc.config.settings import CONTROL, ENOUGH_STEPS, EQUAL_FLOPS

Asked = Sequence[tuple[Cell, Sequence[Cell]]]
UNCHECKED = "cheaper at equal epochs, unchecked at equal FLOPs"
MOST_OFF = 0.1
"""How far the ratio of apparent sizes at the matched test resolution may be from 1."""
SAME_AS_PROBE = 0.99
"""Share of equal predictions on validation from which stage 1 did nothing."""


class Cost(NamedTuple):
    """Training cost of a claim's row: its verdict, and the ratio of FLOPs to train = test."""

    verdict: str  # "cheaper", "cheaper only at equal epochs", `UNCHECKED`, "dearer", "unknown"
    flops_ratio: float


@dataclass(frozen=True)
class Plan:
    """What the sweep asks, before any result: cells and their references, by question.

    Attributes:
        adapted: the primary adaptation; None where the sweep has none.
    """

    results: Results
    adapted: str | None

    @property
    def settings(self) -> dict[str, Any]:
        """The sweep's settings."""
        return dict(self.results.sweep["settings"])

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """All (train resolution, test resolution) of the sweep."""
        given = self.settings
        grid = given["pairs"] or product(given["train_sizes"], given["test_sizes"])
        return [(train, test) for train, test in grid]

    @cached_property
    def matched(self) -> dict[int, int]:
        """By train resolution the matched test resolution, where the grid has one.

        Of the larger test resolutions the one with the least |log(mean of ratios)| of apparent
        sizes, in the usual crop, if within 10 % of 1.
        """
        table = self.results.table
        near = table[(table["size_ratio"] - 1).abs() <= MOST_OFF]
        near = near[(near["crop_pct"] == self.results.usual_crop) & near["train_size"].notna()]
        near = near[near["test_size"] > near["train_size"]].sort_values(["train_size", "test_size"])
        distance = np.log(near["size_ratio"].to_numpy(dtype=float))
        best = near.assign(off=np.abs(distance)).sort_values("off", kind="stable")
        sizes = best.drop_duplicates("train_size").sort_values("train_size")[PAIR].to_numpy()
        return {int(train): int(test) for train, test in sizes}

    def cell(self, train: int, test: int, adaptation: str, own_crop: bool = False) -> Cell:
        """A trained cell in one centre crop: the usual one, or that chosen for this cell."""
        results = self.results
        cell = Cell(train, test, adaptation, results.first_seed, crop_pct=results.usual_crop)
        return results.at_chosen_crop(cell) if own_crop else cell

    @property
    def claims(self) -> list[tuple[int, int]]:
        """Pairs of a smaller train resolution, at a test resolution that was trained at too."""
        every = set(self.pairs)
        return [
            (train, test) for train, test in self.pairs if train < test and (test, test) in every
        ]

    @property
    def primary(self) -> tuple[int, int] | None:
        """The pair that alone enters title and sentences: as the sweep named or planned it."""
        named = self.settings.get("primary")
        return (named[0], named[1]) if named else None

    def training(self) -> Asked:
        """Question 1: each r at R = r and, adapted, at its matched R, against what needs none."""
        ways = [(train, train, "none") for train in sorted({train for train, _ in self.pairs})]
        ways = [way for way in ways if way[:2] in self.pairs]
        ways += [
            (train, test, self.adapted) for train, test in self.matched.items() if self.adapted
        ]
        untrained = [name for name in ("probe", "zero_shot") if self.results.knows_all(name)]
        return [
            (self.cell(*way), [self.results.once(name, way[1]) for name in untrained])
            for way in ways
        ]

    def claim(self, own_crop: bool = False) -> Asked:
        """Question 2: trained smaller and adapted against train = test, plain and adapted."""
        if not self.adapted:
            return []
        return [
            (
                self.cell(train, test, self.adapted, own_crop),
                [self.cell(test, test, name, own_crop) for name in ("none", self.adapted)],
            )
            for train, test in self.claims
        ]

    def adaptation(self) -> Asked:
        """Question 3: adapted at the matched R, against none there and against its control."""
        if not self.adapted:
            return []
        names = ("none", CONTROL + self.adapted)
        return [
            (self.cell(train, test, self.adapted), [self.cell(train, test, name) for name in names])
            for train, test in self.matched.items()
        ]

    def repair(self) -> Asked:
        """Of question 4: adapted against none at the matched R, each cell at its own crop_pct."""
        return [
            (self.cell(*pair, self.adapted, True), [self.cell(*pair, "none", True)])
            for pair in self.matched.items()
            if self.adapted
        ]

    def why_not(self, question: int) -> str:
        """Why a question is not asked; "" where it is."""
        given = self.settings
        trained_here = given.get("head_start") != "file"
        if question in (1, 2) and not trained_here:
            return "the network was trained elsewhere"
        if question == 1 and not given.get("pretrained", True):
            return "the network has no pre-trained weights, so there is no probe"
        if not self.adapted and question > 1:
            return "no adaptation was asked for"
        if question == 2 and not self.claims:
            return "no pair has both a smaller train resolution and train = test beside it"
        if question == 3 and not self.matched:
            return "no test resolution of the grid matches the apparent size of training"
        if question == 4 and not isinstance(given["crop_pct"], list):
            return "one crop_pct"
        if question == 4 and not (self.claims or self.matched):
            return "no pair to try it at"
        return ""

    def primary_cell(self, asked: Asked, question: int) -> Cell | None:
        """The cell of the question's primary row, of those that are asked."""
        cells = [cell for cell, _ in asked]
        if not cells:
            return None
        train, test = self.primary or (max(cell.train_size or 0 for cell in cells), 0)
        best = [cell for cell in cells if (cell.train_size, cell.test_size) == (train, test)]
        if question == 1 and not best:
            best = [cell for cell in cells if cell.train_size == cell.test_size == test]
        best += [cell for cell in cells if cell.train_size == train]
        return [*best, *cells][0]


@dataclass(frozen=True)
class Answer:
    """The comparisons of one question on one test part, and what follows.

    Attributes:
        number: 1 to 4.
        why_not: why it is not asked, else "".
        equal_flops: of question 2 train = test, cut to the FLOPs of the primary row, against that.
    """

    number: int
    comparisons: tuple[Comparison, ...] = ()
    why_not: str = ""
    equal_flops: tuple[Comparison, ...] = ()

    @property
    def primary(self) -> Comparison | None:
        """The row that alone enters title and sentences."""
        return next((each for each in self.comparisons if each.primary), None)

    @property
    def primary_verdict(self) -> Verdict:
        """Of the primary row."""
        return self.primary.verdict if self.primary else "not run"

    @property
    def not_worse(self) -> bool:
        """Whether the primary row is better or as good."""
        return self.primary_verdict in ("better", "as good")

    def verdict(self, steps: float) -> str:
        """In the words of the protocol.

        Args:
            steps: fewest optimizer steps of a stage 1.
        """
        if self.why_not:
            return "not asked"
        if self.number == 1:
            return self._training(steps)
        verdict = self.primary_verdict
        if self.number != 3:
            return f"{verdict}, {self.cost.verdict}" if self.not_worse else verdict
        if self.primary is None or verdict == "not run":
            return verdict
        if verdict == "better":
            return "gains"
        plain, control = (row.verdict for row in self.primary.rows)
        return f"against none: {plain}; against its control: {control}"

    def _training(self, steps: float) -> str:
        """Of question 1, in the protocol's order of precedence."""
        rows = self.comparisons
        if not rows or all(each.verdict == "not run" for each in rows):
            return "not run"
        gains = any(each.verdict == "better" for each in rows)
        if not gains and steps < ENOUGH_STEPS:
            return "trained too briefly"
        if all(each.below_delta for each in rows):
            return "gains less than delta"
        return "pays" if gains else "not decided"

    def rows_as_json(self, part: str) -> list[dict[str, Any]]:
        """All rows on a test part for answers.json: `decides` is the verdict's, of the primary."""
        return [
            {
                "part": part,
                "primary": one.primary,
                "decides": one.primary and row is one.deciding,
                "k": len(group),
                **row.as_json(),
            }
            for group in (self.comparisons, self.equal_flops)
            for one in group
            for row in one.rows
        ]

    @property
    def holds(self) -> bool | None:
        """Of question 2 or 4: not worse and cheaper; None where it is not asked."""
        return None if self.why_not else self.not_worse and self.cost.verdict == "cheaper"

    @property
    def cost(self) -> Cost:
        """Training cost of the primary row of question 2 or 4."""
        if self.primary is None:
            return Cost("unknown", math.nan)
        ratio = max(row.cost_ratio[0] for row in self.primary.rows)
        if math.isnan(ratio):
            return Cost("unknown", ratio)
        if not self.primary.cheaper:
            return Cost("dearer", ratio)
        verdicts = [each.verdict for each in self.equal_flops]
        if "better" in verdicts:
            return Cost("cheaper only at equal epochs", ratio)
        return Cost("cheaper" if verdicts and "not run" not in verdicts else UNCHECKED, ratio)


def answers(plan: Plan) -> list[Answer]:
    """Questions 1 to 4 on the part that the plan's results are about."""
    trained_elsewhere = plan.settings.get("head_start") == "file"
    remedies = [*([] if trained_elsewhere else [plan.claim(own_crop=True)]), plan.repair()]
    asked = [[plan.training()], [plan.claim()], [plan.adaptation()], remedies]
    found = []
    for number, lists in enumerate(asked, 1):
        if reason := plan.why_not(number):
            found.append(Answer(number, why_not=reason))
            continue
        first = next(filter(None, lists), [])
        primary, planned = plan.primary_cell(first, number), sum(map(len, lists))
        comparisons: list[Comparison] = []
        for rows in lists:  # of one kind of reference each
            of_these = primary if rows is first else None
            comparisons += compared(plan.results, rows, of_these, planned, number in (2, 4))
        reference = _equal_flops(plan, primary, number == 4) if number in (2, 4) else ()
        found.append(Answer(number, tuple(comparisons), equal_flops=reference))
    return found


def _equal_flops(plan: Plan, primary: Cell | None, own_crop: bool) -> tuple[Comparison, ...]:
    """Train = test, cut to the training FLOPs of the primary cell, against that cell."""
    if primary is None or not plan.adapted:
        return ()
    size = primary.test_size
    planned = set(plan.results.table["adaptation"])
    names = [EQUAL_FLOPS + name for name in ("none", plan.adapted)]
    short = [
        (plan.cell(size, size, name, own_crop), [primary]) for name in names if name in planned
    ]
    return compared(plan.results, short, None, len(short), with_cost=True)


def primary_adaptation(results: Results) -> str | None:
    """The paper's: `head_bn`, or `head` where there is none; None where neither was asked for."""
    names = set(results.table["adaptation"])
    return next((name for name in ("head_bn", "head") if name in names), None)


def fewest_steps(results: Results) -> float:
    """The fewest optimizer steps of a stage 1; infinite where it is not known."""
    runs = [run for run in results.sweep["runs"] if not run.get("equal_flops")]
    steps = [run["steps"] for run in runs if run.get("steps")]
    return min(steps, default=math.inf)


def did_nothing(results: Results) -> list[int]:
    """Train resolutions whose stage 1 predicts on validation what the probe does, on 99 % of it."""
    found = []
    rows = results.predictions
    rows = rows[(rows["split"] == "val") & (rows["view"] == "center")]
    rows = rows[rows["crop_pct"] == results.usual_crop]
    probes = rows[rows["adaptation"] == "probe"].set_index(["test_size", "image"])["top1"]
    same = rows[(rows["adaptation"] == "none") & (rows["train_size"] == rows["test_size"])]
    for size, own in same.groupby("train_size"):
        there = own.join(probes.rename("probe"), on=["test_size", "image"])
        if (there["top1"] == there["probe"]).mean() >= SAME_AS_PROBE:
            found.append(int(str(size)))
    return found

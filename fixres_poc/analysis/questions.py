"""The first four questions of a report: what is compared, and the verdict of each.

docs/design/evaluation_protocol.md fixes rows, primary row and verdicts. `recommendation` answers
the fifth question. Sizes are in px.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from fixres_poc.analysis.cells import PAIR, Cell
from fixres_poc.analysis.comparisons import ENOUGH_CHEAPER, Comparison, Verdict, compared
from fixres_poc.analysis.results import Results
from fixres_poc.config.geometry import neutral_test_size
from fixres_poc.config.settings import CONTROL, ENOUGH_STEPS, EQUAL_FLOPS

Asked = Sequence[tuple[Cell, Sequence[Cell]]]
UNCHECKED = "cheaper at equal epochs, unchecked at equal FLOPs"
MOST_OFF = 0.1
"""Largest distance from 1 of the ratio of apparent sizes at the matched test resolution."""
SAME_AS_PROBE = 0.99
"""Share of equal predictions on validation from which stage 1 counts as without effect."""


@dataclass(frozen=True)
class Plan:
    """Cells and their references by question, known before any result."""

    results: Results

    @cached_property
    def adapted(self) -> str:
        """The primary adaptation, the paper's: `head_bn`, else `head`; "" if neither is planned."""
        names = set(self.results.table["adaptation"])
        return next((name for name in ("head_bn", "head") if name in names), "")

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """All (train resolution, test resolution) of the sweep."""
        settings = self.results.settings
        grid = settings["pairs"] or product(settings["train_sizes"], settings["test_sizes"])
        return [(train, test) for train, test in grid]

    @cached_property
    def matched(self) -> dict[int, int]:
        """By train resolution the matched test resolution, where the grid has one.

        It is the larger test resolution whose mean ratio of apparent sizes in the usual crop has
        the least |log|, if within 10 % of 1.
        """
        table = self.results.table
        near = table[(table["size_ratio"] - 1).abs() <= MOST_OFF]
        near = near[(near["crop_pct"] == self.results.usual_crop) & near["train_size"].notna()]
        near = near[near["test_size"] > near["train_size"]]
        distance = np.abs(np.log(near["size_ratio"].to_numpy(dtype=float)))
        order = ["train_size", "distance", "test_size"]
        nearest = near.assign(distance=distance).sort_values(order).drop_duplicates("train_size")
        return {int(train): int(test) for train, test in nearest[PAIR].to_numpy()}

    def cell(self, train: int, test: int, adaptation: str, own_crop: bool = False) -> Cell:
        """A trained cell in a centre crop: the usual one, or the one chosen for its arm."""
        results = self.results
        cell = Cell(train, test, adaptation, crop_pct=results.usual_crop)
        return results.at_chosen_crop(cell) if own_crop else cell

    @property
    def claims(self) -> list[tuple[int, int]]:
        """Pairs with a smaller train resolution whose test resolution is trained at too."""
        return [
            (train, test)
            for train, test in self.pairs
            if train < test and (test, test) in self.pairs
        ]

    def training(self) -> Asked:
        """Question 1: each r at R = r and, adapted, at its matched R, against no training."""
        cells = [
            self.cell(train, test, "none") for train, test in sorted(self.pairs) if train == test
        ]
        if self.adapted:
            cells += [self.cell(*pair, self.adapted) for pair in self.matched.items()]
        results = self.results
        return [
            (cell, [results.once(name, cell.test_size) for name in results.untrained])
            for cell in cells
        ]

    def claim(self, own_crop: bool = False) -> Asked:
        """Question 2: trained smaller and adapted, against train = test, plain and adapted."""
        return [
            (
                self.cell(train, test, self.adapted, own_crop),
                [self.cell(test, test, name, own_crop) for name in ("none", self.adapted)],
            )
            for train, test in self.claims
        ]

    def adaptation(self) -> Asked:
        """Question 3: adapted at the matched R, against unadapted there and against its control."""
        names = ("none", CONTROL + self.adapted)
        return [
            (self.cell(train, test, self.adapted), [self.cell(train, test, name) for name in names])
            for train, test in self.matched.items()
        ]

    def repair(self) -> Asked:
        """Of question 4: adapted against unadapted at the matched R, each at its own crop_pct."""
        return [
            (self.cell(*pair, self.adapted, True), [self.cell(*pair, "none", True)])
            for pair in self.matched.items()
        ]

    def why_not(self, question: int) -> str:
        """Why a question is not asked; "" if it is."""
        settings = self.results.settings
        if question in (1, 2) and settings["head_start"] == "file":
            return "the network was trained elsewhere"
        if question == 1 and not settings["pretrained"]:
            return "the network has no pre-trained weights, so there is no probe"
        if not self.adapted and question > 1:
            return "no adaptation was asked for"
        if question == 2 and not self.claims:
            return "no pair has both a smaller train resolution and train = test beside it"
        if question == 3 and not self.matched:
            train = max(train for train, _ in self.pairs)
            scale = tuple(settings["crop_scale"])
            size = round(neutral_test_size(train, scale, self.results.usual_crop))
            where = f"trained at {train} px, objects look as large at about {size} px"
            return f"no larger test resolution of the grid matches: {where}"
        if question == 4 and not isinstance(settings["crop_pct"], list):
            return "one crop_pct"
        if question == 4 and not (self.claims or self.matched):
            return "no pair to try it at"
        return ""

    def primary_cell(self, asked: Asked, question: int) -> Cell | None:
        """The cell of the primary row: that of the sweep's primary pair, or the nearest to it."""
        cells = [cell for cell, _ in asked]
        largest = max((cell.train_size or 0 for cell in cells), default=0)
        train, test = self.results.settings["primary"] or (largest, 0)

        def distance(cell: Cell) -> tuple[bool, bool, bool]:
            same_size = question == 1 and cell[:2] == (test, test)
            return cell[:2] != (train, test), not same_size, cell.train_size != train

        return min(cells, key=distance, default=None)


@dataclass(frozen=True)
class Answer:
    """The comparisons of one question on one test part, and their verdict.

    Attributes:
        number: 1 to 4.
        steps: fewest optimizer steps of a stage 1.
        why_not: why the question is not asked, else "".
        equal_flops: of questions 2 and 4, train = test, cut to the training FLOPs of the primary
            cell, against that cell.
    """

    number: int
    comparisons: tuple[Comparison, ...] = ()
    steps: float = math.inf
    why_not: str = ""
    equal_flops: tuple[Comparison, ...] = ()

    @property
    def primary(self) -> Comparison | None:
        """The comparison that title and sentences are about; None until it was run."""
        primary = (row for row in self.comparisons if row.primary and row.verdict != "not run")
        return next(primary, None)

    @property
    def primary_verdict(self) -> Verdict:
        """The verdict of the primary row."""
        return self.primary.verdict if self.primary else "not run"

    @property
    def not_worse(self) -> bool:
        """Whether the primary row is better or as good."""
        return self.primary_verdict in ("better", "as good")

    @property
    def verdict(self) -> str:
        """In the words of the protocol."""
        if self.why_not:
            return "not asked"
        if self.number == 1:
            return self._training()
        verdict = self.primary_verdict
        if self.number != 3 or self.primary is None:
            return f"{verdict}, {self.cost}" if self.not_worse else verdict
        if verdict == "better":
            return "gains"
        plain, control = (row.verdict for row in self.primary.rows)
        return f"against none: {plain}; against its control: {control}"

    def _training(self) -> str:
        """The verdict of question 1, in the protocol's order of precedence."""
        verdicts = {row.verdict for row in self.comparisons}
        if verdicts <= {"not run"}:
            return "not run"
        gains = "better" in verdicts
        if not gains and self.steps < ENOUGH_STEPS:
            return "trained too briefly"
        if all(row.below_delta for row in self.comparisons):
            return "gains less than delta"
        return "pays" if gains else "not decided"

    def rows_as_json(self, part: str) -> list[dict[str, Any]]:
        """All rows for answers.json; `decides` marks the row that decides the primary verdict.

        Args:
            part: name of the test part.
        """
        return [
            {
                "part": part,
                "primary": comparison.primary,
                "decides": comparison.primary and row is comparison.deciding,
                "k": len(group),
                **row.as_json(),
            }
            for group in (self.comparisons, self.equal_flops)
            for comparison in group
            for row in comparison.rows
        ]

    @property
    def holds(self) -> bool | None:
        """Of question 2 or 4: whether it is not worse and cheaper; None if not asked."""
        return None if self.why_not else self.not_worse and self.cost == "cheaper"

    @property
    def flops_ratio(self) -> float:
        """Training FLOPs of the primary row of question 2 or 4 over those of its references."""
        rows = self.primary.rows if self.primary else ()
        return max((row.cost_ratio[0] for row in rows), default=math.nan)

    @property
    def cost(self) -> str:
        """The verdict on `flops_ratio`."""
        if math.isnan(self.flops_ratio):
            return "unknown"
        if self.flops_ratio > ENOUGH_CHEAPER:
            return "dearer"
        verdicts = [row.verdict for row in self.equal_flops]
        if "better" in verdicts:
            return "cheaper only at equal epochs"
        return "cheaper" if verdicts and "not run" not in verdicts else UNCHECKED


def answers(plan: Plan) -> list[Answer]:
    """Questions 1 to 4 on the part that the plan's results are about."""
    results = plan.results
    trained_here = results.settings["head_start"] != "file"
    remedies = [plan.claim(own_crop=True) if trained_here else [], plan.repair()]
    questions = [[plan.training()], [plan.claim()], [plan.adaptation()], remedies]
    answered = []
    for number, lists in enumerate(questions, 1):
        if reason := plan.why_not(number):
            answered.append(Answer(number, why_not=reason))
            continue
        with_cost = number in (2, 4)
        planned = sum(map(len, lists))
        asked = next(filter(None, lists), [])
        primary = plan.primary_cell(asked, number)
        comparisons: list[Comparison] = []
        for rows in lists:  # each with its own kinds of references
            own_primary = primary if rows is asked else None
            comparisons += compared(results, rows, own_primary, planned, with_cost)
        short = _equal_flops(plan, primary, number == 4) if with_cost else ()
        steps = fewest_steps(results)
        answered.append(Answer(number, tuple(comparisons), steps, equal_flops=short))
    return answered


def _equal_flops(plan: Plan, primary: Cell | None, own_crop: bool) -> tuple[Comparison, ...]:
    """Train = test, cut to the training FLOPs of the primary cell, against that cell."""
    if primary is None:
        return ()
    size = primary.test_size
    planned = set(plan.results.table["adaptation"])
    names = [EQUAL_FLOPS + name for name in ("none", plan.adapted)]
    asked = [
        (plan.cell(size, size, name, own_crop), [primary]) for name in names if name in planned
    ]
    return compared(plan.results, asked, None, len(asked), with_cost=True)


def fewest_steps(results: Results) -> float:
    """The fewest optimizer steps of a stage 1; infinite if unknown."""
    runs = results.sweep["runs"]
    steps = [run["steps"] for run in runs if run["steps"] and not run["equal_flops"]]
    return min(steps, default=math.inf)


def did_nothing(results: Results) -> list[int]:
    """Train resolutions whose stage 1 predicts as the probe does on 99 % of validation."""
    rows = results.predictions
    rows = rows[(rows["split"] == "val") & (rows["view"] == "center")]
    rows = rows[rows["crop_pct"] == results.usual_crop]
    image = ["test_size", "image"]
    probes = rows[rows["adaptation"] == "probe"].set_index(image)["top1"].rename("probe")
    trained = rows[(rows["adaptation"] == "none") & (rows["train_size"] == rows["test_size"])]
    trained = trained.join(probes, on=image)
    shares = (trained["top1"] == trained["probe"]).groupby(trained["train_size"]).mean()
    return [int(size) for size in shares.index[shares >= SAME_AS_PROBE]]

"""Question 5: which arm to use at a budget, by the one-standard-error rule.

Of all arms the cheapest one (inference FLOPs, then training FLOPs; ties to the better validation,
then to the smaller train resolution) whose mean loss on validation against the best arm is at most
the standard error of that paired difference, and at most delta. Source of the rule: Breiman,
Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fixres_poc.analysis.cells import Cell, keys
from fixres_poc.analysis.comparisons import largest_unimportant
from fixres_poc.analysis.results import Results, training_cost
from fixres_poc.analysis.statistics import Difference, paired_gain
from fixres_poc.config.settings import CROPS

FEWEST_IMAGES = 200
"""Validation images below which arms are listed and none is recommended."""
DRAWS = 1000
MOST_SCATTER = 1.5
"""Ratio of single timings of one size from which a speed is not given; FLOPs are."""


@dataclass(frozen=True)
class Recommendation:
    """What to use.

    Attributes:
        arms: one row per arm, cheapest first: the columns of `Results.cells`, and cell, flops (of
            an image), training_flops, images_per_second (the median of its test resolution and
            view; nan where single timings differ by more than half), gap (loss on validation
            against the best arm), allowed (the largest gap that the rule lets pass), pick ("use",
            "at this resolution" or "") and share (of the bootstrap draws of validation that pick
            the arm).
        use: the cheapest arm that the rule lets pass; None where none is recommended.
        best: the arm with the highest accuracy on validation.
        price: accuracy of the best arm minus that of the recommended one, on the test part.
        common: accuracy of the recommended arm minus that of common practice there: the largest
            train resolution tested at itself, unadapted, in the usual crop.
        why_not: why none is recommended, else "".
    """

    arms: pd.DataFrame
    use: Cell | None = None
    best: Cell | None = None
    price: Difference | None = None
    common: Difference | None = None
    why_not: str = ""

    @property
    def share(self) -> float:
        """Share of bootstrap draws of validation that pick the recommended arm; 0 where none is."""
        return float(sum(self.arms["share"][self.arms["pick"] == "use"])) if self.use else 0.0


def recommend(results: Results, adapted: str) -> Recommendation:
    """The answer to question 5 on `results.part`; the choice is made on validation alone.

    Args:
        adapted: the primary adaptation; ablations do not compete.
    """
    arms = _arms(results, adapted)
    if arms.empty:
        return Recommendation(arms, why_not="no arm was run to its end")
    rule = _Rule(results.validation, list(arms["cell"]))
    use, best = rule.pick(rule.accuracies)
    picks = pd.Series("", index=arms.index)
    for _, own in arms.groupby("test_size"):
        among = np.where(arms.index.isin(own.index), rule.accuracies, -1.0)
        picks[rule.pick(among)[0]] = "at this resolution"
    picks[use] = "use"
    arms["gap"] = rule.accuracies[best] - rule.accuracies
    arms["allowed"] = rule.allowed(best)
    arms["share"] = rule.shares()
    few = arms["n_val"].max() < FEWEST_IMAGES
    cell, top = arms["cell"][use], arms["cell"][best]
    if few:
        why = f"fewer than {FEWEST_IMAGES} validation images"
        return Recommendation(arms.assign(pick=""), best=top, why_not=why)
    return Recommendation(
        arms.assign(pick=picks),
        cell,
        top,
        results.difference(top, cell),
        _over_common_practice(results, cell),
    )


def _arms(results: Results, adapted: str) -> pd.DataFrame:
    """Every arm at its chosen crop_pct, cheapest first."""
    cells = results.cells
    untrained = [name for name in ("probe", "zero_shot") if results.knows_all(name)]
    competing = cells["adaptation"].isin(["none", adapted, *untrained])
    arms = cells[cells["crop_pct_chosen"] & competing]
    arms = arms[arms["seeds"] > 0].reset_index(drop=True)
    if arms.empty:
        return arms
    cell = keys(arms)
    training = [training_cost(results, each)[0] for each in cell]
    arms = arms.assign(cell=pd.Series(cell, dtype=object), training_flops=training)
    one_crop = arms["test_size"].astype(str).map(results.sweep["image_flops"])
    arms["flops"] = one_crop * arms["view"].map(CROPS)
    place = ["test_size", "view"]
    timed = results.table.groupby(place)["eval_images_per_second"].agg(["median", "min", "max"])
    steady = timed["median"].where(timed["max"] <= MOST_SCATTER * timed["min"])
    arms = arms.join(steady.rename("images_per_second"), on=place)
    order = ["flops", "training_flops", "val_top1", "train_size"]
    rising = [True, True, False, True]
    by_cost: pd.DataFrame = arms.sort_values(order, ascending=rising, na_position="first")
    return by_cost.reset_index(drop=True)


class _Rule:
    """The rule on the validation images of arms that are sorted by cost."""

    def __init__(self, validation: Results, cells: list[Cell]) -> None:
        self.validation, self.cells = validation, cells
        self.allowed = functools.cache(self._allowed)  # for each draw that this arm is best in
        hits = [pd.concat(validation.hits(cell).values(), axis=1).mean(axis=1) for cell in cells]
        # (N, K): share of the trainings of each of K arms that are right on each of N images
        self.hits = pd.concat(hits, axis=1, join="inner").to_numpy()
        self.accuracies = self.hits.mean(axis=0)

    def _allowed(self, best: int) -> np.ndarray:
        """By how much an arm's accuracy may be below that of the arm with this number, (K,)."""
        pairs = [self.validation.paired_hits(self.cells[best], cell) for cell in self.cells]
        errors = [0.0 if pair is None else paired_gain(*pair).error for pair in pairs]
        most = largest_unimportant(self.validation, self.cells[best])
        return np.minimum(errors, most)

    def pick(self, accuracies: np.ndarray) -> tuple[int, int]:
        """Numbers of the arm to use and of the best one, by accuracies (K,) on validation."""
        best = int(accuracies.round(9).argmax())  # the cheapest of equals
        passed = accuracies[best] - accuracies <= self.allowed(best) + 1e-9
        return int(passed.argmax()), best

    def shares(self) -> np.ndarray:
        """How often a bootstrap of the validation images picks each arm, (K,)."""
        images = len(self.hits)
        weights = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), DRAWS)
        picks = [self.pick(accuracies)[0] for accuracies in weights @ self.hits / images]
        return np.bincount(picks, minlength=len(self.cells)) / DRAWS


def _over_common_practice(results: Results, use: Cell) -> Difference | None:
    size = results.cells["train_size"].max()
    if pd.isna(size):
        return None
    usual = Cell(int(size), int(size), "none", crop_pct=results.usual_crop)
    return results.difference(use, usual)

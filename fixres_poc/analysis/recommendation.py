"""Question 5: which arm to use at a budget, by the one-standard-error rule.

The rule takes the cheapest arm whose mean loss on validation against the best arm is at most the
standard error of that paired difference, and at most delta. Cheapest is by inference FLOPs, then by
training FLOPs; ties go to the better validation, then to the smaller train resolution. Source:
Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fixres_poc.analysis.cells import Cell, keys
from fixres_poc.analysis.comparisons import largest_unimportant
from fixres_poc.analysis.results import Results, training_cost
from fixres_poc.analysis.statistics import Difference, paired_gain
from fixres_poc.config.settings import CROPS, FEWEST_VAL

DRAWS = 1000
MOST_SCATTER = 1.5
"""Largest ratio of single timings of one size at which a speed is given."""


@dataclass(frozen=True)
class Recommendation:
    """What to use.

    Attributes:
        arms: one row per arm, cheapest first: the columns of `Results.cells`, and cell, flops (of
            an image), training_flops, images_per_second (the median of its test resolution and
            view; nan if single timings differ by more than half), gap (loss on validation against
            the best arm), allowed (the largest gap within the rule), pick ("use", "at this
            resolution" or "") and share (of the bootstrap draws of validation that pick the arm).
        use: the cheapest arm within the rule; None if none is recommended.
        best: the arm with the highest accuracy on validation.
        price: accuracy of the best arm minus that of the recommended one, on the test part.
        common: accuracy of the recommended arm minus that of common practice, on the test part:
            the largest train resolution tested at itself, unadapted, in the usual crop.
        why_not: why no arm is recommended, else "".
    """

    arms: pd.DataFrame
    use: Cell | None = None
    best: Cell | None = None
    price: Difference | None = None
    common: Difference | None = None
    why_not: str = ""

    @property
    def share(self) -> float:
        """Share of bootstrap draws of validation that pick the recommended arm; 0 if none is."""
        return float(sum(self.arms["share"][self.arms["pick"] == "use"])) if self.use else 0.0


def recommend(results: Results, adapted: str) -> Recommendation:
    """The answer to question 5, chosen on validation and compared on `results.part`.

    Args:
        adapted: the primary adaptation; the others do not compete.
    """
    arms = _arms(results, adapted)
    if arms.empty:
        return Recommendation(arms, why_not="no arm was run to its end")
    rule = _Rule(results.validation, list(arms["cell"]))
    use, best = rule.pick(rule.accuracies)
    picks = pd.Series("", index=arms.index)
    for size in arms["test_size"].unique():
        accuracies = np.where(arms["test_size"] == size, rule.accuracies, -1.0)
        picks[rule.pick(accuracies)[0]] = "at this resolution"
    picks[use] = "use"
    arms["gap"] = rule.accuracies[best] - rule.accuracies
    arms["allowed"] = rule.allowed(best)
    arms["share"] = rule.shares()
    used, top = arms["cell"][[use, best]]
    if arms["n_val"].max() < FEWEST_VAL:
        why = f"fewer than {FEWEST_VAL} validation images: {arms['n_val'].max():.0f}"
        return Recommendation(arms.assign(pick=""), best=top, why_not=why)
    price = results.difference(top, used)
    common = _over_common_practice(results, used)
    return Recommendation(arms.assign(pick=picks), used, top, price, common)


def _arms(results: Results, adapted: str) -> pd.DataFrame:
    """Every arm at its chosen crop_pct, cheapest first."""
    cells = results.cells
    competing = cells["adaptation"].isin(["none", adapted, *results.untrained])
    arms = cells[cells["crop_pct_chosen"] & competing]
    arms = arms[arms["seeds"] > 0].reset_index(drop=True)
    if arms.empty:
        return arms
    arms["cell"] = keys(arms)
    arms["training_flops"] = [training_cost(results, cell)[0] for cell in arms["cell"]]
    one_crop = arms["test_size"].astype(str).map(results.sweep["image_flops"])
    arms["flops"] = one_crop * arms["view"].map(CROPS)
    timing = ["test_size", "view"]
    timed = results.table.groupby(timing)["eval_images_per_second"].agg(["median", "min", "max"])
    steady = timed["median"].where(timed["max"] <= MOST_SCATTER * timed["min"])
    arms = arms.join(steady.rename("images_per_second"), on=timing)
    order = ["flops", "training_flops", "val_top1", "train_size"]
    rising = [True, True, False, True]
    by_cost: pd.DataFrame = arms.sort_values(order, ascending=rising, na_position="first")
    return by_cost.reset_index(drop=True)


class _Rule:
    """The rule on the validation images of arms that are sorted by cost."""

    def __init__(self, validation: Results, cells: list[Cell]) -> None:
        self.validation = validation
        self.cells = cells
        self.allowed = functools.cache(self._allowed)  # many draws have the same best arm
        hits = [pd.concat(validation.hits(cell).values(), axis=1).mean(axis=1) for cell in cells]
        # (N, K): share of the trainings of each of K arms that are right on each of N images
        self.hits = pd.concat(hits, axis=1, join="inner").to_numpy()
        self.accuracies = self.hits.mean(axis=0)

    def _allowed(self, best: int) -> np.ndarray:
        """Largest loss (K,) of each arm against the arm with the number `best`."""
        pairs = [self.validation.paired_hits(self.cells[best], cell) for cell in self.cells]
        errors = [0.0 if pair is None else paired_gain(*pair).error for pair in pairs]
        delta = largest_unimportant(self.validation, self.cells[best])
        return np.minimum(errors, delta)

    def pick(self, accuracies: np.ndarray) -> tuple[int, int]:
        """Numbers of the arm to use and of the best arm, by accuracies (K,) on validation."""
        best = int(accuracies.round(9).argmax())  # the cheapest of equals
        within_rule = accuracies[best] - accuracies <= self.allowed(best) + 1e-9
        return int(within_rule.argmax()), best

    def shares(self) -> np.ndarray:
        """Share of bootstrap draws of the validation images that pick each arm, (K,)."""
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

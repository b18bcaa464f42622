"""Accuracies with intervals, and paired comparisons of two classifiers on the same images.

Accuracies, probabilities and differences are fractions. `correct`, `first` and `second` are
booleans of shape (N,): was the image classified correctly? Two classifiers' arrays are aligned,
image by image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, stdtrit

# of the variance between images: what `mean_over_seeds` takes for the whole at least
LEAST_SHARE = 2 / 3


class Difference(NamedTuple):
    """A difference of two accuracies, or one accuracy, and its interval, all in [-1, 1].

    `error` is the standard error (nan: not known), `freedom` its degrees of freedom. The interval
    lies about `centre`, which the added images of `paired_difference` draw to the middle of the
    scale, and is cut off at `least` and 1.
    """

    estimate: float
    low: float
    high: float
    error: float = float("nan")
    freedom: float = float("inf")
    centre: float = float("nan")
    least: float = -1.0

    def at(self, level: float) -> tuple[float, float]:
        """Lower and upper bound of the interval of another level, such as 0.99; nan without `error`."""
        margin = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        low, high = np.clip([self.centre - margin, self.centre + margin], self.least, 1.0)
        return float(low), float(high)

    def detectable(self, power: float = 0.8, level: float = 0.95) -> float:
        """Smallest true difference that the interval tells from 0 with that power; at most 1, nan without `error`.

        It takes `error` for exact. With 3 to 5 trainings that is uncertain, and a power of 0.8 may
        be one of 0.6.
        """
        return float(
            np.minimum(stdtrit(self.freedom, [(1 + level) / 2, power]).sum() * self.error, 1.0)
        )

    def points(self) -> str:
        """The difference in points, such as '+1.2 points (95 % interval -0.3 to +2.7)'."""
        low, high = self.low * 100, self.high * 100
        return f"{self.estimate * 100:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Args:
        correct: number of successes, 0 to `total`.
        total: number of trials; 0 gives (nan, nan).

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        ValueError: `correct` is not within 0 and `total`.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total}: need 0 <= correct <= total")
    if total == 0:
        return float("nan"), float("nan")
    from scipy.stats import binomtest  # here, since importing it takes a second

    test = binomtest(correct, total, correct / total)  # at this p the unused p-value costs nothing
    low, high = test.proportion_ci(level, method="wilson")
    return float(low), float(high)


def mcnemar_p(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p-value of McNemar's mid-p test that both classifiers are equally often correct.

    The exact binomial p-value less the probability of the table seen, which nearly always keeps the
    level, and is less cautious than the exact test (Fagerland, Lydersen and Laake, 2013). No
    disagreement at all gives 1.

    Raises:
        ValueError: the arrays differ in shape.
    """
    only_first, only_second, _ = _discordant(first, second)
    fewer, either = min(only_first, only_second), only_first + only_second
    less = bdtr(fewer - 1, either, 0.5) if fewer else 0.0
    return min(float(bdtr(fewer, either, 0.5) + less), 1.0)


def paired_difference(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Difference:
    """Accuracy of the first classifier minus that of the second, with the Bonett-Price interval.

    The interval is Wald's after one image was added to each of the two kinds of disagreement
    (Bonett and Price, 2012; recommended by Fagerland, Lydersen and Laake, 2014). It is centred
    closer to 0 than the estimate, which is the plain difference.

    Args:
        first: correctness of the first classifier, (N,) booleans.
        second: correctness of the second one on the same images.

    Raises:
        ValueError: the arrays differ in shape, or are empty.
    """
    only_first, only_second, total = _discordant(first, second)
    if total == 0:
        raise ValueError("no images to compare on")
    p, q = (only_first + 1) / (total + 2), (only_second + 1) / (total + 2)
    error = ((p + q - (p - q) ** 2) / (total + 2)) ** 0.5
    mean = (only_first - only_second) / total
    return _with_interval(Difference(mean, mean, mean, error, centre=p - q), level)


def mean_over_seeds(values: ArrayLike, least: float, level: float = 0.95) -> Difference:
    """Mean over S trainings and N images, with an interval for other trainings and other images; S = 1: other images.

    Trainings and images are crossed random effects: with the mean squares A between trainings, B
    between images and E of the rest, the mean has the variance (A + B - E) / (S N) (Searle, Casella
    and McCulloch, 1992; Owen, 2007). Here A + B - E is at least two thirds of B, and t has the
    degrees of freedom that Satterthwaite (1946) gives for the larger of A and those two thirds.
    Both come from simulations as in tests/analysis/test_simulated_coverage.py, with 3.3 %
    disagreements, alike or not over trainings: 95 % intervals cover 94 to 98 % with 3 or 5
    trainings, where his for A + B - E cover 92 % at worst, and 88 to 98 % with 2. As in
    `paired_difference` two images are added to each training, one at either end; the other
    trainings have the centre there.

    Args:
        values: (S, N), such as correctness, or first minus second classifier's; any numbers in
            [least, 1].
        least: the smallest possible value, 0 or -1; the largest is 1.

    Raises:
        ValueError: not of two dimensions, or empty.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"values of shape {table.shape}: need seeds x images")
    (seeds, images), mean = table.shape, float(table.mean())
    centre, spare = (images * mean + least + 1) / (images + 2), max(seeds - 1, 1)
    ends = (least - centre) ** 2 + (1 - centre) ** 2
    rows, columns = table.mean(axis=1, keepdims=True), table.mean(axis=0)
    by_training = images * float(((rows - mean) ** 2).sum()) / spare
    by_image = (seeds * float(((columns - centre) ** 2).sum()) + ends) / (images + 1)
    rest = (float(((table - rows - columns + mean) ** 2).sum()) + (seeds - 1) * ends) / (
        spare * (images + 1)
    )
    floor = LEAST_SHARE * by_image
    error = (max(by_training + by_image - rest, floor) / (seeds * (images + 2))) ** 0.5
    freedom = max(by_training, floor) ** 2 / (by_training**2 / spare + floor**2 / (images + 1))
    return _with_interval(Difference(mean, mean, mean, error, freedom, centre, least), level)


def _with_interval(found: Difference, level: float) -> Difference:
    """The same with the bounds of its interval of that level."""
    low, high = found.at(level)
    return found._replace(low=low, high=high)


def _discordant(first: ArrayLike, second: ArrayLike) -> tuple[int, int, int]:
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"correctness of shapes {a.shape} and {b.shape}: need two equally long rows"
        )
    return int(np.sum(a & ~b)), int(np.sum(b & ~a)), a.size


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, weighted by their images (Guo et al., 2017).

    Args:
        confidence: probability of the predicted class, (N,), in [0, 1].
        correct: was it right? (N,) booleans.
        bins: number of bins on [0, 1], each closed on the right.

    Returns:
        The error in [0, 1]; nan where there are no images.
    """
    p, hit = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if p.size == 0:
        return float("nan")
    which: NDArray[np.intp] = np.clip(np.ceil(p * bins).astype(np.intp) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(which, weights=hit - p, minlength=bins)).sum() / p.size)


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> pd.DataFrame:
    """The bins of `expected_calibration_error` that have images.

    Returns:
        Columns confidence and accuracy (means over the bin), images (number).
    """
    p, hit = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    which = np.clip(np.ceil(p * bins) - 1, 0, bins - 1)
    table = pd.DataFrame({"confidence": p, "accuracy": hit, "images": 1})
    return (
        table.groupby(which)
        .agg({"confidence": "mean", "accuracy": "mean", "images": "sum"})
        .reset_index(drop=True)
    )


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values of several tests, adjusted so that the chance of any false finding keeps the level (Holm, 1979).

    Args:
        p_values: (N,); nan stands for a test that was not made, stays nan and is not counted.
    """
    p = np.asarray(p_values, dtype=np.float64)
    made = ~np.isnan(p)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p[made])
    steps = np.maximum.accumulate(p[made][order] * np.arange(made.sum(), 0, -1))
    adjusted[np.flatnonzero(made)[order]] = np.minimum(steps, 1)
    return adjusted


def per_class(targets: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> pd.DataFrame:
    """Accuracy of every class that has images, the worst first.

    Returns:
        Columns class (name), images (number), accuracy, low and high (95 % Wilson).
    """
    hits = pd.Series(np.asarray(targets) == np.asarray(predicted)).groupby(np.asarray(targets))
    table = hits.agg(images="size", correct="sum").rename_axis("class").reset_index()
    bounds = [
        wilson_interval(*pair) for pair in zip(table["correct"], table["images"], strict=True)
    ]
    table = table.assign(accuracy=table["correct"] / table["images"], low=[a for a, _ in bounds])
    table = table.assign(high=[b for _, b in bounds]).sort_values("accuracy", kind="stable")
    names = [classes[index] for index in table["class"]]
    return table.assign(**{"class": names}).drop(columns="correct").reset_index(drop=True)


def macro_accuracy(targets: ArrayLike, predicted: ArrayLike) -> float:
    """Mean over the classes present in `targets` of the share of their images predicted right; nan with no images.

    Args:
        targets: class indices, (N,).
        predicted: class indices, (N,).
    """
    labels = np.unique(np.asarray(targets))
    if labels.size == 0:
        return float("nan")
    from sklearn.metrics import recall_score

    return float(recall_score(targets, predicted, labels=labels, average="macro", zero_division=0))


def confused_pairs(
    targets: ArrayLike, predicted: ArrayLike, classes: Sequence[str]
) -> pd.DataFrame:
    """Ordered pairs of classes by how many images of the one are taken for the other.

    Returns:
        Columns target, predicted (names), images (number) and share (of the target's images).
    """
    table = pd.DataFrame({"target": np.asarray(targets), "predicted": np.asarray(predicted)})
    pairs = (
        table[table["target"] != table["predicted"]].value_counts().rename("images").reset_index()
    )
    share = pairs["images"] / pairs["target"].map(table["target"].value_counts())
    names = {key: [classes[index] for index in pairs[key]] for key in ("target", "predicted")}
    return pairs.assign(**names, share=share)

"""Accuracies with intervals, and paired comparisons of two classifiers on the same images.

Accuracies, probabilities and differences are fractions. `correct`, `first` and `second` are
booleans of shape (N,): whether the image was classified correctly. Two classifiers' arrays list
the images in the same order.
"""

from collections.abc import Mapping, Sequence
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

POOLED = 1.5
"""A row keeps its own mean square between trainings above this multiple of the pooled one.

Pooled, the 95 % interval of such a row covers the truth in 81 % of simulated sweeps."""
LEAST_SHARE = 2 / 3
"""Least variance of a mean over trainings, as a share of the variance between images."""


class Accuracy(NamedTuple):
    """An accuracy and its 95 % interval, all in [0, 1]; nan where nothing was run."""

    estimate: float = nan
    low: float = nan
    high: float = nan

    def percent(self, brief: bool = False) -> str:
        """The accuracy as text, such as '81.2 % (95 % interval 77.9 to 84.1)'.

        Args:
            brief: for tables, '81.2 % (77.9 to 84.1)'.
        """
        top1, low, high = (f"{value * 100:.1f}" for value in self)
        return f"{top1} % ({'' if brief else '95 % interval '}{low} to {high})"


class Difference(NamedTuple):
    """A difference of two accuracies and its 95 % interval, all in [-1, 1].

    `error` is the standard error (nan: not known), `freedom` its degrees of freedom. The interval
    is symmetric about `centre`: the estimate, drawn towards 0 by the images that `paired_gains`
    adds. `seeds` is the number of trainings behind the mean.
    """

    estimate: float = nan
    low: float = nan
    high: float = nan
    error: float = nan
    freedom: float = inf
    centre: float = nan
    seeds: int = 1

    def at(self, level: float) -> tuple[float, float]:
        """Bounds of the interval at a level, such as 0.9; nan without `error`."""
        return _bounds(self.centre, self.error, self.freedom, level)

    def detectable(self) -> float:
        """Smallest true difference that is detected with a power of 0.8, at most 1.

        nan without `error`. `error` is taken for exact: with 3 to 5 trainings it is uncertain, and
        the power may be as low as 0.6.
        """
        return float(np.minimum(_quantiles(self.freedom, 0.975, 0.8).sum() * self.error, 1.0))

    def points(self, brief: bool = False) -> str:
        """The difference as text, such as '+1.2 points (95 % interval −0.3 to 2.7)'.

        Args:
            brief: for tables and figures, '+1.2 (−0.3 to 2.7)'.
        """
        # + 0.0 turns minus zero into zero
        gain, low, high = (round(value * 100, 1) + 0.0 for value in self[:3])
        interval = f"{low:.1f} to {high:.1f}"
        text = f"({interval})" if brief else f"points (95 % interval {interval})"
        sign = "+" if gain > 0 else ""
        return f"{sign}{gain:.1f} {text}".replace("-", "\N{MINUS SIGN}")

    def told(self, gain: str, loss: str, neither: str) -> str:
        """The text for an interval above 0, below 0, or that includes 0."""
        return gain if self.low > 0 else loss if self.high < 0 else neither


def _quantiles(freedom: float, *probabilities: float) -> NDArray[np.float64]:
    """Quantiles of Student's t."""
    from scipy.special import stdtrit  # a slow import

    return np.asarray(stdtrit(freedom, probabilities))


def _bounds(
    centre: float, error: float, freedom: float, level: float = 0.95, least: float = -1.0
) -> tuple[float, float]:
    """An interval of Student's t, clipped to [least, 1]."""
    margin = _quantiles(freedom, (1 + level) / 2).item() * error
    low, high = np.clip([centre - margin, centre + margin], least, 1.0)
    return float(low), float(high)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 %.

    Args:
        correct: number of successes, 0 to `total`.
        total: number of trials; 0 gives (nan, nan).

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        ValueError: `correct` is not within 0 and `total`.
    """
    if total == 0:
        return nan, nan
    from scipy.stats import binomtest  # a slow import

    test = binomtest(correct, total, correct / total)  # with this p the unused p-value is cheap
    low, high = test.proportion_ci(method="wilson")
    return float(low), float(high)


def mean_accuracy(correct: ArrayLike) -> Accuracy:
    """Mean accuracy over trainings, with its interval.

    Wilson's interval for one training, that of `paired_gains` for several.

    Args:
        correct: (S, N) booleans.
    """
    hits = np.asarray(correct, dtype=np.float64)
    if len(hits) == 1:
        return Accuracy(float(hits.mean()), *wilson_interval(int(hits.sum()), hits.size))
    return Accuracy(float(hits.mean()), *_bounds(*_over_seeds(hits, least=0), least=0))


def paired_gain(first: ArrayLike, second: ArrayLike) -> Difference:
    """`paired_gains` of one row: accuracy of the first classifier minus that of the second."""
    return paired_gains([np.stack([first, second])])[0]


def paired_gains(rows: Sequence[ArrayLike]) -> list[Difference]:
    """Accuracies of first classifiers minus those of second ones, on the same images.

    A row of one training has the Bonett-Price interval: Wald's, after one image is added to each of
    the two kinds of disagreement (Bonett and Price, 2012). Its centre is closer to 0 than the
    estimate, which is the plain difference.

    A row of S trainings has an interval for other trainings and other images, which are crossed
    random effects. With the mean squares A between trainings, B between images and E of the rest,
    the mean has the variance (A + B - E) / (S N) (Searle, Casella and McCulloch, 1992; Owen, 2007).
    A is pooled over the rows, with the degrees of freedom of all of them, except for rows above
    `POOLED`. A + B - E is at least two thirds of B, and t has the degrees of freedom of
    Satterthwaite (1946) for the larger of A and those two thirds (simulated in tests/analysis). Two
    images are added here as well.

    Args:
        rows: correctness by the first and by the second classifier: (2, N) booleans of one
            training, or (2, S, N) of S.

    Returns:
        A difference for each row.

    Raises:
        ValueError: there are no images, or the two classifiers' arrays differ in shape.
    """
    hits = [np.asarray(row, dtype=np.float64) for row in rows]
    gains = [np.atleast_2d(first - second) for first, second in hits]
    if not all(gain.size for gain in gains):
        raise ValueError("no images to compare on")
    squares = [(_between_trainings(gain), len(gain) - 1) for gain in gains]
    freedom = max(sum(degrees for _, degrees in squares), 1)
    pooled = (sum(square * degrees for square, degrees in squares) / freedom, freedom)
    differences = []
    for gain, square in zip(gains, squares, strict=True):
        if len(gain) == 1:
            images = gain.size + 2
            centre = float(gain.sum()) / images
            variance = float((gain**2).sum() + 2) / images - centre**2
            error, degrees = (variance / images) ** 0.5, inf
        else:
            between = square if square[0] > POOLED * pooled[0] else pooled
            centre, error, degrees = _over_seeds(gain, least=-1, between=between)
        interval = (*_bounds(centre, error, degrees), error, degrees, centre)
        differences.append(Difference(float(gain.mean()), *interval, len(gain)))
    return differences


def by_group(values: "pd.Series[Any]", groups: Mapping[str, str]) -> "pd.Series[Any]":
    """A value for each group of images, with the mean of all images, for intervals over groups.

    A group's value is the mean plus the scaled sum of its images' deviations from the mean: the
    linearized estimator of a mean from a sample of groups (Cochran, Sampling Techniques, 1977,
    section 2.11).

    Args:
        values: by image.
        groups: group by image; any other image is a group of its own.
    """
    mean = values.mean()
    sums = (values - mean).groupby([groups.get(image, image) for image in values.index]).sum()
    return mean + sums * len(sums) / len(values)


def _between_trainings(values: NDArray[np.float64]) -> float:
    """Mean square between trainings of values (S, N); 0 if S is 1."""
    means = values.mean(axis=1)
    return values.shape[1] * float(means.var(ddof=1)) if len(values) > 1 else 0.0


def _over_seeds(
    values: NDArray[np.float64], least: float, between: tuple[float, int] | None = None
) -> tuple[float, float, float]:
    """Centre, standard error and freedom of the mean of values (S, N) in [least, 1].

    Args:
        between: mean square between trainings and its degrees of freedom; None: of these values.
    """
    seeds, images = values.shape
    mean = float(values.mean())
    by_training, spare = between or (_between_trainings(values), max(seeds - 1, 1))
    centre = (images * mean + least + 1) / (images + 2)
    ends = (least - centre) ** 2 + (1 - centre) ** 2
    rows, columns = values.mean(axis=1, keepdims=True), values.mean(axis=0)
    by_image = (seeds * float(((columns - centre) ** 2).sum()) + ends) / (images + 1)
    rest = (float(((values - rows - columns + mean) ** 2).sum()) + (seeds - 1) * ends) / (
        max(seeds - 1, 1) * (images + 1)
    )
    floor = LEAST_SHARE * by_image
    error = (max(by_training + by_image - rest, floor) / (seeds * (images + 2))) ** 0.5
    freedom = max(by_training, floor) ** 2 / (by_training**2 / spare + floor**2 / (images + 1))
    return centre, error, freedom


def of_one_training(correct: ArrayLike) -> Accuracy:
    """Mean accuracy with the 95 % prediction interval of one more training, on other images.

    Args:
        correct: (S, N) booleans. If S is 1, the spread between trainings is unknown, and the
            interval is that of `mean_accuracy`.
    """
    hits = np.asarray(correct, dtype=np.float64)
    seeds, images = hits.shape
    if seeds == 1:
        return mean_accuracy(hits)
    centre, error, _ = _over_seeds(hits, least=0)
    between = _between_trainings(hits) / images
    variance = error**2 + between + centre * (1 - centre) / images
    freedom = (seeds - 1) * (variance / max(between * (1 + 1 / seeds), 1e-12)) ** 2
    return Accuracy(float(hits.mean()), *_bounds(centre, variance**0.5, freedom, least=0))


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean gap of confidence and accuracy over 15 bins, weighted by images (Guo et al., 2017).

    Args:
        confidence: probability of the predicted class, (N,), in [0, 1].

    Returns:
        The error in [0, 1]; nan where there are no images.
    """
    table = reliability(confidence, correct)
    gaps = (table["accuracy"] - table["confidence"]).abs() * table["images"]
    return float(gaps.sum() / table["images"].sum()) if len(table) else nan


def reliability(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, equal_counts: bool = False
) -> pd.DataFrame:
    """Confidence and accuracy in bins of equal width on [0, 1], each closed on the right.

    Args:
        equal_counts: use bins of equally many images instead.

    Returns:
        A row per bin that has images: confidence and accuracy (means), images (number).
    """
    p = np.asarray(confidence, dtype=np.float64)
    hits = np.asarray(correct, dtype=np.float64)
    bin_of = np.clip(np.ceil(p * bins) - 1, 0, bins - 1)
    if equal_counts:
        bin_of = p.argsort(kind="stable").argsort() * min(bins, len(p)) // max(len(p), 1)
    table = pd.DataFrame({"confidence": p, "accuracy": hits, "images": 1}).groupby(bin_of)
    means = table.agg({"confidence": "mean", "accuracy": "mean", "images": "sum"})
    return means.reset_index(drop=True)


def macro_accuracy(targets: ArrayLike, predicted: ArrayLike) -> float:
    """Mean of the accuracies of all classes in `targets`; nan without images.

    Args:
        targets: class indices, (N,).
        predicted: class indices, (N,).
    """
    hits = pd.Series(np.asarray(targets) == np.asarray(predicted), dtype=float)
    return float(hits.groupby(np.asarray(targets)).mean().mean())


def confused_pairs(
    targets: ArrayLike, predicted: ArrayLike, classes: Sequence[str]
) -> pd.DataFrame:
    """Pairs of classes by how many images of the first are taken for the second.

    Returns:
        Columns target, predicted (names), images (number) and share (of the target's images).
    """
    names = np.asarray(classes)
    table = pd.DataFrame(
        {
            "target": names[np.asarray(targets, dtype=int)],
            "predicted": names[np.asarray(predicted, dtype=int)],
        }
    )
    wrong = table[table["target"] != table["predicted"]]
    pairs = wrong.value_counts().rename("images").reset_index()
    counts = table["target"].value_counts()
    return pairs.assign(share=pairs["images"] / pairs["target"].map(counts).astype(float))

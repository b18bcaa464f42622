"""Intervals of `paired_gain` against simulated sweeps whose true difference is known.

Two classifiers are compared on N images drawn anew, after each of S trainings. An image has its own
probability that they disagree on it, the same in every training (0.033 on average, for most images
nearly 0), and leans to one of the two. A training has its own true difference, normal about that of
all trainings; it comes as a share of images that one classifier alone gets right.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta

from fixres_poc.analysis.statistics import Difference, paired_gain, paired_gains

pytestmark = [pytest.mark.slow, pytest.mark.simulations]

DRAWS = 4000
KINDS = 200
DISCORDANT = 0.033
ALIKE = 0.25  # correlation of "they disagree on this image" over two trainings
LEAN = 0.9  # share of an image's disagreements that go the way it leans
VALUES = np.array([1, -1, 0], dtype=np.int8)


def kinds_of_images() -> NDArray[np.float64]:
    """Probabilities of +1, -1 and 0, (2 * KINDS, 3), of equally frequent kinds of images.

    The probability of a disagreement has a beta distribution, in which `ALIKE` is 1 / (1 + the sum
    of its parameters).
    """
    total = 1 / ALIKE - 1
    places = (np.arange(KINDS) + 0.5) / KINDS
    hard = beta.ppf(places, total * DISCORDANT, total * (1 - DISCORDANT))
    one_way = np.stack([hard * LEAN, hard * (1 - LEAN), 1 - hard], axis=1)
    return np.concatenate([one_way, one_way[:, [1, 0, 2]]])


def sweeps(
    seeds: int, images: int, spread: float, truth: float = 0.0, row: int = 0
) -> Iterator[NDArray[np.int8]]:
    """Tables (S, N) of first minus second correctness, the same ones at each call.

    All 3^S outcomes of an image get their probability, then one multinomial draw gives the images
    of each.

    Args:
        spread: standard deviation of a training's true difference, a fraction.
        truth: mean of that difference.
        row: others are independent.
    """
    rng = np.random.default_rng([seeds, images, round(spread * 1e4), row])
    kinds = kinds_of_images()
    outcomes = np.array(list(itertools.product(VALUES, repeat=seeds)), dtype=np.int8).T
    for shifts in rng.normal(truth, spread, (DRAWS, seeds)):
        chances = np.ones((len(kinds), 1))
        for shift in shifts:
            shifted = (1 - abs(shift)) * kinds + abs(shift) * (np.sign(shift) == VALUES)
            chances = (chances[:, :, None] * shifted[:, None, :]).reshape(len(kinds), -1)
        mean = chances.mean(axis=0)
        yield np.repeat(outcomes, rng.multinomial(images, mean / mean.sum()), axis=1)


def intervals(seeds: int, images: int, spread: float, truth: float = 0.0) -> list[Difference]:
    return [paired_gain(table > 0, table < 0) for table in sweeps(seeds, images, spread, truth)]


@pytest.mark.parametrize("spread", [0, 0.006, 0.013, 0.025])
@pytest.mark.parametrize("images", [540, 8580])
@pytest.mark.parametrize("seeds", [3, 5])
def test_interval_covers_the_truth(seeds: int, images: int, spread: float) -> None:
    covered = np.mean([found.low <= 0 <= found.high for found in intervals(seeds, images, spread)])
    print(f"{seeds} trainings, {images} images, spread {spread:.1%}: {covered:.1%} covered")
    assert 0.92 <= covered <= 0.975


@pytest.mark.parametrize("spreads", [(0.006, 0.006, 0.006), (0, 0.006, 0.013)])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("images", [540, 3040])
def test_pooled_intervals_of_rows_cover_the_truth(
    seeds: int, images: int, spreads: tuple[float, ...]
) -> None:
    """Three rows, the spread between their trainings pooled, at 95 % and at that of three rows."""
    tables = zip(
        *(sweeps(seeds, images, each, row=row) for row, each in enumerate(spreads)), strict=True
    )
    found = [paired_gains([(each > 0, each < 0) for each in rows]) for rows in tables]
    for level, least in ((0.95, 0.90), (1 - 0.05 / 3, 0.95)):
        inside = np.array([[row.at(level) for row in rows] for rows in found])
        covered = ((inside[..., 0] <= 0) & (inside[..., 1] >= 0)).mean(axis=0)
        print(f"{seeds} trainings, {images} images, {spreads}, {level:.1%}: {covered}")
        assert covered.min() >= least
        assert covered.mean() >= level - 0.025


def test_detectable_difference_is_found_four_times_in_five() -> None:
    """The size follows from the mean variance: a single sweep's error is uncertain."""
    sizes = np.array([found.detectable() for found in intervals(5, 8580, 0.006)])
    size = float(np.mean(sizes**2) ** 0.5)
    power = np.mean([found.low > 0 for found in intervals(5, 8580, 0.006, truth=size)])
    print(f"{size:.2%} found in {power:.1%}")
    assert 0.75 <= power <= 0.85

"""Hand-computed values, published examples and scipy."""

import numpy as np
import pytest

from fixres_poc.analysis.statistics import (
    Difference,
    confused_pairs,
    expected_calibration_error,
    macro_accuracy,
    mean_accuracy,
    of_one_training,
    paired_gain,
    reliability,
    wilson_interval,
)

ONE, OTHER = (np.repeat(right, [1, 1, 7, 12]) for right in ([1, 1, 0, 0], [1, 0, 1, 0]))


def test_wilson_of_nothing_and_of_the_impossible() -> None:
    """0.5 +- 0.2366: (8 / 16 +- 1.96 sqrt(8 x 8 / 16 + 0.96) / (16 + 3.84)), as published."""
    assert wilson_interval(8, 16) == pytest.approx((0.28, 0.72), abs=1e-3)
    assert np.isnan(wilson_interval(0, 0)).all()
    with pytest.raises(ValueError, match="must not be greater"):
        wilson_interval(11, 10)


def test_paired_gain_by_hand() -> None:
    """2 / 23 - 8 / 23 = -0.2609; standard error sqrt((10 / 23 - 0.2609^2) / 23) = 0.1263."""
    found = paired_gain(ONE, OTHER)
    ends = -0.2609 - 1.96 * 0.1263, -0.2609 + 1.96 * 0.1263
    assert found[:4] == pytest.approx((-6 / 21, *ends, 0.1263), abs=1e-3)
    assert found.freedom == float("inf")


def test_paired_arrays_must_align() -> None:
    with pytest.raises(ValueError, match="same shape"):
        paired_gain([True, False], [True, False, True])
    for nothing in (np.zeros(0), np.zeros((2, 0))):
        with pytest.raises(ValueError, match="no images"):
            paired_gain(nothing, nothing)


def test_crossed_variance_by_hand() -> None:
    """A = 8 / 16; about 2 / 6, B = (2 * 11 / 18 + 20 / 9) / 5, E = (8 / 16 + 20 / 9) / 5."""
    found = paired_gain([[1, 0, 0, 0], [1, 1, 0, 1]], np.zeros((2, 4)))
    a, b, e = 1 / 2, 31 / 45, 49 / 90
    assert (found.estimate, found.centre, found.seeds) == pytest.approx((1 / 2, 1 / 3, 2))
    assert found.error == pytest.approx(((a + b - e) / (2 * 6)) ** 0.5)
    assert found.freedom == pytest.approx(a**2 / (a**2 / 1 + (2 / 3 * b) ** 2 / 5))
    assert (found.low, found.high) == (-1, 1)


def test_crossed_variance_is_two_thirds_of_the_images_at_least() -> None:
    """A = 0, B = (2 * 2 / 16 + 17 / 8) / 3, outweighed by E = (1 + 17 / 8) / 3."""
    found = paired_gain([[1, 0], [0, 1]], np.zeros((2, 2)))
    assert found.error == pytest.approx((2 / 3 * (19 / 24) / (2 * 4)) ** 0.5)
    assert found.freedom == pytest.approx(3)


def test_seeds_that_agree_on_the_images_leave_their_own_spread_alone() -> None:
    """Means 0.2, 0.3 and 0.4: t with 2 degrees of freedom times 0.1 / sqrt(3)."""
    values = np.random.default_rng(0).random((3, 100_000)) < [[0.2], [0.3], [0.4]]
    found = paired_gain(values, np.zeros_like(values))
    assert found.high - found.centre == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=0.03)


def test_another_training_is_expected_in_the_interval_for_one() -> None:
    """Trainings of 0.6 with a spread of 2 points: 19 of 20 such intervals hold the next one."""
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        chances = rng.normal(0.6, 0.02, 6)
        hits = rng.random((6, 2000)) < chances[:, None]
        found = of_one_training(hits[:5])
        inside.append(found.low <= hits[5].mean() <= found.high)
    assert 0.93 <= np.mean(inside) <= 0.995
    assert of_one_training(hits[:1]) == mean_accuracy(hits[:1])


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("value", [0, 1])
def test_perfect_agreement_is_no_certainty(seeds: int, value: int) -> None:
    hits = np.full((seeds, 50), value)
    for found, least in ((mean_accuracy(hits), 0), (paired_gain(hits, np.zeros_like(hits)), -1)):
        assert found.estimate == value
        assert found.high - found.low > 0.01
        assert least <= found.low <= found.high <= 1


def test_interval_of_another_level_by_hand() -> None:
    """t with 2 degrees of freedom: 2.919986 for 90 %, 9.924843 for 99 %."""
    found = Difference(0.02, 0, 0, error=0.01, freedom=2, centre=0.019)
    assert found.at(0.9) == pytest.approx((0.019 - 0.02919986, 0.019 + 0.02919986))
    assert found._replace(error=0.3).at(0.99) == (-1, 1)
    assert np.isnan(Difference(0.02, 0.01, 0.03).at(0.9)).all()
    usual = paired_gain(ONE, OTHER)
    assert usual.at(0.95) == (usual.low, usual.high)


def test_detectable_difference_by_hand() -> None:
    """1.959964 + 0.841621 standard errors; with 2 degrees of freedom 4.302653 + 1.060660."""
    assert Difference(0, 0, 0, error=0.01).detectable() == pytest.approx(0.02801585)
    few = Difference(0, 0, 0, error=0.01, freedom=2)
    assert few.detectable() == pytest.approx(0.05363313)
    assert few._replace(error=0.5).detectable() == 1
    assert np.isnan(Difference(0, 0, 0).detectable())


def test_calibration_error_and_its_bins_by_hand() -> None:
    confidence, correct = [0.95, 0.94, 0.55, 0.52], [True, False, True, False]
    table = reliability(confidence, correct, bins=10)
    assert table["images"].tolist() == [2, 2]
    assert table["confidence"].tolist() == pytest.approx([0.535, 0.945])
    assert table["accuracy"].tolist() == [0.5, 0.5]
    # of 15 bins the 8th, the 9th and, with two images, the last
    error = (0.52 + (1 - 0.55) + abs(1 - 0.95 - 0.94)) / 4
    assert expected_calibration_error(confidence, correct) == pytest.approx(error)
    assert np.isnan(expected_calibration_error([], []))


def test_macro_accuracy_weighs_classes_equally() -> None:
    assert macro_accuracy([0, 0, 0, 1], [0, 0, 2, 1]) == pytest.approx((2 / 3 + 1) / 2)
    assert np.isnan(macro_accuracy([], []))


def test_confused_pairs_are_counted_by_direction() -> None:
    pairs = confused_pairs([0, 0, 0, 0, 1], [1, 1, 2, 0, 0], ["a", "b", "c"])
    assert pairs.iloc[0].tolist() == ["a", "b", 2, 0.5]
    assert len(pairs) == 3
    assert confused_pairs([0, 1], [0, 1], ["a", "b"]).empty


def test_bins_of_equal_counts_hold_equally_many_images_ties_or_not() -> None:
    for confidence in (np.linspace(0, 1, 20), np.full(20, 0.7)):
        table = reliability(confidence, np.arange(20) < 10, 4, equal_counts=True)
        assert table["images"].tolist() == [5, 5, 5, 5]
        assert table["accuracy"].tolist() == [1, 1, 0, 0]
    assert reliability([0.5], [True], 4, equal_counts=True)["images"].tolist() == [1]
    assert reliability([], [], 4, equal_counts=True).empty

"""The formulas against the published example sizes."""

import pytest

from fixres_poc.config.geometry import neutral_test_size, resized_side

TABLE = {(224, 128): 0.46, (320, 320): 0.81, (224, 288): 1.04, (128, 224): 1.42, (224, 400): 1.45}


@pytest.mark.parametrize(("pair", "expected"), TABLE.items())
def test_size_ratio_of_known_pairs(pair: tuple[int, int], expected: float) -> None:
    train_size, test_size = pair
    assert test_size / neutral_test_size(train_size) == pytest.approx(expected, abs=0.005)


def test_the_framing_alone_can_equalise_apparent_sizes() -> None:
    assert neutral_test_size(128, crop_pct=0.71) == pytest.approx(128, abs=0.5)
    assert neutral_test_size(128, (1.0, 1.0)) == pytest.approx(128 * 0.875)
    assert neutral_test_size(128, (1.0, 1.0), crop_pct=1.0) == 128


def test_the_resized_side_is_the_published_one_and_that_of_timm() -> None:
    assert all(resized_side(size) == int(256 / 224 * size) for size in range(32, 2049))
    assert (resized_side(380), resized_side(224, 0.95), resized_side(96, 1.0)) == (434, 235, 96)

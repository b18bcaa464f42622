"""The formulas against the published example sizes and a simulation."""

import numpy as np
import pytest

from fixres_poc.config.geometry import neutral_test_size, size_ratio

TABLE = {(224, 128): 0.46, (320, 224): 0.57, (224, 224): 0.81, (320, 320): 0.81, (320, 380): 0.96}
TABLE |= {(128, 160): 1.01, (224, 288): 1.04, (224, 320): 1.16, (128, 224): 1.42, (224, 400): 1.45}


def test_mean_crop_scale_matches_a_simulation() -> None:
    areas = np.random.default_rng(0).uniform(0.08, 1, 200_000)
    assert np.sqrt(areas).mean() == pytest.approx(MEAN_CROP_SCALE, abs=2e-3)


@pytest.mark.parametrize(("pair", "expected"), TABLE.items())
def test_size_ratio_of_known_pairs(pair: tuple[int, int], expected: float) -> None:
    assert size_ratio(*pair) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("train_size", "expected"), [(128, 158), (224, 277), (320, 395)])
def test_neutral_test_size(train_size: int, expected: int) -> None:
    neutral = neutral_test_size(train_size)
    assert round(neutral) == expected
    assert size_ratio(train_size, 1) * neutral == pytest.approx(1)

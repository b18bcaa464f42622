"""Framing in closed form: the apparent size of objects in train crops and in test crops.

Sizes are sides of crops in px. The formulas hold for square images and a RandomResizedCrop without
aspect jitter and without rejected crops; `method.apparent_size` draws crops of the images instead.
Source: Touvron et al., 2019, section 3.1.
"""

import math
from collections.abc import Sequence

CROP_PCT = 224 / 256
"""Side of the test crop over the resized short side, timm's `crop_pct`."""
CROP_SCALE = (0.08, 1.0)
"""Range of the train crop's share of the image's area."""


def usual_crop_pct(crop_pct: float | Sequence[float]) -> float:
    """The crop_pct of runs that try no list: the number itself, or 224/256 for a list."""
    return CROP_PCT if isinstance(crop_pct, Sequence) else crop_pct


def resized_side(test_size: int, crop_pct: float = CROP_PCT) -> int:
    """Side in px to which an image is resized before the centre crop, truncated as in timm."""
    return int(test_size / crop_pct)


def mean_crop_scale(crop_scale: tuple[float, float] = CROP_SCALE) -> float:
    """Expected linear scale E[s] of RandomResizedCrop: s^2 ~ U(crop_scale) of the image's area."""
    low, high = crop_scale
    return math.sqrt(low) if low == high else 2 / 3 * (high**1.5 - low**1.5) / (high - low)


def neutral_test_size(
    train_size: int, crop_scale: tuple[float, float] = CROP_SCALE, crop_pct: float = CROP_PCT
) -> float:
    """Test resolution, px, at which objects appear as large as in training, for square images.

    An object is enlarged by train_size / (s * sqrt(W * H)) in a training crop of scale s, and by
    test_size / crop_pct / min(W, H) in the test framing. So the mean of the ratios of its apparent
    sizes, test over train, is E[s] / crop_pct * test_size / train_size, and 1 at about 1.24 *
    train_size by default. (The ratio of the mean sizes is 9 % smaller: E[1/s] is not 1 / E[s].)
    """
    return train_size * crop_pct / mean_crop_scale(crop_scale)

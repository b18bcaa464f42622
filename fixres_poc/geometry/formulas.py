"""How large objects appear at train and at test time: the arithmetic behind FixRes.

Sizes are in pixels. The formulas take RandomResizedCrop without its aspect jitter and without its refusal of crops that
do not fit, and the test framing `Resize(256/224 * test_size)`, `CenterCrop(test_size)`. Source: Touvron et al., 2019,
section 3.1.
"""

import math


def mean_crop_scale(smallest_area: float = 0.08, largest_area: float = 1.0) -> float:
    """Expected linear crop scale E[s] of RandomResizedCrop; its area is s^2 ~ U(smallest, largest) of the image's.

    Returns:
        E[s] = 2/3 * (b^1.5 - a^1.5) / (b - a), in (0, 1]; 0.708 for the published range.

    Raises:
        ValueError: not 0 <= smallest < largest <= 1.
    """
    if not 0 <= smallest_area < largest_area <= 1:
        raise ValueError(f"crop areas {smallest_area} to {largest_area}: need 0 <= smallest < largest <= 1")
    return 2 / 3 * (math.pow(largest_area, 1.5) - math.pow(smallest_area, 1.5)) / (largest_area - smallest_area)


def size_ratio(train_size: int, test_size: int, width: float = 1, height: float = 1) -> float:
    """Apparent size of an object at test time over that at train time: the mean of the ratios over random crops.

    An object is enlarged by train_size / (s * sqrt(W * H)) in a training crop of scale s, and by 256/224 * test_size /
    min(W, H) in the test framing, so the ratio is proportional to s and its mean to E[s]. (The ratio of the mean sizes
    would be 9 % smaller, since E[1/s] is not 1 / E[s].)

    Sizes are sides of crops in px; of width and height of the image only the ratio matters, a square by default.

    Raises:
        ValueError: a size is not positive.
    """
    for name, value in {"train_size": train_size, "test_size": test_size, "width": width, "height": height}.items():
        if value <= 0:
            raise ValueError(f"{name} = {value}: must be positive")
    shape = math.sqrt(width * height) / min(width, height)
    return mean_crop_scale() * (256 / 224) * shape * test_size / train_size


def neutral_test_size(train_size: int) -> float:
    """The test resolution, in px, at which `size_ratio` of a square image is 1 (about 1.24 * train_size)."""
    return train_size / size_ratio(1, 1)

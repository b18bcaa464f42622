"""Apparent sizes of objects at train and at test time, from crops that the transforms draw.

Sizes are in pixels. `config.geometry` has the formulas for square images, and explains `crop_pct`
and `crop_scale`. Source: Touvron et al., 2019, section 3.1.
"""

import functools
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from fixres_poc.config.geometry import CROP_PCT, CROP_SCALE, neutral_test_size, resized_side
from fixres_poc.data.transforms import Resize, get_transforms

DRAWS = 10_000


def sample_crops(
    images: pd.DataFrame, draws: int = DRAWS, crop_scale: tuple[float, float] = CROP_SCALE
) -> pd.DataFrame:
    """Train crops of randomly chosen images, sampled evenly, for any train resolution.

    Returns:
        `draws` rows with columns row (number of the image in the table), width, height, and
        crop_side (square root of the crop's area in the image, before it is resized), px.
    """
    sizes = images[["width", "height"]].to_numpy()
    rows = np.resize(np.random.default_rng(0).permutation(len(sizes)), draws)
    sides = np.sqrt(_crop_areas(tuple(crop_scale), tuple(map(tuple, sizes[rows].tolist()))))
    return pd.DataFrame(
        {"row": rows, "width": sizes[rows, 0], "height": sizes[rows, 1], "crop_side": sides}
    )


@functools.cache
def _crop_areas(
    crop_scale: tuple[float, float], sizes: tuple[tuple[int, ...], ...]
) -> tuple[int, ...]:
    """Areas, in pixels, of a train crop of each image, by widths and heights."""
    train = get_transforms(need=["train"], crop_scale=crop_scale)["train"]
    crop = cast(Any, train).transforms[1]  # after ToImage
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = [torch.empty((1, height, width), device="meta") for width, height in sizes]
        crops = [crop.make_params([image]) for image in images]
    return tuple(params["width"] * params["height"] for params in crops)


def enlargement_at_test(
    images: pd.DataFrame, test_size: int, resize: Resize = "short_side", crop_pct: float = CROP_PCT
) -> np.ndarray:
    """Enlargement (N,) of each image in the test framing, with sides truncated as in its Resize."""
    sizes = images[["width", "height"]].to_numpy()
    fixed = sizes.min(axis=1) if resize == "short_side" else sizes[:, 1]
    resized = np.maximum(resized_side(test_size, crop_pct) * sizes // fixed[:, None], 1)
    scales: np.ndarray = np.sqrt(resized.prod(axis=1) / sizes.prod(axis=1))
    return scales


def pair_ratios(
    crops: pd.DataFrame,
    pairs: Iterable[tuple[int, int]],
    resize: Resize = "short_side",
    crop_pct: float = CROP_PCT,
) -> pd.DataFrame:
    """Size ratio of every pair of a sweep.

    Returns:
        One row per pair: train_size, test_size, mean_of_ratios, ratio_of_means, and the quartiles
        q25, q50 and q75 of the ratios of single crops.
    """
    side = crops["crop_side"].to_numpy()
    rows = []
    for train_size, test_size in pairs:
        scale = enlargement_at_test(crops, test_size, resize, crop_pct)
        ratios = scale * side / train_size
        means = scale.mean() / (train_size / side).mean()
        rows.append(
            (train_size, test_size, ratios.mean(), means, *np.quantile(ratios, [0.25, 0.5, 0.75]))
        )
    columns = ["train_size", "test_size", "mean_of_ratios", "ratio_of_means", "q25", "q50", "q75"]
    return pd.DataFrame(rows, columns=columns)


def neutral_test_sizes(
    crops: pd.DataFrame,
    train_sizes: Iterable[int],
    resize: Resize = "short_side",
    crop_pct: float = CROP_PCT,
) -> pd.DataFrame:
    """The predicted best test resolutions, at which objects look as large as in training.

    The interval is for the average over images like these. It joins the 95 % bootstrap intervals
    of both definitions (300 draws of images, with all their crops), and is mostly the distance
    between them. It does not bound the size of best accuracy: single crops scatter by a quarter
    around the mean, so no size suits all of them.

    Returns:
        One row per train resolution: train_size, mean_of_ratios and ratio_of_means (the test
        resolution at which that statistic is 1), low and high.
    """
    counts = np.bincount(crops["row"]).astype(np.float64)
    images = np.flatnonzero(counts)
    weights = np.random.default_rng(0).multinomial(
        len(images), np.full(len(images), 1 / len(images)), 300
    )
    weights = np.vstack([np.ones(len(images)), weights])  # the first row is the sample itself
    side = crops["crop_side"].to_numpy()
    rows = []
    for train_size in train_sizes:
        # the scale is that of a size nearby: whole pixels make it slightly non-linear
        nearby = round(neutral_test_size(train_size))
        scale = enlargement_at_test(crops, nearby, resize, crop_pct) / nearby
        both, test, train = (
            weights @ np.bincount(crops["row"], values)[images]
            for values in (scale * side, scale, 1 / side)
        )
        by_ratio = train_size * (weights @ counts[images]) / both
        by_mean = train_size * train / test
        ends = np.quantile([by_ratio[1:], by_mean[1:]], [0.025, 0.975], axis=1)
        rows.append((train_size, by_ratio[0], by_mean[0], ends.min(), ends.max()))
    return pd.DataFrame(
        rows, columns=["train_size", "mean_of_ratios", "ratio_of_means", "low", "high"]
    )


def predicted_object_sizes(
    boxes: pd.DataFrame,
    train_size: int,
    test_size: int,
    resize: Resize = "short_side",
    draws: int = DRAWS,
    crop_pct: float = CROP_PCT,
    crop_scale: tuple[float, float] = CROP_SCALE,
) -> pd.DataFrame:
    """Apparent sizes of boxes, predicted for random train crops and for the test framing.

    Args:
        boxes: width and height of each image; left, top, right and bottom of its box, px.

    Returns:
        Columns train_px and test_px, one row per draw.
    """
    crops = sample_crops(boxes, draws, crop_scale=crop_scale)
    area = (boxes["right"] - boxes["left"]) * (boxes["bottom"] - boxes["top"])
    side = area.to_numpy(dtype=np.float64)[crops["row"]] ** 0.5
    train = side * train_size / crops["crop_side"].to_numpy()
    test = side * enlargement_at_test(crops, test_size, resize, crop_pct)
    return pd.DataFrame({"train_px": train, "test_px": test})

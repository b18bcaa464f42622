"""Figures of datasets: classes, sizes, apparent sizes, sample images, the crops of FixRes."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from PIL import Image

from fixres_poc.config.geometry import CROP_PCT, CROP_SCALE, mean_crop_scale, resized_side
from fixres_poc.config.settings import SPLITS
from fixres_poc.report.plots.style import label_points, legend, note, short_label, wrapped

MOST_NAMED_CLASSES = 40


def class_distribution(images: pd.DataFrame) -> Figure:
    """Images per class by split, largest class first: named bars up to 40 classes, lines beyond.

    Args:
        images: one row per image with the columns label and split.
    """
    sums = images["label"].value_counts()
    counts = pd.crosstab(images["label"], images["split"]).loc[sums.index]
    counts = counts[sorted(counts, key=lambda split: (*SPLITS, split).index(split))]
    named = len(counts) <= MOST_NAMED_CLASSES
    figure, axis = plt.subplots(figsize=(7, 1 + 0.22 * len(counts)) if named else None)
    if named:
        counts.plot(kind="barh", stacked=True, width=0.8, ax=axis, legend=False)
        axis.set_yticks(range(len(counts)), [short_label(label) for label in counts.index])
        axis.invert_yaxis()
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.set(xlabel="images", ylabel="")
    else:
        ranks = range(1, len(counts) + 1)
        for split, numbers in counts.items():
            axis.step(ranks, numbers, where="mid", linewidth=1.2, label=str(split))
        axis.set(xlabel="class, largest first", ylabel="images", yscale="symlog", ylim=(0, None))
        axis.yaxis.set_major_formatter("{x:g}")
    axis.set_title(f"{len(counts)} classes, {sums.min()} to {sums.max()} images each")
    legend(figure, 3)
    return figure


def short_sides(images: pd.DataFrame, test_sizes: Sequence[int]) -> Figure:
    """Histogram of short sides, with a line at the short side that each test resolution needs.

    Args:
        images: one row per image with the columns width and height, px.
        test_sizes: sides of test crops, px.
    """
    short = images[["width", "height"]].min(axis=1)
    figure, axis = plt.subplots(figsize=(5.6, 2.8))
    axis.hist(short[short <= short.quantile(0.995)], bins=30, color="C0")
    axis.margins(y=0.15)
    for size in test_sizes:
        axis.axvline(resized_side(size), color="C1")
    axis.set(xlabel="short side (px); lines: needed by that test resolution", ylabel="images")
    axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    top = axis.get_ylim()[1]
    ends = [(f"{size} px", resized_side(size), top) for size in sorted(test_sizes)]
    label_points(axis, ends, [(2, -6), (-2, -6), (2, -18)], color="C1")
    return figure


def apparent_sizes(predicted: pd.DataFrame) -> Figure:
    """Apparent sizes of objects in train crops and in the test framing, as cumulative shares.

    Args:
        predicted: columns train_px and test_px, as `predicted_object_sizes` gives them.
    """
    figure, axis = plt.subplots(figsize=(5.6, 2.8))
    medians = predicted[["train_px", "test_px"]].median().sort_values()
    places = (0.55, -6, "right"), (0.45, 6, "left")  # beside the left curve, beside the right one
    for (name, median), (share, across, align) in zip(medians.items(), places, strict=True):
        values = predicted[name]
        colour = "C0" if name == "train_px" else "C1"
        axis.ecdf(values, color=colour)
        text = f"{str(name).removesuffix('_px')}: median {median:.0f} px"
        note(axis, text, float(values.quantile(share)), share, (across, 0), ha=align, color=colour)
    axis.set(xlabel="apparent size of an object, side (px)", ylabel="share that is smaller (%)")
    axis.set_xlim(0, float(predicted.max(axis=1).quantile(0.99)))
    axis.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    return figure


def sample_sheet(images: Sequence[ArrayLike], titles: Sequence[str], columns: int = 4) -> Figure:
    """Images in rows of `columns`, to one scale, each under its title.

    Args:
        images: PIL images or uint8 arrays (H, W, 3).
        titles: one per image.

    Raises:
        ValueError: there are not as many titles as images.
    """
    rows = math.ceil(len(images) / columns)
    high = rows * (5.6 / columns + 0.3 * any(titles))
    figure, axes = plt.subplots(rows, columns, figsize=(5.6, high), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    side = max(max(np.asarray(image).shape[:2]) for image in images)
    titled = zip(images, titles, strict=True)
    for axis, (image, title) in zip(axes.flat, titled, strict=False):
        centred(axis, image, side)
        axis.set_title(wrapped(short_label(title), 76 // columns), fontsize=8, loc="center")
    return figure


def centred(axis: Axes, image: Any, side: float) -> None:
    """Show an image (H, W, 3) in the middle of a square of `side` px."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    axis.imshow(pixels, extent=(0, width, height, 0))
    axis.set_xlim((width - side) / 2, (width + side) / 2)
    axis.set_ylim((height + side) / 2, (height - side) / 2)
    axis.axis("off")


def method(
    image: Any,
    train_size: int,
    test_size: int,
    crop_pct: float = CROP_PCT,
    crop_scale: tuple[float, float] = CROP_SCALE,
) -> Figure:
    """FixRes in one drawing: the crop of each stage, to one scale, and the layers it trains.

    The train crop has the mean side of RandomResizedCrop, in the middle of the image.

    Args:
        image: PIL image or uint8 array (H, W, 3).
        train_size: side of the train crop in px.
        test_size: side of the test crop in px.
        crop_pct: see `config.geometry`, as is `crop_scale`.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    sides = mean_crop_scale(crop_scale) * math.sqrt(height * width), crop_pct * min(height, width)
    figure, axes = plt.subplots(2, 3, figsize=(5.6, 3.5), width_ratios=(2, 2, 3.6))
    stages = zip(axes, ("train", "test"), (train_size, test_size), sides, strict=True)
    for stage, ((whole, crop, network), name, size, side) in enumerate(stages, start=1):
        side = min(side, height, width)
        left, top = (width - side) / 2, (height - side) / 2
        centred(whole, pixels, max(height, width))
        whole.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="C1", linewidth=2))
        inside = Image.fromarray(pixels).crop((left, top, left + side, top + side))
        centred(crop, inside.resize((size, size)), max(train_size, test_size))
        whole.set_title(f"stage {stage}", loc="center")
        crop.set_title(f"{name} crop, {size} px\nobjects × {size / side:.2f}", loc="center")
        _layers(network, stage)
    return figure


def _layers(axis: Axes, stage: int) -> None:
    """Boxes of a network's layers, those that a stage trains in colour."""
    trunk = "trunk" if stage == 1 else "trunk\n(frozen)"
    for name, left, width in (
        (trunk, 0, 1.6),
        ("last\nbatch norm", 1.7, 1),
        ("classifier", 2.8, 1),
    ):
        colour = "#bbbbbb" if "frozen" in name else "C1"
        axis.add_patch(Rectangle((left, 0), width, 1, facecolor=colour, alpha=0.45))
        axis.text(left + width / 2, 0.5, name, ha="center", va="center", fontsize=8)
    axis.set(xlim=(-0.1, 3.9), ylim=(-0.6, 1.6))
    axis.set_title(f"{'all' if stage == 1 else 'the last'} layers are trained", loc="center")
    axis.axis("off")

"""Figures of datasets: classes, sizes, apparent sizes, sample images, framings."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from fixres_poc.config.settings import SPLITS
from fixres_poc.report.plots.style import legend, short_label, wrapped

MOST_NAMED_CLASSES = 40


def class_distribution(images: pd.DataFrame) -> Figure:
    """Images per class by split, largest class first: named bars up to 40 classes, lines beyond.

    Args:
        images: one row per image with the columns label and split.
    """
    sums = images["label"].value_counts()
    counts = (
        images.groupby(["label", "split"], observed=True)
        .size()
        .unstack(fill_value=0)
        .loc[sums.index]
    )
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
        for split in counts:
            axis.step(
                range(1, len(counts) + 1),
                counts[split],
                where="mid",
                linewidth=1.2,
                label=str(split),
            )
        axis.set(xlabel="class, largest first", ylabel="images", yscale="symlog", ylim=(0, None))
        axis.yaxis.set_major_formatter("{x:g}")
    axis.set_title(f"{len(counts)} classes, {sums.min()} to {sums.max()} images each")
    legend(figure, 3)
    return figure


def size_distribution(images: pd.DataFrame) -> Figure:
    """Histograms of width, height (px) and aspect (width / height), a line at their means.

    Args:
        images: one row per image with the columns width and height, px.
    """
    shown = {"width (px)": 0, "height (px)": 0, "width / height": 2}
    values = [images["width"], images["height"], images["width"] / images["height"]]
    bins = int(np.clip(math.sqrt(len(images)), 5, 40))
    figure, axes = plt.subplots(3, 1, figsize=(5.6, 5.4))
    for axis, value, (name, digits) in zip(axes, values, shown.items(), strict=True):
        axis.hist(value.clip(*value.quantile([0.005, 0.995])), bins=bins, color="C0")
        axis.axvline(value.mean(), color="C1")
        low, mean, high = (
            f"{each:.{digits}f}" for each in (value.min(), value.mean(), value.max())
        )
        axis.set(xlabel=f"{name}: {low} to {high}, mean {mean}", ylabel="images")
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def apparent_sizes(predicted: pd.DataFrame) -> Figure:
    """How large objects look in train crops and in the test framing, with the medians.

    Args:
        predicted: columns train_px and test_px, as `crops.predicted_object_sizes` gives them.
    """
    names = {"train_px": "train", "test_px": "test"}
    largest = predicted[list(names)].max(axis=1).quantile(0.99)
    figure, axis = plt.subplots(figsize=(5.6, 2.8))
    for number, (column, name) in enumerate(names.items()):
        look: dict[str, Any] = {
            "bins": 40,
            "range": (0, largest),
            "density": True,
            "color": f"C{number}",
        }
        middle = predicted[column].median()
        axis.hist(predicted[column], **look, alpha=0.45, label=f"{name}, median {middle:.0f} px")
        axis.axvline(middle, color=f"C{number}")
    axis.set(xlabel="apparent size of an object, side (px)", ylabel="share of objects", yticks=[])
    legend(figure)
    return figure


def sample_sheet(images: Sequence[ArrayLike], titles: Sequence[str], columns: int = 4) -> Figure:
    """Images in rows of `columns`, each under its title.

    Args:
        images: PIL images or uint8 arrays (H, W, 3).
        titles: one an image; of each of its lines at most two are shown, wrapped.
        columns: images in a row.

    Raises:
        ValueError: there are not as many titles as images.
    """
    rows = math.ceil(len(images) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.6, rows * (5.6 / columns + 0.3)), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    shown = zip(images, titles, strict=True)
    for axis, (image, title) in zip(axes.flat, shown, strict=False):
        axis.imshow(np.asarray(image))
        lines = [
            each
            for line in title.replace("_", " ").split("\n")
            for each in textwrap.wrap(line, 76 // columns)[:2]
        ]
        axis.set_title("\n".join(lines), fontsize=8, loc="center")
    return figure


def framing(rows: Mapping[str, Sequence[ArrayLike]]) -> Figure:
    """The same images as train and test crops, to one scale: a row per framing.

    Args:
        rows: name of the framing to its images (PIL images or uint8 arrays (H, W, 3)), equally many
            a row.
    """
    columns = max(len(images) for images in rows.values())
    largest = max(max(np.asarray(image).shape[:2]) for images in rows.values() for image in images)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(5.6, len(rows) * 5.2 / columns), squeeze=False
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(np.asarray(image))
            axis.set(xlim=(-0.5, largest), ylim=(largest, -0.5), xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(wrapped(name, 16))
    return figure

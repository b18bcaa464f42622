"""Figures of training and results. Accuracies come in as fractions and are drawn in percent.

Each function returns its figure, made by pyplot, so that a notebook that assigns it shows it once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from fixres_poc.analysis.statistics import Difference, confused_pairs, wilson_interval
from fixres_poc.config.geometry import CROP_SCALE, neutral_test_size
from fixres_poc.report.plots.style import legend, logarithmic, note, short_label, wrapped

PERCENT = "top-1 accuracy on test (%)"


def accuracy_by_test_size(
    cells: pd.DataFrame, adaptation: str = "none", crop_scale: tuple[float, float] = CROP_SCALE
) -> Figure:
    """Top-1 accuracy against test resolution by train resolution, one crop, with 95 % bands.

    A ring marks test resolution = train resolution, a dotted line the size at which objects look as
    large as in training.

    Args:
        cells: as `Results.usual`: means over seeds, with their intervals.
        crop_scale: of the sweep's train crops.
    """
    place = ["train_size", "test_size", "crop_pct"]
    shown = cells[(cells["adaptation"] == adaptation) & (cells["view"] == "center")]
    percents = shown.set_index(place)[["top1", "top1_low", "top1_high"]] * 100
    means = percents.dropna(subset="top1").sort_index().reset_index()
    figure, axis = plt.subplots()
    ring: dict[str, Any] = {"marker": "o", "linestyle": "none", "markerfacecolor": "none"}
    for size, line in means.groupby("train_size"):
        sizes, same = line["test_size"], line[line["test_size"] == size]
        (drawn,) = axis.plot(sizes, line["top1"], marker="o", label=f"trained at {size} px")
        color = drawn.get_color()
        axis.fill_between(sizes, line["top1_low"], line["top1_high"], color=color, alpha=0.13)
        axis.plot(same["test_size"], same["top1"], **ring, markersize=11, color=color)
        neutral = neutral_test_size(int(str(size)), crop_scale, float(line["crop_pct"].iloc[0]))
        axis.axvline(neutral, color=color, linestyle=":", linewidth=1.2)
    label = "test resolution = train resolution"
    axis.plot([], [], **ring, markersize=9, color="#555555", label=label)
    axis.plot([], [], ":", color="#555555", linewidth=1.2, label="same apparent size")
    axis.set(title=f"adaptation: {adaptation}", xlabel="test resolution (px)", ylabel=PERCENT)
    ticks = sorted(means["test_size"].unique())
    axis.set_xticks(ticks, ticks, rotation=90 if len(ticks) > 9 else 0)
    legend(figure)
    return figure


def arms(table: pd.DataFrame) -> Figure:
    """Top-1 accuracy (95 %) against FLOPs of an image of all arms; those to use are named.

    Args:
        table: as `Recommendation.arms`; what was not trained here, probe and zero-shot, is grey.
    """
    figure, axis = plt.subplots()
    for number, (size, own) in enumerate(table.groupby("train_size", dropna=False)):
        known = not pd.isna(size)
        color, label = (
            (f"C{number}", f"trained at {size} px") if known else ("#777777", "untrained")
        )
        low, high = ((own["top1"] - own[end]).abs() * 100 for end in ("top1_low", "top1_high"))
        look: dict[str, Any] = {"fmt": "o", "color": color, "label": label, "elinewidth": 0.8}
        axis.errorbar(own["flops"] / 1e9, own["top1"] * 100, np.stack([low, high]), **look)
    for _, row in table[table["pick"] != ""].iterrows():
        name = f"{row['cell'].sizes()} {row['adaptation']}"
        note(axis, name, row["flops"] / 1e9, row["top1"] * 100, (7, 9))
    logarithmic(axis, 1, 2, 5)
    axis.margins(x=0.15)
    axis.set(xlabel="cost of an image (GFLOP)", ylabel=PERCENT)
    legend(figure)
    return figure


def reliability(cells: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy (95 % Wilson) against confidence in bins; the diagonal is perfect calibration.

    Args:
        cells: name to table of `statistics.reliability`; the size of a dot grows with the bin's
            images.
    """
    figure, axis = plt.subplots(figsize=(4.4, 4.2))
    axis.plot([0, 100], [0, 100], ":", color="#555555", linewidth=1.2)
    for name, table in cells.items():
        confidence, accuracy, images = (table[key] for key in ("confidence", "accuracy", "images"))
        right = (accuracy * images).round().astype(int)
        bounds = np.array([wilson_interval(*pair) for pair in zip(right, images, strict=True)]).T
        (line,) = axis.plot(confidence * 100, accuracy * 100, alpha=0.7, label=name)
        color = line.get_color()
        axis.vlines(confidence * 100, *(bounds * 100), color=color, linewidth=0.8)
        dots = 200 * images / images.sum() + 6
        axis.scatter(confidence * 100, accuracy * 100, dots, color=color)
    axis.set(xlabel="confidence (%)", ylabel="accuracy on test (%)", xlim=(0, 102), ylim=(0, 102))
    legend(figure)
    return figure


def activations(found: Mapping[str, ArrayLike]) -> Figure:
    """Distribution functions of pooled features, a line per framing.

    Args:
        found: name to features of any shape, see `equalise.distributions`.
    """
    figure, axis = plt.subplots()
    shares = np.linspace(0, 1, 201)
    for name, values in found.items():
        axis.plot(np.quantile(np.asarray(values), shares), shares * 100, label=name)
    largest = max(float(np.quantile(np.asarray(values), 0.99)) for values in found.values())
    axis.set(
        xlabel="value after global pooling",
        ylabel="share of values below (%)",
        xlim=(-0.02 * largest, largest),
    )
    legend(figure)
    return figure


def gain_path(path: pd.DataFrame) -> Figure:
    """Waterfall of `gain_path`: accuracy after each step, gains with paired 95 % intervals."""
    figure, axis = plt.subplots(figsize=(5.6, 0.9 + 0.62 * len(path)))
    start = dict(zip(path["step"], path["top1"] * 100, strict=True))
    unknown: dict[str, Any] = {"va": "center", "color": "#777777", "style": "italic"}
    for place, (_, step) in enumerate(path.iterrows()):
        top1, before = start[step["step"]], start.get(step["against"])
        if np.isnan(top1):
            axis.text(path["top1"].min() * 100, place, "not run", **unknown)
        elif before is None:
            axis.plot(top1, place, "D", color="black")
            note(axis, f"{top1:.1f}%", top1, place)
        else:
            gain = Difference(*step[["gain", "gain_low", "gain_high"]])
            low, high = before + gain.low * 100, before + gain.high * 100
            color = "C2" if gain.estimate > 0 else "C1"
            axis.barh(place, gain.estimate * 100, left=before, color=color, height=0.5, alpha=0.75)
            axis.plot([low, high], [place, place], color="black", linewidth=1)
            note(axis, gain.points(brief=True), max(before, high), place)
    axis.set_yticks(range(len(path)), [wrapped(step) for step in path["step"]])
    axis.invert_yaxis()
    axis.use_sticky_edges = False
    axis.margins(x=0.45)
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= 100])
    axis.set_xlabel(f"{PERCENT}; gain in points (95 %)")
    return figure


def confusions(targets: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> Figure:
    """The 12 ordered class pairs confused most often, with the share of the true class's images.

    Args:
        targets: class indices, (N,).
        predicted: class indices, (N,).
    """
    pairs = confused_pairs(targets, predicted, classes).head(12)
    figure, axis = plt.subplots(figsize=(5.6, 1 + 0.4 * max(len(pairs), 1)))
    drawn = axis.barh(range(len(pairs)), pairs["share"] * 100, color="C1")
    axis.bar_label(drawn, [str(count) for count in pairs["images"]], padding=3, fontsize=9)
    names = zip(pairs["target"], pairs["predicted"], strict=True)
    axis.set_yticks(
        range(len(pairs)),
        [
            f"{short_label(true)}\n\N{RIGHTWARDS ARROW} {short_label(taken)}"
            for true, taken in names
        ],
    )
    axis.invert_yaxis()
    axis.set(
        xlabel="share of the true class's images (%);\nat the bar: number of them",
        title="taken for another class" if len(pairs) else "none was taken for another class",
    )
    return figure


def training_history(history: pd.DataFrame) -> Figure:
    """Loss and validation accuracy (%) after each epoch.

    Args:
        history: columns epoch, loss, val_top1.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(6, 2.4))
    left.plot(history["epoch"], history["loss"], "o-")
    left.set(xlabel="epoch", ylabel="training loss")
    right.plot(history["epoch"], history["val_top1"] * 100, "o-", color="C1")
    right.set(xlabel="epoch", ylabel="top-1 on validation (%)")
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    return figure

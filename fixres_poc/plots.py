"""Every figure of the notebooks and the report, in one look (fixres.mplstyle).

Tables are those of `results`; accuracies come in as fractions and are drawn in percent. Each function returns its
figure, made by pyplot, so that a notebook that assigns it shows it once. Importing this module sets the look, and makes
`described` a figure's alternative text in notebooks.
"""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from fixres_poc.geometry import neutral_test_size
from fixres_poc.statistics import confused_pairs, wilson_interval

PERCENT = "top-1 accuracy on test (%)"
MOST_NAMED_CLASSES = 40
LOOK = Path(__file__).with_name("fixres.mplstyle")
plt.style.use(LOOK)


def described(figure: Figure) -> str:
    """A figure in words, for those who do not see it: titles, axes, names in it, and legend; at most 600 characters."""
    parts = [figure.get_suptitle()]
    for axis in figure.axes:
        named = [tick.get_text() for tick in axis.get_yticklabels() if re.search(r"[^\W\d_]", tick.get_text())]
        axes = " against ".join(filter(None, [axis.get_ylabel(), axis.get_xlabel()]))
        parts += [axis.get_title(loc="left") or axis.get_title(), axes, *named, *axis.get_legend_handles_labels()[1]]
    parts += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    unique = dict.fromkeys(" ".join(part.split()) for part in parts if part)
    return "figure: " + textwrap.shorten("; ".join(unique), 600, placeholder=" \N{HORIZONTAL ELLIPSIS}")


if shell := get_ipython():
    shell.display_formatter.mimebundle_formatter.for_type(
        Figure, lambda figure, **_: ({}, {"image/png": {"alt": described(figure)}})
    )


def accuracy_by_test_size(cells: pd.DataFrame, adaptation: str = "none") -> Figure:
    """Top-1 accuracy against test size, a line per train size, one crop, with 95 % bands.

    A ring marks test size = train size, a dotted line the size at which objects look as large as in training.

    Args:
        cells: as `Results.cells`: means over seeds, with their intervals.
        adaptation: which one.
    """
    means = cells[(cells["adaptation"] == adaptation) & (cells["view"] == "center") & cells["top1"].notna()]
    figure, axis = plt.subplots()
    for train_size, line in means.sort_values("test_size").groupby("train_size"):
        size = int(str(train_size))
        (drawn,) = axis.plot(line["test_size"], line["top1"] * 100, marker="o", label=f"trained at {size} px")
        color = drawn.get_color()
        axis.fill_between(line["test_size"], line["top1_low"] * 100, line["top1_high"] * 100, color=color, alpha=0.13)
        same = line[line["test_size"] == size]
        axis.plot(same["test_size"], same["top1"] * 100, "o", markersize=11, markerfacecolor="none", color=color)
        axis.axvline(neutral_test_size(size), color=color, linestyle=":", linewidth=1.2)
    axis.plot([], [], "o", markersize=9, markerfacecolor="none", color="#555555", label="test size = train size")
    axis.plot([], [], ":", color="#555555", linewidth=1.2, label="same apparent size")
    axis.set(title=f"adaptation: {adaptation}", xlabel="test size (px)", ylabel=PERCENT)
    ticks = sorted(means["test_size"].unique())
    axis.set_xticks(ticks, ticks, rotation=90 if len(ticks) > 9 else 0)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def cost_accuracy(cells: pd.DataFrame, front: pd.DataFrame) -> Figure:
    """Top-1 accuracy (95 %) against evaluation speed: every cell, and, joined and named, those that no other one beats.

    Args:
        cells: as `Results.cells`.
        front: as `frontier.frontier` returns it; its rows without a speed are left out.
    """
    front = front.dropna(subset=["pictures_per_second"]).sort_values("pictures_per_second")
    speed, top1 = front["pictures_per_second"], front["top1"] * 100
    every = cells.groupby(["test_size", "view"])["eval_images_per_second"].transform("median")
    figure, axis = plt.subplots()
    axis.plot(every, cells["top1"] * 100, ".", color="#999999", label="every cell")
    spread = np.stack([top1 - front["top1_low"] * 100, front["top1_high"] * 100 - top1])
    axis.errorbar(speed, top1, spread, fmt="o-", label="none is better on validation at this cost")
    for _, cell in front.iterrows():
        view = "" if cell["view"] == "center" else f", {cell['view']}"
        kind = f", {cell['adaptation']}" if cell["adaptation"] in ("baseline", "full") else ""
        text = f"{cell['train_size']}/{cell['test_size']}{view}{kind}"
        _note(axis, text, cell["pictures_per_second"], cell["top1"] * 100, 9)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.12)
    axis.set(xlabel="evaluation speed (pictures per second)", ylabel=PERCENT, title="named: train/test size (px)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def reliability(cells: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy (95 % Wilson) against confidence in bins; on the diagonal a network knows how sure it may be.

    Args:
        cells: name to table of `statistics.reliability`; the size of a dot grows with the bin's pictures.
    """
    figure, axis = plt.subplots(figsize=(4.4, 4.2))
    axis.plot([0, 100], [0, 100], ":", color="#555555", linewidth=1.2)
    for name, table in cells.items():
        confidence, accuracy = table["confidence"] * 100, table["accuracy"] * 100
        (line,) = axis.plot(confidence, accuracy, alpha=0.7, label=name)
        counts = zip((table["accuracy"] * table["pictures"]).round(), table["pictures"], strict=True)
        bounds = np.array([wilson_interval(int(right), int(number)) for right, number in counts]).T * 100
        axis.vlines(confidence, *bounds, color=line.get_color(), linewidth=0.8)
        axis.scatter(
            confidence, accuracy, 200 * table["pictures"] / table["pictures"].sum() + 6, color=line.get_color()
        )
    axis.set(xlabel="confidence (%)", ylabel="accuracy on test (%)", xlim=(0, 102), ylim=(0, 102))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def activations(found: Mapping[str, ArrayLike]) -> Figure:
    """Distribution functions of pooled features, a line per framing.

    Args:
        found: name to features of any shape, see `activations.distributions`.
    """
    figure, axis = plt.subplots()
    shares = np.linspace(0, 1, 201)
    for name, values in found.items():
        axis.plot(np.quantile(np.asarray(values), shares), shares * 100, label=name)
    largest = max(float(np.quantile(np.asarray(values), 0.99)) for values in found.values())
    axis.set(xlabel="value after global pooling", ylabel="share of values below (%)", xlim=(-0.02 * largest, largest))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def gain_path(path: pd.DataFrame) -> Figure:
    """Waterfall of `results.gain_path`: accuracy after each step, with the paired 95 % interval of each gain."""
    figure, axis = plt.subplots(figsize=(5.6, 0.9 + 0.62 * len(path)))
    start = dict(zip(path["step"], path["top1"], strict=True))
    for place, (_, step) in enumerate(path.iterrows()):
        if np.isnan(step["top1"]):
            axis.text(path["top1"].min() * 100, place, "not run", va="center", color="#777777", style="italic")
        elif not isinstance(step["against"], str):
            axis.plot(step["top1"] * 100, place, "D", color="black")
            _note(axis, f"{step['top1']:.1%}", step["top1"] * 100, place)
        else:
            before = start[step["against"]] * 100
            gain, low, high = (step[key] * 100 for key in ("gain", "gain_low", "gain_high"))
            axis.barh(place, gain, left=before, color="C2" if gain > 0 else "C1", height=0.5, alpha=0.75)
            axis.plot([before + low, before + high], [place, place], color="black", linewidth=1)
            _note(axis, f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]", before + max(high, 0), place)
    axis.set_yticks(range(len(path)), [_wrapped(step) for step in path["step"]])
    axis.invert_yaxis()
    axis.use_sticky_edges = False
    axis.margins(x=0.35)
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= 100])
    axis.set_xlabel(f"{PERCENT}; gain in points [95 %]")
    return figure


def _note(axis: Axes, text: str, x: float, y: float, above: int = 0) -> None:
    axis.annotate(text, (x, y), (7, above), textcoords="offset points", va="center", fontsize=9)


def _short(label: object) -> str:
    return textwrap.shorten(_wrapped(str(label).replace("_", " "), 30), 32, placeholder=" \N{HORIZONTAL ELLIPSIS}")


def _wrapped(text: str, width: int = 22) -> str:
    return "\n".join(textwrap.wrap(text, width))


def class_distribution(pictures: pd.DataFrame) -> Figure:
    """Pictures per class by split, largest class first: named bars up to 40 classes, lines beyond.

    Args:
        pictures: one row per picture with the columns label and split.
    """
    sums = pictures["label"].value_counts()
    counts = pictures.groupby(["label", "split"], observed=True).size().unstack(fill_value=0).loc[sums.index]
    counts = counts[[split for split in ("train", "val", "test") if split in counts]]
    named = len(counts) <= MOST_NAMED_CLASSES
    figure, axis = plt.subplots(figsize=(5.6, 1 + 0.22 * len(counts)) if named else None)
    if named:
        counts.plot(kind="barh", stacked=True, width=0.8, ax=axis, legend=False)
        axis.set_yticks(range(len(counts)), [_short(label) for label in counts.index])
        axis.invert_yaxis()
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.set(xlabel="pictures", ylabel="")
    else:
        for split in counts:
            axis.step(range(1, len(counts) + 1), counts[split], where="mid", linewidth=1.2, label=str(split))
        axis.set(xlabel="class, largest first", ylabel="pictures", yscale="symlog", ylim=(0, None))
        axis.yaxis.set_major_formatter("{x:g}")
    axis.set_title(f"{len(counts)} classes, {sums.min()} to {sums.max()} pictures each")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def size_distribution(pictures: pd.DataFrame) -> Figure:
    """Histograms of width, height (px) and aspect (width / height), a line at their means.

    Args:
        pictures: one row per picture with the columns width and height, px.
    """
    shown = {"width (px)": 0, "height (px)": 0, "width / height": 2}
    values = [pictures["width"], pictures["height"], pictures["width"] / pictures["height"]]
    bins = int(np.clip(math.sqrt(len(pictures)), 5, 40))
    figure, axes = plt.subplots(3, 1, figsize=(5.6, 5.4))
    for axis, value, (name, digits) in zip(axes, values, shown.items(), strict=True):
        axis.hist(value.clip(*value.quantile([0.005, 0.995])), bins=bins, color="C0")
        axis.axvline(value.mean(), color="C1")
        low, mean, high = (f"{each:.{digits}f}" for each in (value.min(), value.mean(), value.max()))
        axis.set(xlabel=f"{name}: {low} to {high}, mean {mean}", ylabel="pictures")
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def size_ratios(ratios: pd.DataFrame) -> Figure:
    """Apparent size at test over that at train for every pair: white at 1, red where objects look larger at test.

    Args:
        ratios: columns train_size, test_size (px) and mean_of_ratios, as `apparent_size.pair_ratios` gives them.
    """
    grid = ratios.pivot(index="train_size", columns="test_size", values="mean_of_ratios")
    figure, axis = plt.subplots(figsize=(5.6, 1.2 + 0.45 * len(grid)))
    octaves = grid.map(np.log2)
    sns.heatmap(octaves, annot=grid, fmt=".2f", cmap="RdBu_r", vmin=-1, vmax=1, cbar=False, linewidths=1, ax=axis)
    axis.grid(False)
    axis.set(title="apparent size, test / train (mean of ratios)", xlabel="test size (px)", ylabel="train size (px)")
    axis.tick_params(axis="y", rotation=0)
    return figure


def apparent_sizes(predicted: pd.DataFrame, measured: pd.DataFrame | None = None) -> Figure:
    """How large objects look in train crops and in the test framing, with the medians.

    Args:
        predicted: columns train_px and test_px, as `apparent_size.predicted_object_sizes` gives them.
        measured: the same from rendered pictures, drawn as outlines where given.
    """
    names = {"train_px": "train", "test_px": "test"}
    largest = predicted[list(names)].max(axis=1).quantile(0.99)
    figure, axis = plt.subplots(figsize=(5.6, 2.8))
    for number, (column, name) in enumerate(names.items()):
        look: dict[str, Any] = {"bins": 40, "range": (0, largest), "density": True, "color": f"C{number}"}
        middle = predicted[column].median()
        axis.hist(predicted[column], **look, alpha=0.45, label=f"{name}, median {middle:.0f} px")
        axis.axvline(middle, color=f"C{number}")
        if measured is not None:
            axis.hist(measured[column], **look, histtype="step", label=f"{name}, measured")
    axis.set(xlabel="apparent size of an object, side (px)", ylabel="share of objects", yticks=[])
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def sample_sheet(images: Sequence[ArrayLike], titles: Sequence[str], columns: int = 4) -> Figure:
    """Pictures in rows of `columns`, each under its title.

    Args:
        images: PIL images or uint8 arrays (H, W, 3).
        titles: one a picture; of each of its lines at most two are shown, wrapped.
        columns: pictures in a row.

    Raises:
        ValueError: there are not as many titles as pictures.
    """
    if len(images) != len(titles) or not images:
        raise ValueError(f"{len(images)} pictures and {len(titles)} titles: need one title a picture")
    rows = math.ceil(len(images) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.6, rows * (5.6 / columns + 0.3)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(np.asarray(image))
        lines = [
            each for line in title.replace("_", " ").split("\n") for each in textwrap.wrap(line, 76 // columns)[:2]
        ]
        axis.set_title("\n".join(lines), fontsize=8, loc="center")
    return figure


def framing(rows: Mapping[str, Sequence[ArrayLike]]) -> Figure:
    """The same pictures as the network sees them at train and at test, to one scale: a row per framing.

    Args:
        rows: name of the framing to its pictures (PIL images or uint8 arrays (H, W, 3)), equally many a row.
    """
    columns = max(len(images) for images in rows.values())
    largest = max(max(np.asarray(image).shape[:2]) for images in rows.values() for image in images)
    figure, axes = plt.subplots(len(rows), columns, figsize=(5.6, len(rows) * 5.2 / columns), squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(np.asarray(image))
            axis.set(xlim=(-0.5, largest), ylim=(largest, -0.5), xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(_wrapped(name, 16))
    return figure


def confusions(targets: ArrayLike, predicted: ArrayLike, classes: Sequence[str], most: int = 12) -> Figure:
    """The ordered class pairs confused most often, with the share of the true class's pictures.

    Args:
        targets: class indices, (N,).
        predicted: class indices, (N,).
        classes: names, by index.
        most: number of pairs shown.
    """
    pairs = confused_pairs(targets, predicted, classes).head(most)
    figure, axis = plt.subplots(figsize=(5.6, 1 + 0.4 * max(len(pairs), 1)))
    drawn = axis.barh(range(len(pairs)), pairs["share"] * 100, color="C1")
    axis.bar_label(drawn, [str(count) for count in pairs["pictures"]], padding=3, fontsize=9)
    names = zip(pairs["target"], pairs["predicted"], strict=True)
    axis.set_yticks(
        range(len(pairs)), [f"{_short(true)}\n\N{RIGHTWARDS ARROW} {_short(taken)}" for true, taken in names]
    )
    axis.invert_yaxis()
    axis.set(
        xlabel="share of the true class's pictures (%);\nat the bar: number of them",
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

"""Figures of training and results. Accuracies come in as fractions and are drawn in percent.

Each function returns its figure, made by pyplot, so that a notebook that assigns it shows it once.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from fixres_poc.analysis.statistics import confused_pairs, wilson_interval
from fixres_poc.method.apparent_size import neutral_test_size
from fixres_poc.report.plots.style import note, short_label, wrapped

PERCENT = "top-1 accuracy on test (%)"


def accuracy_by_test_size(cells: pd.DataFrame, adaptation: str = "none") -> Figure:
    """Top-1 accuracy against test resolution, a line per train resolution, one crop, with 95 % bands.

    A ring marks test resolution = train resolution, a dotted line the size at which objects look as
    large as in training.

    Args:
        cells: as `Results.cells`: means over seeds, with their intervals.
    """
    means = cells[
        (cells["adaptation"] == adaptation) & (cells["view"] == "center") & cells["top1"].notna()
    ]
    figure, axis = plt.subplots()
    for train_size, line in means.sort_values("test_size").groupby("train_size"):
        size = int(str(train_size))
        (drawn,) = axis.plot(
            line["test_size"], line["top1"] * 100, marker="o", label=f"trained at {size} px"
        )
        color = drawn.get_color()
        axis.fill_between(
            line["test_size"],
            line["top1_low"] * 100,
            line["top1_high"] * 100,
            color=color,
            alpha=0.13,
        )
        same = line[line["test_size"] == size]
        axis.plot(
            same["test_size"],
            same["top1"] * 100,
            "o",
            markersize=11,
            markerfacecolor="none",
            color=color,
        )
        axis.axvline(neutral_test_size(size), color=color, linestyle=":", linewidth=1.2)
    axis.plot(
        [],
        [],
        "o",
        markersize=9,
        markerfacecolor="none",
        color="#555555",
        label="test resolution = train resolution",
    )
    axis.plot([], [], ":", color="#555555", linewidth=1.2, label="same apparent size")
    axis.set(title=f"adaptation: {adaptation}", xlabel="test resolution (px)", ylabel=PERCENT)
    ticks = sorted(means["test_size"].unique())
    axis.set_xticks(ticks, ticks, rotation=90 if len(ticks) > 9 else 0)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def cost_accuracy(cells: pd.DataFrame, front: pd.DataFrame, speeds: pd.DataFrame) -> Figure:
    """Top-1 accuracy (95 %) against evaluation speed: every cell, and, joined and named, those that no other one beats.

    The colour is that of the train resolution; what was not trained here, probe and zero-shot, is
    grey.

    Args:
        front: as `cost.pareto_front` returns it; its rows without a speed are left out.
        speeds: as `cost.speeds` returns it.
    """
    front = front.dropna(subset=["images_per_second"]).sort_values("images_per_second")
    speed, top1 = front["images_per_second"], front["top1"] * 100
    every = (
        speeds["median"].reindex(pd.MultiIndex.from_frame(cells[["test_size", "view"]])).to_numpy()
    )
    figure, axis = plt.subplots()
    trained = cells["train_size"].notna()
    if not trained.all():
        axis.plot(
            every[~trained],
            cells["top1"][~trained] * 100,
            ".",
            color="#999999",
            label="not trained here",
        )
    for number, size in enumerate(sorted(set(cells["train_size"][trained]))):
        own = trained & (cells["train_size"] == size)
        axis.plot(
            every[own],
            cells["top1"][own] * 100,
            ".",
            color=f"C{number}",
            label=f"trained at {size} px",
        )
    spread = np.stack([top1 - front["top1_low"] * 100, front["top1_high"] * 100 - top1])
    axis.errorbar(
        speed, top1, spread, fmt="-", color="#333333", linewidth=1, zorder=0, label="Pareto front"
    )
    for _, cell in front.iterrows():
        view = "" if cell["view"] == "center" else f", {cell['view']}"
        kind = f", {cell['adaptation']}" if cell["adaptation"] in ("probe", "full") else ""
        train = "" if pd.isna(cell["train_size"]) else f"{cell['train_size']}/"
        text = f"{train}{cell['test_size']}{view}{kind}"
        note(axis, text, cell["images_per_second"], cell["top1"] * 100, 9)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.12)
    axis.set(
        xlabel="throughput (images/s)", ylabel=PERCENT, title="named: train/test resolution (px)"
    )
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def training_cost(front: pd.DataFrame, most: int = 6) -> Figure:
    """Top-1 accuracy (95 %) against training FLOPs, a panel per test resolution; the line joins the Pareto front.

    Args:
        front: as `cost.training_front` returns it.
        most: number of panels, the largest test resolutions.
    """
    sizes = sorted(front["test_size"].unique())[-most:]
    figure, axes = plt.subplots(
        len(sizes), 1, figsize=(5.6, 1.2 + 1.5 * len(sizes)), sharex=True, squeeze=False
    )
    for axis, size in zip(axes[:, 0], sizes, strict=True):
        rows = front[front["test_size"] == size].assign(top1=lambda table: table["top1"] * 100)
        for train_size, cells in rows.groupby("train_size"):
            color = f"C{sorted(front['train_size'].unique()).index(train_size)}"
            axis.plot(
                cells["flops"] / 1e12,
                cells["top1"],
                ".",
                color=color,
                label=f"trained at {train_size} px",
            )
        best = rows[rows["front"]].sort_values("flops")
        spread = np.stack(
            [best["top1"] - best["top1_low"] * 100, best["top1_high"] * 100 - best["top1"]]
        )
        axis.errorbar(
            best["flops"] / 1e12,
            best["top1"],
            spread,
            fmt="-",
            color="#555555",
            linewidth=1,
            zorder=0,
        )
        axis.set(ylabel=f"tested at\n{size} px (%)")
    axes[-1, 0].set(xlabel="training cost (TFLOP): stage 1 at the chosen rate, and stage 2")
    handles = {
        label: each
        for axis in axes[:, 0]
        for each, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return figure


def reliability(cells: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy (95 % Wilson) against confidence in bins; on the diagonal a network knows how sure it may be.

    Args:
        cells: name to table of `statistics.reliability`; the size of a dot grows with the bin's
            images.
    """
    figure, axis = plt.subplots(figsize=(4.4, 4.2))
    axis.plot([0, 100], [0, 100], ":", color="#555555", linewidth=1.2)
    for name, table in cells.items():
        confidence, accuracy = table["confidence"] * 100, table["accuracy"] * 100
        (line,) = axis.plot(confidence, accuracy, alpha=0.7, label=name)
        counts = zip((table["accuracy"] * table["images"]).round(), table["images"], strict=True)
        bounds = (
            np.array([wilson_interval(int(right), int(number)) for right, number in counts]).T * 100
        )
        axis.vlines(confidence, *bounds, color=line.get_color(), linewidth=0.8)
        axis.scatter(
            confidence,
            accuracy,
            200 * table["images"] / table["images"].sum() + 6,
            color=line.get_color(),
        )
    axis.set(xlabel="confidence (%)", ylabel="accuracy on test (%)", xlim=(0, 102), ylim=(0, 102))
    figure.legend(loc="outside lower center", ncols=2)
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
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def gain_path(path: pd.DataFrame) -> Figure:
    """Waterfall of `gain_path`: accuracy after each step, with the paired 95 % interval of each gain."""
    figure, axis = plt.subplots(figsize=(5.6, 0.9 + 0.62 * len(path)))
    start = dict(zip(path["step"], path["top1"], strict=True))
    for place, (_, step) in enumerate(path.iterrows()):
        if np.isnan(step["top1"]):
            axis.text(
                path["top1"].min() * 100,
                place,
                "not run",
                va="center",
                color="#777777",
                style="italic",
            )
        elif not isinstance(step["against"], str):
            axis.plot(step["top1"] * 100, place, "D", color="black")
            note(axis, f"{step['top1']:.1%}", step["top1"] * 100, place)
        else:
            before = start[step["against"]] * 100
            gain, low, high = (step[key] * 100 for key in ("gain", "gain_low", "gain_high"))
            axis.barh(
                place, gain, left=before, color="C2" if gain > 0 else "C1", height=0.5, alpha=0.75
            )
            axis.plot([before + low, before + high], [place, place], color="black", linewidth=1)
            note(axis, f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]", before + max(high, 0), place)
    axis.set_yticks(range(len(path)), [wrapped(step) for step in path["step"]])
    axis.invert_yaxis()
    axis.use_sticky_edges = False
    axis.margins(x=0.35)
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= 100])
    axis.set_xlabel(f"{PERCENT}; gain in points [95 %]")
    return figure


def confusions(
    targets: ArrayLike, predicted: ArrayLike, classes: Sequence[str], most: int = 12
) -> Figure:
    """The ordered class pairs confused most often, with the share of the true class's images.

    Args:
        targets: class indices, (N,).
        predicted: class indices, (N,).
    """
    pairs = confused_pairs(targets, predicted, classes).head(most)
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

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
from fixres_poc.report.plots.style import label_ends, legend, note, short_label, wrapped


def reliability(cells: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy (95 % Wilson) against confidence in bins; the diagonal is perfect calibration.

    Args:
        cells: name to table of `statistics.reliability`, in bins of equal counts.
    """
    figure, axis = plt.subplots(figsize=(7, 3.6))
    axis.plot([0, 100], [0, 100], ":", color="#555555", linewidth=1.2)
    findings = []
    for number, (name, table) in enumerate(cells.items()):
        colour, mark = f"C{number}", "os^D"[number]
        confidence, accuracy, images = (table[key] for key in ("confidence", "accuracy", "images"))
        correct = (accuracy * images).round().astype(int)
        bounds = np.transpose([*map(wilson_interval, correct, images)])
        axis.plot(confidence * 100, accuracy * 100, f"{mark}-", color=colour, label=name)
        axis.vlines(confidence * 100, *(bounds * 100), color=colour, linewidth=0.8)
        gap = ((confidence - accuracy) * images / images.sum()).sum()
        findings.append(f"{name}: confidence is {gap * 100:+.1f} points off")
    lowest = min((table["confidence"].min() * 100 for table in cells.values()), default=0.0)
    axis.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(lowest - 4, 102), ylim=(0, 102))
    legend(figure)
    description = f"Accuracy against confidence. On average, {'; '.join(findings)}"
    figure.set_label(description.replace("-", "\N{MINUS SIGN}"))
    return figure


def activations(features: Mapping[str, ArrayLike]) -> Figure:
    """Share of pooled features above each value, a line per framing, on a logarithmic axis.

    Args:
        features: by framing, of any shape; see `equalise.distributions`.
    """
    figure, axis = plt.subplots()
    shares = np.geomspace(0.001, 0.5, 201)
    for name, values in features.items():
        axis.plot(np.quantile(np.asarray(values), 1 - shares), shares * 100, label=name)
    axis.set(xlabel="value after global pooling", ylabel="share of values above (%)", yscale="log")
    axis.yaxis.set_major_formatter("{x:g}")
    legend(figure)
    return figure


def gain_path(path: pd.DataFrame) -> Figure:
    """Waterfall of `gain_path`: accuracy after each step, gains with paired 95 % intervals."""
    figure, axis = plt.subplots(figsize=(7, 0.7 + 0.42 * len(path)))
    top1_after = dict(zip(path["step"], path["top1"] * 100, strict=True))
    findings = list[str]()
    for place, step in enumerate(path.to_dict("records")):
        top1, before = top1_after[step["step"]], top1_after.get(step["against"])
        if np.isnan(top1):
            note(axis, "not run", path["top1"].min() * 100, place, color="#777777")
        elif before is None:
            axis.plot(top1, place, "D", color="black")
            note(axis, f"{top1:.1f} %", top1, place)
        else:
            gain = Difference(step["gain"], step["gain_low"], step["gain_high"])
            low, high = before + gain.low * 100, before + gain.high * 100
            colour, hatch = ("C2", "") if gain.estimate > 0 else ("C1", "////")
            look: dict[str, Any] = {"color": colour, "height": 0.5, "alpha": 0.75}
            axis.barh(place, gain.estimate * 100, left=before, hatch=hatch, **look)
            axis.plot([low, high], [place, place], color="black", linewidth=1)
            note(axis, gain.points(brief=True), max(before, high), place)
            findings.append(f"{step['step']}: {gain.points(brief=True)}")
    axis.set_yticks(range(len(path)), [wrapped(step, 32) for step in path["step"]])
    axis.invert_yaxis()
    axis.use_sticky_edges = False
    axis.margins(x=0.35)
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= 100])
    axis.set_xlabel("top-1 (%) after each step; gain in points (95 %)")
    figure.set_label(f"Steps of the gain in points. {'; '.join(findings)}")
    return figure


def confusions(targets: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> Figure:
    """The 12 ordered class pairs confused most often, with the share of the true class's images.

    Args:
        targets: class indices, (N,).
        predicted: class indices, (N,).
    """
    pairs = confused_pairs(targets, predicted, classes).head(12)
    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.33 * max(len(pairs), 1)))
    places = range(len(pairs))
    bars = axis.barh(places, pairs["share"] * 100, color="C1")
    axis.bar_label(bars, [str(count) for count in pairs["images"]], padding=3, fontsize=9)
    true, taken = pairs["target"].map(short_label), pairs["predicted"].map(short_label)
    axis.set_yticks(places, list(true + "\n\N{RIGHTWARDS ARROW} " + taken))
    axis.invert_yaxis()
    axis.set(
        xlabel="share of the true class's images (%);\nat the bar: number of them",
        title="taken for another class" if len(pairs) else "none was taken for another class",
    )
    texts = [
        f"{pair['target']} taken for {pair['predicted']}: {pair['images']}"
        for pair in pairs.head(3).to_dict("records")
    ]
    figure.set_label(f"Most frequent confusions. {'; '.join(texts) or 'None'}")
    return figure


def training_history(history: pd.DataFrame, probe: float | None = None) -> Figure:
    """Loss and validation accuracy (%) after each epoch, beside the linear probe's.

    Args:
        history: columns epoch, loss, val_top1.
        probe: top-1 of the linear probe on validation at this resolution; None where there is none.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(5.6, 2.6))
    left.plot(history["epoch"], history["loss"], "o-")
    left.set(xlabel="epoch", ylabel="training loss")
    right.plot(history["epoch"], history["val_top1"] * 100, "o-", color="C1", label="fine-tuned")
    right.set(xlabel="epoch", ylabel="top-1 on validation (%)")
    if probe is not None:
        right.axhline(probe * 100, color="black", linestyle=":", label="linear probe")
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    legend(figure)
    return figure


def accuracy_by_size(lines: Mapping[str, pd.DataFrame]) -> Figure:
    """Top-1 on test (%) against the test resolution, with 95 % intervals.

    Args:
        lines: name to a table with the columns test_size, top1, top1_low and top1_high; two at
            most, with the same test resolutions, the smallest first.
    """
    figure, axis = plt.subplots()
    ends = []
    for (name, table), mark, colour in zip(lines.items(), "os", ("C0", "C1"), strict=False):
        top1, low, high = (table[key] * 100 for key in ("top1", "top1_low", "top1_high"))
        sizes, errors = list(table["test_size"]), [top1 - low, high - top1]
        axis.errorbar(sizes, top1, errors, marker=mark, color=colour, capsize=3)
        ends.append((name, sizes[-1], top1.iloc[-1], colour))
    axis.set_xticks(sizes, sizes)
    axis.set(xlabel="test resolution (px)", ylabel="top-1 on test (%)")
    axis.set_xlim(right=sizes[-1] + 0.35 * (sizes[-1] - sizes[0] or 1))
    label_ends(axis, ends)
    return figure

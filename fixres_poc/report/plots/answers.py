"""Figures of a report's answers: forest plot, curves, Pareto front, differences to train = test.

Accuracies are fractions and are drawn in percent, differences in points. A figure's label describes
it, and becomes its alternative text.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fixres_poc.analysis.cells import cell_of, keys
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.config.settings import CONTROL, EQUAL_FLOPS
from fixres_poc.report.plots.style import BESIDE, label_ends, label_points, logarithmic
from fixres_poc.report.published import undominated
from fixres_poc.report.tables import points
from fixres_poc.report.text import rows_of

MARKS = {
    "better": ("#00734f", "^"),
    "as good": ("#0072B2", "s"),
    "worse": ("#B84300", "v"),
    "can't tell": ("#666666", "D"),
    "not run": ("#999999", "x"),
}
"""Colour and shape of each verdict."""
TOPICS = {
    1: "1  Does training pay?",
    2: "2  FixRes's claim: adapted",
    3: "3  What adapting adds",
    4: "4  Adapted, each at its own crop_pct (in brackets)",
}
MOST_ROWS = 18
TICK_SHARE = 0.12  # of a curve's axis that the name of a resolution takes
NUMBERS = 0.675  # where the numbers beside a forest plot begin, as a share of the figure's width
Row = Mapping[str, Any]
Rows = Mapping[tuple[int, str], Mapping[str, Row]]
"""Rows of answers.json by question and label, and by test part."""
LINES: dict[str, dict[str, Any]] = {
    "none": {"color": "C0", "linestyle": "--", "label": "unadapted"},
    "adapted": {"color": "C1", "linestyle": "-", "label": "adapted"},
    "control": {"color": "#888888", "linestyle": "-", "linewidth": 0.9, "label": "control"},
    "probe": {"color": "black", "linestyle": ":", "label": "linear probe"},
    "zero_shot": {"color": "#555555", "linestyle": "-.", "linewidth": 1.2, "label": "zero-shot"},
}


def forest(answers: Mapping[str, Any]) -> Figure:
    """Differences of questions 1 to 4 in points, with intervals and verdicts in words.

    The leading test part is filled, another one hollow. The band is delta about 0, the largest
    difference that does not matter. The primary rows are bold. Of many rows they stay, then those
    on FixRes. The reference at equal FLOPs is left out, as are rows of question 4 at the usual
    `crop_pct`, which questions 2 and 3 show.

    Args:
        answers: the content of answers.json.
    """
    leading = answers["leading_part"]
    rows: dict[tuple[int, str], dict[str, Row]] = {}
    for row in rows_of(answers):
        question, label = row["question"], row["label"]
        repeated = question == 4 and not row["primary"] and {(2, label), (3, label)} & rows.keys()
        if not repeated and not row["adaptation"].startswith(EQUAL_FLOPS):
            rows.setdefault((question, label), {})[row["part"]] = row
    ranked = sorted(rows, key=lambda key: (not rows[key][leading]["primary"], key[0] == 1))
    kept = set(ranked[:MOST_ROWS])
    return forest_of({key: rows[key] for key in rows if key in kept}, leading, TOPICS)


def forest_of(rows: Rows, leading: str, topics: Mapping[int, str]) -> Figure:
    """A forest plot of these rows, under a heading for each topic."""
    heights, headings = dict[tuple[int, str], float](), dict[str, float]()
    height = 0.0
    for key in rows:
        topic = topics[key[0]]
        if topic not in headings:
            headings[topic] = height + 0.15
            height += 1
        heights[key] = height
        height += 1
    inches = 0.75 + 0.205 * max(height, 2)
    figure, axis = plt.subplots(figsize=(7, inches), layout="none")
    every = [row for by_part in rows.values() for row in by_part.values()]
    limit = _span(every)
    for key, by_part in rows.items():
        for part, row in by_part.items():
            offset = 0.0 if part == leading else 0.3
            _draw_row(axis, heights[key] + offset, row, part == leading, limit)
    axis.axvline(0, color="black", linewidth=0.8)
    delta = max([row["delta"] for row in every], default=0.01) * 100
    axis.axvspan(-delta, delta, color="#dddddd", zorder=0)
    labels = [  # the headings of `TOPICS` say that the network is adapted
        label.replace(", adapted, against", " against", 1) if question > 1 else label
        for question, label in rows
    ]
    axis.set_yticks([*heights.values()], labels)
    for text, by_part in zip(axis.get_yticklabels(), rows.values(), strict=True):
        text.set_fontweight("bold" if by_part[leading]["primary"] else "normal")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)
    for topic, place in headings.items():
        _write(axis, 0, place, topic, weight="bold")
    axis.set(xlim=(-limit, limit), ylim=(height - 0.4, -0.6))
    band = f"within \N{PLUS-MINUS SIGN}{delta:.2g} (grey) it does not matter"
    axis.set_xlabel(f"difference in top-1 (points); {band}", fontsize=9)
    left = min(0.0102 * max(map(len, labels), default=20) + 0.02, 0.55)
    figure.subplots_adjust(left, 0.45 / inches, NUMBERS - 0.01, 1 - 0.05 / inches)
    texts = [
        f"{label}: {points(by_part[leading])} points, {by_part[leading]['verdict']}"
        for (_, label), by_part in rows.items()
    ]
    figure.set_label(f"Forest plot. {'; '.join(texts)}")
    return figure


def _span(rows: Sequence[Row]) -> float:
    """Half of the axis in points: holds the intervals of primary rows, and most of the others."""
    run = [row for row in rows if row["low"] is not None]
    ends = [max(-row["low"], row["high"]) for row in run if row["primary"]]
    if run:
        bounds = [row[name] for row in run for name in ("low", "high")]
        ends.append(np.quantile(np.abs(bounds), 0.75))
    return float(110 * max(ends, default=0.01))


def _draw_row(axis: Axes, height: float, row: Row, leading: bool, limit: float) -> None:
    """A mark and its interval, and at the right the numbers and the verdict."""
    colour, shape = MARKS[row["verdict"]]
    if row["estimate"] is not None:
        gain, low, high = (row[name] * 100 for name in ("estimate", "low", "high"))
        if abs(gain) > limit:
            shape = "<" if gain < 0 else ">"
        width, size, fill = (1.4, 6, colour) if leading else (0.8, 4.5, "white")
        axis.plot([low, high], [height] * 2, color=colour, linewidth=width)
        look: dict[str, Any] = {"color": colour, "markersize": size, "markerfacecolor": fill}
        axis.plot(np.clip(gain, -limit, limit), height, shape, clip_on=False, zorder=3, **look)
        for end in (low, high):
            if abs(gain) <= limit < abs(end):  # the interval goes on beyond the axis
                arrow: dict[str, Any] = {"marker": "<" if end < 0 else ">", "markersize": 4}
                axis.plot(np.copysign(limit, end), height, color=colour, clip_on=False, **arrow)
    if leading:
        _write(axis, NUMBERS, height, points(row), color=colour)
        _write(axis, NUMBERS + 0.225, height, row["verdict"], color=colour)


def _write(axis: Axes, x: float, y: float, text: str, **look: Any) -> None:
    """Write a text at a row of a forest plot; x is a share of the figure's width."""
    place = ("figure fraction", "data")
    axis.annotate(text, (x, y), xycoords=place, va="center", fontsize=9, **look)


def curves(results: Results, answers: Mapping[str, Any], adapted: str | None) -> Figure:
    """Top-1 against the test resolution, a panel a train resolution, in the usual crop.

    Bands are 95 % intervals. A ring marks test = train resolution, a tick the test resolution of
    equal apparent size, an arrow what lies below the axis.

    Args:
        adapted: the primary adaptation.
    """
    cells = results.usual[results.usual["seeds"] > 0]
    names = {name: name for name in ("none", "probe", "zero_shot")}
    if adapted:
        names |= {adapted: "adapted", CONTROL + adapted: "control"}
    cells = cells.assign(line=cells["adaptation"].map(names)).dropna(subset="line")
    sizes = sorted(cells["train_size"].dropna().unique())
    columns = 2 if len(sizes) == 4 else max(min(len(sizes), 3), 1)
    rows = max(math.ceil(len(sizes) / columns), 1)
    height = 3.3 if rows == 1 else 2.4 * rows
    figure, axes = plt.subplots(rows, columns, figsize=(7, height), sharey=True, squeeze=False)
    bottom, top = _useful(cells)
    matched = {row["train_size"]: row["test_size"] for row in answers["answers"][2]["rows"]}
    for axis in axes.flat[len(sizes) :]:
        axis.axis("off")
    for axis, size in zip(axes.flat, sizes, strict=False):
        axis.set(title=f"trained at {size} px", ylim=(bottom, top))
        panel = cells[(cells["train_size"] == size) | cells["train_size"].isna()]
        _draw_panel(axis, panel, bottom, 0.52 if columns < 3 else 0.8)
        if size in matched:
            axis.plot(matched[size], bottom, "|", color="black", markersize=16)
    marks = "ring: train resolution; tick: equal apparent size; arrow: below the axis"
    crop = f"crop_pct {results.usual_crop:g}"
    figure.supxlabel(f"test resolution (px) at {crop}. {marks}", fontsize=9)
    axes[0, 0].set_ylabel(f"top-1 on {results.part} (%)")
    axes[0, 0].yaxis.set_major_locator(MaxNLocator(6, integer=True))
    best = cells.sort_values("top1").groupby(["train_size", "line"]).last().reset_index()
    texts = [
        f"trained at {row['train_size']} px, {LINES[row['line']]['label']}: best "
        f"{row['top1'] * 100:.1f} % at {row['test_size']} px"
        for row in best.to_dict("records")
    ]
    figure.set_label(f"Top-1 against test resolution. {'; '.join(texts)}")
    return figure


def _draw_panel(axis: Axes, panel: pd.DataFrame, bottom: float, room: float) -> None:
    """The curves of one train resolution, with room for their labels as a share of the sizes."""
    ends = [_curve(axis, str(name), line, bottom) for name, line in panel.groupby("line")]
    same = panel[(panel["train_size"] == panel["test_size"]) & (panel["line"] == "none")]
    ring: dict[str, Any] = {"color": "C0", "markerfacecolor": "none", "markersize": 11}
    axis.plot(same["test_size"], same["top1"] * 100, "o", **ring)
    ticks = sorted(panel["test_size"].unique())
    width = (ticks[-1] - ticks[0] or 1) * room
    axis.set_xlim(ticks[0] - 0.06 * width, ticks[-1] + width)
    nearest = min(np.diff(ticks), default=np.inf) / np.ptp(axis.get_xlim())
    axis.set_xticks(ticks, ticks, rotation=0 if nearest > TICK_SHARE else 90)
    label_ends(axis, ends)


def _useful(cells: pd.DataFrame) -> tuple[float, float]:
    """The range of accuracies (%) where decisions are made: from train = test upwards."""
    same = (cells["train_size"] == cells["test_size"]) | cells["train_size"].isna()
    high = cells["top1_high"].max() * 100
    lowest = cells.loc[same, "top1_low"].min() * 100
    low = max(0.0 if np.isnan(lowest) else lowest, high - 40)
    return low - 0.08 * (high - low), high + 0.04 * (high - low)


def _curve(
    axis: Axes, name: str, line: pd.DataFrame, bottom: float
) -> tuple[str, float, float, str]:
    """Draw a line with its band; returns its label, end and colour."""
    line, look = line.sort_values("test_size"), LINES[name]
    colour = look["color"]
    x = line["test_size"].astype(float)
    top1, low, high = (line[column] * 100 for column in ("top1", "top1_low", "top1_high"))
    axis.plot(x, top1, marker="o", markersize=3, **look)
    if name in ("none", "adapted"):
        axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    below = x[top1 < bottom]
    arrow = axis.plot(below, [bottom] * len(below), "v", color=colour, markersize=6)[0]
    arrow.set(clip_on=False, in_layout=False)
    return look["label"], float(x.iloc[-1]), max(float(top1.iloc[-1]), bottom), colour


def front(arms: pd.DataFrame, part: str) -> Figure:
    """Top-1 (95 %) against FLOPs of an image of all arms, and the front of validation.

    On the front is what no arm beats on validation at no more FLOPs. The recommended arm has a
    star; pale arms are off the front.

    Args:
        arms: of answers.json, the cheapest first.
        part: the test part that top1 is about.
    """
    arms = arms.assign(cost=arms["flops"] / 1e9, percent=arms["top1"] * 100)
    optimal = arms[undominated(arms.assign(top1=arms["val_top1"]), "flops")]
    use = arms[arms["pick"] == "use"]
    near = optimal[optimal["val_top1"] > arms["val_top1"].max() - 0.15]
    figure, axis = plt.subplots(figsize=(7, 3.4))
    axis.plot(arms["cost"], arms["percent"], "o", color="#bbbbbb", markersize=4)
    axis.plot(optimal["cost"], optimal["percent"], "-", color="C0", linewidth=1)
    errors = [(optimal["top1"] - optimal[end]).abs() * 100 for end in ("top1_low", "top1_high")]
    look: dict[str, Any] = {"fmt": "o", "color": "C0", "elinewidth": 1}
    axis.errorbar(optimal["cost"], optimal["percent"], errors, **look)
    axis.plot(use["cost"], use["percent"], "*", color="C1", markersize=15, zorder=3)
    logarithmic(axis, 1, 2, 5)
    axis.set(xlabel="cost of an image (GFLOP)", ylabel=f"top-1 on {part} (%)")
    if len(near):
        axis.set_ylim(near["top1_low"].min() * 100 - 1, near["top1_high"].max() * 100 + 1)
        axis.set_xlim(arms["cost"].min() / 1.15, arms["cost"].max() * 1.5)
    labelled = pd.concat([use, near[~near.index.isin(use.index)]])
    names = [cell_of(row).named().replace(" px", "") for row in labelled.to_dict("records")]
    labels = list(zip(names, labelled["cost"], labelled["percent"], strict=True))
    label_points(axis, labels, [(8, -10), (8, 10), *BESIDE])  # below first, as the front rises
    choice = f"Recommended: {names[0]}, {labels[0][2]:.1f} %. " if len(use) else ""
    figure.set_label(
        f"Pareto front of accuracy against FLOPs. {choice}On the front: {'; '.join(names)}"
    )
    return figure


def differences(results: Results, adapted: str | None) -> Figure:
    """Top-1 minus that of the same training at test = train resolution, unadapted, in points.

    A panel unadapted, and one adapted. Bold where the paired 95 % interval excludes 0.
    """
    names = [name for name in ("none", adapted) if name]
    cells = results.usual
    cells = cells[cells["adaptation"].isin(names) & cells["train_size"].notna()]
    height = 0.8 + 0.36 * cells["train_size"].nunique()
    figure, axes = plt.subplots(len(names), figsize=(7, height * len(names)), squeeze=False)
    findings = []
    for axis, name in zip(axes.flat, names, strict=True):
        gain_of: dict[tuple[Any, Any], Difference] = {}
        title = "adapted" if name == adapted else "unadapted"
        for cell in keys(cells[cells["adaptation"] == name]):
            missing = Difference(0.0, 0.0, 0.0) if cell == cell.same_size() else Difference()
            gain_of[cell[:2]] = results.difference(cell, cell.same_size()) or missing
        gains = pd.Series(
            {sizes: gain.estimate * 100 for sizes, gain in gain_of.items()}, dtype=float
        )
        grid = gains.unstack()
        look: dict[str, Any] = {"cmap": "RdBu", "vmin": -10, "vmax": 10, "cbar": False}
        sns.heatmap(grid, ax=axis, annot=grid.map(_signed), fmt="", linewidths=1, **look)
        for text in axis.texts:
            column, row = (int(value) for value in text.get_position())
            gain = gain_of.get((grid.index[row], grid.columns[column]), Difference())
            text.set_weight("bold" if gain.low > 0 or gain.high < 0 else "normal")
        axis.grid(visible=False)
        axis.set(title=title, xlabel="", ylabel="train (px)")
        axis.tick_params(axis="y", rotation=0)
        if gains.notna().any():
            best: Any = gains.fillna(-100).idxmax()
            findings.append(f"{title}: largest {_signed(gains[best])} at {best[0]} to {best[1]} px")
    axes[-1, 0].set_xlabel("test resolution (px)")
    start = "Differences in points to test = train resolution, unadapted."
    figure.set_label(f"{start} {'; '.join(findings)}")
    return figure


def _signed(gain: float) -> str:
    return "" if np.isnan(gain) else f"{gain:+.1f}".replace("-", "\N{MINUS SIGN}")

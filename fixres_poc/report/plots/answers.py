"""Figures of a report's answers: forest plot, curves, Pareto front, differences to train = test.

Accuracies are fractions and are drawn in percent, differences in points. A figure's label says what
it shows, and becomes its alternative text.
"""

from collections.abc import Mapping
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
    2: "2  FixRes's claim",
    3: "3  What adapting adds",
    4: "4  Each at its own crop_pct",
}
MOST_ROWS = 22
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


def comparison_rows(answers: Mapping[str, Any]) -> Rows:
    """The rows of questions 1 to 4, without the reference at equal FLOPs."""
    rows: dict[tuple[int, str], dict[str, Row]] = {}
    for row in rows_of(answers):
        if not row["adaptation"].startswith(EQUAL_FLOPS):
            rows.setdefault((row["question"], row["label"]), {})[row["part"]] = row
    return rows


def forest(answers: Mapping[str, Any]) -> Figure:
    """Differences of questions 1 to 4 in points, with intervals and verdicts in words.

    The leading test part is filled, another one hollow. The band is delta about 0, the largest
    difference that does not matter. Of many rows the primary ones stay, then those on FixRes.

    Args:
        answers: the content of answers.json.
    """
    every, leading = comparison_rows(answers), answers["leading_part"]
    ordered = sorted(every, key=lambda key: (not every[key][leading]["primary"], key[0] == 1))
    return forest_of(
        {key: every[key] for key in sorted(ordered[:MOST_ROWS], key=list(every).index)},
        leading,
        TOPICS,
    )


def forest_of(rows: Rows, leading: str, topics: Mapping[int, str]) -> Figure:
    """A forest plot of these rows, under a heading for each topic."""
    places, headings, place = dict[tuple[int, str], float](), dict[float, str](), 0.0
    for key in rows:
        if topics[key[0]] not in headings.values():
            headings[place + 0.15] = topics[key[0]]
            place += 1
        places[key] = place
        place += 1
    figure, axis = plt.subplots(figsize=(7, 0.75 + 0.205 * max(place, 2)), layout="none")
    limit = _span(rows)
    for key, by_part in rows.items():
        for part, row in by_part.items():
            _draw_row(axis, places[key] + 0.3 * (part != leading), row, part == leading, limit)
    axis.axvline(0, color="black", linewidth=0.8)
    delta = max([row["delta"] for each in rows.values() for row in each.values()], default=0.01)
    axis.axvspan(-delta * 100, delta * 100, color="#dddddd", zorder=0)
    axis.set_yticks([*places.values()], [label for _, label in places])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)
    longest = max([len(label) for _, label in rows], default=20)
    left = min(0.0098 * longest + 0.03, 0.55)
    for height, text in headings.items():
        _write(axis, 0, height, text, weight="bold")
    axis.set(xlim=(-limit, limit), ylim=(place - 0.4, -0.6))
    axis.set_xlabel("difference in top-1 (points); grey: too small to matter", fontsize=9)
    inches = figure.get_size_inches()[1]
    figure.subplots_adjust(left, 0.45 / inches, NUMBERS - 0.01, 1 - 0.05 / inches)
    figure.set_label(
        "Forest plot. " + "; ".join(_spoken(key[1], rows[key][leading]) for key in rows)
    )
    return figure


def _span(rows: Rows) -> float:
    """Half of the width of the axis, in points: for primary rows, and most others."""
    ends = [
        (row["primary"], abs(end) * 100)
        for by_part in rows.values()
        for row in by_part.values()
        for end in (row["low"], row["high"])
        if end is not None
    ]
    usual = float(np.quantile([end for _, end in ends], 0.9)) if ends else 1.0
    return float(1.1 * max([usual, *(end for primary, end in ends if primary)]))


def _draw_row(axis: Axes, height: float, row: Row, leading: bool, limit: float) -> None:
    """A mark and its interval, and at the right the numbers and the verdict."""
    colour, shape = MARKS[row["verdict"]]
    if row["estimate"] is not None:
        gain, low, high = (row[name] * 100 for name in ("estimate", "low", "high"))
        axis.plot([low, high], [height] * 2, color=colour, linewidth=1.4 if leading else 0.8)
        fill = colour if leading else "white"
        shown = float(np.clip(gain, -limit, limit))
        outside = "<" if gain < -limit else ">" if gain > limit else shape
        size = 6 if leading else 4.5
        (mark,) = axis.plot(shown, height, outside, color=colour, markersize=size)
        mark.set(markerfacecolor=fill, clip_on=False, zorder=3)
    if leading:
        _write(axis, NUMBERS, height, points(row), color=colour)
        _write(axis, NUMBERS + 0.225, height, row["verdict"], color=colour)


def _write(axis: Axes, x: float, y: float, text: str, **look: Any) -> None:
    """Write a text at a row of a forest plot; x is a share of the figure's width."""
    place = ("figure fraction", "data")
    axis.annotate(text, (x, y), xycoords=place, va="center", fontsize=9, **look)


def _spoken(label: str, row: Row) -> str:
    return f"{label}: {points(row)} points, {row['verdict']}"


def curves(results: Results, answers: Mapping[str, Any], adapted: str | None) -> Figure:
    """Top-1 against the test resolution, a panel a train resolution, in the usual crop.

    Bands are 95 % intervals. A ring marks test = train resolution, a tick the test resolution of
    equal apparent size, an arrow what lies below the axis.

    Args:
        adapted: the primary adaptation.
    """
    cells = results.usual[results.usual["seeds"] > 0]
    names = {"none": "none", "probe": "probe", "zero_shot": "zero_shot"}
    names |= {adapted: "adapted", f"{CONTROL}{adapted}": "control"} if adapted else {}
    cells = cells.assign(line=cells["adaptation"].map(names)).dropna(subset="line")
    sizes = sorted(cells["train_size"].dropna().unique())
    wide = 2 if len(sizes) == 4 else max(min(len(sizes), 3), 1)
    rows = max(-(-len(sizes) // wide), 1)
    figure, axes = plt.subplots(
        rows, wide, figsize=(7, 3.3 if rows == 1 else 2.4 * rows), sharey=True, squeeze=False
    )
    bottom, top = _useful(cells)
    matched = {row["train_size"]: row["test_size"] for row in answers["answers"][2]["rows"]}
    for axis in axes.flat[len(sizes) :]:
        axis.axis("off")
    for axis, size in zip(axes.flat, sizes, strict=False):
        own = cells[(cells["train_size"] == size) | cells["train_size"].isna()]
        ends = [_curve(axis, str(name), line, bottom) for name, line in own.groupby("line")]
        ring = own[(own["train_size"] == own["test_size"]) & (own["line"] == "none")]
        at_home = ring["test_size"], ring["top1"] * 100
        axis.plot(*at_home, "o", color="C0", markerfacecolor="none", markersize=11)
        ticks = sorted(own["test_size"].unique())
        axis.set_xticks(ticks, ticks, rotation=90 if len(ticks) > 5 else 0)
        axis.set(title=f"trained at {size} px", ylim=(bottom, top))
        if size in matched:
            axis.plot(matched[size], bottom, "|", color="black", markersize=16)
        room = (ticks[-1] - ticks[0] or 1) * (0.52 if wide < 3 else 0.8)
        axis.set_xlim(ticks[0] - 0.06 * room, ticks[-1] + room)
        label_ends(axis, ends)
    marks = "ring: train resolution; tick: equal apparent size; arrow: below the axis"
    crop = f"crop_pct {results.usual_crop:g}"
    figure.supxlabel(f"test resolution (px) at {crop}. {marks}", fontsize=9)
    axes[0, 0].set_ylabel(f"top-1 on {results.part} (%)")
    axes[0, 0].yaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.set_label(_told_curves(cells))
    return figure


def _useful(cells: pd.DataFrame) -> tuple[float, float]:
    """The range of accuracies (%) where decisions are made: from train = test upwards."""
    at_home = cells["train_size"] == cells["test_size"]
    low = cells.loc[at_home | cells["train_size"].isna(), "top1_low"].min() * 100
    high = cells["top1_high"].max() * 100
    low = max(low if low == low else 0.0, high - 40)
    return low - 0.08 * (high - low), high + 0.04 * (high - low)


def _curve(
    axis: Axes, name: str, line: pd.DataFrame, bottom: float
) -> tuple[str, float, float, str]:
    """Draw a line with its band; returns its label, end and colour."""
    line, look = line.sort_values("test_size"), LINES[name]
    x, top1 = line["test_size"].astype(float), line["top1"] * 100
    axis.plot(x, top1, marker="o", markersize=3, **look)
    if name in ("none", "adapted"):
        axis.fill_between(
            x,
            line["top1_low"] * 100,
            line["top1_high"] * 100,
            color=look["color"],
            alpha=0.12,
            linewidth=0,
        )
    below = x[top1 < bottom]
    arrow = axis.plot(below, [bottom] * len(below), "v", color=look["color"], markersize=6)[0]
    arrow.set(clip_on=False, in_layout=False)
    return look["label"], float(x.iloc[-1]), max(float(top1.iloc[-1]), bottom), look["color"]


def _told_curves(cells: pd.DataFrame) -> str:
    """Each line's best test resolution."""
    best = cells.sort_values("top1").groupby(["train_size", "line"]).last().reset_index()
    said = [
        f"trained at {row['train_size']} px, {LINES[row['line']]['label']}: best "
        f"{row['top1'] * 100:.1f} % at {row['test_size']} px"
        for row in best.to_dict("records")
    ]
    return "Top-1 against test resolution. " + "; ".join(said)


def front(arms: pd.DataFrame, part: str) -> Figure:
    """Top-1 (95 %) against FLOPs of an image of all arms, and the front of validation.

    On the front is what no arm beats on validation at no more FLOPs. The recommended arm has a
    star; pale arms are off the front.

    Args:
        arms: of answers.json, the cheapest first.
        part: the test part that top1 is about.
    """
    arms = arms.assign(cost=arms["flops"] / 1e9, percent=arms["top1"] * 100)
    on_it = arms[undominated(arms.assign(top1=arms["val_top1"]), "flops")]
    use = arms[arms["pick"] == "use"]
    shown = on_it[on_it["val_top1"] > arms["val_top1"].max() - 0.15]
    figure, axis = plt.subplots(figsize=(7, 3.4))
    axis.plot(arms["cost"], arms["percent"], "o", color="#bbbbbb", markersize=4)
    axis.plot(on_it["cost"], on_it["percent"], "-", color="C0", linewidth=1)
    low, high = ((on_it["top1"] - on_it[end]).abs() * 100 for end in ("top1_low", "top1_high"))
    axis.errorbar(
        on_it["cost"], on_it["percent"], np.stack([low, high]), fmt="o", color="C0", elinewidth=1
    )
    axis.plot(use["cost"], use["percent"], "*", color="C1", markersize=15, zorder=3)
    bottom, top = shown["top1_low"].min() * 100, shown["top1_high"].max() * 100
    logarithmic(axis, 1, 2, 5)
    axis.set(xlabel="cost of an image (GFLOP)", ylabel=f"top-1 on {part} (%)")
    if len(shown):
        axis.set_ylim(bottom - 1, top + 1)
        axis.set_xlim(arms["cost"].min() / 1.15, arms["cost"].max() * 1.5)
    named = pd.concat([use, shown[~shown.index.isin(use.index)]])
    names = [cell_of(row).named().replace(" px", "") for row in named.to_dict("records")]
    below_first = [(8, -10), (8, 10), *BESIDE]  # the front rises
    label_points(axis, list(zip(names, named["cost"], named["percent"], strict=True)), below_first)
    said = f"Recommended: {names[0]}, {named['percent'].iloc[0]:.1f} %. " if len(use) else ""
    figure.set_label(
        f"Pareto front of accuracy against FLOPs. {said}On the front: {'; '.join(names)}"
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
    told = []
    for axis, name in zip(axes.flat, names, strict=True):
        found: dict[tuple[Any, Any], Difference] = {}
        title = "adapted" if name == adapted else "unadapted"
        for cell in keys(cells[cells["adaptation"] == name]):
            same = Difference(0.0, 0.0, 0.0) if cell == cell.same_size() else Difference()
            found[cell[:2]] = results.difference(cell, cell.same_size()) or same
        gains = pd.Series({key: each.estimate * 100 for key, each in found.items()}, dtype=float)
        grid = gains.unstack()
        look: dict[str, Any] = {"cmap": "RdBu", "vmin": -10, "vmax": 10, "cbar": False}
        sns.heatmap(grid, ax=axis, annot=grid.map(_signed), fmt="", linewidths=1, **look)
        sure = {key for key, each in found.items() if each.low > 0 or each.high < 0}
        for text in axis.texts:
            column, row = (int(value) for value in text.get_position())
            text.set_weight("bold" if (grid.index[row], grid.columns[column]) in sure else "normal")
        axis.grid(visible=False)
        axis.set(title=title, xlabel="", ylabel="train (px)")
        axis.tick_params(axis="y", rotation=0)
        if gains.notna().any():
            best: Any = gains.fillna(-100).idxmax()
            told.append(f"{title}: largest {_signed(gains[best])} at {best[0]} to {best[1]} px")
    axes[-1, 0].set_xlabel("test resolution (px)")
    said = "; ".join(told)
    figure.set_label(f"Differences in points to test = train resolution, unadapted. {said}")
    return figure


def _signed(gain: float) -> str:
    return "" if np.isnan(gain) else f"{gain:+.1f}".replace("-", "\N{MINUS SIGN}")

"""The tables of notebook 05: percent, intervals, n/a where something was not run."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from IPython.display import HTML
from matplotlib.colors import to_hex

from fixres_poc.analysis.cells import CANDIDATES, Cell, keys
from fixres_poc.analysis.recommendation import Recommendation
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.config.settings import CONTROL

NOT_RUN, NONE = "n/a", "–"
PLACE = ["adaptation", "train_size", "test_size"]
COLOURS = "Yellow is high, dark blue low."


MAIN = [
    *("choice", "train", "test", "adaptation", "view", "crop_pct", "test top-1 %"),
    *("95 % interval", "val top-1 %", "images/s"),
]
"""Columns of `cells` that matter most."""


def show(table: pd.DataFrame, classes: str | None = None, **formats: str) -> HTML:
    """A table as a notebook shows it: every row, no index, text escaped.

    Args:
        classes: what the report makes of it: "sortable" (by each column, and filtered), "frontier"
            (a limit chooses), "words" (lines wrap).
        formats: column name to format string, such as top1="{:.1%}"; missing values become n/a.
    """
    columns = {
        name: table[name].map(text.format, na_action="ignore") for name, text in formats.items()
    }
    text = table.assign(**columns).to_html(index=False, na_rep=NOT_RUN, border=0, classes=classes)
    return HTML(text)  # type: ignore[no-untyped-call]


def _text(values: "pd.Series[Any]", form: str, missing: str = NOT_RUN) -> "pd.Series[str]":
    return values.map(form.format, na_action="ignore").astype(object).fillna(missing)


def _percent(values: "pd.Series[float]") -> "pd.Series[str]":
    return _text(values * 100, "{:.1f}")


def _between(
    low: "pd.Series[float]", high: "pd.Series[float]", form: str = "{:.1f}"
) -> "pd.Series[str]":
    return (_text(low, form) + " to " + _text(high, form)).mask(low.isna(), NOT_RUN)


def _place(table: pd.DataFrame) -> dict[str, "pd.Series[Any]"]:
    """The columns that say which cell a row is about, views and crops where there are several."""
    names = {"train_size": "train", "test_size": "test", "adaptation": "adaptation"}
    names |= {name: name for name in ("view", "crop_pct") if table[name].nunique() > 1}
    shown = {name: table[key] for key, name in names.items()}
    shown["train"] = _text(shown["train"], "{:d}", NONE)
    return shown


def cells(results: Results) -> pd.DataFrame:
    """Every cell of the grid: sizes, accuracies with interval, cost, choice.

    With several seeds numbers are means over them, and `seeds` says over how many.
    """
    table, chosen = results.cells, results.choose()
    seeds = "seeds" if len(results.sweep["settings"]["seeds"]) > 1 else "seed"
    shown = pd.DataFrame(
        {
            "choice": ["chosen" if each == chosen else "" for each in keys(table)],
            **_place(table),
            "test top-1 %": _percent(table["top1"]),
            "95 % interval": _between(table["top1_low"] * 100, table["top1_high"] * 100),
            "val top-1 %": _percent(table["val_top1"]),
            "top-5 %": _percent(table["top5"]),
            "macro %": _percent(table["macro_accuracy"]),
            "ECE %": _percent(table["ece"]),
            "size ratio": _text(table["size_ratio"], "{:.2f}", NONE),
            "adapt s": _text(table["adapt_seconds"], "{:.0f}", NONE),
            "images/s": _text(table["eval_images_per_second"], "{:.0f}", NONE),
            seeds: table[seeds],
            "status": table["status"],
        }
    )
    if table["n_test"].nunique() > 1:  # zero_shot is asked for the classes that it knows only
        shown.insert(5, "of images", table["n_test"])
    return shown


def arms(recommendation: Recommendation) -> pd.DataFrame:
    """The arms of question 5, cheapest first, and what the one-standard-error rule says of each."""
    table = recommendation.arms
    return pd.DataFrame(
        {
            "pick": table["pick"],
            **_place(table),
            "images/s": _text(table["eval_images_per_second"], "{:.0f}"),
            "GFLOP/image": _text(table["flops"] / 1e9, "{:.3g}"),
            "training PFLOP": _text(table["training_flops"] / 1e15, "{:.3g}"),
            "val top-1 %": _percent(table["val_top1"]),
            "points below the best": _text(table["gap"] * 100, "{:.1f}"),
            "allowed": _text(table["allowed"] * 100, "{:.1f}"),
            "test top-1 %": _percent(table["top1"]),
            "95 % interval": _between(table["top1_low"] * 100, table["top1_high"] * 100),
            "share of draws": _text(table["share"], "{:.0%}"),
        }
    )


def every_cell(results: Results) -> HTML:
    """The table of `cells`: the main columns, and all of them on unfolding."""
    table = cells(results)
    first = table[[name for name in MAIN if name in table]]
    whole = (
        f"<details><summary>all columns</summary>{show(table, classes='sortable').data}</details>"
    )
    return HTML(f"{show(first, classes='sortable').data}\n{whole}")  # type: ignore[no-untyped-call]


def heat_map(results: Results, adaptations: Sequence[str] | None = None) -> HTML:
    """Top-1 accuracy (%) with its 95 % interval, one crop, by train and test resolution.

    Args:
        results: the sweep's; several seeds give means, and a pair that did not run gives its
            status.
        adaptations: which ones, in this order; by default all that were trained.
    """
    table = results.usual.dropna(subset="train_size")
    sizes = sorted(table["test_size"].unique())
    names = list(adaptations or table["adaptation"].unique())
    table = table[table["adaptation"].isin(names)]
    low, high = table["top1"].min(), table["top1"].max()
    found = {key: row.iloc[0] for key, row in table.groupby(PLACE)}
    across = "".join(f'<th scope="col">{size}</th>' for size in sizes)
    caption = f"Top-1 accuracy on {html.escape(results.part)}, %, and its 95 % interval. {COLOURS}"
    text = f'<table class="heat"><caption>{caption}</caption>'
    over = f'<th colspan="{len(sizes)}" scope="colgroup">test resolution, px</th>'
    text += f'<thead><tr><th scope="col">train px</th>{over}</tr>'
    text += f"<tr><td></td>{across}</tr></thead>"
    for name in names:
        head = f'<th colspan="{len(sizes) + 1}" scope="rowgroup">{html.escape(name)}</th>'
        text += f"<tbody><tr>{head}</tr>"
        for train in sorted(table["train_size"].unique()):
            cells = "".join(_heat(found.get((name, train, test)), low, high) for test in sizes)
            text += f'<tr><th scope="row">{train}</th>{cells}</tr>'
        text += "</tbody>"
    return HTML(text + "</table>")  # type: ignore[no-untyped-call]


def _heat(cell: "pd.Series[Any] | None", low: float, high: float) -> str:
    if cell is None or math.isnan(cell["top1"]):
        return f"<td>{'' if cell is None else html.escape(str(cell['status']))}</td>"
    from seaborn.utils import relative_luminance  # here, since importing it takes a second

    colour = mpl.colormaps["cividis"]((cell["top1"] - low) / (high - low or 1))
    text = "#000000" if relative_luminance(colour) > 0.18 else "#ffffff"
    style = f"background-color: {to_hex(colour)}; color: {text}"
    top1, *bounds = (f"{cell[name] * 100:.1f}" for name in ("top1", "top1_low", "top1_high"))
    spread = "\N{EN DASH}".join(bounds)
    return f'<td style="{style}">{top1}<br><small>{spread}</small></td>'


def steps(path: pd.DataFrame) -> pd.DataFrame:
    """The steps of `gain_path`: accuracy after each, and its gain with interval."""
    gains = path[["gain", "gain_low", "gain_high"]].itertuples(index=False, name=None)
    points = [Difference(*gain).points(brief=True) for gain in gains]
    return pd.DataFrame(
        {
            "step": path["step"],
            "test top-1 %": _percent(path["top1"]),
            "gain in points": pd.Series(points).mask(path["gain"].isna(), NOT_RUN),
        }
    )


def ablations(results: Results, matched: Mapping[int, int]) -> pd.DataFrame:
    """Adaptations on request against none and their controls, at the matched test resolutions.

    Args:
        matched: of `questions.Plan`.
    """
    rows = []
    for train, test in matched.items():
        for name in CANDIDATES[1:]:
            cell = Cell(train, test, name, results.first_seed, crop_pct=results.usual_crop)
            if results.seeds(cell):
                plain, control = (
                    results.difference(cell, cell._replace(adaptation=other))
                    for other in ("none", CONTROL + name)
                )
                row = {"train": train, "test": test, "adaptation": name}
                row["points over none"] = plain.points(brief=True) if plain else NONE
                row["points over its control"] = control.points(brief=True) if control else NONE
                rows.append(row)
    return pd.DataFrame(rows)


def settings(results: Results) -> pd.DataFrame:
    """The sweep's settings, those that are set."""
    values = pd.Series(results.sweep["settings"], dtype=object).dropna().map(str)
    return values.rename("value").rename_axis("setting").reset_index()


def failures(results: Results) -> pd.DataFrame:
    """Runs that did not end well: name, status, error."""
    runs = pd.DataFrame(results.sweep["runs"])
    return runs.loc[runs["status"] != "done", ["name", "status", "error"]].reset_index(drop=True)


def activations(results: Results) -> pd.DataFrame:
    """What enters the classifier (`equalise.summary`), each framing once, of the first seed.

    Returns:
        Columns trained (px), images, mean, std, near_zero and large; none where nothing was
        measured.
    """
    runs = [
        pd.DataFrame(run["activations"]).assign(trained=run["train_size"], test=run["test_size"])
        for run in results.sweep["runs"]
        if run.get("activations")
    ]
    if not runs:
        return pd.DataFrame()
    table = pd.concat(runs).rename_axis("order").reset_index()
    table = table.drop_duplicates(["trained", "images"]).sort_values(["trained", "order", "test"])
    columns = ["trained", *table.columns.drop(["order", "trained", "test"])]
    return table[columns].reset_index(drop=True)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `sweep.plan` for people: GiB, GFLOP, minutes or hours, yes, no, unknown."""
    units = {"bytes": ("GiB", 2**30), "flops": ("GFLOP", 1e9), "s": ("min", 60)}
    shown: dict[str, pd.Series[Any]] = {}
    for name, values in table.items():
        stem, _, end = str(name).rpartition("_")
        if end in units and stem:
            unit, divisor = ("h", 3600) if end == "s" and values.max() > 7200 else units[end]
            shown[f"{stem} {unit}".replace("_", " ")] = (
                (values / divisor).map("{:.2f}".format).replace("nan", "unknown")
            )
        else:
            words = values.map({True: "yes", False: "no"}) if values.dtype == bool else values
            shown[str(name).replace("_", " ")] = words
    return pd.DataFrame(shown)

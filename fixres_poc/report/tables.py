"""The tables of notebook 05, in percent and with intervals; n/a: not run."""

import html
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd
from IPython.display import HTML

from fixres_poc.analysis.cells import CANDIDATES, Cell, cell_of, keys
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Accuracy, Difference
from fixres_poc.config.settings import CONTROL
from fixres_poc.report.text import deciding, rows_of

NOT_RUN, NONE = "n/a", "–"
HEADINGS = {
    "train_size": "train px",
    "test_size": "test px",
    "test_part": "images of",
    "n_test": "images",
    "top1": "top-1",
    "top5": "top-5",
    "val_top1": "validation top-1",
    "ece": "calibration error",
    "affine_factor": "batch norm factor",
    "batch_norm": "statistics",
    "moved": "batch norm moved",
    "differs": "predictions changed",
    "gmacs": "multiply-adds (10⁹)",
    "parameters_millions": "parameters (10⁶)",
}
"""Plain headings of columns; others lose their underscores."""
LEGEND = (
    "r \N{RIGHTWARDS ARROW} R px: trained at r px, tested at R px, as FixRes does with R above r. "
    "Adapted: the last layers are fine-tuned at R; its control: at r. Points of top-1, with 95 % "
    "intervals (over images; with several seeds over trainings too). crop_pct: side of the test "
    "crop over that of the resized image. Linear probe: a classifier on frozen features."
)
ASKED = {
    1: "Does training pay here?",
    2: "FixRes's claim: smaller train resolution, adapted",
    3: "What does adapting add?",
    4: "Would a better crop_pct do?",
    5: "What should I use?",
}


def show(table: pd.DataFrame, classes: str | None = None, note: str = "", **formats: str) -> HTML:
    """A table as a notebook shows it: every row, plain headings, no index, text escaped.

    Args:
        classes: CSS classes that the report's page knows: "sortable" (by each column, and
            filtered), "frontier" (a reader's limit chooses a row), "words" (lines wrap).
        note: a text below the table.
        formats: column name to format string, such as top1="{:.1%}"; missing values become n/a.
    """
    table = table.assign(**{name: _text(table[name], form) for name, form in formats.items()})
    names = [HEADINGS.get(name, name.replace("_", " ")) for name in map(str, table)]
    content = table.set_axis(names, axis=1).to_html(
        index=False, na_rep=NOT_RUN, border=0, classes=classes
    )
    if note:
        content += f'<p class="note">{html.escape(note)}</p>'
    return HTML(content)  # type: ignore[no-untyped-call]


def titled(shown: Mapping[str, HTML], fold: bool = False) -> HTML:
    """Tables below each other in one output, each under its title or folded into it."""
    form = "<details><summary>{}</summary>{}</details>" if fold else "<h4>{}</h4>{}"
    parts = [form.format(html.escape(title), table.data) for title, table in shown.items()]
    return HTML("\n".join(parts))  # type: ignore[no-untyped-call]


UNITS = {"bytes": ("GiB", 2**30), "flops": ("GFLOP", 1e9), "s": ("min", 60)}
"""By the last part of a column's name: the unit that people read, and its size."""
PERCENTS = {
    "val_top1": "val top-1 %",
    "top5": "top-5 %",
    "macro_accuracy": "macro %",
    "ece": "ECE %",
}


def _text(values: "pd.Series[Any]", form: str, missing: str = NOT_RUN) -> "pd.Series[str]":
    return values.map(form.format, na_action="ignore").astype(object).fillna(missing)


def _percents(table: pd.DataFrame) -> dict[str, "pd.Series[str]"]:
    """Test accuracy and its interval, and those of `PERCENTS` that the table has."""
    top1, low, high = (
        _text(table[name] * 100, "{:.1f}") for name in ("top1", "top1_low", "top1_high")
    )
    interval = (low + " to " + high).mask(table["top1_low"].isna(), NOT_RUN)
    others = {PERCENTS[key]: _text(table[key] * 100, "{:.1f}") for key in PERCENTS if key in table}
    return {"test top-1 %": top1, "95 % interval": interval, **others}


def questions(answers: Mapping[str, Any]) -> pd.DataFrame:
    """The five questions: answer in words, points on each test part, and what it means."""
    others = sorted(row["part"] for row in rows_of(answers))
    parts = dict.fromkeys([answers["leading_part"], *others])
    rows = [
        {
            "question": f"{answer['id']}  {ASKED[answer['id']]}",
            "answer": answer["sentence"],
            **{f"points on {part}": points_on(answers, answer["id"], part) for part in parts},
            "what it means for you": answer["means"],
        }
        for answer in answers["answers"]
    ]
    return pd.DataFrame(rows)


def points_on(answers: Mapping[str, Any], question: int, part: str) -> str:
    """The difference that decides an answer on a test part; of question 5 the accuracy."""
    if question == 5:
        accuracy = answers["answers"][4]["accuracy"].get(part)
        return Accuracy(*accuracy).percent(brief=True) if accuracy else NONE
    row = deciding(answers, part).get(question)
    if not row:
        return NONE
    _, _, reference = row["label"].partition("against ")
    return f"{points(row)} against {reference}"


def points(row: Mapping[str, Any]) -> str:
    """Estimate and interval of a row of answers.json in points, n/a where it was not run."""
    if row["estimate"] is None:
        return NOT_RUN
    return Difference(row["estimate"], row["low"], row["high"]).points(brief=True)


def comparisons(answers: Mapping[str, Any], asked: Sequence[int] = (1, 2, 3, 4)) -> pd.DataFrame:
    """Every row of these questions on each part, at its level; * marks the primary ones."""
    shown = [
        {
            "question": f"{row['question']} *" if row["primary"] else str(row["question"]),
            "comparison": row["label"],
            "on": row["part"],
            "points": points(row),
            "level": f"{row['level'] * 100:.1f} %",
            "verdict": row["verdict"],
            "training FLOPs": f"× {row['flops_ratio']:.2f}" if row["flops_ratio"] else "",
        }
        for row in rows_of(answers)
        if row["question"] in asked
    ]
    return pd.DataFrame(shown)


def cells(results: Results, use: Cell | None) -> pd.DataFrame:
    """Every cell of the grid, the recommended one first: accuracies with intervals.

    With several seeds numbers are means over them, and the column `seeds` has their number.
    """
    table = results.cells
    table = table.assign(choice=["use" if cell == use else "" for cell in keys(table)])
    table = table.sort_values("choice", ascending=False, kind="stable")
    seeds = "seeds" if len(results.settings["seeds"]) > 1 else "seed"
    several = [name for name in ("view", "crop_pct") if table[name].nunique() > 1]
    shown = pd.DataFrame(
        {
            "choice": table["choice"],
            "train": _text(table["train_size"], "{:d}", NONE),
            "test": table["test_size"],
            **table[["adaptation", *several]],
            **_percents(table),
            "size ratio": _text(table["size_ratio"], "{:.2f}", NONE),
            seeds: table[seeds],
            "status": table["status"],
        }
    )
    if table["n_test"].nunique() > 1:  # zero-shot has images of the mapped classes alone
        shown.insert(5, "of images", table["n_test"])
    return shown


def arms(answers: Mapping[str, Any]) -> pd.DataFrame:
    """The arms of question 5, cheapest first, and how the one-standard-error rule judges each."""
    rows = answers["answers"][4]["arms"]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    units = {"flops": ("GFLOP/image", 1e9), "training_flops": ("training PFLOP", 1e15)}
    shown = pd.DataFrame(
        {
            "pick": table["pick"],
            "arm": [cell_of(row).named() for row in rows],
            "images/s": _text(table["images_per_second"].astype(float), "{:.0f}"),
            **{name: _text(table[key] / unit, "{:.3g}") for key, (name, unit) in units.items()},
            "points below the best": _text(table["gap"] * 100, "{:.1f}"),
            "allowed": _text(table["allowed"] * 100, "{:.1f}"),
            **_percents(table),
            "share of draws": _text(table["share"] * 100, "{:.0f} %"),
        }
    )
    return shown if table["images_per_second"].notna().any() else shown.drop(columns="images/s")


def ablations(results: Results, matched: Mapping[int, int], adapted: str | None) -> pd.DataFrame:
    """Adaptations on request against none and their controls, at the matched test resolutions.

    Args:
        matched: train to test resolution.
        adapted: the primary adaptation, which is left out.
    """
    names = [name for name in CANDIDATES[1:] if name != adapted]
    rows = []
    for (train, test), name in product(matched.items(), names):
        cell = Cell(train, test, name, crop_pct=results.usual_crop)
        if results.hits(cell):
            references = (cell._replace(adaptation=base) for base in ("none", CONTROL + name))
            gains = (results.difference(cell, reference) for reference in references)
            texts = [gain.points(brief=True) if gain else NONE for gain in gains]
            rows.append([train, test, name, *texts])
    columns = ["train", "test", "adaptation", "points over unadapted", "points over its control"]
    return pd.DataFrame(rows, columns=columns)


def facts(results: Results) -> dict[str, HTML]:
    """Settings, versions and hardware of the numbers, and images per class, as tables."""
    names = pd.Series(results.sweep["classes"])
    lists = {
        "Settings": pd.Series(results.settings, dtype=object).dropna(),
        "Versions and hardware": pd.Series(results.sweep["versions"] | results.sweep["hardware"]),
        "Images per class": results.images["label"].map(names).value_counts(),
    }
    return {
        name: show(values.map(str).rename("value").rename_axis("name").reset_index(), "words")
        for name, values in lists.items()
    }


def activations(results: Results) -> pd.DataFrame:
    """Statistics of the classifier's input (`equalise.summary`), of the first seed.

    Returns:
        A row per framing. Columns trained (px), images, mean, std, near_zero and large; none if
        nothing was measured.
    """
    tables = [
        pd.DataFrame(run["activations"]).assign(trained=run["train_size"], test=run["test_size"])
        for run in results.sweep["runs"]
        if run.get("activations")
    ]
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables).rename_axis("order").reset_index()
    table = table.drop_duplicates(["trained", "images"]).sort_values(["trained", "order", "test"])
    columns = ["trained", *table.columns.drop(["order", "trained", "test"])]
    return table[columns].reset_index(drop=True)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `sweep.plan` in GiB, GFLOP and minutes; missing values are "unknown"."""
    shown: dict[str, pd.Series[Any]] = {}
    for column, values in table.items():
        name = str(column)
        stem, _, end = name.rpartition("_")
        if end in UNITS:
            unit, divisor = UNITS[end]
            name = f"{stem}_{unit}"
            values = _text(values / divisor, "{:.2f}", "unknown")
        shown[name.replace("_", " ")] = values
    return pd.DataFrame(shown)

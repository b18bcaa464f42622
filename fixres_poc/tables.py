"""The tables of notebook 05, styled for readers: percent, intervals, n/a where something was not run."""

import math
import re

import pandas as pd
from IPython.display import HTML

from fixres_poc.results import Results

NOT_RUN = "n/a"


def show(table: pd.DataFrame, **formats: str) -> HTML:
    """A table as a notebook shows it: every row, no index, text escaped, the same output at every run.

    Args:
        table: what to show.
        formats: column name to format string, such as top1="{:.1%}"; missing values become n/a.
    """
    columns = {name: table[name].map(text.format, na_action="ignore") for name, text in formats.items()}
    html = table.assign(**columns).to_html(index=False, na_rep=NOT_RUN, border=0)
    return HTML(html)  # type: ignore[no-untyped-call]


def _percent(value: float) -> str:
    return NOT_RUN if math.isnan(value) else f"{value * 100:.1f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return NOT_RUN
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def cells(results: Results) -> pd.DataFrame:
    """Every cell of the grid: sizes, accuracies with interval, p-values and cost; the chosen one is marked.

    With several seeds numbers are means over them, and `seeds` says over how many.
    """
    table, chosen = results.cells, results.choose()
    several = len(results.sweep["settings"]["seeds"]) > 1
    grid = table[["train_size", "test_size", "adaptation", "view"]].itertuples(index=False)
    picked = (chosen.train_size, chosen.test_size, chosen.adaptation, chosen.view)
    shown = pd.DataFrame(
        {
            "": ["chosen" if tuple(each) == picked else "" for each in grid],
            "train": table["train_size"],
            "test": table["test_size"],
            "adaptation": table["adaptation"],
            **({"view": table["view"]} if table["view"].nunique() > 1 else {}),
            "test top-1 %": table["top1"].map(_percent),
            "95 % interval": [_between(*pair) for pair in zip(table["top1_low"], table["top1_high"], strict=True)],
            "val top-1 %": table["val_top1"].map(_percent),
            "top-5 %": table["top5"].map(_percent),
            "p (baseline)": table["p_vs_baseline"].map(_p),
            "p (test = train)": table["p_vs_same_size"].map(_p),
            "macro %": table["macro_accuracy"].map(_percent),
            "ECE %": table["ece"].map(_percent),
            "size ratio": table["size_ratio"].map("{:.2f}".format),
            "adapt s": table["adapt_seconds"].map("{:.0f}".format).replace("nan", "–"),
            "pictures/s": table["eval_images_per_second"].map("{:.0f}".format).replace("nan", "–"),
            "seeds" if several else "seed": table["seeds" if several else "seed"],
            "status": table["status"],
        }
    )
    if table["n_test"].nunique() > 1:  # zero_shot is asked for the classes that it knows only
        shown.insert(5, "of pictures", table["n_test"])
    return shown


def _between(low: float, high: float) -> str:
    return NOT_RUN if math.isnan(low) else f"{low * 100:.1f} to {high * 100:.1f}"


def steps(path: pd.DataFrame) -> pd.DataFrame:
    """The steps of `results.gain_path`: accuracy after each, and its gain with interval and p-value."""
    shown = pd.DataFrame(
        {
            "step": path["step"],
            "test top-1 %": path["top1"].map(_percent),
            "gain in points": [
                NOT_RUN if math.isnan(gain) else f"{gain * 100:+.1f} ({low * 100:+.1f} to {high * 100:+.1f})"
                for gain, low, high in path[["gain", "gain_low", "gain_high"]].itertuples(index=False)
            ],
            "p": path["p"].map(_p),
        }
    )
    return shown


def settings(results: Results) -> pd.DataFrame:
    """The sweep's settings, those that are set."""
    values = {key: str(value) for key, value in results.sweep["settings"].items() if value is not None}
    return pd.DataFrame({"setting": values.keys(), "value": values.values()})


def failures(results: Results) -> pd.DataFrame:
    """Runs that did not end well: name, status, error."""
    runs = pd.DataFrame(results.sweep["runs"])
    return runs.loc[runs["status"] != "ok", ["name", "status", "error"]].reset_index(drop=True)


def activations(results: Results) -> pd.DataFrame:
    """What enters the classifier: `activations.summary` of every pair, each framing once, of the first seed.

    Returns:
        Columns trained (px), pictures, mean, std, near_zero and large; none where nothing was measured.
    """
    rows = []
    for run in results.sweep["runs"]:
        for order, row in enumerate(run.get("activations") or []):
            train, test, _ = map(int, re.findall(r"\d+", run["name"]))
            rows.append({"trained": train, "order": order, "test": test, **row})
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).drop_duplicates(["trained", "pictures"]).sort_values(["trained", "order", "test"])
    return table.drop(columns=["order", "test"]).reset_index(drop=True)

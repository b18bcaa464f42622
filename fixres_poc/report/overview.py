"""Pages over several sweeps: reports/index.html, one row per sweep, and comparisons.

Each report leaves its line in overview.json; a comparison reads the reports' own tables.
"""

import base64
import datetime
import html
import io
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from matplotlib.figure import Figure
from nbformat import v4

from fixres_poc.analysis import answers
from fixres_poc.analysis.answers import Decision, decide
from fixres_poc.analysis.results import Results, leading_part, load_results, paired
from fixres_poc.analysis.statistics import paired_gain
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import home, report_folder, write_atomically
from fixres_poc.report import pages, plots, tables

LINE = "overview.json"
log = logging.getLogger(__name__)
INTRODUCTION = """# Sweeps

Does FixRes pay, on which images, at which pair of resolutions? One row per sweep; the name links
to its report. *Claim*: is a lower train resolution, adapted, as good as train = test, for less
training? *Adaptation*: does adapting the last layers gain, over none and over the control at the
train resolution? *Use*: the cheapest arm that validation cannot tell from the best. Answers are on
the test part that is not flagged for leakage, of both or neither on the larger one.
"""

SAME_IMAGES = """# Networks on the same images

The answers of each sweep on its leading test part. Then paired differences between
the cells that validation chose, on the same images.
"""
OTHER_IMAGES = """# The same question on several datasets

The answers of each sweep on its leading test part. The images differ, so compare
the verdicts, not the accuracies.
"""
UNKNOWN_IMAGES = """## Images that are not known

These reports do not record which images were tested: {names}. They are not compared image by
image. To compare them, run their sweeps again.
"""
COSTS = """## Accuracy and cost

All arms: top-1 against the FLOPs of one image, and against those of training (probe, stage 1,
stage 2; a training step counts as three forward passes).
"""


def write(sweep: str) -> Path:
    """Save a sweep's answers and line beside its report; returns the page of all reports."""
    own = line(answers.write(sweep))
    write_atomically(report_folder(sweep) / LINE, json.dumps(own, indent=1))
    found = [_line_of(file, own) for file in sorted((home() / "reports").glob(f"*/{LINE}"))]
    table = pd.DataFrame(filter(None, found)).sort_values("date", ascending=False, kind="stable")
    return _page("index", INTRODUCTION, _linked(table))


def _line_of(file: Path, columns: Collection[str]) -> dict[str, str] | None:
    """The line that a report has left; None, with a warning, where this version cannot show it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {name: str.strip(found[name]) for name in columns} | {"sweep": file.parent.name}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        log.warning(
            printable(f"{file}: left out of reports/index.html ({type(error).__name__}: {error})")
        )
        return None


def _linked(lines: pd.DataFrame) -> str:
    """Lines of sweeps as a table, in which each name leads to the sweep's report."""
    shown = str(tables.show(lines, classes="sortable words").data)
    for name in lines["sweep"]:
        cell = f"<td>{html.escape(name)}</td>"
        shown = shown.replace(
            cell, f'<td><a href="{quote(name)}/index.html">{html.escape(name)}</a></td>'
        )
    return shown


def _page(name: str, *parts: Any) -> Path:
    """Write reports/<name>.html from Markdown (text that begins with #), HTML and figures."""
    cells = []
    for part in parts:
        if isinstance(part, str) and part.startswith("#"):
            cells.append(v4.new_markdown_cell(part))  # type: ignore[no-untyped-call]
            continue
        shown = {"text/html": part} if isinstance(part, str) else {"image/png": _png(part)}
        cells.append(v4.new_code_cell(outputs=[v4.new_output("display_data", shown)]))  # type: ignore[no-untyped-call]
    page = home() / "reports" / f"{name}.html"
    write_atomically(page, pages.render_content(v4.new_notebook(cells=cells), {}))  # type: ignore[no-untyped-call]
    return page


def _png(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return base64.b64encode(content.getvalue()).decode()


def line(decision: Decision) -> dict[str, str]:
    """What the page says of one sweep, by column."""
    results, use = decision.results, decision.recommendation.use
    settings, part = results.sweep["settings"], results.part
    return {
        "sweep": settings["name"],
        "answer": decision.title,
        "claim": decision.verdicts[2],
        "adaptation": decision.verdicts[3],
        "use": use.named() if use else "n/a",
        "top-1 %": f"{results.accuracy(use).estimate * 100:.1f}" if use else "n/a",
        "on": f"{results.sweep['images'][part]:,} {part} images",
        "network": settings["backbone"].removeprefix("timm:"),
        "dataset": Path(settings["dataset"]).name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "version": (results.sweep["versions"] or {}).get("fixres_poc", "n/a"),
    }


def compare(names: Sequence[str]) -> Path:
    """Write reports/compare-<names>.html: several networks on the same images, or several datasets.

    Networks are held against each other by what validation chose of each, on the test parts that
    both share.

    Raises:
        InputError: fewer than two sweeps, or one without a report or without a finished pair.
    """
    if len(set(names)) < 2:
        raise InputError(f"sweeps = {', '.join(names)!r}: a comparison needs two or more")
    every = {name: load_results(name) for name in names}
    same = all(_shared(*pair) for pair in combinations(every.values(), 2))
    decisions = {name: decide(each.on(leading_part(each))) for name, each in every.items()}
    parts: list[Any] = [
        SAME_IMAGES if same else OTHER_IMAGES,
        _linked(pd.DataFrame(map(line, decisions.values()))),
    ]
    if unknown := [name for name, each in every.items() if not each.sweep.get("parts")]:
        parts.append(UNKNOWN_IMAGES.format(names=", ".join(unknown)))
    if len(table := differences(every)):
        parts += [
            "## Differences on the same images",
            str(tables.show(table, classes="sortable").data),
        ]
    costs = pd.concat([_costs(*each) for each in decisions.items()], ignore_index=True)
    plots.use_style()
    return _page(f"compare-{'-'.join(names)}", *parts, COSTS, plots.compared_costs(costs))


def differences(every: Mapping[str, Results]) -> pd.DataFrame:
    """Paired differences in top-1 of the chosen cells, for each pair of sweeps and test part."""
    rows = []
    for (first, one), (second, other) in combinations(every.items(), 2):
        for part in _shared(one, other):
            pair = [each.on(part).hits(each.choose()) for each in (other, one)]
            hits = paired(pair[0], pair[1])
            if hits is not None:
                rows.append([second, first, part, paired_gain(*hits).points()])
    return pd.DataFrame(rows, columns=["sweep", "minus", "on", "points (95 %)"])


def _shared(first: Results, second: Results) -> list[str]:
    """Test parts with the same images and labels, by the digests in both reports."""
    one, other = (each.sweep.get("parts") or {} for each in (first, second))
    return [part for part in first.parts if part in one and one[part] == other.get(part)]


def _costs(name: str, decision: Decision) -> pd.DataFrame:
    """Accuracy and cost of every arm, on the leading test part."""
    arms = decision.recommendation.arms.assign(sweep=name)
    return arms.rename(columns={"flops": "image_flops", "training_flops": "flops"})

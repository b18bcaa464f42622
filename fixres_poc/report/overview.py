"""Pages over several sweeps: reports/index.html, one row per sweep, and comparisons.

Both say what the sweeps' own answers.json say.
"""

import html
import json
import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from nbformat import v4

from fixres_poc.analysis.cells import cell_of
from fixres_poc.analysis.comparisons import Bounds, verdict_of
from fixres_poc.analysis.results import Results, load_results, paired
from fixres_poc.analysis.statistics import Difference, paired_gain
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import home, write_atomically
from fixres_poc.report import pages, plots, sentences, tables
from fixres_poc.report.plots.style import packed

DELTA = 0.01
"""The largest difference between sweeps that does not matter: the usual setting of one."""
log = logging.getLogger(__name__)
INTRODUCTION = """# Sweeps

Does FixRes pay, on which images, at which pair of resolutions? One row per sweep; the name links
to its report. r \N{RIGHTWARDS ARROW} R px: trained at r px, tested at R px. *Claim*: is a
lower train resolution, adapted, as good as train = test, for less training? *Adapting*: does it
gain, over unadapted and over the control at the train resolution? *Use*: the cheapest arm that
validation cannot tell from the best.
"""
PAIRED = """## Differences on the same images

What each sweep recommends, on the test parts whose images and classes are the same in both.
"""
EACH = """## The answers of {name}

{title}
"""


def write() -> Path:
    """Write reports/index.html, a row for each sweep that has a report; returns the page."""
    files = sorted((home() / "reports").glob(f"*/{sentences.ANSWERS}"))
    table = pd.DataFrame(filter(None, map(_line_of, files)))
    if len(table):
        table = table.sort_values("date", ascending=False, kind="stable")
    return _page("index", INTRODUCTION, _linked(table))


def _line_of(file: Path) -> dict[str, str] | None:
    """The row of a report; None, with a warning, where this version cannot show it."""
    try:
        sweep = json.loads(file.with_name("sweep.json").read_text(encoding="utf-8"))
        return line(sentences.read(str(file.parent)), sweep) | {"sweep": file.parent.name}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        said = f"{file}: left out of reports/index.html ({type(error).__name__}: {error})"
        log.warning(printable(said))
        return None


def line(answers: Mapping[str, Any], sweep: Mapping[str, Any]) -> dict[str, str]:
    """What the page says of one sweep, by column.

    Args:
        answers: the content of answers.json.
        sweep: that of sweep.json.
    """
    settings, part, five = sweep["settings"], answers["leading_part"], answers["answers"]
    use = five[4]["use"]
    return {
        "sweep": answers["sweep"],
        "answer": answers["title"],
        "claim": five[1]["verdict"],
        "adapting": five[2]["verdict"],
        "use": cell_of(use).named() if use else tables.NONE,
        "top-1": tables.points_on(answers, 5, part),
        "on": f"{sweep['images'][part]:,} {part} images",
        "network": settings["backbone"].removeprefix("timm:"),
        "dataset": Path(settings["dataset"]).name,
        "date": sweep.get("date", ""),
    }


def _linked(lines: pd.DataFrame) -> str:
    """Rows of sweeps as a table, in which each name leads to the sweep's report."""
    shown = str(tables.show(lines, classes="sortable words").data)
    for name in lines.get("sweep", ()):
        cell = f"<td>{html.escape(name)}</td>"
        link = f'<a href="{quote(name)}/index.html">{html.escape(name)}</a>'
        shown = shown.replace(cell, f"<td>{link}</td>")
    return shown


def _page(name: str, *parts: Any) -> Path:
    """Write reports/<name>.html from Markdown (text that begins with #), HTML and figures."""
    cells = []
    for part in parts:
        if isinstance(part, str) and part.startswith("#"):
            cells.append(v4.new_markdown_cell(part))  # type: ignore[no-untyped-call]
            continue
        data, about = ({"text/html": part}, {}) if isinstance(part, str) else packed(part)
        shown = v4.new_output("display_data", data, metadata=about)  # type: ignore[no-untyped-call]
        cells.append(v4.new_code_cell(outputs=[shown]))  # type: ignore[no-untyped-call]
    page = home() / "reports" / f"{name}.html"
    write_atomically(page, pages.render_content(v4.new_notebook(cells=cells), {}))  # type: ignore[no-untyped-call]
    return page


def compare(names: Sequence[str]) -> Path:
    """Write reports/compare-<names>.html: several networks on the same images, or several datasets.

    Networks are held against each other by what each sweep recommends, on the test parts that both
    share.

    Raises:
        InputError: fewer than two sweeps, or one without a report of this version.
    """
    if len(set(names)) < 2:
        raise InputError(f"sweeps = {', '.join(names)!r}: a comparison needs two or more")
    every = {name: load_results(name) for name in names}
    answers = {name: sentences.read(name) for name in names}
    rows = differences(every, answers)
    lines = [line(answers[name], every[name].sweep) | {"sweep": name} for name in names]
    parts: list[Any] = [f"# {_title(rows, answers)}\n", _linked(pd.DataFrame(lines))]
    plots.use_style()
    if rows:
        parts += [PAIRED, plots.forest_of(rows, "both", {0: "What is recommended"})]
    for name, own in answers.items():
        parts += [EACH.format(name=name, title=own["title"]), plots.forest(own)]
        if arms := own["answers"][4]["arms"]:
            parts.append(plots.front(pd.DataFrame(arms), own["leading_part"]))
    return _page(f"compare-{'-'.join(names)}", *parts)


def _title(rows: Mapping[Any, Mapping[str, Any]], answers: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison's answer: the difference of the first two, or how often FixRes pays."""
    if not rows:
        pays = sum("? Yes" in each["title"] for each in answers.values())
        return f"FixRes pays in {pays} of {len(answers)} sweeps"
    (_, label), by_part = next(iter(rows.items()))
    told = sentences.TOLD[by_part["both"]["verdict"]]
    return f"{label.replace(' against ', f' {told} ')}: {tables.points(by_part['both'])} points"


def differences(
    every: Mapping[str, Results], answers: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[int, str], dict[str, Any]]:
    """Paired differences in top-1 of what is recommended, as rows of a forest plot.

    For each pair of sweeps, on the largest test part that both share.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for first, second in combinations(every, 2):
        cells = [answers[name]["answers"][4]["use"] for name in (second, first)]
        shared = _shared(every[first], every[second])
        if not shared or not all(cells):
            continue
        part = max(shared, key=lambda name: every[first].sweep["images"][name])
        sides = zip((second, first), cells, strict=True)
        hits = paired(*(every[name].on(part).hits(cell_of(cell)) for name, cell in sides))
        if hits is not None:
            label = f"{second} against {first} ({part})"
            rows[0, label] = {"both": _as_row(paired_gain(*hits))}
    return rows


def _as_row(gain: Difference) -> dict[str, Any]:
    """A difference as a row of answers.json has it."""
    verdict = verdict_of([Bounds(gain.low, gain.high, DELTA)])
    return {**gain._asdict(), "delta": DELTA, "primary": True, "verdict": verdict}


def _shared(first: Results, second: Results) -> list[str]:
    """Test parts with the same images and classes by name, by the digests in both reports."""
    one, other = (each.sweep.get("parts") or {} for each in (first, second))
    return [part for part in first.parts if part in one and one[part] == other.get(part)]

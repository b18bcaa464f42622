"""Pages over several sweeps: reports/index.html, one row per sweep, and comparisons.

Both repeat the sweeps' own answers.json.
"""

import html
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from nbformat import v4

from fixres_poc.analysis.cells import cell_of
from fixres_poc.analysis.comparisons import Bounds, verdict_of
from fixres_poc.analysis.results import Results, load_results, paired
from fixres_poc.analysis.statistics import paired_gain
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
ONE_SWEEP = """## The answers of {name}

{title}
"""


def write() -> Path:
    """Write reports/index.html, a row for each sweep that has a report; returns the page."""
    table = pd.DataFrame(filter(None, map(_line_of, sorted(_answers()))))
    if len(table):
        table = table.sort_values("date", ascending=False, kind="stable")
    return _page("index", INTRODUCTION, _linked(table))


def _answers() -> Iterator[Path]:
    return (home() / "reports").glob(f"*/{sentences.ANSWERS}")


def _line_of(file: Path) -> dict[str, str] | None:
    """The row of a report; None, with a warning, if this version cannot show it."""
    try:
        sweep = json.loads(file.with_name("sweep.json").read_text(encoding="utf-8"))
        return line(sentences.read(str(file.parent)), sweep) | {"sweep": file.parent.name}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        message = f"{file}: left out of reports/index.html ({type(error).__name__}: {error})"
        log.warning(printable(message))
        return None


def line(answers: Mapping[str, Any], sweep: Mapping[str, Any]) -> dict[str, str]:
    """The row of one sweep, by column.

    Args:
        answers: the content of answers.json.
        sweep: the content of sweep.json.
    """
    settings, part = sweep["settings"], answers["leading_part"]
    _, claim, adaptation, _, budget = answers["answers"]
    use = budget["use"]
    return {
        "sweep": answers["sweep"],
        "answer": answers["title"],
        "claim": claim["verdict"],
        "adapting": adaptation["verdict"],
        "use": cell_of(use).named() if use else tables.NONE,
        "top-1": tables.points_on(answers, 5, part),
        "on": f"{sweep['images'][part]:,} {part} images",
        "network": settings["backbone"].removeprefix("timm:"),
        "dataset": Path(settings["dataset"]).name,
        "date": sweep.get("date", ""),
    }


def _linked(rows: pd.DataFrame) -> str:
    """Rows of sweeps as a table, in which each name links to the sweep's report."""
    table = str(tables.show(rows, classes="sortable words").data)
    for name in rows.get("sweep", ()):
        text = html.escape(name)
        link = f'<a href="{quote(name)}/index.html">{text}</a>'
        table = table.replace(f"<td>{text}</td>", f"<td>{link}</td>")
    return table


def _page(name: str, *parts: Any) -> Path:
    """Write reports/<name>.html from Markdown (text that begins with #), HTML and figures."""
    cells = []
    for part in parts:
        if isinstance(part, str) and part.startswith("#"):
            cells.append(v4.new_markdown_cell(part))  # type: ignore[no-untyped-call]
            continue
        data, metadata = ({"text/html": part}, {}) if isinstance(part, str) else packed(part)
        output = v4.new_output("display_data", data, metadata=metadata)  # type: ignore[no-untyped-call]
        cells.append(v4.new_code_cell(outputs=[output]))  # type: ignore[no-untyped-call]
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
        reports = ", ".join(sorted(file.parent.name for file in _answers())) or "none yet"
        raise InputError(
            f"sweeps = {', '.join(names)!r}: a comparison needs two or more, such as "
            f'make compare SWEEPS="a b"; sweeps with a report: {reports}'
        )
    if folders := [name for name in names if "/" in name]:
        raise InputError(f"sweeps = {folders[0]!r}: allowed is a sweep's name, not a folder")
    sweeps = {name: load_results(name) for name in names}
    answers = {name: sentences.read(name) for name in names}
    rows = differences(sweeps, answers)
    lines = [line(answers[name], sweeps[name].sweep) | {"sweep": name} for name in names]
    parts: list[Any] = [f"# {_title(rows, answers)}\n", _linked(pd.DataFrame(lines))]
    plots.use_style()
    if rows:
        parts += [PAIRED, plots.forest_of(rows, "both", {0: "What is recommended"})]
    for name, content in answers.items():
        parts += [ONE_SWEEP.format(name=name, title=content["title"]), plots.forest(content)]
        if arms := content["answers"][4]["arms"]:
            parts.append(plots.front(pd.DataFrame(arms), content["leading_part"]))
    return _page(f"compare-{'-'.join(names)}", *parts)


def _title(rows: Mapping[Any, Mapping[str, Any]], answers: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison's answer: the difference of the first two, or how often FixRes pays."""
    if not rows:
        titles = [content["title"] for content in answers.values()]
        pays = sum("? Yes" in title for title in titles)
        asked = sum("? Not asked" not in title for title in titles)
        unasked = f"; {len(titles) - asked} did not ask" if asked < len(titles) else ""
        return f"FixRes pays in {pays} of {asked} sweeps that asked{unasked}"
    (_, label), by_part = next(iter(rows.items()))
    row = by_part["both"]
    verdict = sentences.TOLD[row["verdict"]]
    return f"{label.replace(' against ', f' {verdict} ')}: {tables.points(row)} points"


def differences(
    sweeps: Mapping[str, Results], answers: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[int, str], dict[str, Any]]:
    """Paired differences in top-1 of the recommended arms, as rows of a forest plot.

    For each pair of sweeps, on the largest test part that both share.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for reference, challenger in combinations(sweeps, 2):
        arms = {name: answers[name]["answers"][4]["use"] for name in (challenger, reference)}
        parts = _shared_parts(sweeps[reference], sweeps[challenger])
        if not parts or not all(arms.values()):
            continue
        part = max(parts, key=lambda name: sweeps[reference].sweep["images"][name])
        hits = paired(*(sweeps[name].on(part).hits(cell_of(arm)) for name, arm in arms.items()))
        if hits is not None:
            gain = paired_gain(*hits)
            verdict = verdict_of([Bounds(gain.low, gain.high, DELTA)])
            row = {**gain._asdict(), "delta": DELTA, "primary": True, "verdict": verdict}
            rows[0, f"{challenger} against {reference} ({part})"] = {"both": row}
    return rows


def _shared_parts(first: Results, second: Results) -> list[str]:
    """Names of test parts with the same images and classes, by the digests in both reports."""
    digests, others = (results.sweep.get("parts") or {} for results in (first, second))
    return [part for part in first.parts if part in digests and digests[part] == others.get(part)]

"""reports/index.html: every sweep with a report, and its answer, which each report leaves in overview.json."""

import datetime
import html
import json
from pathlib import Path

import pandas as pd
from nbformat import v4

from fixres_poc.analysis.questions import Answer, answers
from fixres_poc.analysis.results import Results, load_results
from fixres_poc.config.files import home, report_folder, write_atomically
from fixres_poc.report import pages, tables

LINE = "overview.json"
INTRODUCTION = """# Sweeps

Does FixRes pay, on which images, at which pair of sizes? One row a sweep; its name leads to its report. *Size*: does
one training gain when tested at a larger size? *Adaptation*: does adapting the last layers there gain, over none and
over as much at the train size? *Claim*: is a smaller train size, adapted, as good as train = test, for less training?
Differences in points of top-1 with 95 % intervals, on the second test part where there is one. *Gain of the best pair*:
over the same training at test = train, without adaptation.
"""


def write(sweep: str) -> Path:
    """Note a sweep's line beside its report, and write the page over all sweeps that have one; returns the page."""
    write_atomically(report_folder(sweep) / LINE, json.dumps(line(load_results(sweep)), indent=1))
    found = sorted((home() / "reports").glob(f"*/{LINE}"))
    table = pd.DataFrame([json.loads(file.read_text(encoding="utf-8")) for file in found])
    table = table.sort_values("date", ascending=False, kind="stable")
    shown = str(tables.show(table, classes="sortable words").data)
    for name in table["sweep"]:
        cell = f"<td>{html.escape(name)}</td>"
        shown = shown.replace(cell, f'<td><a href="{name}/index.html">{html.escape(name)}</a></td>')
    output = v4.new_output("display_data", {"text/html": shown})  # type: ignore[no-untyped-call]
    cells = [v4.new_markdown_cell(INTRODUCTION), v4.new_code_cell(outputs=[output])]  # type: ignore[no-untyped-call]
    page = home() / "reports" / "index.html"
    write_atomically(page, pages.render_content(v4.new_notebook(cells=cells), {}))  # type: ignore[no-untyped-call]
    return page


def line(results: Results) -> dict[str, str]:
    """What the page says of one sweep, by column."""
    settings, part = results.sweep["settings"], results.parts[-1]
    found = results.on(part)
    size, adaptation, claim, _ = answers(found)
    best = found.choose()
    start = best._replace(test_size=best.train_size, adaptation="none", view="center")
    gain = found.difference(best, start) if start in found and start != best else None
    held = (
        {True: "holds", False: "does not hold", None: "can't tell"}[claim.holds] if claim.differences else "not asked"
    )
    view = "" if best.view == "center" else f" {best.view}"
    return {
        "sweep": settings["name"],
        "size": _told(size),
        "adaptation": _told(adaptation),
        "claim": held,
        "best pair": f"{best.train_size}/{best.test_size} {best.adaptation}{view}",
        "top-1 %": f"{found.accuracy(best).estimate * 100:.1f}",
        "gain of the best pair": f"{gain.estimate * 100:+.1f} ({gain.low * 100:+.1f} to {gain.high * 100:+.1f})"
        if gain
        else "n/a",
        "on": f"{results.sweep['images'][part]:,} {part} images",
        "network": settings["backbone"].removeprefix("timm:"),
        "dataset": Path(settings["dataset"]).name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "version": (results.sweep["versions"] or {}).get("fixres_poc", "n/a"),
    }


def _told(answer: Answer) -> str:
    if not answer.differences:
        return "not asked"
    found = answer.difference
    return f"{answer.verdict}: {found.estimate * 100:+.1f} ({found.low * 100:+.1f} to {found.high * 100:+.1f})"

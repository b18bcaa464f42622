"""The report of a sweep: the executed notebooks as pages that ask nothing of any other host.

reports/<sweep>/index.html is notebook 05 with a list of the runs,
reports/<sweep>/notebooks/<run>.html are theirs. The look and the one script lie in
templates/fixres, an nbconvert template. Text from data is escaped, even if a notebook shows it as
HTML or Markdown.
"""

import base64
import copy
import functools
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from nbconvert.preprocessors.sanitize import SanitizeHTML
from PIL import Image

from fixres_poc.config.files import (
    impersonal,
    named_paths,
    report_folder,
    run_folder,
    write_atomically,
)
from fixres_poc.config.run_state import Outcome

TEMPLATES = Path(__file__).with_name("templates")
SCRIPT = (TEMPLATES / "fixres" / "report.js").read_text(encoding="utf-8")
SCRIPT_HASH = "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
HEAD = 1000  # characters at the start of a page that hold its digest
TABLES = ("answers.json", "results.csv", "predictions.parquet", "images.csv", "sweep.json")
TAGS = (
    "a abbr b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i "
    "li ol p pre s small span "
    "strong sub summary sup table tbody td tfoot th thead tr u ul"
)
ATTRIBUTES = {
    "*": ["class", "id", "title", "style", "colspan", "rowspan", "scope", "open"],
    "a": ["href"],
}
LEFT_OUT = {"navigation", "check", "record"}  # tags: for a notebook's reader, nbval, and a sweep
STYLES = ["color", "background-color", "font-weight", "text-align"]


def write_index(folder: Path, notebook: Path, message: str, made_from: str) -> Path:
    """Write a report's index.html from the executed notebook 05, with links to the runs' pages.

    Args:
        folder: of the report; its sweep.json lists the runs.
        message: why notebook 05 failed, "" if it did not; the page shows the notebook as far as it
            ran.
        made_from: digest of all that the page was made from (`is_made_from`).

    Returns:
        Path of index.html.
    """
    if notebook.exists():
        runs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["runs"]
        page = {
            "runs": _runs(runs, folder),
            "error": message,
            "status": "failed",
            "made_from": "" if message else made_from,
            "files": [name for name in TABLES if (folder / name).exists()],
        }
        write_atomically(folder / "index.html", render(notebook, page))
    return folder / "index.html"


def write_run_page(sweep: str, outcome: Outcome, made_by: str) -> bool:
    """Write the page of one run, unless it is up to date.

    Args:
        made_by: `library_hash` of everything.

    Returns:
        Whether the run has a page: one that never started has no notebook to show.
    """
    name, parameters = outcome.run.name, outcome.run.parameters
    notebook = run_folder(sweep, name) / "notebook.ipynb"
    if not notebook.exists():
        return False
    network = parameters.get("backbone", "").removeprefix("timm:")
    dataset = Path(parameters.get("dataset", "")).name
    took = f"took {_duration(outcome.wall_seconds())}" if outcome.status == "done" else ""
    page = {
        "name": name,
        "back": f"report of {sweep}",
        "status": outcome.status,
        "error": outcome.error,
        "facts": ", ".join(filter(None, [network, dataset, took])),
    }
    content = (made_by + json.dumps(page)).encode() + notebook.read_bytes()
    page["made_from"] = hashlib.sha256(content).hexdigest()
    file = report_folder(sweep) / "notebooks" / f"{name}.html"
    if not is_made_from(file, page["made_from"]):
        write_atomically(file, render(notebook, page))
    return True


def is_made_from(page: Path, digest: str) -> bool:
    """Whether the page is whole, and its head has this digest of all that it was made from."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return f'content="{digest}"' in text[:HEAD] and text.rstrip().endswith("</html>")


def _runs(runs: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Runs for the template: a row per training, a column per test resolution; all others."""
    rows = dict[str, dict[int, Any]]()
    others = list[dict[str, Any]]()
    for run in runs:
        link = f"notebooks/{run['name']}.html"
        text = _duration(run["wall_seconds"]) if run["status"] == "done" else run["status"]
        cell = {**run, "text": text, "link": link if (folder / link).exists() else ""}
        if run["train_size"] is None:
            others.append(cell | {"text": f"{run['name']} ({text})"})
            continue
        short = ", equal FLOPs" if run["equal_flops"] else ""
        training = f"{run['train_size']} px, seed {run['seed']}{short}"
        rows.setdefault(training, {})[run["test_size"] or 0] = cell
    sizes = sorted({size for row in rows.values() for size in row})
    columns = {size: f"{size} px" if size else "training" for size in sizes}
    failed = [run for run in runs if run["status"] != "done"]
    return {"rows": rows, "columns": columns, "others": others, "failed": failed}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def render(notebook: Path, page: dict[str, Any]) -> str:
    """A notebook's file as a page, without the folders that its run's settings name."""
    settings = notebook.with_name("settings.json")
    parameters = {}
    if settings.is_file():
        parameters = json.loads(settings.read_text(encoding="utf-8"))["parameters"]
    content = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    content, page = impersonal([content, page], *named_paths(parameters))
    return render_content(nbformat.from_dict(content), page)  # type: ignore[no-untyped-call]


def render_content(content: Any, page: dict[str, Any]) -> str:
    """A notebook as one self-contained page; no script runs in it but report.js.

    Args:
        content: the notebook, as nbformat reads it.
        page: what the template shows besides the notebook, with plain text in it: `name`, `facts`,
            `back` (a run's page), `made_from`, `status` and `error`, `runs` (`_runs`) and `files`
            (the index).

    Returns:
        The HTML; its title is the notebook's first heading, followed by `name` where there is one.
    """
    cells = _shown(_applicable(content.cells))
    headings = _headings(cells)
    title = next((text for level, _, text in headings if level == "h1"), "FixRes")
    name = page.get("name")
    page = page | {
        "title": f"{title} ({name})" if name else title,
        "contents": [(anchor, text) for level, anchor, text in headings if level == "h2"],
        "script": SCRIPT,
        "script_hash": SCRIPT_HASH,
        "has_first": any("first" in _tags(cell) for cell in cells),
    }
    notebook = nbformat.from_dict({**content, "cells": cells})  # type: ignore[no-untyped-call]
    html, _ = _exporter().from_notebook_node(notebook, resources={"page": page})
    return str(html)


@functools.cache
def _exporter() -> HTMLExporter:
    """The exporter of all pages, so that its templates are compiled once."""
    return HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="fixres",
        extra_template_basedirs=[str(TEMPLATES)],
        filters={"clean": clean},
        anchor_link_text="#",
    )


def _shown(cells: Sequence[Any]) -> list[Any]:
    """Copies of cells: smaller PNGs, no tracebacks, of the parameters the first group alone."""
    copies = copy.deepcopy(list(cells))
    for cell in copies:
        if "parameters" in _tags(cell):  # the cell that papermill adds holds what a run was given
            cell.source = cell.source.partition("\n# ")[0]
    for output in [output for cell in copies for output in cell.get("outputs", [])]:
        if output.output_type == "error":  # the traceback stays in the run's folder
            output.traceback = [f"{output.ename}: {output.evalue}"]
        elif "image/png" in output.get("data", {}):
            output.data["image/png"] = _webp(output.data["image/png"])
    return copies


def _webp(png: str) -> str:
    """A PNG as WebP, in base64: lossless, or lossy if that takes a third at most (photographs)."""
    exact, near = BytesIO(), BytesIO()
    image = Image.open(BytesIO(base64.b64decode(png)), formats=["PNG"]).convert("RGBA")
    image.save(exact, "WEBP", lossless=True)
    image.save(near, "WEBP", quality=85)
    photograph = exact.tell() > 3 * near.tell()
    return base64.b64encode((near if photograph else exact).getvalue()).decode()


def _applicable(cells: Sequence[Any]) -> list[Any]:
    """Cells without those of `LEFT_OUT`, and without idle `optional` code and its text."""
    kept = [cell for cell in cells if not LEFT_OUT & _tags(cell)]
    optional = {place for place, cell in enumerate(kept) if "optional" in _tags(cell)}
    idle = {place for place in optional if kept[place].get("outputs") == []}
    idle |= {place - 1 for place in idle} & optional
    return [cell for place, cell in enumerate(kept) if place not in idle]


def _tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _headings(cells: Collection[Any]) -> list[tuple[str, str, str]]:
    """(h1 or h2, anchor, text) of the headings in Markdown cells, and in HTML of `first` cells."""
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    first = "".join(
        output.get("data", {}).get("text/html", "")
        for cell in cells
        if "first" in _tags(cell)
        for output in cell.outputs
    )
    headings = BeautifulSoup(first + markdown2html_mistune(text), "html.parser")(["h1", "h2"])
    return [
        (heading.name, str(heading.get("id", "")), heading.get_text().removesuffix("¶").strip())
        for heading in headings
    ]


def clean(html: str) -> str:
    """Harmless HTML that loads nothing: tags outside `TAGS` become text, tables scroll sideways."""
    soup = BeautifulSoup(html, "html.parser")
    for style in soup("style"):
        style.decompose()
    for header in soup.select("th:not([scope])"):
        header["scope"] = "col" if header.find_parent("thead") else "row"
    sanitizer = SanitizeHTML(tags=TAGS.split(), attributes=ATTRIBUTES, styles=STYLES)  # type: ignore[no-untyped-call]
    safe = str(sanitizer.sanitize_html_tags(str(soup)))  # type: ignore[no-untyped-call]
    return safe.replace("<table", '<div class="scroll"><table').replace(
        "</table>", "</table></div>"
    )

"""The report of a sweep: the executed notebooks as pages that ask nothing of any other host.

reports/<sweep>/index.html is notebook 05 with a list of the runs, reports/<sweep>/notebooks/<run>.html are theirs. The
look and the one script lie in templates/fixres, an nbconvert template. Whatever came from data is escaped, also where a
notebook shows it as HTML or Markdown.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from nbconvert.preprocessors.sanitize import SanitizeHTML
from PIL import Image

from fixres_poc.config import InputError, SweepSettings, report_folder, run_folder
from fixres_poc.files import write_atomically
from fixres_poc.records import Outcome, library_hash, outcome
from fixres_poc.runner import execute

RESULTS_NOTEBOOK = "05_results"
TEMPLATES = Path(__file__).with_name("templates")
SCRIPT = (TEMPLATES / "fixres" / "report.js").read_text(encoding="utf-8")
SCRIPT_HASH = "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PRINT_LIMIT_S = 120
HEAD = 1000  # characters of a page in which it says what it was made from
TABLES = ("results.csv", "results.parquet", "predictions.parquet", "pictures.csv", "sweep.json")
TAGS = (
    "a abbr b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i li ol p pre s small span "
    "strong sub summary sup table tbody td tfoot th thead tr u ul"
)
ATTRIBUTES = {"*": ["class", "id", "title", "style", "colspan", "rowspan", "scope", "open"], "a": ["href"]}
STYLES = ["color", "background-color", "font-weight", "text-align"]


def write_report(sweep: SweepSettings) -> Path:
    """Execute notebook 05 on reports/<sweep>/ and write all pages, index.html last.

    Returns:
        Path of index.html.

    Raises:
        RuntimeError: notebook 05 failed; the pages are written nevertheless, as far as it came.
    """
    folder = report_folder(sweep.name)
    outcomes, made_by = [outcome(sweep.name, run) for run in sweep.runs()], library_hash(everything=True)
    pool = ThreadPoolExecutor(1)  # while the notebook's kernel is at work, this process has nothing else to do
    try:
        pages = {each.run.name: pool.submit(_write_run_page, sweep.name, each, made_by) for each in outcomes}
        message = _execute_results(sweep.name, sweep.run_time_limit)
        written = {name: page.result() for name, page in pages.items()}
    finally:
        pool.shutdown(cancel_futures=True)
    for file in (folder / "notebooks").glob("*.html"):
        if not written.get(file.stem):
            file.unlink()
    notebook, index = run_folder(sweep.name, "results") / "notebook.ipynb", folder / "index.html"
    if notebook.exists():
        page: dict[str, Any] = {"runs": [_run_row(each, written[each.run.name]) for each in outcomes], "error": message}
        page |= {"status": "failed", "files": [name for name in TABLES if (folder / name).exists()]}
        write_atomically(index, render(notebook, page))
    if message:
        raise RuntimeError(f"{RESULTS_NOTEBOOK} failed: {message}; what it shows until then is in {index}")
    return index


def export(sweep: str, form: str) -> Path:
    """The written report in another form, beside index.html.

    Args:
        sweep: name of a sweep whose report was written.
        form: "html" (index.html itself), "slides" (slides.html, a slide per section, code left out) or "pdf"
            (report.pdf, printed by Chromium or Chrome: LaTeX would show tables as plain text).

    Raises:
        InputError: pdf without such a browser.
    """
    index = report_folder(sweep) / "index.html"
    if form == "slides":
        slides = index.with_name("slides.html")
        write_atomically(slides, render(run_folder(sweep, "results") / "notebook.ipynb", {"slides": True}))
        return slides
    return _printed(index) if form == "pdf" else index


def _printed(page: Path) -> Path:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise InputError(
            f"format = 'pdf': needs Chromium or Chrome to print, and there is none of {', '.join(BROWSERS)} on PATH; "
            f"install one (Debian: apt-get install chromium), or print {page} from any browser"
        )
    target = page.with_name("report.pdf")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        options += ["--no-sandbox"] * (os.geteuid() == 0)  # root cannot use it
        options += [f"--user-data-dir={profile}", "--no-pdf-header-footer", f"--print-to-pdf={profile}/report.pdf"]
        command = [browser, *options, page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=PRINT_LIMIT_S)
        write_atomically(target, Path(profile, "report.pdf").read_bytes())
    return target


def _execute_results(sweep: str, time_limit: int | None) -> str | None:
    folder = run_folder(sweep, "results")
    (folder / "notebook.ipynb").unlink(missing_ok=True)
    settings = {"notebook": RESULTS_NOTEBOOK, "parameters": {"sweep": sweep}}
    write_atomically(folder / "settings.json", json.dumps(settings))
    return execute(folder / "settings.json", time_limit)


def _write_run_page(sweep: str, each: Outcome, made_by: str) -> bool:
    notebook = run_folder(sweep, each.run.name) / "notebook.ipynb"
    if not notebook.exists():
        return False
    page = {"name": each.run.name, "back": f"report of {sweep}", "status": each.status, "error": each.error}
    page["made_from"] = hashlib.sha256((made_by + json.dumps(page)).encode() + notebook.read_bytes()).hexdigest()
    file = report_folder(sweep) / "notebooks" / f"{each.run.name}.html"
    if not (file.exists() and f'content="{page["made_from"]}"' in file.read_text(encoding="utf-8")[:HEAD]):
        write_atomically(file, render(notebook, page))
    return True


def _run_row(each: Outcome, written: bool) -> dict[str, Any]:
    minutes, seconds = divmod(round(each.total_seconds()), 60)
    time = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    row = {"name": each.run.name, "status": each.status, "error": each.error}
    return row | {"time": time if each.status == "ok" else "", "link": f"notebooks/{each.run.name}.html" * written}


def render(notebook: Path, page: dict[str, Any]) -> str:
    """A notebook as one self-contained page; no script runs in it but report.js.

    Args:
        notebook: an executed notebook.
        page: what the template shows besides the notebook, with plain text in it: `name`, `back` and `made_from` (a
            run's page), `status` and `error`, `runs` and `files` (the index), `slides` (true for a slide per section).

    Returns:
        The HTML; its title is the notebook's first heading, followed by `name` where there is one.
    """
    content = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    headings = _headings(content.cells)
    title = next((text for level, _, text in headings if level == "h1"), notebook.stem)
    contents = [(anchor, text) for level, anchor, text in headings if level == "h2"]
    name = page.get("name")
    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="fixres",
        extra_template_basedirs=[str(TEMPLATES)],
        filters={"clean": clean},
        anchor_link_text="#",
    )
    _mark(content.cells)
    made = {"title": f"{title} ({name})" if name else title, "contents": contents}
    made |= {"script": SCRIPT, "script_hash": SCRIPT_HASH}
    html, _ = exporter.from_notebook_node(content, resources={"page": page | made})
    return html


def _mark(cells: Collection[Any]) -> None:
    """Say where slides begin, give figures that lack an alternative text the section's name, and make PNGs smaller."""
    section = ""
    for cell in cells:
        cell.metadata["new_slide"] = cell.cell_type == "markdown" and cell.source.startswith(("## ", "### "))
        if cell.cell_type == "markdown" and (found := re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)):
            section = found[-1]
        for output in cell.get("outputs", []):
            for kind in set(output.get("data", {})) & {"image/png", "image/jpeg", "image/svg+xml"}:
                output.metadata.setdefault(kind, {}).setdefault("alt", f"figure of the section: {section}")
                if kind == "image/png":
                    output.data[kind] = _webp(output.data[kind])


def _webp(png: str) -> str:
    """A PNG as WebP, both in base64: the same pixels, or nearly, where that takes a third at most (photographs)."""
    image, exact, near = Image.open(BytesIO(base64.b64decode(png))).convert("RGBA"), BytesIO(), BytesIO()
    image.save(exact, "WEBP", lossless=True)
    image.save(near, "WEBP", quality=85)
    photograph = exact.tell() > 3 * near.tell()
    return base64.b64encode((near if photograph else exact).getvalue()).decode()


def _headings(cells: Collection[Any]) -> list[tuple[str, str, str]]:
    """(h1 or h2, anchor, text) of the headings in the Markdown cells."""
    found = []
    for cell in cells:
        if cell.cell_type == "markdown":
            for heading in BeautifulSoup(markdown2html_mistune(cell.source), "html.parser")(["h1", "h2"]):
                found.append((heading.name, str(heading.get("id", "")), heading.get_text().removesuffix("¶").strip()))
    return found


def clean(html: str) -> str:
    """HTML that does no harm and loads nothing: tags of other kinds are shown as text, tables scroll sideways."""
    soup = BeautifulSoup(html, "html.parser")
    for style in soup("style"):
        style.decompose()
    for header in soup.select("th:not([scope])"):
        header["scope"] = "col" if header.find_parent("thead") else "row"
    sanitizer = SanitizeHTML(tags=TAGS.split(), attributes=ATTRIBUTES, styles=STYLES)  # type: ignore[no-untyped-call]
    safe = str(sanitizer.sanitize_html_tags(str(soup)))  # type: ignore[no-untyped-call]
    return safe.replace("<table", '<div class="scroll"><table').replace("</table>", "</table></div>")

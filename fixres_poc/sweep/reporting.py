"""A sweep's report: result tables, notebook 05 and all pages, made again only when something has changed."""

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fixres_poc import __version__
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import (
    REPOSITORY,
    read_record,
    report_folder,
    run_folder,
    sweep_folder,
    write_atomically,
)
from fixres_poc.config.provenance import code_hash, library_hash, notebook_path
from fixres_poc.config.run_state import Outcome, failures, outcomes
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.sweep.notebook_run import execute

REPORT_NOTEBOOK, EXECUTED = "05_results", "notebook.ipynb"
PUBLISHED, MOST_BYTES = REPOSITORY / "docs" / "reports", 15_000_000
log = logging.getLogger(__name__)


def render(sweep: SweepSettings) -> Path:
    """Collect the runs of a sweep and write its report, whatever exists; returns the report's page.

    Raises:
        InputError: no run has left anything.
        RuntimeError: notebook 05 failed; the pages are written nevertheless, as far as it came.
    """
    from fixres_poc.analysis.collection import collect
    from fixres_poc.report import overview, pages

    _stamp(sweep).unlink(missing_ok=True)  # of a page that is no longer the one it was made for
    collect(sweep, found := outcomes(sweep))
    made_by = library_hash(everything=True)
    # while the notebook's kernel is at work, this process has nothing else to do
    pool = ThreadPoolExecutor(1)
    try:
        written = {
            each.run.name: pool.submit(_write_page, sweep.name, each, made_by) for each in found
        }
        message = _execute_results(
            sweep_folder(sweep.name), f"reports/{sweep.name}", sweep.run_time_limit
        )
        linked = [name for name, page in written.items() if page.result()]
    finally:
        pool.shutdown(cancel_futures=True)
    for page in (report_folder(sweep.name) / "notebooks").glob("*.html"):
        if page.stem not in linked:
            page.unlink()
    index = pages.write_index(
        report_folder(sweep.name), run_folder(sweep.name, "results") / EXECUTED, message
    )
    try:
        overview.write(sweep.name)
    except ValueError as error:  # no pair ran to its end
        log.warning(printable(f"{sweep.name} is not in reports/index.html: {error}"))
    if message:
        raise RuntimeError(
            f"{REPORT_NOTEBOOK} failed: {message}; what it shows until then is in {index}"
        )
    return index


def _write_page(sweep: str, each: Outcome, made_by: str) -> bool:
    """Whether the run has a page now; a failing page never affects others."""
    from fixres_poc.report import pages

    try:
        return pages.write_run_page(sweep, each, made_by)
    except Exception as error:  # a notebook that was torn or edited can raise anything
        log.warning(printable(f"no page for {each.run.name}: {type(error).__name__}: {error}"))
        return False


def _execute_results(folder: Path, report: str, time_limit: int | None = None) -> str:
    """Run notebook 05 on a report's tables, in <folder>/results; returns "" or the line that says why it failed."""
    settings = folder / "results" / "settings.json"
    settings.with_name(EXECUTED).unlink(missing_ok=True)
    write_atomically(
        settings, json.dumps({"notebook": REPORT_NOTEBOOK, "parameters": {"report": report}})
    )
    return execute(settings, time_limit)


def rebuild(folder: Path) -> Path:
    """Render index.html of a report again from the report's own tables; pages of runs stay as they are.

    Raises:
        InputError: the folder has no tables of a report.
        RuntimeError: notebook 05 failed; the page is written nevertheless, as far as it came.
    """
    from fixres_poc.analysis.results import load_results
    from fixres_poc.report import pages

    load_results(str(folder))
    work = sweep_folder(f"rebuilt-{folder.name}")
    message = _execute_results(work, str(folder))
    index = pages.write_index(folder, work / "results" / EXECUTED, message)
    if message:
        raise RuntimeError(
            f"{REPORT_NOTEBOOK} failed: {message}; what it shows until then is in {index}"
        )
    return index


def publish(sweep: str) -> Path:
    """Copy a sweep's report to docs/reports, where reports are committed, in place of an earlier one.

    Raises:
        InputError: the sweep has no report, or it takes more than 15 MB.
    """
    report, target = report_folder(sweep), PUBLISHED / sweep
    if not (report / "index.html").is_file():
        raise InputError(f"sweep {sweep}: no report in {report}; run `make sweep` first")
    size = sum(file.stat().st_size for file in report.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise InputError(
            f"{report}: {size / 1e6:.0f} MB; at most {MOST_BYTES / 1e6:.0f} MB are published"
        )
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(report, target))


def render_if_changed(sweep: SweepSettings) -> Path:
    """The report's page, rendered unless nothing has changed since it was."""
    page, stamp = report_folder(sweep.name) / "index.html", _stamp(sweep)
    made_from = json.dumps(_made_from(sweep), indent=1)
    if not page.exists() or read_record(stamp) != json.loads(made_from):
        page = render(sweep)
        write_atomically(stamp, made_from)
    return page


def _stamp(sweep: SweepSettings) -> Path:
    return sweep_folder(sweep.name) / "report.json"


def _made_from(sweep: SweepSettings) -> dict[str, object]:
    notebook = notebook_path(REPORT_NOTEBOOK)
    made = {run.name: run_folder(sweep.name, run.name) / "metrics.json" for run in sweep.runs()}
    return {
        "version": __version__,
        "library": library_hash(everything=True),
        "notebook": code_hash(notebook, ("code", "markdown")) if notebook.exists() else None,
        "sweep": sweep.model_dump(mode="json"),
        "runs": {name: file.stat().st_mtime_ns for name, file in made.items() if file.exists()},
        "errors": failures(sweep),
    }

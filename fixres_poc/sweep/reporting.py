"""A sweep's report: result tables, notebook 05 and all pages, made again only when something has changed."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fixres_poc import __version__
from fixres_poc.config.errors import printable
from fixres_poc.config.files import read_record, report_folder, run_folder, sweep_folder, write_atomically
from fixres_poc.config.provenance import code_hash, library_hash, notebook_path
from fixres_poc.config.run_state import Outcome, failures, outcomes
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.sweep.notebook_run import execute

REPORT_NOTEBOOK = "05_results"
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
    pool = ThreadPoolExecutor(1)  # while the notebook's kernel is at work, this process has nothing else to do
    try:
        written = {each.run.name: pool.submit(_write_page, sweep.name, each, made_by) for each in found}
        message = _execute_results(sweep)
        linked = [name for name, page in written.items() if page.result()]
    finally:
        pool.shutdown(cancel_futures=True)
    index = pages.write_index(sweep.name, found, linked, message)
    try:
        overview.write(sweep.name)
    except ValueError as error:  # no pair ran to its end
        log.warning(printable(f"{sweep.name} is not in reports/index.html: {error}"))
    if message:
        raise RuntimeError(f"{REPORT_NOTEBOOK} failed: {message}; what it shows until then is in {index}")
    return index


def _write_page(sweep: str, each: Outcome, made_by: str) -> bool:
    """Whether the run has a page now; what is wrong with one page is no other's concern."""
    from fixres_poc.report import pages

    try:
        return pages.write_run_page(sweep, each, made_by)
    except Exception as error:  # a notebook that was torn or edited can raise anything
        log.warning(printable(f"no page for {each.run.name}: {type(error).__name__}: {error}"))
        return False


def _execute_results(sweep: SweepSettings) -> str:
    folder = run_folder(sweep.name, "results")
    (folder / "notebook.ipynb").unlink(missing_ok=True)
    settings = {"notebook": REPORT_NOTEBOOK, "parameters": {"report": f"reports/{sweep.name}"}}
    write_atomically(folder / "settings.json", json.dumps(settings))
    return execute(folder / "settings.json", sweep.run_time_limit)


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

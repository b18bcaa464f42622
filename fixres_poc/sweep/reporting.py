"""A sweep's report: tables, notebook 05 and all pages, rendered again only after a change."""

import functools
import hashlib
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from fixres_poc import __version__
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import (
    REPOSITORY,
    file_digest,
    report_folder,
    resolve,
    sweep_folder,
    write_atomically,
)
from fixres_poc.config.notebooks import METRICS
from fixres_poc.config.provenance import library_hash, notebook_path
from fixres_poc.config.run_state import Outcome, failures, outcomes
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.sweep.notebook_run import run_job

NOTEBOOK = "05_results"
PUBLISHED, MOST_BYTES = REPOSITORY / "docs" / "reports", 15_000_000
log = logging.getLogger(__name__)


def render(sweep: SweepSettings) -> Path:
    """Collect the runs of a sweep, finished or not, and write its report; returns its page.

    Raises:
        InputError: no run has left anything.
        RuntimeError: notebook 05 failed; the pages are written, with the cells before the error.
    """
    from fixres_poc.analysis.collection import collect
    from fixres_poc.report import overview, sentences

    run_outcomes = outcomes(sweep)
    collect(sweep, run_outcomes)
    sentences.write(sweep.name)
    folder = report_folder(sweep.name)
    work = sweep_folder(sweep.name)
    digest = made_from(sweep)
    write_page = functools.partial(_write_page, sweep.name, library_hash(everything=True))
    # write pages while the notebook's kernel is at work
    pool = ThreadPoolExecutor(1)
    try:
        written = pool.map(write_page, run_outcomes)
        message = _execute_results(work, f"reports/{sweep.name}", sweep.run_time_limit)
        linked = [
            outcome.run.name for outcome, page in zip(run_outcomes, written, strict=True) if page
        ]
    finally:
        pool.shutdown(cancel_futures=True)
    for page in (folder / "notebooks").glob("*.html"):
        if page.stem not in linked:
            page.unlink()
    overview.write()
    return _write_index(folder, work, message, digest)  # last: it marks the report as complete


def _write_page(sweep: str, made_by: str, outcome: Outcome) -> bool:
    """Write a run's page, and return whether there is one; a failure affects no other page."""
    from fixres_poc.report import pages

    try:
        return pages.write_run_page(sweep, outcome, made_by)
    except Exception as error:  # a damaged or edited notebook can raise anything
        name = outcome.run.name
        log.warning(printable(f"no page for {name}: {type(error).__name__}: {error}"))
        return False


def _execute_results(work: Path, report: str, time_limit: int | None = None) -> str:
    """Run notebook 05 on a report's tables, in <work>/results; returns why it failed, or ""."""
    settings = work / "results" / "settings.json"
    settings.with_name("notebook.ipynb").unlink(missing_ok=True)
    content = {"notebook": NOTEBOOK, "parameters": {"report": report}}
    write_atomically(settings, json.dumps(content))
    failed = run_job([settings], time_limit)
    return failed["results"].message if failed else ""


def _write_index(folder: Path, work: Path, message: str, digest: str = "") -> Path:
    """Write a report's page from the notebook of `_execute_results`; raise if that failed."""
    from fixres_poc.report import pages

    index = pages.write_index(folder, work / "results" / "notebook.ipynb", message, digest)
    if message:
        raise RuntimeError(f"{NOTEBOOK} failed: {message}; what it shows until then is in {index}")
    return index


def rebuild(folder: Path) -> Path:
    """Render index.html of a report again from the report's tables; pages of runs stay.

    Raises:
        InputError: the folder has no tables of a report, or damaged ones.
        RuntimeError: notebook 05 failed; the page is written, with the cells before the error.
    """
    from fixres_poc.report import sentences

    try:
        sentences.write(str(folder))
    except InputError:
        raise
    except (LookupError, TypeError, ValueError) as error:  # tables that do not belong together
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder}: its tables are damaged ({what})") from error
    # relative: the page would show the path of the clone
    report = str(folder).removeprefix(f"{REPOSITORY}/")
    report = report if report_folder(report) == folder else str(folder)
    with TemporaryDirectory() as work:  # reports of one name may be rebuilt at the same time
        return _write_index(folder, Path(work), _execute_results(Path(work), report))


def publish(sweep: SweepSettings) -> Path:
    """Copy a sweep's report to docs/reports, where reports are committed; replaces an earlier one.

    Of the pages of trainings and pairs, those of the first seed are copied.

    Raises:
        InputError: the sweep has no report, or these files are larger than 15 MB.
        RuntimeError: as `rebuild`.
    """
    report, target = report_folder(sweep.name), PUBLISHED / sweep.name
    if not (report / "index.html").is_file():
        raise InputError(f"sweep {sweep.name}: no report in {report}; run `make sweep` first")
    kept = f"_seed{sweep.seeds[0]}"
    left_out = {page.name for page in report.glob("*/*_seed*") if not page.stem.endswith(kept)}
    files = [file for file in report.rglob("*") if file.is_file() and file.name not in left_out]
    size = sum(file.stat().st_size for file in files)
    if size > MOST_BYTES:
        raise InputError(
            f"{report}: {size / 1e6:.0f} MB; at most {MOST_BYTES / 1e6:.0f} MB are published"
        )
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(report, target, ignore=lambda *_: left_out)
    return rebuild(target)  # its table of runs links the pages that are there


def render_if_changed(sweep: SweepSettings) -> Path:
    """The report's page; rendered unless the stored digest of its inputs is up to date."""
    from fixres_poc.report import pages

    page = report_folder(sweep.name) / "index.html"
    complete = all((page.parent / name).exists() for name in pages.TABLES)
    return page if complete and pages.is_made_from(page, made_from(sweep)) else render(sweep)


def made_from(sweep: SweepSettings) -> str:
    """Digest of all inputs of a sweep's report."""
    metrics = [run.folder / METRICS for run in sweep.runs()]
    content = [
        __version__,
        library_hash(everything=True),
        file_digest(notebook_path(NOTEBOOK)),
        sweep.model_dump(mode="json"),
        sweep.looked_at and file_digest(resolve(sweep.looked_at)),
        [file.exists() and file.stat().st_mtime_ns for file in metrics],
        failures(sweep),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

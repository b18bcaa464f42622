"""A whole sweep: prepare the images, run the graph of jobs with Snakemake, render the report.

The folder runs/<sweep>/ holds sweep.json (the settings), one folder per run, snakemake.log and
`lock`. This process and Snakemake hold the lock, so two sweeps of one name never run at the same
time, and a killed sweep never blocks the next one.
"""

import contextlib
import fcntl
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fixres_poc.config.errors import Failure, InputError
from fixres_poc.config.files import (
    file_digest,
    read_record,
    report_folder,
    resolve,
    run_folder,
    sweep_folder,
    write_atomically,
)
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.provenance import code_hash, library_hash, notebook_path
from fixres_poc.config.run_state import (
    ERROR,
    JOB_DONE,
    PROGRESS,
    SETTINGS,
    checkpoint_is_intact,
    end,
    failures,
    images_record,
    outcomes,
    state,
)
from fixres_poc.config.settings import EMBEDDED_BACKBONES, TrainSettings
from fixres_poc.config.sweep_settings import Run, SweepSettings
from fixres_poc.sweep.progress import watch
from fixres_poc.sweep.reporting import render_if_changed
from fixres_poc.sweep.snakemake import (
    LOCAL_PROFILE,
    cancel_jobs,
    command_line,
    last_error,
    on_stop_signals,
    run_snakemake,
    shares,
)

FEWEST_FILES, MANY_FILES = 256, 4096
MOST_REASONS = 3


@contextlib.contextmanager
def locked(sweep: str) -> Iterator[int]:
    """Hold a sweep's lock, which excludes other sweeps and reports in its folder.

    Yields:
        The descriptor: Snakemake inherits it, so the lock outlives this process.
    """
    folder = sweep_folder(sweep)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another sweep is at work in {folder}; waiting until it ends", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def refuse_loss(sweep: SweepSettings) -> None:
    """Refuse a sweep that would delete finished runs because they were made with other settings.

    Other test resolutions of the linear probe do not count: its folder keeps the fitted probes.

    Raises:
        InputError: there are such runs; the message names them and the settings that differ.
    """
    kept = {"test_sizes", "crop_pct_sizes"}
    lost = [outcome for outcome in outcomes(sweep) if set(outcome.changed) - kept]
    if lost:
        names = "; ".join(f"{outcome.run.name} ({', '.join(outcome.changed)})" for outcome in lost)
        raise InputError(
            f"runs/{sweep.name}: {len(lost)} finished runs were made with other settings and would "
            f"be deleted: {names}; say --replace (make: REPLACE=1), or copy the sweep file under "
            "another name"
        )


def lay_out(sweep: SweepSettings, fingerprint: str) -> None:
    """Write sweep.json and settings.json of all runs, and delete the outputs of unfinished runs.

    A run is also unfinished if it needs an unfinished one. A finished training is repeated if an
    unfinished run needs it and its checkpoint is missing or damaged.

    Args:
        fingerprint: of the images, from `prepare_dataset`.
    """
    write_atomically(sweep_folder(sweep.name) / "sweep.json", sweep.model_dump_json(indent=1))
    _write_settings(sweep, fingerprint)
    by_name = {outcome.run.name: outcome for outcome in outcomes(sweep)}
    reasons = Counter(run.error for run in by_name.values() if run.status == "outdated")
    for reason, count in reasons.most_common(MOST_REASONS):
        print(f"{count} finished runs are done again: {reason}", file=sys.stderr)
    undone = {name for name, outcome in by_name.items() if outcome.status != "done"}
    needed = {name for run in sweep.runs() if run.name in undone for name in run.needs}
    undone |= {name for name in needed if not checkpoint_is_intact(by_name[name])}
    unfinished: set[str] = set()
    for job, runs in sweep.jobs().items():
        names = {run.name for run in runs}
        for run in runs:
            if run.name in undone or unfinished & set(run.needs):
                unfinished.add(run.name)
                _clear(run)
            for file in run.folder.glob("*.*"):
                # after the clock was set back, Snakemake would take new files for outdated ones
                if file.stat().st_mtime > time.time():
                    os.utime(file)
        if unfinished & names:
            (run_folder(sweep.name, job) / JOB_DONE).unlink(missing_ok=True)


def _write_settings(sweep: SweepSettings, fingerprint: str) -> None:
    """Write what is wanted to each run's settings.json, if that differs."""
    shared = {"library": library_hash(), "data": fingerprint}
    notebooks = {run.notebook for run in sweep.runs()}
    codes = {notebook: code_hash(notebook_path(notebook)) for notebook in notebooks}
    # detects another file at the same path
    files = {name: getattr(sweep, name) for name in ("weights", "imagenet_list")}
    digests = {name: file_digest(resolve(path)) for name, path in files.items() if path}
    for run in sweep.runs():
        wanted = {"notebook": codes[run.notebook], **shared}
        wanted |= {name: str(digests[name]) for name in digests.keys() & run.parameters.keys()}
        content = {"notebook": run.notebook, "wanted": wanted, "parameters": run.parameters}
        file = run.folder / SETTINGS
        text = json.dumps(content, indent=1)
        if read_record(file) != json.loads(text):
            write_atomically(file, text)


def _clear(run: Run) -> None:
    """Remove a run's outputs, except a training's checkpoint."""
    for temporary in filter(Path.is_file, run.folder.glob(".*")):  # of writers that were killed
        temporary.unlink()
    for name in (ERROR, PROGRESS, *NOTEBOOKS[run.notebook].outputs):
        (run.folder / name).unlink(missing_ok=True)


def run_sweep(
    sweep: SweepSettings,
    cores: int | None = None,
    profile: str = LOCAL_PROFILE,
    replace: bool = False,
) -> bool:
    """Do the missing runs of a sweep, and render its report.

    Args:
        cores: processor cores to use; None for all.
        profile: folder of a Snakemake profile.
        replace: delete finished runs that were made with other settings, instead of refusing to.

    Returns:
        Whether every run succeeded.

    Raises:
        InputError: images or notebooks cannot be used, or the images changed during the sweep.
        RuntimeError: the report failed, or jobs of an earlier sweep do not end.
        KeyboardInterrupt: stopped by Ctrl-C, SIGTERM or SIGHUP; no process is left.
    """
    with on_stop_signals(signal.default_int_handler), locked(sweep.name) as lock:
        _check_start(sweep, replace)
        cancel_jobs(sweep_folder(sweep.name))  # jobs of a sweep that was killed
        fingerprint = prepare_data(sweep)
        _check_files(sweep)
        lay_out(sweep, fingerprint)
        if any(state(run) != "done" for run in sweep.runs()):
            _run_jobs(sweep, cores, profile, lock)
            if prepare_data(sweep) != fingerprint:
                raise InputError(
                    f"dataset = {sweep.dataset!r}: changed while the sweep was at work; "
                    "start it again"
                )
        _fail_the_rest(sweep)
        failed = failures(sweep)
        tell(sweep, failed)
    return not failed


def _run_jobs(sweep: SweepSettings, cores: int | None, profile: str, lock: int) -> None:
    """Print how long the sweep will take, and run Snakemake."""
    from fixres_poc.sweep import plan

    resources = shares(sweep, cores, profile)
    forecast = plan.forecast(sweep, resources)
    print(f"{sweep.name}: {forecast.whole()}", file=sys.stderr)
    command = command_line(sweep, resources, profile)
    run_snakemake(sweep_folder(sweep.name), command, lock, partial(watch, forecast))


def tell(sweep: SweepSettings, failed: dict[str, str]) -> None:
    """Render the report and print failures; if no pair succeeded, the first failure comes last."""
    messages = [f"failed: {name}: {message}" for name, message in failed.items()]
    runs = sweep.runs()
    no_pair = all(run.name in failed for run in runs if NOTEBOOKS[run.notebook].needs)
    for message in messages[1:] if no_pair else messages:
        print(message, file=sys.stderr)
    try:
        page = render_if_changed(sweep)
    except RuntimeError:
        if not no_pair:  # without pairs notebook 05 always fails, which explains nothing
            raise
        page = report_folder(sweep.name) / "index.html"
    done = f"{len(runs) - len(failed)} of {len(runs)} runs of {sweep.name} are done"
    print(f"{done}, {len(failed)} failed; report: {page}", flush=True)
    if no_pair:
        print(messages[0], file=sys.stderr)


def _fail_the_rest(sweep: SweepSettings) -> None:
    """Record why each run stopped that is neither done nor failed."""
    stopped = set[str]()
    for outcome in outcomes(sweep):  # a training stands before its pairs
        run = outcome.run
        if outcome.status == "done":
            continue
        blockers = [name for name in run.needs if name in stopped]
        stopped.add(run.name)
        if outcome.status == "failed":
            continue
        if outcome.error:
            message = f"{outcome.error}; start the sweep again"  # changed during the sweep
        elif blockers:
            message = f"not run, because {blockers[0]} failed"
        elif outcome.status == "active":
            message = "ended without a word: killed?"
        else:
            log = sweep_folder(sweep.name) / "snakemake.log"
            message = f"not done; snakemake: {last_error(log)}"
        end(run.folder, Failure("killed", message))


def train_all(sweep: SweepSettings, replace: bool = False) -> None:
    """Run a sweep's trainings in all processes that `accelerate launch` has started.

    Notebook 03 then reads their checkpoints.

    Raises:
        InputError: images, notebooks, backbone or weights cannot be used.
    """
    from fixres_poc.data.dataset import load_dataset
    from fixres_poc.method import stage1
    from fixres_poc.model.device import accelerator_for

    accelerator = accelerator_for(sweep.precision)
    with contextlib.ExitStack() as stack:
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                stack.enter_context(locked(sweep.name))
                _check_start(sweep, replace)
                lay_out(sweep, prepare_data(sweep))
        for run in sweep.runs():
            if run.notebook == "03_train":
                settings = TrainSettings(**run.parameters)
                data = load_dataset(settings, sweep.name)
                trained = stage1.train_or_load(settings, data, accelerator)
                accelerator.print(f"{run.name}: {trained.val_top1:.1%} on validation")
    accelerator.end_training()


def _check_start(sweep: SweepSettings, replace: bool) -> None:
    """Check limits, earlier runs and weights before images are drawn; print the weights' terms."""
    _allow_files()
    if not replace:
        refuse_loss(sweep)
    # the embedded backbone needs no check, and so no import of torch
    if sweep.backbone != EMBEDDED_BACKBONES[0] or sweep.weights is not None:
        from fixres_poc.model import backbones

        backbones.check(sweep)
        if sweep.pretrained and (terms := backbones.licence(sweep.backbone, sweep.weights)):
            print(terms, file=sys.stderr)


def _allow_files() -> None:
    """Raise the limit of open files, up to `MANY_FILES`, for this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MANY_FILES if hard < 0 else min(hard, MANY_FILES)  # negative: unlimited
    if most < FEWEST_FILES:
        raise InputError(
            f"ulimit -n = {hard}: too few files may be open at once; a sweep needs {FEWEST_FILES}"
        )
    if 0 <= soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _check_files(sweep: SweepSettings) -> None:
    """Read the files that runs or the report would refuse hours later; needs prepared images."""
    if sweep.head_start == "file":
        from fixres_poc.method import linear_probe

        linear_probe.from_file(sweep, images_record(sweep.name)["classes"])
    if sweep.looked_at is not None:
        from fixres_poc.analysis.cells import read_table
        from fixres_poc.analysis.collection import looked_at

        looked_at(sweep, read_table(run_folder(sweep.name, "images.csv"))["image"])
    if sweep.imagenet_list is not None:
        from fixres_poc.data.leakage import training_images

        training_images(sweep.imagenet_list)


def prepare_data(sweep: SweepSettings) -> str:
    """Draw or check the images of a sweep; returns their fingerprint.

    Raises:
        InputError: the folder cannot be used.
    """
    from fixres_poc.data.dataset import prepare_dataset

    return prepare_dataset(sweep.data_settings(), sweep_folder(sweep.name), sweep.skip_unreadable)

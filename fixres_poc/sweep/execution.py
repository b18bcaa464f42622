"""A whole sweep: images, then Snakemake over the graph of jobs, then the report over what exists.

In runs/<sweep>/ lie sweep.json (the settings), one folder a run, snakemake.log, and `lock`, which
this process and Snakemake hold, so that two sweeps of one name never work at the same time and a
killed one never blocks the next.
"""

import contextlib
import fcntl
import json
import os
import resource
import signal
import sys
import time
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
from fixres_poc.config.sweep_settings import ONCE, Run, SweepSettings
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


@contextlib.contextmanager
def locked(sweep: str) -> Iterator[int]:
    """Hold a sweep's lock: neither another sweep nor a report works in its folder meanwhile.

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

    Other test resolutions of the linear probe are no loss: its folder keeps the probes it has.

    Raises:
        InputError: there are such runs; each is named, with the settings that differ.
    """
    made = [each for each in outcomes(sweep) if set(each.changed) - {"test_sizes"}]
    if made:
        lost = "; ".join(f"{each.run.name} ({', '.join(each.changed)})" for each in made)
        raise InputError(
            f"runs/{sweep.name}: {len(made)} finished runs were made with other settings and would "
            f"be deleted: {lost}; say --replace (make: REPLACE=1), or copy the sweep file under "
            "another name"
        )


def lay_out(sweep: SweepSettings, fingerprint: str) -> None:
    """Write sweep.json and settings.json of the runs; delete runs that are not done or used such.

    A training is not done, either, if a pair is not and the checkpoint that it needs is missing or
    damaged.

    Args:
        fingerprint: of the images, from `prepare_dataset`.
    """
    write_atomically(sweep_folder(sweep.name) / "sweep.json", sweep.model_dump_json(indent=1))
    _write_settings(sweep, fingerprint)
    found = {each.run.name: each for each in outcomes(sweep)}
    undone: set[str] = set()
    for job, runs in sweep.jobs().items():
        lacking = {run.name for run in runs if found[run.name].status != "done"}
        if lacking and job != ONCE and not checkpoint_is_intact(found[job]):
            lacking.add(job)
        for run in runs:
            if run.name in lacking or undone & set(run.needs):
                undone.add(run.name)
                _clear(run)
            for file in run.folder.glob("*.*"):
                # the clock was set back: Snakemake would take what follows for a failure
                if file.stat().st_mtime > time.time():
                    os.utime(file)
        if undone & {run.name for run in runs}:
            (run_folder(sweep.name, job) / JOB_DONE).unlink(missing_ok=True)


def _write_settings(sweep: SweepSettings, fingerprint: str) -> None:
    """Let each run's settings.json say what is wanted."""
    shared = {"library": library_hash(), "data": fingerprint}
    weights: dict[str, str | None] = {}
    if sweep.weights is not None:
        # so that another file at the same path is noticed
        weights["weights"] = file_digest(resolve(sweep.weights))
    stems = {run.notebook for run in sweep.runs()}
    codes = {stem: code_hash(notebook_path(stem)) for stem in stems}
    for run in sweep.runs():
        own = weights if "weights" in run.parameters else {}
        wanted = {"notebook": codes[run.notebook], **shared, **own}
        content = {"notebook": run.notebook, "wanted": wanted, "parameters": run.parameters}
        file, text = run.folder / SETTINGS, json.dumps(content, indent=1)
        if read_record(file) != json.loads(text):
            write_atomically(file, text)


def _clear(run: Run) -> None:
    """Remove what a run has left, but for a training's checkpoint."""
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
    """Do everything that a sweep still lacks, and render its report.

    Args:
        cores: processor cores to use, all by default.
        replace: delete finished runs that were made with other settings, instead of refusing to.

    Returns:
        Whether every run succeeded.

    Raises:
        InputError: images or notebooks cannot be used, or images were changed meanwhile.
        RuntimeError: the report failed, or jobs of an earlier sweep do not end.
        KeyboardInterrupt: stopped by Ctrl-C, SIGTERM or SIGHUP; nothing is left at work.
    """
    with on_stop_signals(signal.default_int_handler), locked(sweep.name) as lock:
        _check_start(sweep, replace)
        cancel_jobs(sweep_folder(sweep.name))  # jobs of a sweep that was killed
        fingerprint = prepare_data(sweep)
        _check_trained(sweep)
        _check_looked_at(sweep)
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
    """Say how long it will take, and run Snakemake."""
    from fixres_poc.sweep import plan

    shared = shares(sweep, cores, profile)
    forecast = plan.forecast(sweep, shared)
    print(f"{sweep.name}: {forecast.whole()}", file=sys.stderr)
    command = command_line(sweep, shared, profile)
    run_snakemake(sweep_folder(sweep.name), command, lock, partial(watch, forecast))


def tell(sweep: SweepSettings, failed: dict[str, str]) -> None:
    """Print what failed, and render the report; if no pair succeeded, the first failure is last."""
    lines = [f"failed: {name}: {message}" for name, message in failed.items()]
    runs = sweep.runs()
    no_pair = all(run.name in failed for run in runs if NOTEBOOKS[run.notebook].needs)
    for line in lines[no_pair:]:
        print(line, file=sys.stderr)
    try:
        page = render_if_changed(sweep)
    except RuntimeError:
        if not no_pair:  # without pairs notebook 05 always fails, which explains nothing
            raise
        page = report_folder(sweep.name) / "index.html"
    done = f"{len(runs) - len(failed)} of {len(runs)} runs of {sweep.name} are done"
    print(f"{done}, {len(failed)} failed; report: {page}", flush=True)
    if no_pair:
        print(lines[0], file=sys.stderr)


def _fail_the_rest(sweep: SweepSettings) -> None:
    """Let every run that is neither done nor failed fail, with what stopped it."""
    said = last_error(sweep_folder(sweep.name) / "snakemake.log")
    broken = dict[str, str]()  # first run that failed, by job
    for each in outcomes(sweep):  # a training stands before its pairs
        if each.status == "done":
            continue
        blockers = [broken[name] for name in each.run.needs if name in broken]
        broken.setdefault(each.run.job, each.run.name)
        if each.status == "failed":
            continue
        if each.error:
            message = f"{each.error}; start the sweep again"  # changed while it was at work
        elif blockers:
            message = f"not run, because {blockers[0]} failed"
        elif each.status == "active":
            message = "ended without a word: killed?"
        else:
            message = f"not done; snakemake: {said}"
        end(each.run.folder, Failure("killed", message))


def train_all(sweep: SweepSettings, replace: bool = False) -> None:
    """Do a sweep's trainings in all processes that `accelerate launch` has started.

    03_train reads what they leave.

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


def _check_start(sweep: SweepSettings, replace: bool = False) -> None:
    """Refuse what cannot be used before images are drawn, and name the weights' terms."""
    _allow_files()
    if not replace:
        refuse_loss(sweep)
    # the embedded one is known without torch
    if sweep.backbone != EMBEDDED_BACKBONES[0] or sweep.weights is not None:
        from fixres_poc.model import backbones

        backbones.check(sweep)
        if sweep.pretrained and (terms := backbones.licence(sweep.backbone, sweep.weights)):
            print(terms, file=sys.stderr)


def _allow_files() -> None:
    """Raise the limit of open files as far as it may be, for all that the sweep starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MANY_FILES if hard < 0 else min(hard, MANY_FILES)  # a negative number: no limit
    if most < FEWEST_FILES:
        raise InputError(
            f"ulimit -n = {hard}: too few files may be open at once; a sweep needs {FEWEST_FILES}"
        )
    if 0 <= soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _check_looked_at(sweep: SweepSettings) -> None:
    """Refuse a list that the report could not read hours later."""
    if sweep.looked_at is not None:
        from fixres_poc.analysis.collection import looked_at

        looked_at(sweep)


def _check_trained(sweep: SweepSettings) -> None:
    """Refuse a trained network that does not fit these classes before anything runs."""
    if sweep.head_start == "file":
        from fixres_poc.method import linear_probe

        linear_probe.from_file(sweep, images_record(sweep.name)["classes"])


def prepare_data(sweep: SweepSettings) -> str:
    """Draw or check the images of a sweep; returns their fingerprint.

    Raises:
        InputError: the folder cannot be used.
    """
    from fixres_poc.data.dataset import prepare_dataset

    return prepare_dataset(sweep.data_settings(), sweep_folder(sweep.name), sweep.skip_unreadable)

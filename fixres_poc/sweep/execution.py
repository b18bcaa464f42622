"""A whole sweep: images, then Snakemake over the graph of runs, then the report over whatever exists.

In runs/<sweep>/ lie sweep.json (the settings), one folder a run, snakemake.log, and `lock`, which
this process and Snakemake hold, so that two sweeps of one name never work at the same time and a
killed one never blocks the next.
"""

import contextlib
import fcntl
import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fixres_poc.config import run_state
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import (
    file_digest,
    read_record,
    report_folder,
    run_folder,
    sweep_folder,
    write_atomically,
)
from fixres_poc.config.provenance import code_hash, library_hash, notebook_path
from fixres_poc.config.run_state import (
    ERROR,
    JOB_DONE,
    OTHER_SETTINGS,
    OUTPUTS,
    PROGRESS,
    SETTINGS,
    checkpoint_is_intact,
    images_record,
    outcomes,
)
from fixres_poc.config.settings import EMBEDDED_BACKBONES, TrainSettings
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.sweep.reporting import render_if_changed
from fixres_poc.sweep.snakemake import (
    LOCAL_PROFILE,
    Monitor,
    cancel_jobs,
    command_line,
    interrupt,
    last_error,
    on_stop_signals,
    run_snakemake,
)


@contextlib.contextmanager
def locked(sweep: str) -> Iterator[int]:
    """Hold a sweep's lock, so that neither another sweep nor a report works in its folder at the same time.

    A plain flock, whose descriptor is given, since Snakemake inherits it and so keeps it should we
    be killed.
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

    A baseline with other test resolutions is no loss: the probes that it has stay in its folder.

    Raises:
        InputError: there are such runs; each is named, with the settings that differ.
    """
    other = [each for each in outcomes(sweep) if each.error.startswith(OTHER_SETTINGS)]
    made = [each for each in other if each.error != f"{OTHER_SETTINGS}: test_sizes"]
    if made:
        lost = "; ".join(
            f"{each.run.name} ({each.error.removeprefix(OTHER_SETTINGS)[2:]})" for each in made
        )
        raise InputError(
            f"runs/{sweep.name}: {len(made)} finished runs were made with other settings and would be deleted: {lost}; "
            "say --replace (make: REPLACE=1), or copy the sweep file under another name"
        )


def lay_out(sweep: SweepSettings, fingerprint: str) -> None:
    """Write sweep.json and the runs' settings.json; a run that is not done goes, with all that used it.

    A training is not done, either, if a pair is not and the checkpoint that it needs is missing or
    damaged.

    Args:
        fingerprint: of the images, from `prepare_dataset`.
    """
    write_atomically(sweep_folder(sweep.name) / "sweep.json", sweep.model_dump_json(indent=1))
    _write_settings(sweep, fingerprint)
    found = {each.run.name: each for each in outcomes(sweep)}
    removed: set[str] = set()
    for job, runs in sweep.jobs().items():
        lacking = {run.name for run in runs if found[run.name].status != "done"}
        first = runs[0]
        if (
            lacking
            and first.notebook == "03_train"
            and not checkpoint_is_intact(sweep.name, found[first.name])
        ):
            lacking.add(first.name)
        for run in runs:
            if run.name in lacking or removed & set(run.needs):
                removed.add(run.name)
                _clear(run_folder(sweep.name, run.name), OUTPUTS[run.notebook])
            _no_later_than_now(run_folder(sweep.name, run.name))
        if removed & {run.name for run in runs}:
            (run_folder(sweep.name, job) / JOB_DONE).unlink(missing_ok=True)


def _write_settings(sweep: SweepSettings, fingerprint: str) -> None:
    """Let each run's settings.json say what is wanted."""
    codes = {stem: code_hash(notebook_path(stem)) for stem in OUTPUTS}
    shared, weights = {"library": library_hash(), "data": fingerprint}, _weights(sweep)
    for run in sweep.runs():
        wanted = (
            {"notebook": codes[run.notebook]}
            | shared
            | (weights if "weights" in run.parameters else {})
        )
        content = {"notebook": run.notebook, "wanted": wanted, "parameters": run.parameters}
        file, text = run_folder(sweep.name, run.name) / SETTINGS, json.dumps(content, indent=1)
        if read_record(file) != json.loads(text):
            write_atomically(file, text)


def _clear(folder: Path, outputs: Iterable[str]) -> None:
    """Remove what a run has left, but for a training's checkpoint."""
    for temporary in filter(Path.is_file, folder.glob(".*")):  # of writers that were killed
        temporary.unlink()
    for name in (ERROR, PROGRESS, *outputs):
        (folder / name).unlink(missing_ok=True)


def _no_later_than_now(folder: Path) -> None:
    """If the clock was set back: Snakemake takes what follows for a failure."""
    for each in folder.glob("*.*"):
        if each.stat().st_mtime > time.time():
            os.utime(each)


def _weights(sweep: SweepSettings) -> dict[str, Any]:
    """What settings.json says of a weights file, so that another one at the same path is noticed."""
    if sweep.weights is None:
        return {}
    from fixres_poc.model import weights

    return {"weights": file_digest(weights.find_weights(sweep.weights))}


FEWEST_FILES, MANY_FILES = 256, 4096


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
        RuntimeError: Snakemake itself failed.
        KeyboardInterrupt: stopped by Ctrl-C, SIGTERM or SIGHUP; nothing is left at work.
    """
    folder = sweep_folder(sweep.name)
    with on_stop_signals(interrupt), locked(sweep.name) as lock:
        _check_start(sweep, replace)
        cancel_jobs(folder)  # jobs of a sweep that was killed
        fingerprint = prepare_data(sweep)
        _check_trained(sweep)
        lay_out(sweep, fingerprint)
        monitor = Monitor(sweep, sys.stderr)
        ended = 0
        if monitor.count("done") < len(sweep.runs()):
            ended = run_snakemake(sweep, command_line(sweep, cores, profile), lock, monitor)
            if prepare_data(sweep) != fingerprint:
                raise InputError(
                    f"dataset = {sweep.dataset!r}: changed while the sweep was at work; start it again"
                )
        failed = _explained_failures(sweep)
        if ended and not failed:
            raise RuntimeError(
                f"snakemake ended with {ended}; its output is in {folder / 'snakemake.log'}"
            )
        _report(sweep, failed)
    return not failed


def _report(sweep: SweepSettings, failed: dict[str, str]) -> None:
    """Print what failed, and render the report; if no pair succeeded, the first failure is said last."""
    lines = [f"failed: {name}: {message}" for name, message in failed.items()]
    no_pair = all(run.name in failed for run in sweep.runs() if run.notebook == "04_fixres")
    for line in lines[no_pair:]:
        print(line, file=sys.stderr)
    try:
        page = render_if_changed(sweep)
    except RuntimeError:
        if not no_pair:  # without pairs notebook 05 always fails, which explains nothing
            raise
        page = report_folder(sweep.name) / "index.html"
    runs = len(sweep.runs())
    print(
        f"{runs - len(failed)} of {runs} runs of {sweep.name} are done, {len(failed)} failed; report: {page}",
        flush=True,
    )
    if no_pair:
        print(lines[0], file=sys.stderr)


def train_all(sweep: SweepSettings, replace: bool = False) -> None:
    """Do a sweep's trainings in all processes that `accelerate launch` has started; 03_train reads what they leave.

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
                trained = stage1.train_or_load(settings, load_dataset(settings), accelerator)
                accelerator.print(f"{run.name}: {trained.val_top1:.1%} on validation")
    accelerator.end_training()


def _check_start(sweep: SweepSettings, replace: bool = False) -> None:
    """Refuse what cannot be used before images are drawn, and name terms; the embedded one is known without torch."""
    _allow_files()
    if not replace:
        refuse_loss(sweep)
    if sweep.backbone != EMBEDDED_BACKBONES[0] or sweep.weights is not None:
        from fixres_poc.model import backbones

        backbones.check(sweep)
        if terms := backbones.licence(sweep.backbone, sweep.weights):
            print(terms, file=sys.stderr)


def _allow_files() -> None:
    """Raise the limit of open files as far as it may be, for all that the sweep starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < FEWEST_FILES:  # a negative number stands for no limit
        raise InputError(
            f"ulimit -n = {hard}: too few files may be open at once; a sweep needs {FEWEST_FILES}"
        )
    if 0 <= soft < MANY_FILES:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (min(hard, MANY_FILES) if hard > 0 else MANY_FILES, hard)
        )


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


def _explained_failures(sweep: SweepSettings) -> dict[str, str]:
    """The failed runs' messages, after an error was left for every run that is not valid and did not say why."""
    jobs = sweep.jobs()
    failed, said = (
        set(run_state.failures(sweep)),
        last_error(sweep_folder(sweep.name) / "snakemake.log"),
    )
    for each in run_state.outcomes(sweep):
        run = each.run
        if each.status in ("done", "failed"):
            continue
        unfinished = {
            job for job, runs in jobs.items() if failed.intersection(one.name for one in runs)
        }
        message = (
            "ended without a word: killed?"
            if each.status == "active"
            else f"not done; snakemake: {said}"
        )
        for name in run.needs:
            if name in failed or name in unfinished:
                message = (
                    f"not run, because {name if name in failed else f'a pair of {name}'} failed"
                )
        if each.error:  # changed while it was at work
            message = f"{each.error}; start the sweep again"
        failed.add(run.name)
        folder = run_folder(sweep.name, run.name)
        run_state.fail(folder, message)
        run_state.end(folder)
    return run_state.failures(sweep)

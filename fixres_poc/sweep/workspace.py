"""A sweep's folder: its lock, and what is outdated, damaged or half done and goes before Snakemake starts."""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import file_digest, read_record, run_folder, sweep_folder, write_atomically
from fixres_poc.config.provenance import code_hash, library_hash, notebook_path
from fixres_poc.config.run_state import (
    ERROR,
    JOB_DONE,
    OTHER_SETTINGS,
    OUTPUTS,
    PROGRESS,
    SETTINGS,
    checkpoint_is_intact,
    outcomes,
)
from fixres_poc.config.sweep_settings import SweepSettings


@contextlib.contextmanager
def locked(sweep: str) -> Iterator[int]:
    """Hold a sweep's lock, so that neither another sweep nor a report works in its folder at the same time.

    A plain flock, whose descriptor is given, since Snakemake inherits it and so keeps it should we be killed.
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
        lost = "; ".join(f"{each.run.name} ({each.error.removeprefix(OTHER_SETTINGS)[2:]})" for each in made)
        raise InputError(
            f"runs/{sweep.name}: {len(made)} finished runs were made with other settings and would be deleted: {lost}; "
            "say --replace (make: REPLACE=1), or copy the sweep file under another name"
        )


def lay_out(sweep: SweepSettings, fingerprint: str) -> None:
    """Write sweep.json and the runs' settings.json; a run that is not done goes, with all that used it.

    A training is not done, either, if a pair is not and the checkpoint that it needs is missing or damaged.

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
        if lacking and first.notebook == "03_train" and not checkpoint_is_intact(sweep.name, found[first.name]):
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
        wanted = {"notebook": codes[run.notebook]} | shared | (weights if "weights" in run.parameters else {})
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

    return {"weights": file_digest(weights.find(sweep.weights))}

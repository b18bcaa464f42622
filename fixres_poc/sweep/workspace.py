"""A sweep's folder: its lock, and what is outdated, damaged or half done and goes before Snakemake starts."""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import read_record, run_folder, sweep_folder, write_atomically
from fixres_poc.config.provenance import code_hash, library_hash, notebook_path
from fixres_poc.config.run_state import ERROR, OTHER_SETTINGS, OUTPUTS, PROGRESS, SETTINGS, outcomes
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

    Args:
        fingerprint: of the images, from `prepare_dataset`.
    """
    write_atomically(sweep_folder(sweep.name) / "sweep.json", sweep.model_dump_json(indent=1))
    codes = {stem: code_hash(notebook_path(stem)) for stem in OUTPUTS}
    shared, weights = {"library": library_hash(), "data": fingerprint}, _weights(sweep)
    for run in sweep.runs():
        wanted = {"notebook": codes[run.notebook]} | shared | (weights if "weights" in run.parameters else {})
        content = {"notebook": run.notebook, "wanted": wanted, "parameters": run.parameters}
        file, text = run_folder(sweep.name, run.name) / SETTINGS, json.dumps(content, indent=1)
        if read_record(file) != json.loads(text):
            write_atomically(file, text)
    removed: set[str] = set()
    for each in outcomes(sweep):
        run, folder = each.run, run_folder(sweep.name, each.run.name)
        if each.status != "done" or removed & set(run.needs):
            removed.add(run.name)
            for temporary in filter(Path.is_file, folder.glob(".*")):  # of writers that were killed
                temporary.unlink()
            for name in (ERROR, PROGRESS, *OUTPUTS[run.notebook]):
                (folder / name).unlink(missing_ok=True)
        for each_file in folder.glob("*.*"):  # if the clock was set back; Snakemake takes what follows for a failure
            if each_file.stat().st_mtime > time.time():
                os.utime(each_file)


def _weights(sweep: SweepSettings) -> dict[str, Any]:
    """What settings.json says of a weights file, so that another one at the same path is noticed."""
    if sweep.weights is None:
        return {}
    from fixres_poc.data.download import digest
    from fixres_poc.model import weights

    return {"weights": digest(weights.find(sweep.weights))}

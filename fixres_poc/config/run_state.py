"""The state of a run, decided here alone, and the record of its failure.

Files of runs/<sweep>/<run>/: `settings.json` once a sweep has laid it out; `progress.log` while the
run is active, also if it was killed; `error.json` after a failure (`errors.Failure`); the outputs
of its notebook (`notebooks.NOTEBOOKS`) after success, `metrics.json` last. `state` checks which
files exist; `checked` also reads them.

The `wanted` of settings.json holds digests of the notebook's code, the library, the weights file
and the images; the `used` of metrics.json holds those of the run. A run is valid if they agree.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tqdm.auto import tqdm
from tqdm.std import tqdm as text_tqdm

from fixres_poc.config.errors import Failure, printable
from fixres_poc.config.files import (
    CHECKPOINT,
    file_digest,
    read_record,
    run_folder,
    write_atomically,
)
from fixres_poc.config.notebooks import METRICS, NOTEBOOKS, PREDICTIONS
from fixres_poc.config.provenance import code_hash
from fixres_poc.config.sweep_settings import Run, SweepSettings

T = TypeVar("T")
State = Literal["missing", "waiting", "active", "failed", "done", "outdated", "damaged"]
SETTINGS, PROGRESS, ERROR, JOB_DONE = "settings.json", "progress.log", "error.json", "job.done"


def watched() -> bool:
    """Whether a person may watch: sweeps, nbval and `make notebooks` set $FIXRES_PROGRESS."""
    return "FIXRES_PROGRESS" not in os.environ


def bar(iterable: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Yield the items, with a bar of the number done and the time left.

    Args:
        total: number of items, if `iterable` has no length.
    """
    if watched():
        # disable=None: no bar in a log; a notebook's widget is always shown
        yield from tqdm(iterable, description, total, leave=False, file=sys.stderr, disable=None)
        return
    with open(os.environ["FIXRES_PROGRESS"], "a", encoding="utf-8") as file:
        yield from text_tqdm(
            iterable, description, total, file=file, ncols=79, mininterval=1, ascii=True
        )


@dataclass(frozen=True)
class Outcome:
    """The state of a run, and what it left."""

    run: Run
    status: State
    error: str = ""  # why it failed, is outdated or is damaged
    metrics: Mapping[str, Any] | None = None  # if done
    changed: tuple[str, ...] = ()  # settings that differ from the sweep's

    def get(self, *keys: str) -> Any:
        """The entry of the run's metrics at these nested keys, or None."""
        value: Any = self.metrics
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def wall_seconds(self) -> float:
        """Seconds from the start of the run's notebook to its end; 0 if unknown."""
        return float(self.get("wall_seconds") or 0)


def state(run: Run) -> State:
    """The state by the names of files alone: never outdated or damaged."""
    if (run.folder / PROGRESS).exists():
        return "active"
    if (run.folder / ERROR).exists():
        return "failed"
    if all((run.folder / file).exists() for file in NOTEBOOKS[run.notebook].outputs):
        return "done"
    return "waiting" if (run.folder / SETTINGS).exists() else "missing"


def checked(run: Run) -> Outcome:
    """The state by the content of files: compares what a done run used with what is wanted.

    A run by hand has no settings.json, so only its settings and images are compared.

    Returns:
        "damaged" if metrics or predictions are not as written; "outdated" if the run had other
        settings or used something else than is wanted.
    """
    folder, status = run.folder, state(run)
    if status != "done":
        record = failure(folder)
        return Outcome(run, status, record.message if record else "")
    metrics = read_record(folder / METRICS, settings=dict | None, used=dict | None)
    if not metrics:
        return Outcome(run, "damaged", f"{METRICS} cannot be read")
    if metrics.get("predictions_sha256") not in (None, file_digest(folder / PREDICTIONS)):
        return Outcome(run, "damaged", f"{PREDICTIONS} is not what the run has written")
    parameters = json.loads(json.dumps(run.parameters))
    settings = metrics.get("settings") or {}
    changed = tuple(key for key, value in settings.items() if parameters.get(key, value) != value)
    if changed:
        error = f"made with other settings: {', '.join(changed)}"
        return Outcome(run, "outdated", error, changed=changed)
    wanted = read_record(folder / SETTINGS, wanted=dict).get("wanted", {})
    images = images_record(run.parameters["sweep"]).get("fingerprint", wanted.get("data"))
    wanted["data"] = images
    used = {"data": images} | metrics.get("used", {})  # some notebooks read no images
    labels = {
        "notebook": f"code of {run.notebook}",
        "library": "library code",
        "weights": f"weights {run.parameters.get('weights')}",
        "imagenet_list": "list of ImageNet's images",
        "data": "images",
    }
    others = [
        label for key, label in labels.items() if wanted.get(key) not in (None, used.get(key))
    ]
    if others:
        return Outcome(run, "outdated", f"made with other {', '.join(others)}")
    return Outcome(run, "done", metrics=metrics)


def checkpoint_is_intact(training: Outcome) -> bool:
    """Whether a training's checkpoint is the one that its metrics name. Only pairs need it."""
    digest = training.get("used", "checkpoint")
    return digest is not None and digest == file_digest(training.run.folder / CHECKPOINT)


def outcomes(sweep: SweepSettings) -> list[Outcome]:
    """The checked state of every run of a sweep.

    A run is also outdated if its training is outdated or was repeated after it.
    """
    by_name: dict[str, Outcome] = {}
    for run in sweep.runs():  # a training stands before its pairs
        outcome = checked(run)
        for training in [by_name[name] for name in run.needs if outcome.status == "done"]:
            used = outcome.get("used", "checkpoint") if NOTEBOOKS[run.notebook].needs else None
            repeated = used not in (None, training.get("used", "checkpoint"))
            if repeated or training.status == "outdated":
                error = f"made with {training.run.name} as it was before"
                outcome = Outcome(run, "outdated", error)
        by_name[run.name] = outcome
    return list(by_name.values())


def failures(sweep: SweepSettings) -> dict[str, str]:
    """The message of every failed run of a sweep, by the run's name."""
    records = {run.name: failure(run.folder) for run in sweep.runs()}
    return {name: record.message for name, record in records.items() if record}


def failure(folder: Path) -> Failure | None:
    """Why the run of a folder failed; None if it has not failed or is active."""
    if (folder / PROGRESS).exists() or not (folder / ERROR).exists():
        return None
    record = read_record(folder / ERROR, kind=str, message=str, trace=list)
    if not record:
        return Failure("error", "no message")
    return Failure(record["kind"], printable(record["message"]), record["trace"])


def begin(folder: Path) -> Path:
    """Mark a run as active; returns the file for its progress bars."""
    (folder / ERROR).unlink(missing_ok=True)
    (folder / PROGRESS).touch()
    return folder / PROGRESS


def end(folder: Path, failed: Failure | None = None) -> None:
    """Mark a run as ended, and record its failure if it failed."""
    try:
        if failed:
            write_atomically(folder / ERROR, json.dumps(asdict(failed), indent=1))
    finally:
        (folder / PROGRESS).unlink(missing_ok=True)


def record_notebook(folder: Path, executed: Mapping[str, Any]) -> None:
    """Add the digest of the executed code to the metrics of a run that has ended.

    Args:
        executed: content of the executed notebook.
    """
    if metrics := read_record(folder / METRICS):
        used = metrics.get("used", {}) | {"notebook": code_hash(executed)}
        write_atomically(folder / METRICS, json.dumps(metrics | {"used": used}, indent=1))


def images_record(sweep: str) -> dict[str, Any]:
    """The content of images.json, which the preparation of a sweep's images writes.

    Returns:
        `fingerprint`, `unreadable` (name to reason) and more; empty before the preparation.
    """
    return read_record(run_folder(sweep, "images.json"), fingerprint=str, unreadable=dict | None)

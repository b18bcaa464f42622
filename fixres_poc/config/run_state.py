"""The state of a run, decided here alone, and the record of its failure.

runs/<sweep>/<run>/ holds `settings.json` once a sweep has laid it out; `progress.log` while the run
is at work, which stays if it is killed; `error.json` after a failure (`errors.Failure`); after
success the outputs of its notebook (`notebooks.NOTEBOOKS`), `metrics.json` last. `state` looks at
which files are there; `checked` reads them as well.

settings.json says what is `wanted`: digests of the notebook's code, the library, the weights file
and the images. metrics.json says what was `used`. A run is valid if they agree.
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
USED = {"notebook": "notebook", "library": "library code", "weights": "weights", "data": "images"}
"""What a run records that it used, in words."""


def watched() -> bool:
    """Whether a person may be watching: sweeps, nbval, `make notebooks` set $FIXRES_PROGRESS."""
    return "FIXRES_PROGRESS" not in os.environ


def bar(iterable: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The same items, with a bar that says how many are done and how long the rest takes.

    Args:
        total: number of items, where `iterable` has no length.
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
    """What a run left."""

    run: Run
    status: State
    error: str = ""  # why it failed, is outdated or is damaged
    metrics: Mapping[str, Any] | None = None  # if done
    changed: tuple[str, ...] = ()  # settings that differ from the sweep's

    def get(self, *keys: str) -> Any:
        """The entry of the run's metrics at these keys, None where there is none."""
        value: Any = self.metrics
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def wall_seconds(self) -> float:
        """How long the run took, from the start of its notebook; 0 where that is not known."""
        return float(self.get("wall_seconds") or 0)


def state(run: Run) -> State:
    """The state as far as the names of files tell: never outdated or damaged."""
    if (run.folder / PROGRESS).exists():
        return "active"
    if (run.folder / ERROR).exists():
        return "failed"
    if all((run.folder / file).exists() for file in NOTEBOOKS[run.notebook].outputs):
        return "done"
    return "waiting" if (run.folder / SETTINGS).exists() else "missing"


def checked(run: Run) -> Outcome:
    """The state after what a done run used was compared with what is wanted.

    A run by hand has no settings.json, so only its settings and images are compared.

    Returns:
        "damaged" where metrics or predictions are not what was written; "outdated" where the run
        was made with other settings or used anything else than is wanted.
    """
    folder, found = run.folder, state(run)
    if found != "done":
        failed = failure(folder)
        return Outcome(run, found, failed.message if failed else "")
    metrics = read_record(folder / METRICS, settings=dict | None, used=dict | None)
    if not metrics:
        return Outcome(run, "damaged", f"{METRICS} cannot be read")
    if metrics.get("predictions_sha256") not in (None, file_digest(folder / PREDICTIONS)):
        return Outcome(run, "damaged", f"{PREDICTIONS} is not what the run has written")
    parameters = json.loads(json.dumps(run.parameters))
    given = metrics.get("settings") or {}
    changed = tuple(key for key, value in given.items() if parameters.get(key, value) != value)
    if changed:
        error = f"made with other settings: {', '.join(changed)}"
        return Outcome(run, "outdated", error, changed=changed)
    wanted = read_record(folder / SETTINGS, wanted=dict).get("wanted", {})
    wanted |= {
        "data": images_record(run.parameters["sweep"]).get("fingerprint", wanted.get("data"))
    }
    used = {"data": wanted["data"]} | metrics.get("used", {})  # some notebooks read no images
    words = USED | {"notebook": f"code of {run.notebook}"}
    words["weights"] += f" {run.parameters.get('weights')}"
    others = [word for key, word in words.items() if wanted.get(key) not in (None, used.get(key))]
    if others:
        return Outcome(run, "outdated", f"made with other {', '.join(others)}")
    return Outcome(run, "done", metrics=metrics)


def checkpoint_is_intact(training: Outcome) -> bool:
    """Whether the checkpoint of a training is the one that its metrics name. Only pairs need it."""
    written = training.get("used", "checkpoint")
    return written is not None and written == file_digest(training.run.folder / CHECKPOINT)


def outcomes(sweep: SweepSettings) -> list[Outcome]:
    """What every run of a sweep left.

    Outdated is also a run whose training is outdated or was done again since.
    """
    found: dict[str, Outcome] = {}
    for run in sweep.runs():  # a training stands before its pairs
        found[run.name] = outcome = checked(run)
        for training in [found[name] for name in run.needs if outcome.status == "done"]:
            used = outcome.get("used", "checkpoint") if NOTEBOOKS[run.notebook].needs else None
            again = used not in (None, training.get("used", "checkpoint"))
            if again or training.status == "outdated":
                error = f"made with {training.run.name} as it was before"
                found[run.name] = Outcome(run, "outdated", error)
    return list(found.values())


def failures(sweep: SweepSettings) -> dict[str, str]:
    """The message of every failed run of a sweep, by the run's name."""
    found = {run.name: failure(run.folder) for run in sweep.runs()}
    return {name: each.message for name, each in found.items() if each}


def failure(folder: Path) -> Failure | None:
    """Why the run of a folder failed; None if it has not, or is at work."""
    if (folder / PROGRESS).exists() or not (folder / ERROR).exists():
        return None
    record = read_record(folder / ERROR, kind=str, message=str, trace=list)
    if not record:
        return Failure("error", "no message")
    return Failure(record["kind"], printable(record["message"]), record["trace"])


def begin(folder: Path) -> Path:
    """Let a run's folder say that the run is at work; returns the file for its progress bars."""
    (folder / ERROR).unlink(missing_ok=True)
    (folder / PROGRESS).touch()
    return folder / PROGRESS


def end(folder: Path, failed: Failure | None = None) -> None:
    """Let a run's folder say that the run is no longer at work, and why it failed if it did."""
    try:
        if failed:
            write_atomically(folder / ERROR, json.dumps(asdict(failed), indent=1))
    finally:
        (folder / PROGRESS).unlink(missing_ok=True)


def record_notebook(folder: Path, executed: Mapping[str, Any]) -> None:
    """Add to a run's metrics the digest of the code that was executed, after the run's end.

    Args:
        executed: content of the notebook, as executed.
    """
    if metrics := read_record(folder / METRICS):
        used = metrics.get("used", {}) | {"notebook": code_hash(executed)}
        write_atomically(folder / METRICS, json.dumps(metrics | {"used": used}, indent=1))


def images_record(sweep: str) -> dict[str, Any]:
    """What the preparation of a sweep's images left in images.json.

    Returns:
        `fingerprint`, `unreadable` (name to reason) and more; nothing where they have not been
        prepared.
    """
    return read_record(run_folder(sweep, "images.json"), fingerprint=str, unreadable=dict | None)

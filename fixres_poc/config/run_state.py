"""The state of a run, decided here alone, and its error line.

runs/<sweep>/<run>/ holds `settings.json` once a sweep has laid it out; `progress.log` while the run
is at work, which stays if it is killed; `error.txt` after a failure: the one-line message, then the
traceback; after success what `OUTPUTS` names, `metrics.json` last. `state` looks at which files are
there; `checked` reads them as well.

settings.json says what is `wanted`: digests of the notebook's code, the library, the weights file
and the images. metrics.json says what was `used`. A run is valid if they agree.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tqdm.auto import tqdm
from tqdm.std import tqdm as text_tqdm

from fixres_poc.config.files import (
    CHECKPOINT,
    file_digest,
    read_record,
    run_folder,
    write_atomically,
)
from fixres_poc.config.provenance import code_hash
from fixres_poc.config.sweep_settings import Run, SweepSettings

T = TypeVar("T")


def watched() -> bool:
    """Whether a person may be watching: $FIXRES_PROGRESS is not set, as a sweep, nbval and `make notebooks` set it."""
    return "FIXRES_PROGRESS" not in os.environ


def bar(iterable: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The same items, with a bar that says how many are done and how long the rest takes.

    Args:
        total: number of items, where `iterable` has no length.
    """
    if watched():
        # disable=None: no bar where a log takes what a terminal would show; a notebook's widget is
        # always shown
        return tqdm(
            iterable, desc=description, total=total, leave=False, file=sys.stderr, disable=None
        )
    return _written(iterable, description, total, os.environ["FIXRES_PROGRESS"])


def _written(
    iterable: Iterable[T], description: str, total: int | None, target: str
) -> Iterable[T]:
    with open(target, "a", encoding="utf-8") as file:
        yield from text_tqdm(
            iterable, desc=description, total=total, file=file, ncols=79, mininterval=1, ascii=True
        )


State = Literal["missing", "waiting", "active", "failed", "done", "outdated", "damaged"]
OUTPUTS: dict[str, tuple[str, ...]] = {
    "00_state_of_the_art": ("metrics.json",),
    "01_dataset_eda": ("metrics.json",),
    "02_baseline": ("metrics.json", "predictions.parquet"),
    "03_train": ("metrics.json",),  # its checkpoint is another matter, see `checkpoint_is_intact`
    "04_fixres": ("metrics.json", "predictions.parquet"),
}
OTHER_SETTINGS = "made with other settings"
KILLED = "DeadKernelError"
SETTINGS, METRICS, PROGRESS, ERROR = "settings.json", "metrics.json", "progress.log", "error.txt"
JOB_DONE = "job.done"
USED = {"notebook": "notebook", "library": "library code", "weights": "weights", "data": "images"}
"""What a run records that it used, in words."""


@dataclass(frozen=True)
class Outcome:
    """What a run left: its state, the line that explains a failed, outdated or damaged one, and its metrics if done."""

    run: Run
    status: State
    error: str = ""
    metrics: Mapping[str, Any] | None = None

    def get(self, *keys: str) -> Any:
        """The entry of the run's metrics at these keys, None where there is none."""
        value: Any = self.metrics
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def wall_seconds(self) -> float:
        """How long the run took, from the start of its kernel to its end; 0 where that is not known."""
        return float(self.get("wall_seconds") or 0)


def state(sweep: str, run: Run) -> State:
    """The state as far as the names of files tell, which costs next to nothing: never outdated or damaged."""
    folder = run_folder(sweep, run.name)
    if (folder / PROGRESS).exists():
        return "active"
    if (folder / ERROR).exists():
        return "failed"
    if all((folder / file).exists() for file in OUTPUTS[run.notebook]):
        return "done"
    return "waiting" if (folder / SETTINGS).exists() else "missing"


def checked(sweep: str, run: Run) -> Outcome:
    """The state after what a done run used was compared with what is wanted.

    A run by hand has no settings.json, so only its settings and images are compared.

    Returns:
        "damaged" where metrics or predictions are not what was written; "outdated" where the run
        was made with other settings or used anything else than is wanted.
    """
    folder, found = run_folder(sweep, run.name), state(sweep, run)
    if found != "done":
        return Outcome(run, found, error_line(folder) if found == "failed" else "")
    metrics = read_record(folder / METRICS, settings=dict | None, used=dict | None)
    if not metrics:
        return Outcome(run, "damaged", f"{METRICS} cannot be read")
    written, predictions = metrics.get("predictions_sha256"), folder / "predictions.parquet"
    if written not in (None, file_digest(predictions)):
        return Outcome(run, "damaged", f"{predictions.name} is not what the run has written")
    parameters = json.loads(json.dumps(run.parameters))
    settings = metrics.get("settings") or {}
    if changed := [key for key, value in settings.items() if parameters.get(key, value) != value]:
        return Outcome(run, "outdated", f"{OTHER_SETTINGS}: {', '.join(changed)}")
    wanted = read_record(folder / SETTINGS, wanted=dict).get("wanted", {})
    wanted |= {"data": images_record(sweep).get("fingerprint", wanted.get("data"))}
    used = {"data": wanted["data"]} | metrics.get("used", {})  # some notebooks read no images
    if changed := [key for key in USED if wanted.get(key) not in (None, used.get(key))]:
        names = USED | {
            "notebook": f"code of {run.notebook}",
            "weights": f"weights {run.parameters.get('weights')}",
        }
        return Outcome(
            run, "outdated", f"made with other {', '.join(names[key] for key in changed)}"
        )
    return Outcome(run, "done", metrics=metrics)


def checkpoint_is_intact(sweep: str, training: Outcome) -> bool:
    """Whether the checkpoint of a training is the one that its metrics name. Only pairs need it."""
    written = training.get("used", "checkpoint")
    return written is not None and written == file_digest(
        run_folder(sweep, training.run.name) / CHECKPOINT
    )


def outcomes(sweep: SweepSettings) -> list[Outcome]:
    """What every run of a sweep left; outdated is also a run whose training is outdated or was done again since."""
    found: dict[str, Outcome] = {}
    for run in sweep.runs():  # a training stands before its pairs
        found[run.name] = outcome = checked(sweep.name, run)
        for training in [found[name] for name in run.needs] if outcome.status == "done" else []:
            used = outcome.get("used", "checkpoint") if run.notebook == "04_fixres" else None
            if training.status == "outdated" or used not in (
                None,
                training.get("used", "checkpoint"),
            ):
                found[run.name] = Outcome(
                    run, "outdated", f"made with {training.run.name} as it was before"
                )
    return list(found.values())


def failures(sweep: SweepSettings) -> dict[str, str]:
    """The error line of every failed run of a sweep, by the run's name."""
    failed = [run.name for run in sweep.runs() if state(sweep.name, run) == "failed"]
    return {name: error_line(run_folder(sweep.name, name)) for name in failed}


def begin(folder: Path) -> Path:
    """Let a run's folder say that the run is at work; returns the file that its progress bars go to."""
    (folder / ERROR).unlink(missing_ok=True)
    (folder / PROGRESS).touch()
    return folder / PROGRESS


def end(folder: Path) -> None:
    """Let a run's folder say that the run is no longer at work."""
    (folder / PROGRESS).unlink(missing_ok=True)


def record_notebook(folder: Path, executed: Mapping[str, Any]) -> None:
    """Add to a run's metrics the digest of the code that was executed, after the run's end.

    Args:
        executed: content of the notebook, as executed.
    """
    if metrics := read_record(folder / METRICS):
        used = metrics.get("used", {}) | {"notebook": code_hash(executed)}
        write_atomically(folder / METRICS, json.dumps(metrics | {"used": used}, indent=1))


def fail(folder: Path, message: str, trace: str = "") -> None:
    """Let a run's folder say that the run failed."""
    write_atomically(folder / ERROR, f"{message}\n\n{trace}".rstrip() + "\n")


def error_line(folder: Path) -> str:
    """The one-line message that a failed run has left."""
    file = folder / ERROR
    lines = (
        file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if file.is_file()
        else []
    )
    return lines[0] if lines else "no message"


def failed_by_itself(folder: Path) -> str:
    """The error of a run that would fail again; "" where it was killed, or its kernel was, or it has not failed."""
    if not (folder / ERROR).exists() or (folder / PROGRESS).exists():
        return ""
    line = error_line(folder)
    return "" if line.startswith(KILLED) else line


def images_record(sweep: str) -> dict[str, Any]:
    """What the preparation of a sweep's images left in images.json: `fingerprint`, `unreadable` (name to reason)...

    Returns:
        The file's content, nothing where they have not been prepared.
    """
    return read_record(run_folder(sweep, "images.json"), fingerprint=str, unreadable=dict | None)

"""The state of a run, decided here alone, and its error line.

runs/<sweep>/<run>/ holds `settings.json` once a sweep has laid it out; `progress.log` while the run is at work, which
stays if it is killed; `error.txt` after a failure: the one-line message, then the traceback; after success what
`OUTPUTS` names, `metrics.json` last. `state` looks at which files are there; `checked` reads them as well.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fixres_poc.config.files import CHECKPOINT, run_folder, write_atomically
from fixres_poc.config.sweep_settings import Run, SweepSettings

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
SETTINGS, PROGRESS, ERROR, JOB_DONE = "settings.json", "progress.log", "error.txt", "job.done"


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


def checked(sweep: str, run: Run, laid_out: str | None = None) -> Outcome:
    """The state after what a done run left was read and compared with what it should be.

    Args:
        laid_out: what settings.json has to hold; None accepts a run of another version of the code.

    Returns:
        "damaged" where metrics or predictions are not what was written; "outdated" where the run was made with other
        settings, from other images, or other than `laid_out` says.
    """
    folder, found = run_folder(sweep, run.name), state(sweep, run)
    if found != "done":
        return Outcome(run, found, error_line(folder) if found == "failed" else "")
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        settings, written = metrics.get("settings", {}), metrics.get("predictions_sha256")
        if written and file_sha256(folder / "predictions.parquet") != written:
            return Outcome(run, "damaged", "predictions.parquet is not what the run has written")
    except (OSError, ValueError, AttributeError):
        return Outcome(run, "damaged", "metrics.json cannot be read")
    wanted = json.loads(json.dumps(run.parameters))
    if changed := [key for key, value in settings.items() if wanted.get(key, value) != value]:
        return Outcome(run, "outdated", f"{OTHER_SETTINGS}: {', '.join(changed)}")
    now = images_record(sweep).get("fingerprint")
    if now and metrics.get("data") not in (None, now):
        return Outcome(run, "outdated", "made from other images than there are now")
    if laid_out is not None and _read(folder / SETTINGS) != laid_out:
        return Outcome(run, "outdated", "made with other code or weights")
    return Outcome(run, "done", metrics=metrics)


def checkpoint_is_intact(sweep: str, training: Outcome) -> bool:
    """Whether the checkpoint of a training that is done is there, as it was written. Only pairs need it."""
    file = run_folder(sweep, training.run.name) / CHECKPOINT
    written = training.get("checkpoint_sha256")
    return file.exists() and written in (None, file_sha256(file))


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's content, in hex digits."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def outcomes(sweep: SweepSettings) -> list[Outcome]:
    """What every run of a sweep left."""
    return [checked(sweep.name, run) for run in sweep.runs()]


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


def fail(folder: Path, message: str, trace: str = "") -> None:
    """Let a run's folder say that the run failed."""
    write_atomically(folder / ERROR, f"{message}\n\n{trace}".rstrip() + "\n")


def error_line(folder: Path) -> str:
    """The one-line message that a failed run has left."""
    lines = (_read(folder / ERROR) or "").strip().splitlines()
    return lines[0] if lines else "no message"


def failed_by_itself(folder: Path) -> str:
    """The error of a run that would fail again; "" where it was killed, or its kernel was, or it has not failed."""
    if not (folder / ERROR).exists() or (folder / PROGRESS).exists():
        return ""
    line = error_line(folder)
    return "" if line.startswith(KILLED) else line


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None


def images_record(sweep: str) -> dict[str, Any]:
    """What the preparation of a sweep's images left in images.json: `fingerprint`, `unreadable` (name to reason)...

    Returns:
        The file's content, nothing where they have not been prepared.
    """
    return dict(json.loads(_read(run_folder(sweep, "images.json")) or "{}"))

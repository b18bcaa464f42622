"""What one run leaves behind: predictions, metrics, versions and hardware, each file written atomically.

A run's folder holds `predictions.parquet` (one row per picture x split x adaptation x view) and, written last,
`metrics.json`; a failed run holds `error.txt` instead. Accuracies are fractions, top-1 unless said otherwise, on the
test split unless named val.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from fixres_poc import __version__
from fixres_poc.config import Run, Settings, run_folder
from fixres_poc.files import pictures_record, write_atomically
from fixres_poc.statistics import expected_calibration_error, macro_accuracy, wilson_interval

SHOWS_ONLY = ["plots", "network_plots", "tables", "discussion", "comparison", "size_prediction", "report", "results"]
SHOWS_ONLY += ["frontier", "plan", "monitor", "engine", "cli", "runner", "finished", "export"]
TOP = ["top1", "top2", "top3", "top4", "top5"]
TYPES = {"picture": "category", "split": "category", "adaptation": "category", "view": "category"}
TYPES |= dict.fromkeys(["target", *TOP], "int16") | {"probability": "float32"}
PACKAGES = ["torch", "torchvision", "timm", "accelerate", "numpy", "pandas", "scikit-learn", "scipy"]
PACKAGES += ["statsmodels", "papermill", "nbconvert"]


def library_hash(everything: bool = False) -> str:
    """16 hex digits that change with the library's code and data.

    Args:
        everything: with what only shows results that were made before, which is left out otherwise.
    """
    package = Path(__file__).parent
    files = [
        file for file in sorted(package.rglob("*")) if file.suffix in (".py", ".csv", ".j2", ".js", ".css", ".mplstyle")
    ]
    counted = [file for file in files if everything or (file.stem not in SHOWS_ONLY and file.suffix == ".py")]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in counted)).hexdigest()[:16]


def processor() -> str:
    """Name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def environment(gpu: str | None = None) -> dict[str, Any]:
    """Versions of Python and the main packages (those installed), and the machine's hardware.

    Args:
        gpu: name of the accelerator, None without one (asking for it would mean importing torch).

    Returns:
        `versions` (name to version) and `hardware` (cpu, cores, memory_bytes, gpu).
    """
    hardware = {"cpu": processor(), "cores": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total, "gpu": gpu}
    versions = {"python": platform.python_version(), "fixres_poc": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"versions": versions, "hardware": hardware}


def typed(predictions: pd.DataFrame) -> pd.DataFrame:
    """The predictions table with its columns in order and its compact types; probabilities rounded to 4 decimals.

    Raises:
        ValueError: a column is missing, or a split is neither val nor test.
    """
    missing = [name for name in TYPES if name not in predictions]
    if missing:
        raise ValueError(f"predictions lack the columns {missing}")
    if not set(predictions["split"]) <= {"val", "test"}:
        raise ValueError(f"splits {sorted(set(predictions['split']))}: allowed are val and test")
    return predictions[list(TYPES)].assign(probability=predictions["probability"].round(4)).astype(TYPES)


def write_run(
    folder: Path,
    settings: Settings,
    metrics: Mapping[str, Any],
    predictions: pd.DataFrame | None = None,
    gpu: str | None = None,
) -> None:
    """Write `predictions.parquet` and then `metrics.json`, each atomically, into a run's folder.

    Args:
        folder: the run's folder, made if absent.
        settings: the run's settings.
        metrics: what else the run measured, such as `seconds` ({"train": s, "adapt": {"head": s}, "evaluate": s}),
            `eval_images_per_second`, `peak_memory_bytes`, `classes` (names), `pictures` (number per split).
        predictions: columns picture, split (val or test), adaptation, view, target, top1..top5 (class indices, -1 where
            there are fewer than 5 classes) and probability (of top1).
        gpu: name of the accelerator.
    """
    content: dict[str, Any] = {"settings": settings.model_dump(mode="json")} | environment(gpu)
    if (folder / "settings.json").exists():  # a sweep's run: which pictures it was made from
        content["data"] = json.loads((folder / "settings.json").read_text(encoding="utf-8")).get("data")
    if predictions is not None:
        predictions = typed(predictions)
        packed = parquet(predictions)
        write_atomically(folder / "predictions.parquet", packed)
        content["predictions_sha256"] = hashlib.sha256(packed).hexdigest()
        content["accuracies"] = json.loads(summarise(predictions).to_json(orient="records") or "[]")
    write_atomically(folder / "metrics.json", json.dumps(content | dict(metrics), indent=1))


def intact(folder: Path) -> bool:
    """Whether a run's metrics.json can be read and its predictions, if it has any, are those it was written with."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        written = metrics.get("predictions_sha256")
        return not written or hashlib.sha256((folder / "predictions.parquet").read_bytes()).hexdigest() == written
    except (OSError, ValueError, AttributeError):
        return False


def parquet(table: pd.DataFrame) -> bytes:
    """The table as a Parquet file, packed as small as it gets."""
    buffer = BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd", compression_level=19)
    return buffer.getvalue()


def summarise(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per adaptation and view, in their order of appearance.

    Returns:
        Columns adaptation, view, n_val, val_top1, n_test, top1, top1_low and top1_high (95 % Wilson), top5,
        macro_accuracy, ece (15 bins).
    """
    cells = predictions.groupby(["adaptation", "view"], sort=False, observed=True)
    return pd.DataFrame(
        [dict(zip(["adaptation", "view"], key, strict=True)) | _accuracies(cell) for key, cell in cells]
    )


def _accuracies(cell: pd.DataFrame) -> dict[str, float]:
    val, test = cell[cell["split"] == "val"], cell[cell["split"] == "test"]
    correct = test["target"] == test["top1"]
    low, high = wilson_interval(int(correct.sum()), len(test))
    return {
        "n_val": len(val),
        "val_top1": (val["target"] == val["top1"]).mean(),
        "n_test": len(test),
        "top1": correct.mean(),
        "top1_low": low,
        "top1_high": high,
        "top5": test[TOP].eq(test["target"], axis=0).any(axis=1).mean(),
        "macro_accuracy": macro_accuracy(test["target"], test["top1"]),
        "ece": expected_calibration_error(test["probability"], correct),
    }


@dataclass(frozen=True)
class Outcome:
    """What a run of a sweep left: its status (ok, failed, outdated, missing), its error's first line, its metrics."""

    run: Run
    status: str
    error: str = ""
    metrics: Mapping[str, Any] | None = None

    def get(self, *keys: str) -> Any:
        """The entry of the run's metrics at these keys, None where there is none."""
        value: Any = self.metrics
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def total_seconds(self) -> float:
        """Sum of all the times the run measured."""
        return _total(self.get("seconds"))


def _total(seconds: Any) -> float:
    if isinstance(seconds, Mapping):
        return sum(_total(value) for value in seconds.values())
    return float(seconds or 0)


def outcome(sweep: str, run: Run) -> Outcome:
    """How a run of a sweep ended; outdated means that its settings were others than the sweep's are now."""
    folder = run_folder(sweep, run.name)
    if (folder / "metrics.json").exists():
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(run.parameters))
        changed = [key for key, value in metrics["settings"].items() if wanted.get(key, value) != value]
        if changed:
            return Outcome(run, "outdated", f"made with other settings: {', '.join(changed)}")
        now = pictures_record(sweep).get("fingerprint")
        if now and metrics.get("data") not in (None, now):
            return Outcome(run, "outdated", "made from other pictures than there are now")
        return Outcome(run, "ok", metrics=metrics)
    if (folder / "error.txt").exists():
        lines = (folder / "error.txt").read_text(encoding="utf-8").strip().splitlines()
        return Outcome(run, "failed", lines[0] if lines else "no message")
    return Outcome(run, "missing")

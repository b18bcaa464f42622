"""What one run leaves behind: predictions, metrics, versions and hardware.

A run's folder holds `predictions.parquet` (one row per image x test resolution x adaptation x view
x crop_pct) and, written last, `metrics.json`. Accuracies are top-1, as fractions, on a test part
unless named otherwise.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from fixres_poc.analysis.cells import KEY
from fixres_poc.analysis.statistics import (
    expected_calibration_error,
    macro_accuracy,
    wilson_interval,
)
from fixres_poc.config.files import file_digest, resolve, run_folder, write_atomically
from fixres_poc.config.notebooks import METRICS, PREDICTIONS
from fixres_poc.config.provenance import LIBRARY, environment
from fixres_poc.config.settings import EQUAL_FLOPS, RunSettings, Settings
from fixres_poc.data.dataset import ImageDataset

TOP = ["top1", "top2", "top3", "top4", "top5"]
TYPES = {
    "image": "category",
    "split": "category",
    "train_size": "Int64",
    "test_size": "int16",
    "adaptation": "category",
    "view": "category",
    "crop_pct": "float64",
    "seed": "int32",
}
TYPES |= dict.fromkeys(["target", *TOP], "int16") | {"probability": "float32"}
REPORTED = [name for name in TYPES if name not in TOP[1:]]
"""Columns of a report's predictions.parquet: without further classes, which no report reads."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Measurements of a notebook, for metrics.json; fields that are None are not written."""

    classes: Sequence[str] | None = None  # names, in the order of the labels
    images: Mapping[str, int] | None = None  # number per split
    # {"train": s, "adapt": {adaptation: s}, "evaluate": s}, or parts of it
    seconds: Mapping[str, Any] | None = None
    # by view; of the linear probe by test resolution
    eval_images_per_second: Mapping[str, float] | None = None
    peak_memory_bytes: int | None = None
    images_at_once: int | None = None  # in the frozen network
    memory: Mapping[str, Any] | None = None  # of `epochs.memory_facts`
    history: Mapping[str, list[Any]] | None = None  # of stage 1, by column
    epochs: int | None = None  # of stage 1
    steps: int | None = None  # of the optimizer, in stage 1
    # a mapping or dataclass: choices on validation among the values of the settings
    choices: Any = None
    # the alternatives, with validation accuracies
    tried: Mapping[str, list[Any]] | None = None
    zero_shot: str | None = None  # sentence on the classes that the pre-trained classifier has
    left_out: Sequence[str] | None = None  # lines on values of crop_pct that were not tried
    leakage: Mapping[str, Any] | None = None  # findings of the leakage check
    activations: list[dict[str, Any]] | None = None  # rows of `equalise.summary`, by framing
    parameters: int | None = None  # of the backbone
    published: int | None = None  # number of published networks shown
    data: str | None = None  # fingerprint of the images that were read
    checkpoint: str | None = None  # SHA-256 of the training's checkpoint


def record_run(
    settings: RunSettings,
    data: ImageDataset | None = None,
    predictions: pd.DataFrame | None = None,
    **measured: Any,
) -> None:
    """Write a notebook's results into its run's folder, with data, GPU and peak memory.

    Args:
        measured: fields of `Metrics`; tables are written by column.

    Raises:
        TypeError: `Metrics` has no such field.
    """
    # imports torch
    from fixres_poc.model.device import device_name, peak_memory_bytes

    if data is not None:
        measured |= {"data": data.fingerprint(), "classes": data.classes, "images": data.counts()}
    for name, value in measured.items():
        if isinstance(value, pd.DataFrame):
            measured[name] = value.to_dict("list")
    metrics = Metrics(**measured, peak_memory_bytes=peak_memory_bytes())
    folder = run_folder(settings.sweep, settings.run_name)  # type: ignore[attr-defined]  # every notebook's has one
    write_run(folder, settings, metrics, predictions, device_name())


def write_run(
    folder: Path,
    settings: Settings,
    metrics: Metrics,
    predictions: pd.DataFrame | None = None,
    gpu: str | None = None,
) -> None:
    """Write `predictions.parquet` and then `metrics.json`, each atomically, into a run's folder.

    Args:
        predictions: columns image, split (val, test, or the extra test part's name), test_size
            (px), adaptation, view, crop_pct, target, top1..top5 (class indices, -1 where there are
            fewer than 5 classes) and probability (of top1). The file also has the settings' seed
            and train_size (px; empty for a notebook that does not train at a resolution).
        gpu: name of the accelerator.

    Raises:
        KeyError: the predictions lack a column.
        ValueError: the predictions include train images.
    """
    content: dict[str, Any] = {"settings": settings.model_dump(mode="json")} | environment(gpu)
    # a sweep's kernel sets it
    begun = float(os.environ.get("FIXRES_BEGUN") or psutil.Process().create_time())
    content["wall_seconds"] = time.time() - begun
    if predictions is not None:
        if "train" in set(predictions["split"]):
            raise ValueError("split 'train': only val and test parts are predicted")
        values = content["settings"]
        predictions = predictions.assign(train_size=values.get("train_size"), seed=values["seed"])
        if values.get("equal_flops"):
            predictions["adaptation"] = EQUAL_FLOPS + predictions["adaptation"]
        predictions = predictions[list(TYPES)].round({"probability": 4}).astype(TYPES)
        packed = parquet(predictions)
        write_atomically(folder / PREDICTIONS, packed)
        content["predictions_sha256"] = hashlib.sha256(packed).hexdigest()
        content["accuracies"] = json.loads(summarise(predictions).to_json(orient="records") or "[]")
    measured = {key: value for key, value in asdict(metrics).items() if value is not None}
    content["used"] = _used(settings) | {
        key: measured.pop(key) for key in ("data", "checkpoint") if key in measured
    }
    write_atomically(folder / METRICS, json.dumps(content | measured, indent=1))


def _used(settings: Settings) -> dict[str, str]:
    """Digests of library and weights; the caller of the notebook adds that of its code."""
    used = {"library": LIBRARY}
    if path := getattr(settings, "imagenet_list", None):
        used["imagenet_list"] = str(file_digest(resolve(path)))
    if path := getattr(settings, "weights", None):
        from fixres_poc.model.weights import fingerprint  # imports torch

        used["weights"] = str(fingerprint(path))
    return used


def parquet(table: pd.DataFrame) -> bytes:
    """The table as a Parquet file, in the strongest compression."""
    buffer = BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd", compression_level=19)
    return buffer.getvalue()


def summarise(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and test part, in order of appearance, "test" before an extra part.

    Returns:
        The columns of `KEY` that the predictions have, test_part, n_val, val_top1, n_test, top1,
        top1_low and top1_high (95 % Wilson), top5, macro_accuracy, ece (15 bins).
    """
    names = [name for name in KEY if name in predictions]
    rows = []
    for key, cell in predictions.groupby(names, sort=False, observed=True, dropna=False):
        extra = sorted(set(cell["split"]) - {"val", "test"})
        for part in ["test", *extra]:
            rows.append(
                {**dict(zip(names, key, strict=True)), "test_part": part, **_accuracies(cell, part)}
            )
    return pd.DataFrame(rows)


def _accuracies(cell: pd.DataFrame, part: str) -> dict[str, float]:
    val, test = cell[cell["split"] == "val"], cell[cell["split"] == part]
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

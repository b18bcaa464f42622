"""From a sweep's runs to the tables of its report.

`collect` writes results.csv, predictions.parquet, images.csv and sweep.json into reports/<sweep>/;
`results` reads these four files, not the runs. Accuracies are fractions on a test part unless named
val.
"""

import csv
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from fixres_poc.analysis.cells import COLUMNS, COUNTS, KEY, MEASURED, PAIR, guarded, read_table
from fixres_poc.analysis.record import REPORTED, TYPES, parquet, summarise
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import (
    impersonal,
    named_paths,
    read_lines,
    report_folder,
    resolve,
    run_folder,
    write_atomically,
)
from fixres_poc.config.geometry import usual_crop_pct
from fixres_poc.config.notebooks import PREDICTIONS
from fixres_poc.config.run_state import Outcome, images_record
from fixres_poc.config.settings import ADAPTED, CONTROL, EQUAL_FLOPS, SPLITS, several
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.method.apparent_size import pair_ratios, sample_crops

log = logging.getLogger(__name__)


def collect(sweep: SweepSettings, done: Sequence[Outcome]) -> pd.DataFrame:
    """Write results.csv, predictions.parquet, images.csv and sweep.json into reports/<sweep>/.

    Args:
        done: outcome of each of its runs, from `run_state.outcomes`.

    Returns:
        The table of results.csv: a row per cell and test part, of failed and missing runs too.

    Raises:
        InputError: no run has finished or failed.
    """
    if all(outcome.status in ("missing", "waiting") for outcome in done):
        raise InputError(
            f"sweep {sweep.name}: none of its runs has finished yet, so there is nothing to report;"
            " run it with `make sweep`"
        )
    outcomes = {outcome.run.name: outcome for outcome in done}
    shown = [outcome for outcome in done if outcome.run.notebook in ("02_baseline", "04_fixres")]
    predictions = {
        outcome.run.name: pd.read_parquet(run_folder(sweep.name, outcome.run.name) / PREDICTIONS)
        for outcome in shown
        if outcome.status == "done"
    }
    rows = [_rows(outcome, outcomes, predictions.get(outcome.run.name)) for outcome in shown]
    usual = usual_crop_pct(sweep.crop_pct)
    table = _with_choices(pd.concat(rows, ignore_index=True).astype(COUNTS | MEASURED), usual)
    predicted = pd.concat([*predictions.values()] or [pd.DataFrame(columns=[*TYPES])])
    predicted = _without_rejected(predicted.astype(TYPES), table, usual)
    folder = report_folder(sweep.name)
    if (images := run_folder(sweep.name, "images.csv")).exists():
        listed = read_table(images)
        listed["looked_at"] = looked_at(sweep, listed["image"])
        table = _with_ratios(table, listed, sweep)
        listed["image"] = listed["image"].map(guarded)
        # pandas leaves a lone \r unquoted
        text = listed.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
        write_atomically(folder / "images.csv", text)
    write_atomically(folder / PREDICTIONS, parquet(predicted[REPORTED]))
    private = named_paths(sweep.model_dump())  # a report may be published
    summary = impersonal(_summary(sweep, done, table), *private)
    write_atomically(folder / "sweep.json", json.dumps(summary, indent=1, ensure_ascii=False))
    safe = table.assign(error=list(map(guarded, impersonal(list(table["error"]), *private))))
    write_atomically(folder / "results.csv", safe.to_csv(index=False, float_format="%.6g"))
    return table


def looked_at(sweep: SweepSettings, images: Iterable[str]) -> list[bool]:
    """Whether each image was looked at before the sweep was laid out, by its file name.

    Raises:
        InputError: the list that the sweep names cannot be read, or names no image of these.
    """
    names = [PurePath(image).name for image in images]
    if sweep.looked_at is None:
        return [False] * len(names)
    lines = read_lines(resolve(sweep.looked_at), "looked_at")
    seen = {PurePath(line).name for line in lines}
    if unknown := sorted(seen.difference(names)):
        message = (
            f"looked_at = {sweep.looked_at!r}: {len(unknown)} of its {len(seen)} names are no "
            f"images of the dataset, such as {unknown[0]}"
        )
        if len(unknown) == len(seen):
            raise InputError(message)
        log.warning(printable(message))
    return [name in seen for name in names]


def _planned(parameters: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of a run that left no predictions, by its parameters."""
    sizes = parameters.get("test_sizes") or [parameters["test_size"]]
    names = list(parameters.get("adaptations", ["probe"]))
    if parameters.get("train_size") not in (None, *sizes):
        names += [CONTROL + name for name in names if name in ADAPTED]
    if parameters.get("equal_flops"):
        names = [EQUAL_FLOPS + name for name in names]
    crops = parameters["crop_pct"]
    cells = product(sizes, names, parameters.get("views", ["center"]), several(crops))
    rows = pd.DataFrame(cells, columns=["test_size", "adaptation", "view", "crop_pct"])
    tried = rows["test_size"].isin(parameters.get("crop_pct_sizes") or sizes)
    rows = rows[tried | (rows["crop_pct"] == usual_crop_pct(crops))]
    train_size, seed = parameters.get("train_size"), parameters["seed"]
    return rows.assign(train_size=train_size, seed=seed, test_part="test")


def _rows(
    outcome: Outcome, outcomes: Mapping[str, Outcome], predictions: pd.DataFrame | None
) -> pd.DataFrame:
    """A run's rows of results.csv; `predictions` is None if it left none."""
    run = outcome.run
    training = outcomes[run.needs[0]] if run.needs else outcome
    rows = _planned(run.parameters) if predictions is None else summarise(predictions)
    error = outcome.error
    if outcome.status in ("missing", "waiting") and training.status == "failed":
        error = f"{training.run.name} failed: {training.error}"
    controls = training.get("seconds", "adapt") or {}
    adapt_s = outcome.get("seconds", "adapt") or {}
    adapt_s = adapt_s | {CONTROL + name: seconds for name, seconds in controls.items()}
    train_s = pd.Series([training.get("seconds", name) for name in ("probe", "train")], dtype=float)
    timed_by = rows["view"] if run.needs else rows["test_size"].astype(str)
    speeds = timed_by.map(outcome.get("eval_images_per_second") or {})
    table = rows.assign(
        # zero_shot is not timed: the speeds of its run are the probe's
        eval_images_per_second=speeds.mask(rows["adaptation"] == "zero_shot"),
        peak_memory_bytes=outcome.get("peak_memory_bytes"),
        train_seconds=train_s.sum(min_count=1),
        adapt_seconds=rows["adaptation"].map(adapt_s),
        status=outcome.status,
        error=error,
    )
    return table.reindex(columns=COLUMNS)


def _with_choices(table: pd.DataFrame, usual: float) -> pd.DataFrame:
    """Add crop_pct_chosen: the value with an arm's best mean over seeds on validation.

    Ties go to `usual`, then to the value nearest to it, then to the smaller value. A control has
    the value of its arm; an arm that was not run has `usual`.
    """
    control = table["adaptation"].str.startswith(CONTROL)
    names = table["adaptation"].str.removeprefix(CONTROL)
    arm = [names, *(table[name] for name in (*PAIR, "view"))]
    top1 = table["val_top1"].mask(control).astype("float64")
    mean = top1.groupby([*arm, table["crop_pct"]], dropna=False).transform("mean")
    mean = mean.fillna(-1).round(9)
    best = mean == mean.groupby(arm, dropna=False).transform("max")
    distance = ((table["crop_pct"] - usual).abs() + 1e-9 * table["crop_pct"]).where(best, np.inf)
    chosen = distance == distance.groupby(arm, dropna=False).transform("min")
    return table.assign(crop_pct_chosen=chosen)


def _without_rejected(predictions: pd.DataFrame, table: pd.DataFrame, usual: float) -> pd.DataFrame:
    """Sorted, without validation rows of a crop_pct that is neither chosen nor `usual`."""
    ordered = predictions.sort_values(["split", "image", *KEY], ignore_index=True)
    tried = ordered[(ordered["split"] == "val") & (ordered["crop_pct"] != usual)]
    tried_cells, chosen_cells = (
        pd.MultiIndex.from_frame(rows[KEY].astype("str"))
        for rows in (tried, table[table["crop_pct_chosen"]])
    )
    return ordered.drop(index=tried.index[~tried_cells.isin(chosen_cells)])


def _with_ratios(table: pd.DataFrame, images: pd.DataFrame, sweep: SweepSettings) -> pd.DataFrame:
    """Add size_ratio, the mean ratio over crops of these images; 1 for probe and zero-shot.

    Probe and zero-shot see no random crop: their train images are framed as in the test.
    """
    crops = sample_crops(images[images["split"].isin(SPLITS)], crop_scale=sweep.crop_scale)
    pairs = list(table[PAIR].dropna().drop_duplicates().itertuples(index=False, name=None))
    ratios = pd.concat(
        pair_ratios(crops, pairs, sweep.resize, crop_pct).assign(crop_pct=crop_pct)
        for crop_pct in table["crop_pct"].unique()
    ).rename(columns={"mean_of_ratios": "size_ratio"})
    on = [*PAIR, "crop_pct"]
    table = table.drop(columns="size_ratio").astype({"test_size": "Int64"})
    table = table.merge(ratios[[*on, "size_ratio"]], "left", on)[COLUMNS]
    return table.assign(size_ratio=table["size_ratio"].mask(table["train_size"].isna(), 1.0))


def _flops(backbone: str, classes: int, table: pd.DataFrame) -> dict[str, int]:
    """FLOPs of one crop by resolution (px), so that readers of the tables need no torch."""
    from fixres_poc.model.memory_plan import parameters_and_flops  # imports torch

    sizes = sorted({*table["train_size"].dropna(), *table["test_size"]}) if classes else ()
    return {str(size): parameters_and_flops(backbone, classes, int(size))[1] for size in sizes}


def _summary(
    sweep: SweepSettings, outcomes: Collection[Outcome], table: pd.DataFrame
) -> dict[str, Any]:
    """The content of sweep.json."""
    parameters = ("train_size", "test_size", "seed")
    measured = ("wall_seconds", "activations", "choices", "epochs", "steps")
    runs = [
        {
            "name": outcome.run.name,
            "notebook": outcome.run.notebook,
            "status": outcome.status,
            "error": outcome.error,
            "equal_flops": bool(outcome.run.parameters.get("equal_flops")),
            **{key: outcome.run.parameters.get(key) for key in parameters},
            **{key: outcome.get(key) for key in measured},
        }
        for outcome in outcomes
    ]
    facts = {
        key: next(filter(None, (outcome.get(key) for outcome in outcomes)), None)
        for key in ("versions", "hardware", "classes", "images", "leakage", "zero_shot")
    }
    if facts["leakage"] and facts["zero_shot"]:  # the report gives both as one warning
        verdict = f"{facts['leakage']['verdict']} {facts['zero_shot']}"
        facts["leakage"] = facts["leakage"] | {"verdict": verdict}
    prepared = images_record(sweep.name)
    facts |= {key: prepared.get(key) for key in ("unreadable", "parts")}
    facts["classes"] = facts["classes"] or prepared.get("classes")
    listed = run_folder(sweep.name, "images.csv")
    if facts["images"] is None and listed.exists():
        facts["images"] = read_table(listed)["split"].value_counts().to_dict()
    facts["image_flops"] = _flops(sweep.backbone, len(facts["classes"] or ()), table)
    facts["date"] = datetime.now(UTC).date().isoformat()
    settings = sweep.model_dump(mode="json") | {"primary": sweep.primary_pair()}
    return {"settings": settings, "runs": runs, **facts}

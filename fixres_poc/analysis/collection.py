"""From a sweep's runs to the tables of its report.

`collect` writes results.csv, predictions.parquet, images.csv and sweep.json into reports/<sweep>/;
`results` reads these four, without the runs. Accuracies are fractions on a test part unless named
val.
"""

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from fixres_poc.analysis.cells import COLUMNS, COUNTS, KEY, MEASURED, PAIR, guarded, read_table
from fixres_poc.analysis.record import TYPES, parquet, summarise
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import (
    impersonal,
    named_paths,
    report_folder,
    resolve,
    run_folder,
    write_atomically,
)
from fixres_poc.config.geometry import usual_crop_pct
from fixres_poc.config.run_state import Outcome, images_record
from fixres_poc.config.settings import ADAPTED, CONTROL, EQUAL_FLOPS, SPLITS, several
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.method.apparent_size import pair_ratios, sample_crops

PREDICTIONS = "predictions.parquet"


def collect(sweep: SweepSettings, done: Sequence[Outcome]) -> pd.DataFrame:
    """Write results.csv, predictions.parquet, images.csv and sweep.json into reports/<sweep>/.

    Args:
        done: what each of its runs left, from `run_state.outcomes`.

    Returns:
        The table of results.csv: `COLUMNS`, one row per cell and test part, cells of failed and
        missing runs included.

    Raises:
        InputError: no run has left anything, so there is nothing to report.
    """
    if all(each.status in ("missing", "waiting") for each in done):
        raise InputError(
            f"sweep {sweep.name}: none of its runs has finished yet, so there is nothing to report"
        )
    outcomes = {each.run.name: each for each in done}
    shown = [each for each in done if each.run.notebook in ("02_baseline", "04_fixres")]
    tables = {
        each.run.name: pd.read_parquet(run_folder(sweep.name, each.run.name) / PREDICTIONS)
        for each in shown
        if each.status == "done"
    }
    every = pd.concat([*tables.values()] or [pd.DataFrame(columns=[*TYPES])])
    parts = [_rows(each, outcomes, tables.get(each.run.name)) for each in shown]
    usual = usual_crop_pct(sweep.crop_pct)
    table = _with_choices(pd.concat(parts, ignore_index=True).astype(COUNTS | MEASURED), usual)
    predictions = _without_rejected(every.astype(TYPES), table, usual)
    folder = report_folder(sweep.name)
    if (images := run_folder(sweep.name, "images.csv")).exists():
        listed, seen = read_table(images), looked_at(sweep)
        listed["looked_at"] = [PurePath(image).name in seen for image in listed["image"]]
        table = _with_ratios(table, listed, sweep)
        listed["image"] = listed["image"].map(guarded)
        # pandas leaves a lone \r unquoted
        text = listed.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
        write_atomically(folder / "images.csv", text)
    write_atomically(folder / PREDICTIONS, parquet(predictions))
    private = named_paths(sweep.model_dump())  # the report may be passed on
    summary = impersonal(_summary(sweep, done, table), *private)
    write_atomically(folder / "sweep.json", json.dumps(summary, indent=1, ensure_ascii=False))
    safe = table.assign(error=list(map(guarded, impersonal(list(table["error"]), *private))))
    write_atomically(folder / "results.csv", safe.to_csv(index=False, float_format="%.6g"))
    return table


def looked_at(sweep: SweepSettings) -> set[str]:
    """File names of the test images that were looked at before the sweep was laid out.

    Raises:
        InputError: the list that the sweep names cannot be read.
    """
    if sweep.looked_at is None:
        return set()
    try:
        return set(resolve(sweep.looked_at).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"looked_at = {sweep.looked_at!r}: cannot be read ({error})") from None


def _wanted(given: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of a run that left no predictions, by its parameters."""
    sizes, values = given.get("test_sizes") or [given["test_size"]], several(given["crop_pct"])
    names = list(given.get("adaptations", ["probe"]))
    if given.get("train_size") not in (None, *sizes):
        names += [CONTROL + name for name in names if name in ADAPTED]
    if given.get("equal_flops"):
        names = [EQUAL_FLOPS + name for name in names]
    cells = product(sizes, names, given.get("views", ["center"]), values)
    rows = pd.DataFrame(cells, columns=["test_size", "adaptation", "view", "crop_pct"])
    tried = rows["test_size"].isin(given.get("crop_pct_sizes") or sizes)
    rows = rows[tried | (rows["crop_pct"] == usual_crop_pct(given["crop_pct"]))]
    return rows.assign(train_size=given.get("train_size"), seed=given["seed"], test_part="test")


def _rows(
    each: Outcome, outcomes: Mapping[str, Outcome], predictions: pd.DataFrame | None
) -> pd.DataFrame:
    training = outcomes[each.run.needs[0]] if each.run.needs else each
    rows = _wanted(each.run.parameters) if predictions is None else summarise(predictions)
    error = each.error
    if each.status in ("missing", "waiting") and training.status == "failed":
        error = f"{training.run.name} failed: {training.error}"
    adapted, controls = (run.get("seconds", "adapt") or {} for run in (each, training))
    seconds = adapted | {CONTROL + name: s for name, s in controls.items()}
    trained = pd.Series([training.get("seconds", name) for name in ("probe", "train")], dtype=float)
    speeds = rows["view"] if each.run.needs else rows["test_size"].astype(str)
    speeds = speeds.map(each.get("eval_images_per_second") or {})
    table = rows.assign(
        # zero_shot was not timed: a probe's run has the probe's speeds
        eval_images_per_second=speeds.mask(rows["adaptation"] == "zero_shot"),
        peak_memory_bytes=each.get("peak_memory_bytes"),
        train_seconds=trained.sum(min_count=1),
        adapt_seconds=rows["adaptation"].map(seconds),
        status=each.status,
        error=error,
        crop_pct_chosen=True,
    )
    return table.reindex(columns=COLUMNS)


def _with_choices(table: pd.DataFrame, usual: float) -> pd.DataFrame:
    """Add crop_pct_chosen: the value with an arm's best mean over seeds on validation.

    Ties go to `usual`, then to the nearest to it, then to the smaller. A control has the value of
    the arm that it controls; an arm that was not run has `usual`.
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
    """In order, without validation rows of a crop_pct that is neither chosen nor `usual`."""
    ordered = predictions.sort_values(["split", "image", *KEY], ignore_index=True)
    tried = ordered[(ordered["split"] == "val") & (ordered["crop_pct"] != usual)]
    own, chosen = (
        pd.MultiIndex.from_frame(rows[KEY].astype("str"))
        for rows in (tried, table[table["crop_pct_chosen"]])
    )
    return ordered.drop(index=tried.index[~own.isin(chosen)])


def _with_ratios(table: pd.DataFrame, images: pd.DataFrame, sweep: SweepSettings) -> pd.DataFrame:
    """Add size_ratio: mean of ratios over crops of these images; 1 for probe and zero-shot.

    These two see no random crop: what they were fitted on was framed as in the test.
    """
    crops = sample_crops(images[images["split"].isin(SPLITS)], crop_scale=sweep.crop_scale)
    pairs = list(table[PAIR].dropna().drop_duplicates().itertuples(index=False, name=None))
    ratios = pd.concat(
        pair_ratios(crops, pairs, sweep.resize, value).assign(crop_pct=value)
        for value in table["crop_pct"].unique()
    ).rename(columns={"mean_of_ratios": "size_ratio"})
    place = [*PAIR, "crop_pct"]
    own = table.drop(columns="size_ratio").astype({"test_size": "Int64"})
    found = own.merge(ratios[[*place, "size_ratio"]], "left", place)[COLUMNS]
    return found.assign(size_ratio=found["size_ratio"].mask(found["train_size"].isna(), 1.0))


def _flops(backbone: str, classes: int, table: pd.DataFrame) -> dict[str, int]:
    """FLOPs of one crop by resolution (px), so that who reads the tables needs no torch."""
    from fixres_poc.model.memory_plan import parameters_and_flops  # here, since it brings in torch

    sizes = sorted({*table["train_size"].dropna(), *table["test_size"]}) if classes else ()
    return {str(size): parameters_and_flops(backbone, classes, int(size))[1] for size in sizes}


def _summary(
    sweep: SweepSettings, outcomes: Collection[Outcome], table: pd.DataFrame
) -> dict[str, Any]:
    parameters = ("train_size", "test_size", "seed")
    measured = ("wall_seconds", "activations", "choices", "epochs", "steps")
    runs = [
        {
            "name": each.run.name,
            "notebook": each.run.notebook,
            "status": each.status,
            "error": each.error,
            "equal_flops": bool(each.run.parameters.get("equal_flops")),
            **{key: each.run.parameters.get(key) for key in parameters},
            **{key: each.get(key) for key in measured},
        }
        for each in outcomes
    ]
    facts = ("versions", "hardware", "classes", "images", "leakage", "zero_shot")
    known = {
        key: next((each.get(key) for each in outcomes if each.get(key)), None) for key in facts
    }
    if known["leakage"] and known["zero_shot"]:  # one warning, wherever the report gives it
        known["leakage"] = known["leakage"] | {
            "verdict": f"{known['leakage']['verdict']} {known['zero_shot']}"
        }
    known |= {key: images_record(sweep.name).get(key) for key in ("unreadable", "parts")}
    known["image_flops"] = _flops(sweep.backbone, len(known["classes"] or ()), table)
    known["date"] = datetime.now(UTC).date().isoformat()
    settings = sweep.model_dump(mode="json") | {"primary": sweep.primary_pair()}
    return {"settings": settings, "runs": runs, **known}

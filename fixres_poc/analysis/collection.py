"""From a sweep's runs to the tables of its report.

`collect` writes results.csv, predictions.parquet, images.csv and sweep.json into reports/<sweep>/; `results` reads
these four, without the runs. A cell is one train size x test size x adaptation x view x seed.
Accuracies are fractions on the test split unless named val.
"""

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from fixres_poc.analysis.cells import (
    CELL_TYPES,
    COLUMNS,
    COUNTS,
    MEASURED,
    ONCE,
    Cell,
    aligned,
    correct_by_cell,
    guarded,
    keys,
)
from fixres_poc.analysis.record import TYPES, parquet, summarise
from fixres_poc.analysis.statistics import holm, mcnemar_p
from fixres_poc.config.atomic import write_atomically
from fixres_poc.config.errors import InputError
from fixres_poc.config.paths import impersonal, report_folder, run_folder
from fixres_poc.config.run_state import Outcome, images_record
from fixres_poc.config.settings import BASELINE_SIZE, SweepSettings
from fixres_poc.geometry.formulas import size_ratio


def collect(sweep: SweepSettings, done: Sequence[Outcome]) -> pd.DataFrame:
    """Write results.csv, predictions.parquet, images.csv and sweep.json into reports/<sweep>/.

    Args:
        done: what each of its runs left, from `run_state.outcomes`.

    Returns:
        The table of results.csv: `COLUMNS`, one row per cell, cells of failed and missing runs included.

    Raises:
        InputError: no run has left anything, so there is nothing to report.
    """
    outcomes = {each.run.name: each for each in done}
    if all(each.status in ("missing", "waiting") for each in done):
        raise InputError(f"sweep {sweep.name}: none of its runs has finished yet, so there is nothing to report")
    shown = [each for each in outcomes.values() if each.run.notebook in ("02_baseline", "04_fixres")]
    tables = {each.run.name: _predictions(sweep.name, each) for each in shown if each.status == "done"}
    every = pd.concat([*tables.values()] or [pd.DataFrame(columns=[*TYPES, *CELL_TYPES])]).astype(TYPES | CELL_TYPES)
    predictions = every.sort_values(["split", "image", *CELL_TYPES, "adaptation", "view"])
    rows = [_rows(each, outcomes, tables.get(each.run.name)) for each in shown]
    table = _with_tests(pd.concat(rows, ignore_index=True).astype(COUNTS | MEASURED), predictions)
    folder, images = report_folder(sweep.name), run_folder(sweep.name, "images.csv")
    if images.exists():
        listed = pd.read_csv(images).assign(image=lambda table: table["image"].map(guarded))
        text = listed.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)  # pandas leaves a lone \r unquoted
        write_atomically(folder / "images.csv", text)
    write_atomically(folder / "predictions.parquet", parquet(predictions))
    private = (sweep.dataset, sweep.weights)  # the report may be passed on
    summary = json.dumps(_summary(sweep, outcomes.values()), indent=1, ensure_ascii=False)
    write_atomically(folder / "sweep.json", impersonal(summary, *private))
    safe = table.assign(error=table["error"].map(guarded))
    write_atomically(folder / "results.csv", impersonal(safe.to_csv(index=False, float_format="%.6g"), *private))
    return table


def _cell(each: Outcome) -> dict[str, int]:
    return {key: each.run.parameters.get(key, BASELINE_SIZE) for key in CELL_TYPES}


def _predictions(sweep: str, each: Outcome) -> pd.DataFrame:
    return pd.read_parquet(run_folder(sweep, each.run.name) / "predictions.parquet").assign(**_cell(each))


def _rows(each: Outcome, outcomes: Mapping[str, Outcome], predictions: pd.DataFrame | None) -> pd.DataFrame:
    training = outcomes[each.run.needs[0]] if each.run.needs else each
    if predictions is None:
        cells = [each.run.parameters.get("adaptations", ["baseline"]), each.run.parameters.get("views", ["center"])]
        rows = pd.DataFrame(product(*cells), columns=["adaptation", "view"])
    else:
        rows = summarise(predictions)
    error = each.error
    if each.status in ("missing", "waiting") and training.status == "failed":
        error = f"{training.run.name} failed: {training.error}"
    adapt = (each.get("seconds", "adapt") or {}) | (training.get("seconds", "adapt") or {})
    speed = each.get("eval_images_per_second")
    measured = {
        "eval_images_per_second": rows["view"].map(speed if isinstance(speed, Mapping) else {"center": speed}),
        "peak_memory_bytes": each.get("peak_memory_bytes"),
        "train_seconds": training.get("seconds", "train"),
        "adapt_seconds": rows["adaptation"].map(adapt),
    }
    table = rows.assign(**_cell(each), **measured, status=each.status, error=error).reindex(columns=COLUMNS)
    table.loc[table["adaptation"] == "zero_shot", "eval_images_per_second"] = float("nan")  # that is the baseline's
    return table


def _with_tests(table: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    correct = correct_by_cell(predictions)
    baseline = next((cell for cell in correct if cell.adaptation == "baseline"), None)

    def p_value(cell: Cell, reference: Cell | None) -> float:
        if reference is None or reference == cell or not {reference, cell} <= correct.keys():
            return float("nan")
        return mcnemar_p(*aligned(correct[cell], correct[reference]))

    cells = keys(table)
    same = [None if c.adaptation in ONCE else Cell(c.train_size, c.train_size, "none", c.seed) for c in cells]
    against = pd.Series([p_value(cell, baseline) for cell in cells], dtype=float)
    against_same = pd.Series([p_value(*pair) for pair in zip(cells, same, strict=True)], dtype=float)
    return table.assign(
        size_ratio=[size_ratio(cell.train_size, cell.test_size) for cell in cells],
        p_vs_baseline=against.groupby(table["seed"]).transform(holm),
        p_vs_same_size=against_same.groupby([table["train_size"], table["seed"]]).transform(holm),
    )


def _summary(sweep: SweepSettings, outcomes: Collection[Outcome]) -> dict[str, Any]:
    runs = [
        {"name": each.run.name, "notebook": each.run.notebook, "status": each.status, "error": each.error}
        | {key: each.run.parameters.get(key) for key in ("train_size", "test_size", "seed")}
        | {"seconds": each.total_seconds(), "activations": each.get("activations"), "memory": each.get("memory")}
        for each in outcomes
    ]
    facts = ("versions", "hardware", "classes", "images", "leakage", "zero_shot")
    known = {key: next((each.get(key) for each in outcomes if each.get(key)), None) for key in facts}
    if known["leakage"] and known["zero_shot"]:  # one warning, wherever the report gives it
        known["leakage"] = known["leakage"] | {"verdict": f"{known['leakage']['verdict']} {known['zero_shot']}"}
    known["unreadable"] = images_record(sweep.name).get("unreadable")
    known["seconds"] = sum(each.total_seconds() for each in outcomes)
    return {"settings": sweep.model_dump(mode="json"), "runs": runs, **known}

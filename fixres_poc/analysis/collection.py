"""From a sweep's runs to the tables of its report.

`collect` writes results.csv, predictions.parquet, images.csv and sweep.json into reports/<sweep>/;
`results` reads these four, without the runs. Accuracies are fractions on a test part unless named
val.
"""

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from fixres_poc.analysis.cells import (
    COLUMNS,
    COUNTS,
    KEY,
    MEASURED,
    PAIR,
    Cell,
    correct_by_cell,
    guarded,
    keys,
    read_table,
    same_images,
)
from fixres_poc.analysis.record import TYPES, parquet, summarise
from fixres_poc.analysis.statistics import holm, mcnemar_p
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import (
    impersonal,
    named_paths,
    report_folder,
    run_folder,
    write_atomically,
)
from fixres_poc.config.run_state import Outcome, images_record
from fixres_poc.config.settings import ADAPTED, CONTROL, SPLITS
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.data.transforms import Resize
from fixres_poc.method.apparent_size import pair_ratios, sample_crops


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
    outcomes = {each.run.name: each for each in done}
    if all(each.status in ("missing", "waiting") for each in done):
        raise InputError(
            f"sweep {sweep.name}: none of its runs has finished yet, so there is nothing to report"
        )
    shown = [
        each for each in outcomes.values() if each.run.notebook in ("02_baseline", "04_fixres")
    ]
    tables = {
        each.run.name: _predictions(sweep.name, each) for each in shown if each.status == "done"
    }
    every = pd.concat([*tables.values()] or [pd.DataFrame(columns=[*TYPES])]).astype(TYPES)
    predictions = every.sort_values(["split", "image", *KEY])
    folder, images = report_folder(sweep.name), run_folder(sweep.name, "images.csv")
    rows = pd.concat(
        [_rows(each, outcomes, tables.get(each.run.name)) for each in shown], ignore_index=True
    )
    table = _with_ratios(
        _with_tests(rows.astype(COUNTS | MEASURED), predictions), images, sweep.resize
    )
    if images.exists():
        listed = read_table(images).assign(image=lambda table: table["image"].map(guarded))
        # pandas leaves a lone \r unquoted
        text = listed.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
        write_atomically(folder / "images.csv", text)
    write_atomically(folder / "predictions.parquet", parquet(predictions))
    private = named_paths(sweep.model_dump())  # the report may be passed on
    summary = impersonal(_summary(sweep, outcomes.values()), *private)
    write_atomically(folder / "sweep.json", json.dumps(summary, indent=1, ensure_ascii=False))
    safe = table.assign(error=list(map(guarded, impersonal(list(table["error"]), *private))))
    write_atomically(folder / "results.csv", safe.to_csv(index=False, float_format="%.6g"))
    return table


def _predictions(sweep: str, each: Outcome) -> pd.DataFrame:
    return pd.read_parquet(run_folder(sweep, each.run.name) / "predictions.parquet")


def _rows(
    each: Outcome, outcomes: Mapping[str, Outcome], predictions: pd.DataFrame | None
) -> pd.DataFrame:
    training = outcomes[each.run.needs[0]] if each.run.needs else each
    if predictions is None:
        given = each.run.parameters
        sizes = given.get("test_sizes") or [given["test_size"]]
        names = list(given.get("adaptations", ["probe"]))
        names += [
            CONTROL + name
            for name in names
            if name in ADAPTED and given["train_size"] != given["test_size"]
        ]
        cells = product(sizes, names, given.get("views", ["center"]))
        rows = pd.DataFrame(cells, columns=["test_size", "adaptation", "view"]).assign(
            train_size=given.get("train_size"), seed=given["seed"], test_part="test"
        )
    else:
        rows = summarise(predictions)
    error = each.error
    if each.status in ("missing", "waiting") and training.status == "failed":
        error = f"{training.run.name} failed: {training.error}"
    controls = {CONTROL + name: s for name, s in (training.get("seconds", "adapt") or {}).items()}
    by_view = rows["view"] if each.run.needs else rows["test_size"].astype(str)
    measured = {
        "eval_images_per_second": by_view.map(each.get("eval_images_per_second") or {}),
        "peak_memory_bytes": each.get("peak_memory_bytes"),
        "train_seconds": _sum(training.get("seconds", "probe"), training.get("seconds", "train")),
        "adapt_seconds": rows["adaptation"].map((each.get("seconds", "adapt") or {}) | controls),
    }
    table = rows.assign(**measured, status=each.status, error=error).reindex(columns=COLUMNS)
    # that is the probe's
    table.loc[table["adaptation"] == "zero_shot", "eval_images_per_second"] = float("nan")
    return table


def _sum(*seconds: float | None) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if known else None


def _with_ratios(table: pd.DataFrame, images: Path, resize: Resize) -> pd.DataFrame:
    """The column size_ratio: mean of ratios over crops of these very images.

    nan where the images' sizes are not known, and in rows without a train size.
    """
    if not images.exists():
        return table.assign(size_ratio=float("nan"))
    listed = read_table(images)
    crops = sample_crops(listed[listed["split"].isin(SPLITS)])
    pairs = table[PAIR].dropna().drop_duplicates().itertuples(index=False, name=None)
    ratios = pair_ratios(crops, pairs, resize).rename(columns={"mean_of_ratios": "size_ratio"})
    own = table.drop(columns="size_ratio").astype({"test_size": "Int64"})
    return own.merge(ratios[[*PAIR, "size_ratio"]], "left", PAIR)[COLUMNS]


def _with_tests(table: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The columns p_vs_probe (same test resolution) and p_vs_same_size, by Holm's method for each reference."""
    correct = {part: correct_by_cell(predictions, part) for part in table["test_part"].unique()}
    probes = {cell.test_size: cell for cell in correct["test"] if cell.adaptation == "probe"}

    def p_value(part: str, cell: Cell, reference: Cell | None) -> float:
        known = correct[part]
        if reference is None or reference == cell or not {reference, cell} <= known.keys():
            return float("nan")
        return mcnemar_p(*same_images(known[cell], known[reference]))

    cells, parts = keys(table), table["test_part"]
    same = [
        None if c.train_size is None else Cell(c.train_size, c.train_size, "none", c.seed)
        for c in cells
    ]
    probe = [probes.get(cell.test_size) for cell in cells]
    against = pd.Series(
        [p_value(*each) for each in zip(parts, cells, probe, strict=True)], dtype=float
    )
    against_same = pd.Series(
        [p_value(*each) for each in zip(parts, cells, same, strict=True)], dtype=float
    )
    return table.assign(
        p_vs_probe=against.groupby([parts, table["test_size"], table["seed"]]).transform(holm),
        p_vs_same_size=against_same.groupby([parts, table["train_size"], table["seed"]]).transform(
            holm
        ),
    )


def _summary(sweep: SweepSettings, outcomes: Collection[Outcome]) -> dict[str, Any]:
    runs = [
        {
            "name": each.run.name,
            "notebook": each.run.notebook,
            "status": each.status,
            "error": each.error,
        }
        | {
            key: each.run.parameters.get(key)
            for key in ("train_size", "test_size", "seed", "epochs")
        }
        | {
            key: each.get(key)
            for key in ("wall_seconds", "activations", "memory", "choices", "tried", "moved")
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
    known["seconds"] = sum(each.wall_seconds() for each in outcomes)
    return {"settings": sweep.model_dump(mode="json"), "runs": runs, **known}

"""What an image costs and what a training costs, and test resolutions against geometry.

A multiply-add counts as 2 FLOPs, and a training step as three forward passes.
"""

from typing import Any

import numpy as np
import pandas as pd

from fixres_poc.analysis.cells import PAIR, Cell
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.config.settings import EQUAL_FLOPS, SPLITS
from fixres_poc.method.apparent_size import neutral_test_sizes, pair_ratios, sample_crops
from fixres_poc.model.memory_plan import parameters_and_flops


def image_flops(results: Results, size: int) -> float:
    """FLOPs of one crop at a resolution, px."""
    backbone, classes = results.sweep["settings"]["backbone"], len(results.sweep["classes"])
    return parameters_and_flops(backbone, classes, size)[1]


def training_cost(results: Results, cell: Cell) -> tuple[float, float]:
    """FLOPs of a cell's training, and its seconds.

    Of a trained cell: the probe that stage 1 starts from, stage 1 and stage 2, the chosen recipes
    alone; of the probe one forward pass of the train part. Reading of images is not counted (in
    FLOPs). nan where it is not known; 0 for zero-shot.
    """
    settings, counts, row = results.sweep["settings"], results.sweep["images"], results.row(cell)
    at_test = image_flops(results, cell.test_size)
    if cell.train_size is None:
        return counts["train"] * at_test * (cell.adaptation == "probe"), 0.0
    name = cell.adaptation.removeprefix(EQUAL_FLOPS)
    short = name != cell.adaptation
    adapted = name != "none"
    seconds = float(row["train_seconds"]) + (float(row["adapt_seconds"]) if adapted else 0.0)
    training = _run(results, "03_train", train_size=cell.train_size, equal_flops=short)
    pair = _run(
        results,
        "04_fixres",
        train_size=cell.train_size,
        test_size=cell.test_size,
        equal_flops=short,
    )
    if not training:
        return float("nan"), seconds
    at_train = image_flops(results, cell.train_size)
    passed = (counts["train"] + counts["val"]) * (settings.get("head_start") == "probe")
    if settings.get("head_start") != "file":
        passed += training["epochs"] * (3 * counts["train"] + counts["val"])
    choices = (pair.get("choices") or {}).get("adapt") or {}
    epochs = choices.get(name, {"epochs": 0})["epochs"]
    return passed * at_train + epochs * counts["train"] * at_test, seconds


def _run(results: Results, notebook: str, **values: Any) -> dict[str, Any]:
    """The record of the first finished run of a notebook with these parameters; {} without one."""
    for run in results.sweep["runs"]:
        same = all((run.get(key) or 0) == value for key, value in values.items())
        if same and run["notebook"] == notebook and run["status"] == "done":
            return dict(run)
    return {}


DEFINITIONS = ["mean_of_ratios", "ratio_of_means"]


def compare_with_measured(results: Results, adaptation: str = "none") -> pd.DataFrame:
    """A sweep's test resolutions against the predicted ones; gains are means over seeds.

    Returns:
        One row per pair: train_size, test_size, chosen_by (validation accuracy, mean over seeds),
        top1 (test), the columns of `pair_ratios`, predicted, predicted_low and predicted_high
        (`neutral_test_sizes`, mean of ratios), nearest (is this the ratio nearest 1?), best
        (highest chosen_by?), gain, gain_low and gain_high (test accuracy minus the nearest size's,
        paired; nan for that one), contradicts.

    Raises:
        ValueError: no pair was run with this adaptation, or the images' sizes are not known.
    """
    cells, settings = results.cells, results.sweep["settings"]
    ran = (cells["seeds"] > 0) & (cells["view"] == "center") & (cells["adaptation"] == adaptation)
    means = cells.loc[ran, [*PAIR, "val_top1", "top1"]].rename(columns={"val_top1": "chosen_by"})
    if means.empty:
        raise ValueError("no pair was run to its end with this adaptation")
    crops = sample_crops(results.images[results.images["split"].isin(SPLITS)])
    pairs = list(means[PAIR].itertuples(index=False, name=None))
    names = {"mean_of_ratios": "predicted", "low": "predicted_low", "high": "predicted_high"}
    predicted = neutral_test_sizes(crops, sorted(set(means["train_size"])), settings["resize"])
    predicted = predicted.drop(columns="ratio_of_means").rename(columns=names)
    table = means.merge(pair_ratios(crops, pairs, settings["resize"]), on=PAIR)
    table = table.merge(predicted, on="train_size").sort_values(PAIR)
    judged = [_judged(results, rows, adaptation) for _, rows in table.groupby("train_size")]
    return pd.concat(judged, ignore_index=True)


def _judged(results: Results, rows: pd.DataFrame, adaptation: str) -> pd.DataFrame:
    """Rows of one train resolution with the columns from `nearest` on."""
    distances = np.abs(np.log(rows[DEFINITIONS].to_numpy(dtype=np.float64)))
    nearest = int(distances[:, 0].argmin())
    seed = results.sweep["settings"]["seeds"][0]
    cells = [Cell(a, b, adaptation, seed) for a, b in rows[PAIR].itertuples(index=False, name=None)]
    gains = [results.difference(cell, cells[nearest]) or Difference() for cell in cells]
    low = np.array([each.low for each in gains])
    number = np.arange(len(rows))
    return rows.assign(
        nearest=number == nearest,
        best=number == int(rows["chosen_by"].argmax()),
        gain=[each.estimate for each in gains],
        gain_low=low,
        gain_high=[each.high for each in gains],
        contradicts=(distances > distances[nearest]).all(axis=1) & (low > 0),
    )

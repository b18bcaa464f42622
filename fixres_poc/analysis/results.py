"""The results of a sweep, read from reports/<sweep>/ alone: choices made on validation, comparisons made on test.

Accuracies are fractions on the test split unless named val.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from fixres_poc.analysis.cells import (
    CANDIDATES,
    COLUMNS,
    COUNTS,
    GRID,
    IMAGE_COLUMNS,
    KEY,
    ONCE,
    Cell,
    aligned,
    correct_by_cell,
    keys,
    unguarded,
)
from fixres_poc.analysis.statistics import Difference, mcnemar_p, mean_over_seeds, paired_difference, wilson_interval
from fixres_poc.config.errors import InputError
from fixres_poc.config.paths import report_folder, sweep_folder
from fixres_poc.config.settings import BASELINE_SIZE, CROPS, DataSettings
from fixres_poc.config.validation import validate

MEANS = ["size_ratio", "n_val", "val_top1", "n_test", "top1", "top5", "macro_accuracy", "ece", "train_seconds"]
MEANS += ["adapt_seconds", "eval_images_per_second"]
VIEWS = tuple(CROPS)


def _rows_by_seed(values: Collection["pd.Series[Any]"]) -> pd.DataFrame:
    """(S, N): a row a seed, a column an image that all of them have."""
    return pd.concat(values, axis=1, join="inner").T


def _joint_status(status: "pd.Series[str]") -> str:
    return status.iloc[0] if status.nunique() == 1 else f"{(status == 'done').sum()} of {len(status)} done"


@dataclass(frozen=True)
class Results:
    """The tables of a sweep's report: results.csv, predictions.parquet, images.csv and sweep.json."""

    table: pd.DataFrame
    predictions: pd.DataFrame
    images: pd.DataFrame
    sweep: dict[str, Any]

    @cached_property
    def _correct(self) -> dict[Cell, "pd.Series[bool]"]:
        return correct_by_cell(self.predictions)

    @property
    def baseline(self) -> Cell:
        """The cell of the frozen features with a linear classifier."""
        return Cell(BASELINE_SIZE, BASELINE_SIZE, "baseline", self.sweep["settings"]["seeds"][0])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """`table` with one row for all seeds of a cell, and the column `seeds`: how many ran to their end.

        Where there is more than one seed, numbers are means over those that ran, `seed` is the first of them, top-1 has
        the interval of `accuracy`, p-values are missing, and the status says how many ran.
        """
        ok = self.table["status"] == "done"
        table = self.table.assign(seeds=ok.astype(int))
        if not table.duplicated(GRID).any():
            return table
        groups = table.assign(seed=table["seed"].where(ok)).groupby(GRID, sort=False, as_index=False)
        cells = groups.agg({"seed": "first", **dict.fromkeys(MEANS, "mean"), "seeds": "sum", "status": _joint_status})
        cells["seed"] = cells["seed"].fillna(self.sweep["settings"]["seeds"][0]).astype(int)
        found = [self.accuracy(cell) for cell in keys(cells)]
        bounds = {"top1_low": [each.low for each in found], "top1_high": [each.high for each in found]}
        return cells.assign(**bounds).reindex(columns=[*COLUMNS, "seeds"])

    def seeds(self, cell: Cell) -> list[int]:
        """Seeds at which the cell was run to its end, whatever its own."""
        return [each.seed for each in self._correct if each._replace(seed=cell.seed) == cell]

    def __contains__(self, cell: Cell) -> bool:
        """Was the cell run to its end, at any seed?"""
        return bool(self.seeds(cell))

    def accuracy(self, cell: Cell) -> Difference:
        """Mean accuracy over the cell's seeds: with Wilson's interval for one, else from `mean_over_seeds`."""
        hits = [self._correct[cell._replace(seed=seed)] for seed in self.seeds(cell)]
        if not hits:
            return Difference(float("nan"), float("nan"), float("nan"))
        if len(hits) == 1:
            return Difference(float(hits[0].mean()), *wilson_interval(int(hits[0].sum()), len(hits[0])))
        return mean_over_seeds(_rows_by_seed(hits), least=0)

    def difference(self, first: Cell, second: Cell) -> Difference | None:
        """Accuracy of the first cell minus the second's, over the seeds that both have, on the same images.

        Returns:
            `paired_difference` for one seed, else `mean_over_seeds`; None where the cells are one, or share no seed.
        """
        pairs = self._pairs(first, second)
        if len(pairs) <= 1:
            return paired_difference(*pairs[0]) if pairs else None
        return mean_over_seeds(_rows_by_seed([a.astype(int) - b.astype(int) for a, b in pairs]), least=-1)

    def p_value(self, first: Cell, second: Cell) -> float:
        """McNemar's p for one seed; nan for several, which it is not made for."""
        pairs = self._pairs(first, second)
        return mcnemar_p(*pairs[0]) if len(pairs) == 1 else float("nan")

    def _pairs(self, first: Cell, second: Cell) -> list[tuple["pd.Series[bool]", "pd.Series[bool]"]]:
        """Correctness of both on the same test images, a pair a seed; what ran only once is held against each."""
        if first._replace(seed=second.seed) == second:
            return []
        others = {seed: second._replace(seed=seed) for seed in self.seeds(second)}
        if second.adaptation in ONCE and others:
            others = dict.fromkeys(self.seeds(first), next(iter(others.values())))
        seeds = [seed for seed in self.seeds(first) if seed in others]
        return [aligned(self._correct[first._replace(seed=seed)], self._correct[others[seed]]) for seed in seeds]

    def ranked(self, also: Collection[str] = ()) -> pd.DataFrame:
        """Rows of `cells` that may be chosen, best validation accuracy first (mean over seeds).

        Ties go to the smaller test size, then to fewer crops, to the simpler adaptation, to the smaller train size.
        Baseline, control and full fine-tuning are no candidates, nor are cells that ran with fewer seeds than others.

        Args:
            also: adaptations that compete besides, such as baseline; simpler ones win ties against them.
        """
        order = (*CANDIDATES, *also)
        rows = self.cells[self.cells["adaptation"].isin(order) & (self.cells["seeds"] > 0)]
        rows = rows[(rows["seeds"] == rows["seeds"].max()) | rows["adaptation"].isin(ONCE)]
        ranks = {"rank": rows["adaptation"].map(order.index), "crops": rows["view"].map(VIEWS.index)}
        keys = ["loss", "test_size", "crops", "rank", "train_size"]
        ranked: pd.DataFrame = rows.assign(loss=1 - rows["val_top1"], **ranks).sort_values(keys)
        return ranked

    def choose(self) -> Cell:
        """The first cell of `ranked`, with the first of its seeds.

        Raises:
            ValueError: no pair was run to its end.
        """
        ranked = self.ranked()
        if ranked.empty:
            raise ValueError("no resolution pair was run to its end")
        return keys(ranked)[0]

    def row(self, cell: Cell) -> "pd.Series[Any]":
        """The cell's row of `cells`, with the means over its seeds."""
        place = [getattr(cell, key) for key in GRID]
        return self.cells[(self.cells[GRID] == place).all(axis=1)].iloc[0]

    def test_predictions(self, cell: Cell) -> pd.DataFrame:
        """Predictions of one cell for the test images: image, target, top1..top5, probability."""
        rows = self.predictions[(self.predictions[KEY].astype(object) == list(cell)).all(axis=1)]
        return rows[rows["split"] == "test"].astype({"image": str}).reset_index(drop=True)

    def data_settings(self) -> DataSettings:
        """Which images the sweep used."""
        values = {key: self.sweep["settings"][key] for key in DataSettings.model_fields}
        own = sweep_folder(self.sweep["settings"]["name"]) / "sweep.json"  # the report names no folder of this machine
        if own.is_file():
            values["dataset"] = json.loads(own.read_text(encoding="utf-8"))["dataset"]
        return validate(DataSettings, values, "sweep.json")


def load_results(name: str) -> Results:
    """Read the tables of a sweep's report.

    Raises:
        InputError: there are none.
    """
    folder = report_folder(name)
    if not (folder / "results.csv").exists():
        raise InputError(f"sweep {name}: no results yet (reports/{name}/results.csv); run `make sweep` first")
    images = folder / "images.csv"
    listed = pd.read_csv(images) if images.exists() else pd.DataFrame(columns=IMAGE_COLUMNS)
    table = pd.read_csv(folder / "results.csv", keep_default_na=False, na_values=[""], dtype=COUNTS)
    return Results(
        table=table.assign(error=table["error"].astype(object).fillna("").map(unguarded)),
        predictions=pd.read_parquet(folder / "predictions.parquet"),
        images=listed.assign(image=listed["image"].map(unguarded)),
        sweep=json.loads((folder / "sweep.json").read_text(encoding="utf-8")),
    )


def gain_path(results: Results) -> pd.DataFrame:
    """The chosen cell's gain over the baseline, split along the way, each step tested on the same images.

    Returns:
        One row per step: step, train_size, test_size, adaptation, view, top1, against (the last step before it that was
        run), gain, gain_low, gain_high (paired, 95 %) and p (McNemar); nan where a step was not run. Over several seeds
        these are means, and there is no p.
    """
    chosen = results.choose()
    train, test = chosen.train_size, chosen.test_size
    one_crop = chosen._replace(view="center")
    plain = one_crop._replace(adaptation="none")
    steps = {
        "baseline": results.baseline,
        f"fine-tuned and tested at {train}": plain._replace(test_size=train),
        f"tested at {test} instead": plain,
        f"control: adapted at {train}": plain._replace(adaptation="control"),
        f"adapted at {test} ({chosen.adaptation})": one_crop,
    }
    if chosen.adaptation == "none":
        steps = dict(list(steps.items())[:3])
    if chosen != one_crop:
        steps[f"{chosen.view} instead of one crop"] = chosen
    if train == test:
        steps.pop(f"tested at {test} instead")
    rows, last = [], ""
    for step, cell in steps.items():
        row: dict[str, Any] = {"step": step, **cell._asdict()}
        if cell in results:
            row["top1"] = results.accuracy(cell).estimate
            gain = results.difference(cell, steps[last]) if last else None
            if gain is not None:
                row |= {"against": last, "gain": gain.estimate, "gain_low": gain.low, "gain_high": gain.high}
                row["p"] = results.p_value(cell, steps[last])
            last = step
        rows.append(row)
    return pd.DataFrame(rows, columns=["step", *KEY, "top1", "against", "gain", "gain_low", "gain_high", "p"])

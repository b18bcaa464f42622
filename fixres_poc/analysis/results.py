"""The results of a sweep from its report's tables: choices on validation, comparisons on test.

Accuracies are fractions on a test part unless named val. No choice uses a test part.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fixres_poc.analysis.cells import (
    CANDIDATES,
    COLUMNS,
    GRID,
    IMAGE_COLUMNS,
    TIES,
    Cell,
    cell_of,
    keys,
    read_table,
    same_images,
    unguarded,
)
from fixres_poc.analysis.record import REPORTED
from fixres_poc.analysis.statistics import (
    Accuracy,
    Difference,
    by_group,
    mean_accuracy,
    paired_gain,
)
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import report_folder
from fixres_poc.config.geometry import usual_crop_pct
from fixres_poc.config.notebooks import PREDICTIONS
from fixres_poc.config.settings import CROPS, EQUAL_FLOPS, stage1_passes

MEANS = [
    *("size_ratio", "n_val", "val_top1", "n_test", "top1", "top5", "macro_accuracy", "ece"),
    *("train_seconds", "adapt_seconds", "eval_images_per_second"),
]
Hits = Mapping[int, "pd.Series[bool]"]
"""Correctness by seed, each by image."""


def paired(first: Hits, second: Hits) -> NDArray[np.bool_] | None:
    """Correctness (2, S, N) of two classifiers on the S seeds and N images that both have.

    Returns:
        None where they share no seed.
    """
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    hits = same_images(*(classifier[seed] for classifier in (first, second) for seed in seeds))
    return hits.reshape(2, len(seeds), -1)


@dataclass(frozen=True)
class Results:
    """The tables of a sweep's report: results.csv, predictions.parquet, images.csv and sweep.json.

    Attributes:
        part: the test part that accuracies and differences are about.
        groups: group by image, for intervals over groups (`statistics.by_group`).
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    images: pd.DataFrame
    sweep: dict[str, Any]
    part: str = "test"
    groups: Mapping[str, str] | None = None

    @property
    def parts(self) -> list[str]:
        """Names of the test parts, "test" first."""
        return list(dict.fromkeys(["test", *self.table["test_part"]]))

    def on(self, part: str) -> "Results":
        """The same results, about another test part."""
        return self if part == self.part else replace(self, part=part)

    @cached_property
    def validation(self) -> "Results":
        """The same results, about the validation images."""
        return self.on("val")

    @property
    def settings(self) -> dict[str, Any]:
        """The sweep's settings."""
        return dict(self.sweep["settings"])

    @cached_property
    def _correct(self) -> dict[Cell, dict[int, "pd.Series[bool]"]]:
        """Correctness on the part, by cell and seed."""
        rows = self.predictions[self.predictions["split"] == self.part].astype({"image": str})
        hits = rows.assign(correct=rows["target"] == rows["top1"]).set_index("image")
        by_cell: dict[Cell, dict[int, pd.Series[bool]]] = {}
        for key, group in hits.groupby([*GRID, "seed"], observed=True, dropna=False):
            *values, seed = cast(tuple[Any, ...], key)
            cell = cell_of(dict(zip(GRID, values, strict=True)))
            correct = group["correct"]
            if self.groups is not None:
                correct = by_group(correct, self.groups)
            by_cell.setdefault(cell, {})[seed] = correct
        return by_cell

    def once(self, name: str, test_size: int) -> Cell:
        """The cell of "probe" or "zero_shot", which have no train resolution."""
        return Cell(None, test_size, name, crop_pct=self.usual_crop)

    @property
    def usual_crop(self) -> float:
        """The crop_pct of questions 1 to 3."""
        return usual_crop_pct(self.settings["crop_pct"])

    def at_chosen_crop(self, cell: Cell) -> Cell:
        """The cell at the crop_pct that validation chose for its arm; unchanged if none was."""
        chosen = keys(self.table[self.table["crop_pct_chosen"]])
        same_arm = (other for other in chosen if other._replace(crop_pct=cell.crop_pct) == cell)
        return next(same_arm, cell)

    @property
    def untrained(self) -> list[str]:
        """Which of "probe" and "zero_shot" were run, and on all images of the test part."""
        tested = self.table[self.table["test_part"] == "test"]
        partly = tested.loc[tested["n_test"] < tested["n_test"].max(), "adaptation"]
        names = set(tested["adaptation"]) - set(partly)
        return [name for name in ("probe", "zero_shot") if name in names]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Rows of `table` about `part`, one for all seeds of a cell; `seeds` is how many finished.

        If there are several seeds, numbers are means over those that finished, `seed` is the first
        of them, top-1 has the interval of `accuracy`, and the status says how many finished.
        """
        done = self.table["status"] == "done"
        table = self.table.assign(seeds=done.astype(int))
        table = table[(table["test_part"] == self.part) | ~done]
        table = table.reset_index(drop=True).assign(test_part=self.part)
        if not table.duplicated(GRID).any():
            return table

        def joint_status(status: "pd.Series[str]") -> str:
            counts = f"{(status == 'done').sum()} of {len(status)} done"
            return status.iloc[0] if status.nunique() == 1 else counts

        groups = table.assign(seed=table["seed"].where(table["seeds"] > 0)).groupby(
            GRID, sort=False, as_index=False, dropna=False
        )
        firsts = dict.fromkeys(["seed", "test_part", "crop_pct_chosen"], "first")
        means = dict.fromkeys(MEANS, "mean")
        cells = groups.agg(firsts | means | {"seeds": "sum", "status": joint_status})
        cells["seed"] = cells["seed"].fillna(self.settings["seeds"][0]).astype(int)
        accuracies = [self.accuracy(cell) for cell in keys(cells)]
        cells["top1_low"] = [accuracy.low for accuracy in accuracies]
        cells["top1_high"] = [accuracy.high for accuracy in accuracies]
        return cells.reindex(columns=[*COLUMNS, "seeds"])

    @property
    def usual(self) -> pd.DataFrame:
        """The rows of `cells` in one usual centre crop, without the reference at equal FLOPs."""
        cells = self.cells
        usual = (cells["view"] == "center") & (cells["crop_pct"] == self.usual_crop)
        return cells[usual & ~cells["adaptation"].str.startswith(EQUAL_FLOPS)]

    def hits(self, cell: Cell) -> Hits:
        """Correctness of a cell, by the seeds whose run finished."""
        return self._correct.get(cell, {})

    def _against(self, cell: Cell) -> Hits:
        """`hits`; those of a cell that runs once for all seeds count for each seed."""
        hits = self.hits(cell)
        if cell.train_size is not None:
            return hits
        return {seed: correct for correct in hits.values() for seed in self.settings["seeds"]}

    def accuracy(self, cell: Cell) -> Accuracy:
        """Mean accuracy over the cell's seeds; nan if it was not run."""
        hits = self.hits(cell).values()
        return mean_accuracy(same_images(*hits)) if hits else Accuracy()

    def paired_hits(self, first: Cell, second: Cell) -> NDArray[np.bool_] | None:
        """`paired` correctness of two cells on `part`; None if one of them was not run."""
        return paired(self._against(first), self._against(second))

    def difference(self, first: Cell, second: Cell) -> Difference | None:
        """Accuracy of the first cell minus the second's, on the images and seeds that both have.

        Returns:
            `paired_gain`; None if the cells are equal, or share no seed.
        """
        hits = None if first == second else self.paired_hits(first, second)
        return None if hits is None else paired_gain(*hits)

    def choose(self) -> Cell:
        """The trained cell with the best validation accuracy (mean over seeds), for predictions.

        Ties go to the smaller test size, then to fewer crops, to the simpler adaptation, to the
        smaller train size. The probe, controls, full fine-tuning and cells that finished with fewer
        seeds than others do not compete.

        Raises:
            InputError: no pair has finished.
        """
        rows = self.cells[self.cells["adaptation"].isin(CANDIDATES) & (self.cells["seeds"] > 0)]
        rows = rows[rows["crop_pct_chosen"]]
        rows = rows[rows["seeds"] == rows["seeds"].max()].assign(
            loss=(1 - rows["val_top1"]).round(5),
            rank=rows["adaptation"].map(CANDIDATES.index),
            crops=rows["view"].map(CROPS),
        )
        if rows.empty:
            raise InputError(
                f"sweep {self.settings['name']}: no resolution pair was run to its end"
            )
        return keys(rows.sort_values(["loss", *TIES]))[0]

    def row(self, cell: Cell) -> "pd.Series[Any]":
        """The cell's row of `cells`, with the means over its seeds."""
        return self.cells.iloc[keys(self.cells).index(cell)]

    def test_predictions(self, cell: Cell) -> pd.DataFrame:
        """Predictions of a cell at the sweep's first seed for the part; empty if it did not run."""
        rows = self.predictions[self.predictions["split"] == self.part]
        for name, value in {**cell._asdict(), "seed": self.settings["seeds"][0]}.items():
            rows = rows[rows[name].isna() if value is None else rows[name] == value]
        return rows


def load_results(report: str) -> Results:
    """Read the tables of a sweep's report, or of those in a folder (see `files.report_folder`).

    Raises:
        InputError: they are absent, damaged or of another version.
    """
    folder = report_folder(report)
    if not (folder / "results.csv").exists():
        raise InputError(f"report {report!r}: no results in {folder}; run `make sweep` first")
    images = folder / "images.csv"
    listed = read_table(images) if images.exists() else pd.DataFrame(columns=IMAGE_COLUMNS)
    table = read_table(folder / "results.csv")
    try:
        sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        if absent := {"settings", "runs", "classes", "images", "versions"} - set(sweep):
            raise LookupError(f"sweep.json lacks {', '.join(sorted(absent))}")
        return Results(
            table=table[COLUMNS].assign(error=table["error"].map(unguarded)),
            predictions=pd.read_parquet(folder / PREDICTIONS, columns=REPORTED),
            images=listed.assign(image=listed[IMAGE_COLUMNS]["image"].map(unguarded)),
            sweep=sweep,
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder}: not the tables of a report of this version ({error})"
        ) from None


def leading_part(results: Results) -> str:
    """The test part without a leakage flag; if that leaves several, the largest."""
    flagged = (results.sweep.get("leakage") or {}).get("flagged") or {}
    clean = [part for part in results.parts if not flagged.get(part)]
    counts = results.sweep["images"]
    return max(clean or results.parts, key=lambda part: counts[part])


def training_cost(results: Results, cell: Cell) -> tuple[float, float]:
    """FLOPs and seconds of a cell's training.

    A trained cell costs the probe that stage 1 starts from, stage 1 and stage 2, with the chosen
    recipes alone. The linear probe costs one forward pass of the train part, zero-shot nothing.
    Reading images takes no FLOPs. Unknown values are nan.
    """
    flops = results.sweep["image_flops"]
    counts = results.sweep["images"]
    epoch_of_stage_2 = counts["train"] * flops[str(cell.test_size)]
    if cell.train_size is None:
        return epoch_of_stage_2 * (cell.adaptation == "probe"), 0.0
    row = results.row(cell)
    name = cell.adaptation.removeprefix(EQUAL_FLOPS)
    seconds = float(row["train_seconds"] + (row["adapt_seconds"] if name != "none" else 0.0))
    recipe = ("done", cell.train_size, name != cell.adaptation)
    done = [
        run
        for run in results.sweep["runs"]
        if (run["status"], run["train_size"], run["equal_flops"]) == recipe
    ]
    # the run of the training itself has no test resolution; of several seeds the first counts
    runs = {run["test_size"]: run for run in reversed(done)}
    if None not in runs:
        return float("nan"), seconds
    start = results.settings["head_start"]
    passes = stage1_passes(start, runs[None]["epochs"] if start != "file" else 0, counts)
    choices = runs.get(cell.test_size, {}).get("choices") or {}
    epochs = choices.get("adapt", {}).get(name, {"epochs": 0})["epochs"]
    return passes * flops[str(cell.train_size)] + epochs * epoch_of_stage_2, seconds

"""From a sweep's runs to the tables of its report, and from those to choices and comparisons.

`collect` turns runs/<sweep>/ into reports/<sweep>/{results.csv, predictions.parquet, pictures.csv, sweep.json}, and
`load` reads these four, without the runs; results.parquet holds what results.csv does. A cell is one train size x test
size x adaptation x view x seed. Accuracies are fractions on the test split unless named val. How one run is written
stands in `records`.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple, cast

import pandas as pd

from fixres_poc.config import BASELINE_SIZE, CROPS, DataSettings, InputError, SweepSettings, report_folder, run_folder
from fixres_poc.files import pictures_record, write_atomically
from fixres_poc.geometry import size_ratio
from fixres_poc.reading import validate
from fixres_poc.records import TYPES, Outcome, environment, outcome, parquet, summarise, write_run
from fixres_poc.statistics import Difference, holm, mcnemar_p, mean_over_seeds, paired_difference, wilson_interval

__all__ = ["COLUMNS", "Cell", "Results", "collect", "environment", "gain_path", "load", "summarise", "write_run"]

COLUMNS = ["train_size", "test_size", "size_ratio", "adaptation", "view", "seed", "n_val", "val_top1", "n_test", "top1"]
COLUMNS += ["top1_low", "top1_high", "top5", "macro_accuracy", "ece", "p_vs_baseline", "p_vs_same_size"]
COLUMNS += ["train_seconds", "adapt_seconds", "eval_images_per_second", "peak_memory_bytes", "status", "error"]
CELL = {"train_size": "int16", "test_size": "int16", "seed": "int32"}
KEY = ["train_size", "test_size", "adaptation", "seed", "view"]
GRID = ["train_size", "test_size", "adaptation", "view"]
MEANS = ["size_ratio", "n_val", "val_top1", "n_test", "top1", "top5", "macro_accuracy", "ece", "train_seconds"]
MEANS += ["adapt_seconds", "eval_images_per_second"]
COUNTS = dict.fromkeys(["n_val", "n_test", "peak_memory_bytes"], "Int64")
MEASURED = dict.fromkeys(["train_seconds", "adapt_seconds", "eval_images_per_second"], "float64")
ONCE = ("baseline", "zero_shot")
CANDIDATES = ("none", "equalised", "head", "head_bn_stats", "head_bn")
VIEWS = tuple(CROPS)
PICTURE_COLUMNS = ["picture", "label", "split", "width", "height"]


class Cell(NamedTuple):
    """Where a classifier's predictions stand in the grid."""

    train_size: int
    test_size: int
    adaptation: str
    seed: int
    view: str = "center"


def collect(sweep: SweepSettings) -> pd.DataFrame:
    """Write results.csv, results.parquet, predictions.parquet, pictures.csv and sweep.json into reports/<sweep>/.

    Returns:
        The table of results.csv: `COLUMNS`, one row per cell, cells of failed and missing runs included.

    Raises:
        InputError: no run has left anything, so there is nothing to report.
    """
    outcomes = {run.name: outcome(sweep.name, run) for run in sweep.runs()}
    if all(each.status == "missing" for each in outcomes.values()):
        raise InputError(f"sweep {sweep.name}: none of its runs has finished yet, so there is nothing to report")
    shown = [each for each in outcomes.values() if each.run.notebook in ("02_baseline", "04_fixres")]
    tables = {each.run.name: _predictions(sweep.name, each) for each in shown if each.status == "ok"}
    every = pd.concat([*tables.values()] or [pd.DataFrame(columns=[*TYPES, *CELL])]).astype(TYPES | CELL)
    predictions = every.sort_values(["split", "picture", *CELL, "adaptation", "view"])
    rows = [_rows(each, outcomes, tables.get(each.run.name)) for each in shown]
    table = _with_tests(pd.concat(rows, ignore_index=True).astype(COUNTS | MEASURED), predictions)
    folder, pictures = report_folder(sweep.name), run_folder(sweep.name, "pictures.csv")
    if pictures.exists():
        write_atomically(folder / "pictures.csv", pictures.read_bytes())
    write_atomically(folder / "predictions.parquet", parquet(predictions))
    write_atomically(folder / "sweep.json", json.dumps(_summary(sweep, outcomes.values()), indent=1))
    write_atomically(folder / "results.parquet", parquet(table))
    write_atomically(folder / "results.csv", table.to_csv(index=False, float_format="%.6g"))
    return table


def _cell(each: Outcome) -> dict[str, int]:
    return {key: each.run.parameters.get(key, BASELINE_SIZE) for key in CELL}


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
    if each.status == "missing" and training.status == "failed":
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
    correct = _correct_by_cell(predictions)
    baseline = next((cell for cell in correct if cell.adaptation == "baseline"), None)

    def p_value(cell: Cell, reference: Cell | None) -> float:
        if reference is None or reference == cell or not {reference, cell} <= correct.keys():
            return float("nan")
        return mcnemar_p(*_aligned(correct[cell], correct[reference]))

    cells = [Cell(*key) for key in table[KEY].itertuples(index=False)]
    same = [None if c.adaptation in ONCE else Cell(c.train_size, c.train_size, "none", c.seed) for c in cells]
    against = pd.Series([p_value(cell, baseline) for cell in cells], dtype=float)
    against_same = pd.Series([p_value(*pair) for pair in zip(cells, same, strict=True)], dtype=float)
    return table.assign(
        size_ratio=[size_ratio(cell.train_size, cell.test_size) for cell in cells],
        p_vs_baseline=against.groupby(table["seed"]).transform(holm),
        p_vs_same_size=against_same.groupby([table["train_size"], table["seed"]]).transform(holm),
    )


def _correct_by_cell(predictions: pd.DataFrame) -> dict[Cell, "pd.Series[bool]"]:
    test = predictions[predictions["split"] == "test"].astype({"picture": str})
    hits = test.assign(correct=test["target"] == test["top1"]).set_index("picture")
    return {Cell(*cast(Any, key)): group for key, group in hits.groupby(KEY, observed=True)["correct"]}


def _aligned(first: "pd.Series[bool]", second: "pd.Series[bool]") -> tuple["pd.Series[bool]", "pd.Series[bool]"]:
    both = pd.concat([first, second], axis=1, join="inner", keys=["first", "second"])
    return both["first"], both["second"]


def _rows_by_seed(values: Collection["pd.Series[Any]"]) -> pd.DataFrame:
    """(S, N): a row a seed, a column a picture that all of them have."""
    return pd.concat(values, axis=1, join="inner").T


def _joint_status(status: "pd.Series[str]") -> str:
    return status.iloc[0] if status.nunique() == 1 else f"{(status == 'ok').sum()} of {len(status)} ok"


def _summary(sweep: SweepSettings, outcomes: Collection[Outcome]) -> dict[str, Any]:
    runs = [
        {"name": each.run.name, "notebook": each.run.notebook, "status": each.status, "error": each.error}
        | {"seconds": each.total_seconds(), "activations": each.get("activations"), "memory": each.get("memory")}
        for each in outcomes
    ]
    facts = ("versions", "hardware", "classes", "pictures", "leakage", "zero_shot")
    known = {key: next((each.get(key) for each in outcomes if each.get(key)), None) for key in facts}
    if known["leakage"] and known["zero_shot"]:  # one warning, wherever the report gives it
        known["leakage"] = known["leakage"] | {"verdict": f"{known['leakage']['verdict']} {known['zero_shot']}"}
    known["unreadable"] = pictures_record(sweep.name).get("unreadable")
    known["seconds"] = sum(each.total_seconds() for each in outcomes)
    return {"settings": sweep.model_dump(mode="json"), "runs": runs, **known}


@dataclass(frozen=True)
class Results:
    """The tables of a sweep's report: results.csv, predictions.parquet, pictures.csv and sweep.json."""

    table: pd.DataFrame
    predictions: pd.DataFrame
    pictures: pd.DataFrame
    sweep: dict[str, Any]

    @cached_property
    def _correct(self) -> dict[Cell, "pd.Series[bool]"]:
        return _correct_by_cell(self.predictions)

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
        ok = self.table["status"] == "ok"
        table = self.table.assign(seeds=ok.astype(int))
        if not table.duplicated(GRID).any():
            return table
        groups = table.assign(seed=table["seed"].where(ok)).groupby(GRID, sort=False, as_index=False)
        cells = groups.agg({"seed": "first", **dict.fromkeys(MEANS, "mean"), "seeds": "sum", "status": _joint_status})
        cells["seed"] = cells["seed"].fillna(self.sweep["settings"]["seeds"][0]).astype(int)
        found = [self.accuracy(Cell(*key)) for key in cells[KEY].itertuples(index=False)]
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
        """Accuracy of the first cell minus the second's, over the seeds that both have, on the same pictures.

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
        """Correctness of both on the same test pictures, a pair a seed; what ran only once is held against each."""
        if first._replace(seed=second.seed) == second:
            return []
        others = {seed: second._replace(seed=seed) for seed in self.seeds(second)}
        if second.adaptation in ONCE and others:
            others = dict.fromkeys(self.seeds(first), next(iter(others.values())))
        seeds = [seed for seed in self.seeds(first) if seed in others]
        return [_aligned(self._correct[first._replace(seed=seed)], self._correct[others[seed]]) for seed in seeds]

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
        return Cell(*next(ranked[KEY].itertuples(index=False)))

    def row(self, cell: Cell) -> "pd.Series[Any]":
        """The cell's row of `cells`, with the means over its seeds."""
        place = [getattr(cell, key) for key in GRID]
        return self.cells[(self.cells[GRID] == place).all(axis=1)].iloc[0]

    def test_predictions(self, cell: Cell) -> pd.DataFrame:
        """Predictions of one cell for the test pictures: picture, target, top1..top5, probability."""
        rows = self.predictions[(self.predictions[KEY].astype(object) == list(cell)).all(axis=1)]
        return rows[rows["split"] == "test"].astype({"picture": str}).reset_index(drop=True)

    def data_settings(self) -> DataSettings:
        """Which pictures the sweep used."""
        values = {key: self.sweep["settings"][key] for key in DataSettings.model_fields}
        return validate(DataSettings, values, "sweep.json")


def load(name: str) -> Results:
    """Read the tables of a sweep's report.

    Raises:
        InputError: there are none.
    """
    folder = report_folder(name)
    if not (folder / "results.csv").exists():
        raise InputError(f"sweep {name}: no results yet (reports/{name}/results.csv); run `make sweep` first")
    pictures = folder / "pictures.csv"
    table = pd.read_csv(folder / "results.csv", keep_default_na=False, na_values=[""], dtype=COUNTS)
    return Results(
        table=table.assign(error=table["error"].astype(object).fillna("")),
        predictions=pd.read_parquet(folder / "predictions.parquet"),
        pictures=pd.read_csv(pictures) if pictures.exists() else pd.DataFrame(columns=PICTURE_COLUMNS),
        sweep=json.loads((folder / "sweep.json").read_text(encoding="utf-8")),
    )


def gain_path(results: Results) -> pd.DataFrame:
    """The chosen cell's gain over the baseline, split along the way, each step tested on the same pictures.

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

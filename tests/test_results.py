"""Run folders made by hand, through collect and load, to choices and comparisons."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fixres_poc import config, records, results, tables
from fixres_poc.config import InputError, SweepSettings, run_folder
from fixres_poc.reading import validate
from fixres_poc.results import Cell, Results
from fixres_poc.statistics import holm, mcnemar_p

KEYS = {"name": "tiny", "dataset": "synthetic", "adaptations": ["none", "head", "control"]}
SWEEP = validate(SweepSettings, KEYS | {"train_sizes": [96], "test_sizes": [96, 128]}, "test")
MODELS: dict[str, type[config.Settings]] = {
    "01_dataset_eda": config.DatasetSettings,
    "02_baseline": config.BaselineSettings,
    "03_train": config.TrainSettings,
}
VAL, TEST = 20, 60


def predictions(adaptation: str, val_correct: int, test_correct: int) -> pd.DataFrame:
    """The first pictures of each split right, the others wrong but for the second guess."""
    number = np.r_[np.arange(VAL), np.arange(TEST)]
    split = np.repeat(["val", "test"], [VAL, TEST])
    right = number < np.where(split == "val", val_correct, test_correct)
    guesses = np.stack([np.where(right, 1, 2), np.where(right, 2, 1), *[np.full(VAL + TEST, -1)] * 3], axis=1)
    table = pd.DataFrame(guesses, columns=records.TOP).assign(split=split, adaptation=adaptation, view="center")
    names = [f"{part}/{i:03}" for part, i in zip(split, number, strict=True)]
    return table.assign(picture=names, target=1, probability=0.123456)


def write(name: str, *tables: pd.DataFrame, **metrics: object) -> None:
    run = next(run for run in SWEEP.runs() if run.name == name)
    model = MODELS.get(run.notebook, config.PairSettings)
    settings = validate(model, run.parameters, "test")
    results.write_run(run_folder("tiny", name), settings, metrics, pd.concat(tables) if tables else None)


def write_error(name: str, text: str) -> None:
    run_folder("tiny", name).mkdir(parents=True)
    (run_folder("tiny", name) / "error.txt").write_text(text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def sweep(home: Path) -> Results:
    write("baseline", predictions("baseline", 10, 30), seconds={"train": 3}, classes=["a", "b"], pictures={"val": VAL})
    write("train96_seed0", seconds={"train": 10, "adapt": {"control": 2}})
    same = [predictions("none", 12, 40), predictions("head", 13, 41), predictions("control", 12, 42)]
    write("train96_test96_seed0", *same, seconds={"adapt": {"head": 4}}, peak_memory_bytes=5)
    write_error("train96_test128_seed0", "OutOfMemoryError: <b>full</b>\nmore\n")
    results.collect(SWEEP)
    return results.load("tiny")


@pytest.mark.usefixtures("sweep")
def test_metrics_hold_settings_environment_and_accuracies() -> None:
    metrics = json.loads((run_folder("tiny", "train96_test96_seed0") / "metrics.json").read_text())
    keys = ["settings", "versions", "hardware", "predictions_sha256", "accuracies", "seconds", "peak_memory_bytes"]
    assert list(metrics) == keys
    assert metrics["settings"]["test_size"] == 96
    assert metrics["versions"]["pandas"] == pd.__version__
    assert metrics["accuracies"][0]["top1"] == pytest.approx(40 / TEST)
    assert not list(run_folder("tiny", "train96_test96_seed0").glob(".*"))


def test_predictions_are_checked(home: Path) -> None:
    with pytest.raises(ValueError, match="top5"):
        results.write_run(home, SWEEP, {}, predictions("none", 1, 1).drop(columns="top5"))
    with pytest.raises(ValueError, match="train"):
        results.write_run(home, SWEEP, {}, predictions("none", 1, 1).replace("val", "train"))
    assert not list(home.iterdir())


def test_table_has_a_row_for_every_cell(sweep: Results) -> None:
    assert list(sweep.table) == results.COLUMNS
    assert sweep.table["status"].tolist() == ["ok"] * 4 + ["failed"] * 3
    assert set(sweep.table["error"][4:]) == {"OutOfMemoryError: <b>full</b>"}
    assert sweep.table["adaptation"].tolist() == ["baseline", *["none", "head", "control"] * 2]


def test_row_of_a_cell(sweep: Results) -> None:
    row = sweep.row(Cell(96, 96, "head", 0))
    assert (row["n_val"], row["n_test"], row["peak_memory_bytes"]) == (VAL, TEST, 5)
    assert row["top1"] == pytest.approx(41 / TEST, abs=1e-5)
    assert row["top5"] == 1
    assert row["ece"] == pytest.approx(41 / TEST - 0.1235, abs=1e-5)
    assert (row["train_seconds"], row["adapt_seconds"]) == (10, 4)
    assert row["size_ratio"] == pytest.approx(0.809, abs=1e-3)
    assert sweep.row(Cell(96, 96, "control", 0))["adapt_seconds"] == 2


def test_paired_p_values(sweep: Results) -> None:
    right = np.arange(TEST)
    row = sweep.row(Cell(96, 96, "head", 0))
    counts = [round(sweep.row(Cell(96, 96, name, 0))["top1"] * TEST) for name in ("none", "head", "control")]
    raw = [mcnemar_p(right < count, right < 30) for count in counts]
    assert row["p_vs_baseline"] == pytest.approx(holm(raw)[1], rel=1e-5)  # the three tests that were made
    assert row["p_vs_baseline"] > raw[1]
    assert row["p_vs_same_size"] == 1
    assert np.isnan(sweep.row(Cell(96, 96, "none", 0))["p_vs_same_size"])
    assert np.isnan(sweep.row(sweep.baseline)["p_vs_baseline"])


def test_summary_of_the_sweep(sweep: Results) -> None:
    status = {run["name"]: run["status"] for run in sweep.sweep["runs"]}
    assert status["train96_test128_seed0"] == "failed"
    assert status["dataset"] == "missing"
    assert sweep.sweep["seconds"] == 3 + 12 + 4
    assert sweep.sweep["classes"] == ["a", "b"]


def test_choice_is_made_on_validation(sweep: Results) -> None:
    assert sweep.choose() == Cell(96, 96, "head", 0)
    tie = sweep.table.assign(val_top1=0.5)
    assert Results(tie, sweep.predictions, sweep.pictures, sweep.sweep).choose().adaptation == "none"


def test_competitors_are_ranked_on_validation(sweep: Results) -> None:
    ranked = sweep.ranked(("control", "baseline"))
    assert set(ranked["adaptation"]) == {"none", "head", "control", "baseline"}
    assert ranked["val_top1"].is_monotonic_decreasing
    assert not ranked["test_size"].eq(128).any()  # that pair failed


def test_parquet_holds_what_the_csv_does(sweep: Results) -> None:
    table = pd.read_parquet(config.report_folder(sweep.sweep["settings"]["name"]) / "results.parquet")
    assert list(table) == results.COLUMNS
    pd.testing.assert_series_equal(table["top1"], sweep.table["top1"], rtol=1e-5)
    assert table["train_seconds"].dtype == "float64"


def test_gain_path_adds_up(sweep: Results) -> None:
    path = results.gain_path(sweep).set_index("step")
    assert list(path["top1"] * TEST) == pytest.approx([30, 40, 42, 41])
    assert path["gain"].sum() == pytest.approx(11 / TEST)
    assert path["gain_low"].iloc[1] < path["gain"].iloc[1] < path["gain_high"].iloc[1]


def test_gain_path_steps_over_what_was_not_run(sweep: Results) -> None:
    kept = sweep.predictions[sweep.predictions["adaptation"] != "control"]
    path = results.gain_path(Results(sweep.table, kept, sweep.pictures, sweep.sweep))
    assert np.isnan(path["gain"].iloc[2])
    assert path["against"].iloc[3] == path["step"].iloc[1]


@pytest.mark.usefixtures("home")
def test_zero_shot_is_compared_on_its_own_pictures_and_joins_the_warning() -> None:
    zero = predictions("zero_shot", 5, 25)
    zero = zero[(zero["split"] == "val") | (zero["picture"] < "test/040")]
    write("baseline", predictions("baseline", 10, 30), zero, zero_shot="It knows them.")
    write("dataset", leakage={"verdict": "**Warning.**"})
    write("train96_test96_seed0", predictions("none", 12, 40))
    results.collect(SWEEP)
    sweep = results.load("tiny")
    row = sweep.row(sweep.baseline._replace(adaptation="zero_shot"))
    right = np.arange(40)
    assert (row["n_test"], row["top1"]) == (40, 25 / 40)
    assert row["p_vs_baseline"] == pytest.approx(mcnemar_p(right < 25, right < 30), rel=1e-5)
    assert np.isnan(row["p_vs_same_size"])
    assert sweep.sweep["leakage"]["verdict"] == "**Warning.** It knows them."
    assert tables.cells(sweep)["of pictures"].tolist()[:3] == [60, 40, 60]


@pytest.mark.usefixtures("home")
def test_runs_of_other_settings_and_failed_trainings_are_told() -> None:
    write("baseline", predictions("baseline", 10, 30))
    write_error("train96_seed0", "ValueError: no")
    table = results.collect(SWEEP.model_copy(update={"batch_size": 8}))
    assert table["status"].tolist() == ["outdated"] + ["missing"] * 6
    assert "batch_size" in table["error"][0]
    assert table["error"][1] == "train96_seed0 failed: ValueError: no"


@pytest.mark.usefixtures("home")
def test_nothing_to_report() -> None:
    with pytest.raises(InputError, match="tiny"):
        results.collect(SWEEP)
    with pytest.raises(InputError, match="no results"):
        results.load("tiny")


def test_pictures_are_copied(home: Path, sweep: Results) -> None:
    assert list(sweep.pictures) == results.PICTURE_COLUMNS
    (home / "runs/tiny/pictures.csv").write_text("picture,label,split,width,height\nx,a,test,3,4\n")
    results.collect(SWEEP)
    assert results.load("tiny").pictures["height"].tolist() == [4]

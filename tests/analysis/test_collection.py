"""Run folders made by hand, through collect and load."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import loaded, predictions, write, write_error

from fixres_poc.analysis import cells
from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.collection import collect
from fixres_poc.analysis.record import Metrics
from fixres_poc.analysis.results import Results, load_results
from fixres_poc.analysis.statistics import holm, mcnemar_p
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import run_folder, write_atomically
from fixres_poc.config.run_state import outcomes
from fixres_poc.config.settings import ExtraTest
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.method.apparent_size import pair_ratios, sample_crops
from fixres_poc.report import tables

KEYS = {"name": "tiny", "dataset": "synthetic", "adaptations": ["none", "head"]}
SWEEP = validate(SweepSettings, KEYS | {"train_sizes": [96], "test_sizes": [96, 128, 160]}, "test")
VAL, TEST = IMAGES = 20, 60


def guesses(adaptation: str, val: int, test: int, size: int = 96) -> pd.DataFrame:
    return predictions(adaptation, (val, test), IMAGES, size)


PROBES = [guesses("probe", 10, right, size) for size, right in ((96, 30), (128, 35))]


@pytest.fixture
def sweep() -> Results:
    facts = Metrics(
        classes=["a", "b"], images={"val": VAL}, eval_images_per_second={"96": 9, "128": 5}
    )
    write(SWEEP, "baseline", facts, *PROBES)
    write(
        SWEEP,
        "train96_seed0",
        Metrics(seconds={"probe": 1, "train": 9, "adapt": {"head": 2}}, steps=7),
    )
    write(
        SWEEP, "train96_test96_seed0", Metrics(), guesses("none", 12, 38), guesses("head", 12, 39)
    )
    larger = [
        guesses(name, 13, right, 128)
        for name, right in (("none", 40), ("head", 41), ("control_head", 42))
    ]
    write(
        SWEEP,
        "train96_test128_seed0",
        Metrics(seconds={"adapt": {"head": 4}}, peak_memory_bytes=5),
        *larger,
    )
    write_error("tiny", "train96_test160_seed0", "OutOfMemoryError: <b>full</b>\nmore\n")
    return loaded(SWEEP)


def test_table_has_a_row_for_every_cell(sweep: Results) -> None:
    assert list(sweep.table) == cells.COLUMNS
    assert sweep.table["status"].tolist() == ["done"] * 7 + ["failed"] * 3
    assert set(sweep.table["error"][7:]) == {"OutOfMemoryError: <b>full</b>"}
    assert sweep.table["adaptation"].tolist() == [
        *["probe"] * 2,
        *["none", "head"] * 2,
        "control_head",
        *["none", "head", "control_head"],
    ]
    assert sweep.table["eval_images_per_second"].tolist()[:2] == [9, 5]


def test_row_of_a_cell(sweep: Results) -> None:
    row = sweep.row(Cell(96, 128, "head", 0))
    assert (row["n_val"], row["n_test"], row["peak_memory_bytes"]) == (VAL, TEST, 5)
    assert row["top1"] == pytest.approx(41 / TEST, abs=1e-5)
    assert row["top5"] == 1
    assert row["ece"] == pytest.approx(41 / TEST - 0.1235, abs=1e-5)
    assert (row["train_seconds"], row["adapt_seconds"]) == (10, 4)
    assert sweep.row(Cell(96, 128, "control_head", 0))["adapt_seconds"] == 2


def test_paired_p_values(sweep: Results) -> None:
    right, counts = np.arange(TEST), (40, 41, 42)
    # the probe's at 128 px, not at 96
    raw = [mcnemar_p(right < count, right < 35) for count in counts]
    row = sweep.row(Cell(96, 128, "head", 0))
    # the three tests that were made
    assert row["p_vs_probe"] == pytest.approx(holm(raw)[1], rel=1e-5)
    assert row["p_vs_probe"] > raw[1]
    same_size = [mcnemar_p(right < count, right < 38) for count in (39, *counts)]
    assert row["p_vs_same_size"] == pytest.approx(holm(same_size)[2], rel=1e-5)
    assert np.isnan(sweep.row(Cell(96, 96, "none", 0))["p_vs_same_size"])
    assert np.isnan(sweep.row(sweep.once("probe", 128))["p_vs_probe"])


def test_summary_of_the_sweep(sweep: Results, own_home: Path) -> None:
    runs = {run["name"]: run for run in sweep.sweep["runs"]}
    pair = runs["train96_test160_seed0"]
    assert [pair[key] for key in ("status", "train_size", "test_size", "seed")] == [
        "failed",
        96,
        160,
        0,
    ]
    assert [runs["dataset"][key] for key in ("status", "train_size", "test_size", "seed")] == [
        "missing",
        *[None] * 3,
    ]
    assert runs["train96_seed0"]["steps"] == 7
    took = [json.loads(file.read_text())["wall_seconds"] for file in own_home.rglob("metrics.json")]
    assert len(took) == 4
    assert sweep.sweep["seconds"] == pytest.approx(sum(took))
    assert sweep.sweep["classes"] == ["a", "b"]


def test_zero_shot_is_compared_on_its_own_images_and_joins_the_warning() -> None:
    zero = guesses("zero_shot", 5, 25)
    zero = zero[(zero["split"] == "val") | (zero["image"] < "test/040")]
    write(SWEEP, "baseline", Metrics(zero_shot="It knows them."), *PROBES, zero)
    write(SWEEP, "dataset", Metrics(leakage={"verdict": "**Warning.**"}))
    write(SWEEP, "train96_test96_seed0", Metrics(), guesses("none", 12, 40))
    found = loaded(SWEEP)
    row = found.row(found.once("zero_shot", 96))
    right = np.arange(40)
    assert (row["n_test"], row["top1"]) == (40, 25 / 40)
    assert row["p_vs_probe"] == pytest.approx(mcnemar_p(right < 25, right < 30), rel=1e-5)
    assert np.isnan(row["p_vs_same_size"])
    assert found.sweep["leakage"]["verdict"] == "**Warning.** It knows them."
    assert tables.cells(found)["of images"].tolist()[:3] == [60, 60, 40]


def test_size_ratios_are_those_of_the_sweeps_own_images() -> None:
    sizes = {"width": [500, 500, 375, 90], "height": [375, 333, 500, 900]}
    table = pd.DataFrame(
        {"image": list("abcd"), "label": 0, "split": ["train", "val", "test", "photos"], **sizes}
    )
    write_atomically(run_folder("tiny", "images.csv"), table.to_csv(index=False))
    tall = SWEEP.model_copy(update={"resize": "height"})
    write(tall, "baseline", Metrics(), *PROBES)
    ratios = (
        loaded(tall).table.set_index(["train_size", "test_size"])["size_ratio"].drop_duplicates()
    )
    pairs = [(96, 96), (96, 128), (96, 160)]
    expected = pair_ratios(sample_crops(table[:3]), pairs, "height").set_index(
        ["train_size", "test_size"]
    )
    assert ratios[pairs].tolist() == pytest.approx(expected["mean_of_ratios"].tolist(), rel=1e-5)


def test_runs_that_are_not_done_are_told_with_their_reason() -> None:
    write(SWEEP, "baseline", Metrics(), *PROBES)
    write_error("tiny", "train96_seed0", "ValueError: no")
    write(SWEEP, "train96_test96_seed0", Metrics(), guesses("none", 12, 40))
    write_atomically(run_folder("tiny", "train96_test96_seed0") / "predictions.parquet", "half")
    changed = SWEEP.model_copy(update={"batch_size": 8})
    table = collect(changed, outcomes(changed))
    assert table["status"].tolist() == [*["outdated"] * 4, *["damaged"] * 2, *["missing"] * 6]
    assert table["test_size"].tolist() == [96, 128, 160, 224, 96, 96, *[128] * 3, *[160] * 3]
    assert "batch_size" in table["error"][0]
    assert table["error"][4] == "predictions.parquet is not what the run has written"
    assert table["error"][6] == "train96_seed0 failed: ValueError: no"


def test_nothing_to_report() -> None:
    write_atomically(run_folder("tiny", "baseline") / "settings.json", "{}")
    with pytest.raises(InputError, match="tiny"):
        collect(SWEEP, outcomes(SWEEP))
    with pytest.raises(InputError, match="no results"):
        load_results("tiny")


def test_images_are_copied(own_home: Path, sweep: Results) -> None:
    assert list(sweep.images) == cells.IMAGE_COLUMNS
    (own_home / "runs/tiny/images.csv").write_text("image,label,split,width,height\nx,a,test,3,4\n")
    assert loaded(SWEEP).images["height"].tolist() == [4]


EXTRA = ExtraTest(name="new", folder="/mnt/new")


@pytest.mark.usefixtures("sweep")
def test_shared_tables_hold_no_formulas_and_no_paths(own_home: Path) -> None:
    table = pd.DataFrame(
        {
            "image": ["=1+1.jpg", "'x.jpg", "a.jpg"],
            "label": 0,
            "split": "test",
            "width": 9,
            "height": 9,
        }
    )
    write_atomically(run_folder("tiny", "images.csv"), table.to_csv(index=False))
    write_error("tiny", "train96_test160_seed0", f"@{own_home}/x: /mnt/birds: bad\n")
    private = SWEEP.model_copy(
        update={"dataset": "/mnt/birds", "imagenet_list": "/mnt/list.txt", "extra_test": EXTRA}
    )
    collect(private, outcomes(private))
    folder = own_home / "reports" / "tiny"
    texts = [(folder / name).read_text() for name in ("results.csv", "images.csv", "sweep.json")]
    assert not [
        cell for text in texts for cell in re.split(r'[,\n]"?', text) if cell.startswith(("=", "@"))
    ]
    assert not [text for text in texts if "/mnt" in text or str(own_home) in text]
    found = load_results("tiny")
    assert found.images["image"].tolist() == table["image"].tolist()
    assert set(found.table["error"][-2:]) == {f"@{own_home.name}/x: birds: bad"}


def test_text_in_tables_is_what_was_written(tmp_path: Path) -> None:
    names = ["NA", "nan", "None", "null", "1e5", "007", "TRUE", "a, b", ""]
    table = pd.DataFrame(
        {"image": names, "split": names, "test_part": names, "top1": [0.5, *[None] * 8], "label": 3}
    )
    table.to_csv(tmp_path / "own.csv", index=False)
    found = cells.read_table(tmp_path / "own.csv")
    assert [found[name].tolist() for name in ("image", "split", "test_part")] == [names] * 3
    assert (found["top1"].count(), found["label"].sum()) == (1, 27)


@pytest.mark.parametrize("name", ["NA", "007"])
def test_a_test_part_may_be_called_like_a_missing_value(name: str) -> None:
    own = SWEEP.model_copy(update={"extra_test": ExtraTest(name=name, folder="x")})
    images = [
        predictions("probe", (10, 30, 5), (*IMAGES, 8), size).replace({"photos": name})
        for size in (96, 128)
    ]
    write(own, "baseline", Metrics(), *images)
    listed = pd.DataFrame(
        {"image": ["NA", "b"], "label": 0, "split": [name, "train"], "width": 9, "height": 9}
    )
    write_atomically(run_folder("tiny", "images.csv"), listed.to_csv(index=False))
    write_atomically(
        run_folder("tiny", "images.json"), json.dumps({"fingerprint": "x", "parts": {name: "x"}})
    )
    found = loaded(own)
    assert found.parts == ["test", name]
    assert found.images[["image", "split"]].to_numpy().tolist() == [["NA", name], ["b", "train"]]
    assert found.on(name).cells["n_test"].max() == 8
    assert found.sweep["parts"] == {name: "x"}

"""Run folders made by hand, through collect and load."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up import grid, loaded, predictions, write, write_error

from fixres_poc.analysis import cells
from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.collection import collect
from fixres_poc.analysis.record import Metrics
from fixres_poc.analysis.results import load_results
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import run_folder, write_atomically
from fixres_poc.config.run_state import outcomes
from fixres_poc.config.settings import ExtraTest
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.method.apparent_size import pair_ratios, sample_crops
from fixres_poc.report import sentences, tables

KEYS = {"name": "tiny", "dataset": "synthetic", "adaptations": ["none", "head"]}
SWEEP = validate(SweepSettings, KEYS | {"train_sizes": [96], "test_sizes": [96, 128, 160]}, "test")
VAL, TEST = IMAGES = 20, 60
FAILED = "train96_test160_seed0"


def guesses(adaptation: str, val: int, test: int, *framed: Any) -> pd.DataFrame:
    """Predictions of which so many are right, at a test size and a crop_pct."""
    return predictions(adaptation, (val, test), IMAGES, *framed)


def write_pair(**hits: tuple[int, int]) -> None:
    """Leave the run at 96 px, with so many right answers of each adaptation."""
    tables = [guesses(name, *right) for name, right in hits.items()]
    write(SWEEP, "train96_test96_seed0", Metrics(), *tables)


def write_images(**columns: Any) -> pd.DataFrame:
    """Leave the list of images."""
    table = pd.DataFrame({"label": 0} | columns)
    write_atomically(run_folder("tiny", "images.csv"), table.to_csv(index=False))
    return table


PROBES = [guesses("probe", 10, right, size) for size, right in ((96, 30), (128, 35))]


def test_table_has_a_row_for_every_cell() -> None:
    pair, larger = {"none": 0.60, "head": 0.65}, {"none": 0.66, "head": 0.70, "control_head": 0.71}
    top1 = {(96, 96): pair, (96, 128): larger, (96, 160): None}
    found = grid(top1, adaptations=["none", "head"])
    table = found.table
    assert list(table) == cells.COLUMNS
    assert {"top1", "probability"} == {"top1", "top2", "top5", "probability"} & {*found.predictions}
    assert table["status"].tolist() == ["done"] * 9 + ["failed"] * 3
    assert set(table["error"][9:]) == {"OutOfMemoryError: <b>full</b>"}
    assert table["adaptation"].tolist() == ["probe"] * 4 + [*pair] + [*larger] * 2
    speeds = [3e6 / size**2 for size in (96, 128, 160)]
    assert table["eval_images_per_second"].tolist()[:3] == pytest.approx(speeds, rel=1e-5)
    runs = {run["name"]: run for run in found.sweep["runs"]}
    expected = {"status": "failed", "train_size": 96, "test_size": 160}
    assert runs[FAILED] | expected == runs[FAILED]
    training = runs["train96_seed0"]
    assert (training["steps"], training["test_size"]) == (1000, None)
    row = found.row(Cell(96, 128, "head"))
    expected = {"n_val": 200, "n_test": 400, "top5": 1, "train_seconds": 34, "adapt_seconds": 5}
    expected |= {"top1": 0.70, "ece": 0.70 - 0.1235, "peak_memory_bytes": 5}
    assert row[[*expected]].to_dict() == pytest.approx(expected, abs=1e-5)
    assert found.row(Cell(96, 128, "control_head"))["adapt_seconds"] == 2


def test_zero_shot_is_compared_on_its_own_images_and_joins_the_warning() -> None:
    zero = guesses("zero_shot", 5, 25)
    zero = zero[(zero["split"] == "val") | (zero["image"] < "test/040")]
    write(SWEEP, "baseline", Metrics(zero_shot="It knows them."), *PROBES, zero)
    write(SWEEP, "dataset", Metrics(leakage={"verdict": "**Warning.**"}))
    write_pair(none=(12, 40))
    found = loaded(SWEEP)
    row = found.row(found.once("zero_shot", 96))
    assert (row["n_test"], row["top1"]) == (40, 25 / 40)
    assert found.sweep["leakage"]["verdict"] == "**Warning.** It knows them."
    assert tables.cells(found, None)["of images"].tolist()[:3] == [60, 60, 40]


def test_size_ratios_are_those_of_the_sweeps_own_images() -> None:
    sizes = {"width": [500, 500, 375, 90], "height": [375, 333, 500, 900]}
    table = write_images(image=list("abcd"), split=["train", "val", "test", "photos"], **sizes)
    framed = {"resize": "height", "crop_scale": (0.5, 1.0), "crop_pct": 0.71}
    tall = SWEEP.model_copy(update=framed)
    write(tall, "baseline", Metrics(), *PROBES)
    found = loaded(tall).table.drop_duplicates(cells.PAIR).set_index("test_size")
    probes, pairs = found["train_size"].isna(), [(96, 96), (96, 128), (96, 160)]
    assert set(found.loc[probes, "size_ratio"]) == {1}
    crops = sample_crops(table[:3], crop_scale=(0.5, 1.0))
    expected = pair_ratios(crops, pairs, "height", 0.71)["mean_of_ratios"]
    assert found.loc[~probes, "size_ratio"].tolist() == pytest.approx(list(expected), rel=1e-5)


def test_runs_that_are_not_done_are_told_with_their_reason() -> None:
    write(SWEEP, "baseline", Metrics(), *PROBES)
    write_error("tiny", "train96_seed0", "ValueError: no")
    write_pair(none=(12, 40))
    write_atomically(run_folder("tiny", "train96_test96_seed0") / "predictions.parquet", "half")
    changed = SWEEP.model_copy(update={"batch_size": 8})
    table = collect(changed, outcomes(changed))
    assert table["status"].tolist() == [*["outdated"] * 4, *["damaged"] * 2, *["missing"] * 6]
    assert table["test_size"].tolist() == [96, 128, 160, 224, 96, 96, *[128] * 3, *[160] * 3]
    assert "batch_size" in table["error"][0]
    assert table["error"][4] == "predictions.parquet is not what the run has written"
    assert table["error"][6] == "train96_seed0 failed: ValueError: no"


def test_what_no_run_has_told_is_taken_from_the_prepared_images() -> None:
    write(SWEEP, "state_of_the_art", Metrics())
    sizes = {"width": 9, "height": 9}
    write_images(image=["a", "b", "c"], split=["train", "test", "test"], **sizes)
    record = {"fingerprint": "a", "unreadable": {}, "classes": ["cat", "dog"]}
    write_atomically(run_folder("tiny", "images.json"), json.dumps(record))
    collect(SWEEP, outcomes(SWEEP))
    sentences.write("tiny")
    assert sentences.read("tiny")["title"]
    assert load_results("tiny").sweep["images"] == {"test": 2, "train": 1}


def test_nothing_to_report() -> None:
    write_atomically(run_folder("tiny", "baseline") / "settings.json", "{}")
    with pytest.raises(InputError, match="tiny"):
        collect(SWEEP, outcomes(SWEEP))
    with pytest.raises(InputError, match="no results"):
        load_results("tiny")


def test_shared_tables_hold_no_formulas_and_no_paths(own_home: Path) -> None:
    names = ["=1+1.jpg", "'x.jpg", "a.jpg"]
    write_images(image=names, split="test", width=9, height=9)
    write(SWEEP, "baseline", Metrics(), *PROBES)
    write_error("tiny", FAILED, f"@{own_home}/x: /mnt/birds: bad\n")
    extra = ExtraTest(name="new", folder="/mnt/new")
    update = {"dataset": "/mnt/birds", "imagenet_list": "/mnt/list.txt", "extra_test": extra}
    private = SWEEP.model_copy(update=update)
    collect(private, outcomes(private))
    folder = own_home / "reports" / "tiny"
    texts = [(folder / name).read_text() for name in ("results.csv", "images.csv", "sweep.json")]
    text = "\n".join(texts)
    assert not re.findall(r'(?:^|[,\n])"?[=@]', text)
    assert "/mnt" not in text
    assert str(own_home) not in text
    found = load_results("tiny")
    assert found.images["image"].tolist() == names
    assert set(found.table["error"][-2:]) == {f"@{own_home.name}/x: birds: bad"}


def test_text_in_tables_is_what_was_written(tmp_path: Path) -> None:
    names = ["NA", "nan", "None", "null", "1e5", "007", "TRUE", "a, b", ""]
    table = pd.DataFrame(dict.fromkeys(["image", "split", "test_part"], names))
    table = table.assign(top1=[0.5, *[float("nan")] * 8], label=3)
    table.to_csv(tmp_path / "own.csv", index=False)
    found = cells.read_table(tmp_path / "own.csv")
    assert [found[name].tolist() for name in ("image", "split", "test_part")] == [names] * 3
    assert (found["top1"].count(), found["label"].sum()) == (1, 27)


def test_each_arm_has_the_framing_that_is_best_on_validation_over_seeds() -> None:
    first = {"none": 0.50, "none@0.71": 0.65, "none@1.0": 0.55}
    first |= {"head": 0.50, "head@0.71": 0.60, "head@1.0": 0.45}
    first |= {"control_head": 0.45, "control_head@1.0": 0.75}  # its arm chooses, not it
    second = first | {"none": 0.60, "none@0.71": 0.40}  # 1.0 is as good as 0.875
    seeds = ({(96, 128): own, (128, 128): None} for own in (first, second))
    keys: dict[str, Any] = {"adaptations": ["none", "head"], "crop_pct": [0.875, 0.71, 1.0]}
    results = grid(*seeds, once={"probe": 0.45, "probe@1.0": 0.40}, **keys)
    done = results.table.query("status == 'done' and test_size == 128")
    chosen = done[done["crop_pct_chosen"]]
    value = chosen.drop_duplicates("adaptation").set_index("adaptation")["crop_pct"].to_dict()
    assert value == {"probe": 0.875, "none": 0.875, "head": 0.71, "control_head": 0.71}
    assert len(chosen) == 1 + 3 * 2
    failed = results.table[results.table["status"] == "failed"]
    assert set(failed.loc[failed["crop_pct_chosen"], "crop_pct"]) == {0.875}
    parts = results.predictions.groupby(["adaptation", "split"], observed=True)["crop_pct"].unique()
    assert set(parts["head", "test"]) == {0.875, 0.71, 1.0}
    assert set(parts["head", "val"]) == set(parts["control_head", "val"]) == {0.875, 0.71}
    assert set(parts["none", "val"]) == set(parts["probe", "val"]) == {0.875}
    best = results.choose()
    assert best == Cell(96, 128, "head", crop_pct=0.71)
    row = results.row(best)
    assert (row["seeds"], row["val_top1"]) == (2, pytest.approx(0.60))

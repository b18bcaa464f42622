"""Run folders made by hand, through collect and load."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up import loaded, predictions, write, write_error

from fixres_poc.analysis import cells
from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.collection import collect
from fixres_poc.analysis.record import Metrics
from fixres_poc.analysis.results import Results, load_results
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


@pytest.fixture
def sweep() -> Results:
    speeds = {"96": 9, "128": 5}
    facts = Metrics(classes=["a", "b"], images={"val": VAL}, eval_images_per_second=speeds)
    write(SWEEP, "baseline", facts, *PROBES)
    seconds = {"probe": 1, "train": 9, "adapt": {"head": 2}}
    write(SWEEP, "train96_seed0", Metrics(seconds=seconds, steps=7))
    write_pair(none=(12, 38), head=(12, 39))
    hits = {"none": 40, "head": 41, "control_head": 42}
    larger = [guesses(name, 13, right, 128) for name, right in hits.items()]
    facts = Metrics(seconds={"adapt": {"head": 4}}, peak_memory_bytes=5)
    write(SWEEP, "train96_test128_seed0", facts, *larger)
    write_error("tiny", FAILED, "OutOfMemoryError: <b>full</b>\nmore\n")
    return loaded(SWEEP)


def test_table_has_a_row_for_every_cell(sweep: Results) -> None:
    table, pair = sweep.table, ["none", "head"]
    assert list(table) == cells.COLUMNS
    assert table["status"].tolist() == ["done"] * 7 + ["failed"] * 3
    assert set(table["error"][7:]) == {"OutOfMemoryError: <b>full</b>"}
    assert table["adaptation"].tolist() == ["probe"] * 2 + pair + [*pair, "control_head"] * 2
    assert table["eval_images_per_second"].tolist()[:2] == [9, 5]
    runs = {run["name"]: run for run in sweep.sweep["runs"]}
    expected = {"status": "failed", "train_size": 96, "test_size": 160}
    assert runs[FAILED] | expected == runs[FAILED]
    training = runs["train96_seed0"]
    assert (training["steps"], training["test_size"]) == (7, None)
    row = sweep.row(Cell(96, 128, "head"))
    expected = {"n_val": VAL, "n_test": TEST, "peak_memory_bytes": 5, "top5": 1}
    expected |= {"top1": 41 / TEST, "ece": 41 / TEST - 0.1235}
    expected |= {"train_seconds": 10, "adapt_seconds": 4}
    assert row[[*expected]].to_dict() == pytest.approx(expected, abs=1e-5)
    assert sweep.row(Cell(96, 128, "control_head"))["adapt_seconds"] == 2


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
    tall = SWEEP.model_copy(update={"resize": "height"})
    write(tall, "baseline", Metrics(), *PROBES)
    found = loaded(tall).table.drop_duplicates(cells.PAIR).set_index("test_size")
    probes, pairs = found["train_size"].isna(), [(96, 96), (96, 128), (96, 160)]
    assert set(found.loc[probes, "size_ratio"]) == {1}
    expected = pair_ratios(sample_crops(table[:3]), pairs, "height")["mean_of_ratios"]
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


def test_nothing_to_report() -> None:
    write_atomically(run_folder("tiny", "baseline") / "settings.json", "{}")
    with pytest.raises(InputError, match="tiny"):
        collect(SWEEP, outcomes(SWEEP))
    with pytest.raises(InputError, match="no results"):
        load_results("tiny")


@pytest.mark.usefixtures("sweep")
def test_shared_tables_hold_no_formulas_and_no_paths(own_home: Path) -> None:
    names = ["=1+1.jpg", "'x.jpg", "a.jpg"]
    write_images(image=names, split="test", width=9, height=9)
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
    crops = 0.875, 0.71, 1.0
    keys = {"crop_pct": list(crops), "seeds": [0, 1], "crop_scale": [0.5, 1.0]}
    sweep = validate(SweepSettings, KEYS | keys | {"pairs": [[96, 128], [96, 96]]}, "test")
    right: dict[str, list[Any]] = {  # of validation in each framing, with seed 0 and with seed 1
        "none": [(10, 12), (13, 8), (11, 11)],  # 0.71 is the best with one seed; 1.0 is as good
        "head": [(10, 10), (12, 12), (9, 9)],
        "control_head": [(9, 9), (9, 9), (15, 15)],  # its arm chooses, not it
    }
    probe: dict[str, list[Any]] = {"probe": [(9,), (9,), (8,)]}
    for run, seed, hits in (
        ("baseline", 0, probe),
        ("train96_test128_seed0", 0, right),
        ("train96_test128_seed1", 1, right),
    ):
        found = [
            guesses(name, own[seed], 30, 128, crop)
            for name, framed in hits.items()
            for own, crop in zip(framed, crops, strict=True)
        ]
        write(sweep, run, Metrics(), *found)
    sizes = write_images(image=["a"], split="val", width=90, height=80)
    results = loaded(sweep)
    chosen = results.table[results.table["crop_pct_chosen"] & (results.table["status"] == "done")]
    value = chosen.drop_duplicates("adaptation").set_index("adaptation")["crop_pct"].to_dict()
    assert value == {"probe": 0.875, "none": 0.875, "head": 0.71, "control_head": 0.71}
    assert len(chosen) == 1 + 3 * 2
    missing = results.table[results.table["status"] == "missing"]
    assert set(missing["crop_pct"]) == {0.875}
    assert missing["crop_pct_chosen"].all()
    parts = results.predictions.groupby(["adaptation", "split"], observed=True)["crop_pct"].unique()
    assert set(parts["head", "test"]) == set(crops)
    assert set(parts["head", "val"]) == set(parts["control_head", "val"]) == {0.875, 0.71}
    assert set(parts["none", "val"]) == set(parts["probe", "val"]) == {0.875}
    best = results.choose()
    assert best == Cell(96, 128, "head", crop_pct=0.71)
    row = results.row(best)
    assert (row["seeds"], row["val_top1"]) == (2, 12 / VAL)
    expected = pair_ratios(sample_crops(sizes, crop_scale=(0.5, 1.0)), [(96, 128)], crop_pct=0.71)
    assert row["size_ratio"] == pytest.approx(expected["mean_of_ratios"].item(), rel=1e-5)

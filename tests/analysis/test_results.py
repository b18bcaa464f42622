"""Choices, comparisons and the path of gains, on accuracies that are made up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import ADAPTATIONS, TEST, same, shaped, told

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.results import Results, gain_path, load_results
from fixres_poc.data.loading import images_to_show


@pytest.fixture
def found() -> Results:
    return told(same(0.60), {"none": 0.65, "head": 0.70, "head_bn_stats": 0.70, "head_bn": 0.80, "control": 0.72})


def test_choice_is_made_on_validation(found: Results) -> None:
    assert found.choose() == Cell(96, 128, "head_bn", 0)
    assert replace(found, table=found.table.assign(val_top1=0.5, top1=0.9)).choose() == Cell(96, 96, "none", 0)
    best_on_test = found.table["top1"].where(found.table["adaptation"] != "head", 1.0)
    assert replace(found, table=found.table.assign(top1=best_on_test)).choose() == Cell(96, 128, "head_bn", 0)


def test_competitors_are_ranked_on_validation() -> None:
    ranked = told(same(0.60), None).ranked(("control", "baseline"))
    assert set(ranked["adaptation"]) == {*ADAPTATIONS, "baseline"}
    assert ranked["val_top1"].is_monotonic_decreasing
    assert not ranked["test_size"].eq(128).any()  # that pair failed


def test_the_choice_is_made_over_both_seeds() -> None:
    second = same(0.62) | {"head": 0.50, "head_bn": 0.70}
    assert told(same(0.60), same(0.62) | {"head": 0.80}, seed1=(same(0.60), second)).choose().adaptation == "head_bn"


def test_a_gain_in_one_training_and_a_loss_in_the_other_is_none() -> None:
    found = told(same(0.60), same(0.90), seed1=(same(0.60), same(0.40)), adaptations=["none"])
    gain = found.difference(Cell(96, 128, "none", 0), Cell(96, 96, "none", 0))
    assert gain is not None
    assert gain.estimate == pytest.approx(0.05)
    assert gain.verdict() == "not told apart from none"


def test_the_path_adds_up_to_the_whole_gain(found: Results) -> None:
    path = gain_path(found)
    assert path["gain"].sum() == pytest.approx(0.30)
    assert path["top1"].tolist() == pytest.approx([0.50, 0.60, 0.65, 0.72, 0.80])
    assert path["gain_low"].iloc[1] < path["gain"].iloc[1] < path["gain_high"].iloc[1]


def test_the_path_steps_over_what_was_not_run(found: Results) -> None:
    path = gain_path(replace(found, predictions=found.predictions[found.predictions["adaptation"] != "control"]))
    assert np.isnan(path["gain"].iloc[3])
    assert path["against"].iloc[4] == path["step"].iloc[2]


def test_the_path_over_two_seeds_is_one_of_means() -> None:
    path = gain_path(
        told(same(0.60), same(0.62) | {"head_bn": 0.80}, seed1=(same(0.50), same(0.56) | {"head_bn": 0.72}))
    )
    assert path["top1"].tolist() == pytest.approx([0.50, 0.55, 0.59, 0.59, 0.76])
    assert path["gain"].sum() == pytest.approx(0.26)


def test_the_view_is_chosen_on_validation_and_stands_last_on_the_path() -> None:
    found = told(same(0.60), same(0.80), views=["center", "five_crop"])
    better = found.predictions.assign(top1=1, view="five_crop")[lambda table: table["test_size"] == 128]
    row = found.table[found.table["test_size"] == 128].assign(view="five_crop", val_top1=1.0, top1=1.0)
    table = pd.concat([found.table, row], ignore_index=True)
    both = replace(found, table=table, predictions=pd.concat([found.predictions, better]))
    assert both.choose() == Cell(96, 128, "none", 0, "five_crop")
    path = gain_path(both)
    assert path["step"].tolist()[-1] == "five_crop instead of one crop"
    assert path["gain"].iloc[-1] == pytest.approx(0.20)


def test_predictions_of_a_cell_are_those_of_its_test_images(found: Results) -> None:
    rows = found.test_predictions(Cell(96, 128, "head_bn", 0))
    assert len(rows) == TEST
    assert (rows["top1"] == rows["target"]).mean() == pytest.approx(0.80)
    assert set(rows["split"]) == {"test"}


def test_the_report_folder_needs_no_runs(found: Results, own_home: Path) -> None:
    for file in (own_home / "runs").rglob("*.*"):
        file.unlink()
    assert load_results("told").choose() == found.choose()


def test_images_that_are_gone_are_not_shown() -> None:
    found = shaped(2, 30, pairs=[[96, 96]])
    assert images_to_show(found.data_settings(), found.images["image"].head(3)) == []

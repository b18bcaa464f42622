"""Choices, comparisons and the path of gains, on accuracies that are made up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import PHOTOS, TEST, VAL, grid, same, told, with_facts

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import best_sizes, gain_path
from fixres_poc.analysis.results import Results, load_results, training_cost
from fixres_poc.model.memory_plan import parameters_and_flops
from fixres_poc.report.text import geometry

CONTROL = "control_head_bn"


@pytest.fixture
def found() -> Results:
    return told(same(0.60), same(0.70) | {"none": 0.65, "head_bn": 0.80, CONTROL: 0.72})


def test_choice_is_made_on_validation(found: Results) -> None:
    assert found.choose() == Cell(96, 128, "head_bn")
    even = replace(found, table=found.table.assign(val_top1=0.5, top1=0.9))
    assert even.choose() == Cell(96, 96, "none")
    best_on_test = found.table["top1"].where(found.table["adaptation"] != "head", 1.0)
    assert replace(found, table=found.table.assign(top1=best_on_test)).choose() == found.choose()


def test_what_ran_once_is_held_against_every_training_whichever_stands_first() -> None:
    found = told(same(0.60), same(0.70), same(0.50), same(0.80), once={"probe": 0.72})
    trained, probe = Cell(96, 128, "none"), found.once("probe", 128)
    ahead, behind = found.difference(probe, trained), found.difference(trained, probe)
    assert ahead
    assert behind
    assert [ahead.estimate, -behind.estimate] == pytest.approx([0.72 - 0.75] * 2, abs=0.005)


def test_equal_means_over_seeds_are_ties_in_spite_of_rounding() -> None:
    found = told(same(0.60), same(0.60), same(0.60), same(0.60))
    noise = found.table["val_top1"] + 2e-7 * (found.table["test_size"] == 128)
    assert replace(found, table=found.table.assign(val_top1=noise)).choose().test_size == 96


def test_neither_probe_nor_a_failed_pair_is_chosen() -> None:
    found = told(same(0.60), None, once={"probe": 0.70, "zero_shot": 0.90})
    assert found.choose() == Cell(96, 96, "none")


def test_another_test_part_has_its_own_accuracies_and_the_same_choice() -> None:
    found, larger = told(same(0.60), same(0.80), photos=0.5), Cell(96, 128, "none")
    for part, top1, images in (("test", 0.8, TEST), ("photos", 0.4, PHOTOS)):
        results = found.on(part)
        assert results.row(larger)[["top1", "n_test"]].tolist() == [pytest.approx(top1), images]
        assert results.choose() == larger
        assert len(results.test_predictions(larger)) == images


def test_the_path_adds_up_to_the_whole_gain(found: Results) -> None:
    path = gain_path(found, found.choose())
    assert path["top1"].tolist() == pytest.approx([0.50, 0.60, 0.65, 0.72, 0.80])
    assert path["gain"].tolist()[1:] == pytest.approx([0.10, 0.05, 0.07, 0.08])
    steps = ["linear probe at 96", "tested at 128 instead", "adapted at 128"]
    assert path["step"].tolist()[::2] == steps
    assert (path["gain_low"] < path["gain"])[1:].all()
    assert (path["gain"] < path["gain_high"])[1:].all()
    lacking = found.predictions[found.predictions["adaptation"] != CONTROL]
    path = gain_path(replace(found, predictions=lacking), found.choose())
    assert np.isnan(path["gain"].iloc[3])
    assert path["against"].iloc[4] == path["step"].iloc[2]


def test_the_view_is_chosen_on_validation_and_stands_last_on_the_path() -> None:
    found = told(same(0.60), same(0.80), views=["center", "five_crop"])
    better, row = (
        table.query("test_size == 128 and adaptation == 'none'").assign(view="five_crop", top1=1)
        for table in (found.predictions, found.table)
    )
    table = pd.concat([found.table, row.assign(val_top1=1.0)], ignore_index=True)
    both = replace(found, table=table, predictions=pd.concat([found.predictions, better]))
    assert both.choose() == Cell(96, 128, "none", "five_crop")
    path = gain_path(both, both.choose())
    assert path["step"].tolist()[-1] == "five_crop instead of one crop"
    assert path["gain"].iloc[-1] == pytest.approx(0.20)


def test_the_report_folder_needs_no_runs(found: Results, own_home: Path) -> None:
    for file in (own_home / "runs").rglob("*.*"):
        file.unlink()
    assert load_results("told").choose() == found.choose()


@pytest.mark.parametrize(
    ("at_96", "at_128", "best", "verdict"),
    [
        (0.60, 0.80, 128, "which is also the best on validation"),
        (0.80, 0.60, 96, "+20.0 points (95 % interval 15.9 to 23.9) on test: against the theory"),
        (0.605, 0.60, 96, "on test: not against the theory"),
    ],
)
def test_the_best_test_size_is_held_against_that_of_equal_apparent_size(
    at_96: float, at_128: float, best: int, verdict: str
) -> None:
    """Trained at 96 px; on these images the ratio at 128 px is nearer to 1 than that at 96."""
    found = told(same(at_96), same(at_128))
    ((nearest, best_row, _),) = best_sizes(found)
    assert (nearest["test_size"], best_row["test_size"]) == (128, best)
    assert geometry(found).startswith(
        "- Trained at 96 px, objects look most nearly as large at 128"
    )
    assert verdict in geometry(found)


@pytest.fixture
def trained() -> Results:
    top1 = {(64, 96): {"none": 0.60, "head": 0.70}, (96, 96): {"none": 0.60, "head": 0.80}}
    return grid(top1, adaptations=["none", "head"])


def forward(size: int) -> int:
    return parameters_and_flops("efficientnet_lite0", 2, size)[1]


@pytest.mark.parametrize("train_size", [64, 96])
def test_training_cost_by_hand(trained: Results, train_size: int) -> None:
    """300 train images, once by the probe, thrice by an epoch; those of val once."""
    at_train = (300 + VAL + 4 * (3 * 300 + VAL)) * forward(train_size)
    plain, head = (Cell(train_size, 96, name) for name in ("none", "head"))
    assert training_cost(trained, plain) == (at_train, 4 + 30)
    assert training_cost(trained, head) == (at_train + 2 * 300 * forward(96), 4 + 30 + 5)


def test_what_is_not_trained_costs_its_probe_alone(trained: Results) -> None:
    """A network of a file has no stage 1; the probe is one pass of the train part."""
    given = with_facts(trained, {"head_start": "file"})
    assert training_cost(given, Cell(64, 96, "none"))[0] == 0
    assert training_cost(trained, trained.once("probe", 96)) == (300 * forward(96), 0)

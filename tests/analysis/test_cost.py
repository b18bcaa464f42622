"""The frontiers of validation accuracy over the cost of an image, and over that of training."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
from made_up import VAL, grid, shaped

from fixres_poc.analysis import cost
from fixres_poc.analysis.cells import Cell, keys
from fixres_poc.analysis.results import Results
from fixres_poc.config.settings import CROPS
from fixres_poc.model.memory_plan import parameters_and_flops
from fixres_poc.report import tables

SIZES = {"train_sizes": [64, 96], "test_sizes": [64, 96, 128]}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXRES_HOME", str(tmp_path_factory.mktemp("home")))
        yield shaped(3, 2000, **SIZES)


def changed(found: Results, **values: Any) -> Results:
    """The same with other columns of its table."""
    return replace(found, table=found.table.assign(**values))


def test_no_other_cell_beats_one_of_the_frontier(found: Results) -> None:
    front = cost.pareto_front(found)
    every = found.ranked(("full", "probe")).set_index(["test_size"])
    speed = found.table.groupby("test_size")["eval_images_per_second"].median()
    for row in front.itertuples():
        as_cheap = [
            size
            for size in speed.index
            if speed[size] >= row.images_per_second and size <= row.test_size
        ]
        assert every.loc[as_cheap, "val_top1"].max() == row.val_top1
    assert list(front["flops"]) == sorted(front["flops"])
    assert (
        front["flops"].iloc[0]
        == parameters_and_flops("efficientnet_lite0", 3, front["test_size"].iloc[0])[1]
    )
    assert front["val_top1"].max() == every["val_top1"].max()
    assert not front["adaptation"].str.startswith("control").any()


def test_a_speed_is_that_of_runs_and_not_of_the_probe(found: Results) -> None:
    speed = found.table["eval_images_per_second"].where(
        found.table["adaptation"] != "probe", 9999.0
    )
    front = cost.pareto_front(changed(found, eval_images_per_second=speed)).set_index("test_size")
    runs = found.table[~found.table["adaptation"].isin(["probe", "zero_shot"])]
    for size in set(front.index) & set(runs["test_size"]):
        own = runs.loc[runs["test_size"] == size, "eval_images_per_second"]
        assert (front["slowest"][size], front["fastest"][size]) == (own.min(), own.max())


def test_what_is_dearer_and_no_better_is_left_out(found: Results) -> None:
    table = found.table
    worse = changed(found, val_top1=table["val_top1"].where(table["test_size"] != 96, 0.1))
    assert 96 not in set(cost.pareto_front(worse)["test_size"])


def test_a_faster_cell_stays_though_it_has_more_flops(found: Results) -> None:
    table = found.table
    speed = table["eval_images_per_second"].where(table["test_size"] != 128, 1e6)
    best_at_64 = table["val_top1"].where(table["test_size"] != 64, 0.999)
    front = cost.pareto_front(changed(found, val_top1=best_at_64, eval_images_per_second=speed))
    assert set(front["test_size"]) == {64, 128}
    by_flops = cost.pareto_front(changed(found, eval_images_per_second=float("nan")))
    assert list(by_flops["test_size"]) == list(cost.pareto_front(found)["test_size"])
    assert len(by_flops) > 1


def test_crops_cost_their_number(found: Results) -> None:
    ten = found.table.assign(view="ten_crop", val_top1=1.0)
    front = cost.pareto_front(replace(found, table=pd.concat([found.table, ten])))
    row = front[front["view"] == "ten_crop"].iloc[0]
    assert (
        row["flops"]
        == CROPS["ten_crop"] * parameters_and_flops("efficientnet_lite0", 3, row["test_size"])[1]
    )


def test_steps_say_what_is_not_told_apart(found: Results) -> None:
    front = cost.pareto_front(found)
    words = tables.frontier(found, front)["against the previous row, on test"]
    assert words.iloc[0] == ""
    gains = [found.difference(*pair) for pair in pairwise(keys(front))]
    told_apart = [gain is not None and not gain.low <= 0 <= gain.high for gain in gains]
    assert [not each.startswith("no difference shown") for each in words[1:]] == told_apart


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXRES_HOME", str(tmp_path_factory.mktemp("home")))
        top1 = {(64, 96): {"none": 0.60, "head": 0.70}, (96, 96): {"none": 0.60, "head": 0.80}}
        yield grid(top1, adaptations=["none", "head"], epochs=4, equal_compute=True)


def forward(size: int) -> int:
    return parameters_and_flops("efficientnet_lite0", 2, size)[1]


@pytest.mark.parametrize(("train_size", "epochs"), [(64, 9), (96, 4)])  # 4 * (96 / 64)^2
def test_training_cost_by_hand(trained: Results, train_size: int, epochs: int) -> None:
    """300 train images, once by the probe, thrice by an epoch; those of val once."""
    at_train = (300 + VAL + epochs * (3 * 300 + VAL)) * forward(train_size)
    plain, head = (Cell(train_size, 96, name, 0) for name in ("none", "head"))
    assert cost.training_cost(trained, plain) == (at_train, 4 + 30)
    assert cost.training_cost(trained, head) == (at_train + 2 * 300 * forward(96), 4 + 30 + 5)


def test_what_is_not_trained_costs_its_probe_alone(trained: Results) -> None:
    """A network of a file has no stage 1; the probe is one pass of the train part."""
    own = trained.sweep["settings"] | {"head_start": "file"}
    given = replace(trained, sweep=trained.sweep | {"settings": own})
    assert cost.training_cost(given, Cell(64, 96, "none", 0))[0] == 0
    assert cost.training_cost(trained, trained.once("probe", 96)) == (300 * forward(96), 0)


def test_on_the_front_nothing_as_good_is_cheaper_to_train(trained: Results) -> None:
    rows = cost.training_front(trained)
    assert rows["flops"].is_monotonic_increasing
    assert rows["val_top1"].tolist() == [0.60, 0.60, 0.70, 0.80]
    assert rows["train_size"].tolist() == [64, 96, 64, 96]
    assert rows["front"].tolist() == [True, False, True, True]

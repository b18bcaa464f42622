"""The frontier of validation accuracy over cost."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
from made_up import shaped

from fixres_poc.analysis import pareto
from fixres_poc.analysis.cells import keys
from fixres_poc.analysis.results import Results
from fixres_poc.config.settings import CROPS
from fixres_poc.model.tracing import parameters_and_flops

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
    front = pareto.pareto_front(found)
    every = found.ranked(("full", "baseline")).set_index(["test_size"])
    speed = found.table.groupby("test_size")["eval_images_per_second"].median()
    for row in front.itertuples():
        as_cheap = [size for size in speed.index if speed[size] >= row.images_per_second and size <= row.test_size]
        assert every.loc[as_cheap, "val_top1"].max() == row.val_top1
    assert list(front["flops"]) == sorted(front["flops"])
    assert front["flops"].iloc[0] == parameters_and_flops("efficientnet_lite0", 3, front["test_size"].iloc[0])[1]
    assert front["val_top1"].max() == every["val_top1"].max()
    assert "control" not in set(front["adaptation"])


def test_what_is_dearer_and_no_better_is_left_out(found: Results) -> None:
    table = found.table
    worse = changed(found, val_top1=table["val_top1"].where(table["test_size"] != 96, 0.1))
    assert 96 not in set(pareto.pareto_front(worse)["test_size"])


def test_a_faster_cell_stays_though_it_has_more_flops(found: Results) -> None:
    table = found.table
    speed = table["eval_images_per_second"].where(table["test_size"] != 128, 1e6)
    best_at_64 = table["val_top1"].where(table["test_size"] != 64, 0.999)
    front = pareto.pareto_front(changed(found, val_top1=best_at_64, eval_images_per_second=speed))
    assert set(front["test_size"]) == {64, 128}
    by_flops = pareto.pareto_front(changed(found, eval_images_per_second=float("nan")))
    assert list(by_flops["test_size"]) == list(pareto.pareto_front(found)["test_size"])
    assert len(by_flops) > 1


def test_crops_cost_their_number(found: Results) -> None:
    ten = found.table.assign(view="ten_crop", val_top1=1.0)
    front = pareto.pareto_front(replace(found, table=pd.concat([found.table, ten])))
    row = front[front["view"] == "ten_crop"].iloc[0]
    assert row["flops"] == CROPS["ten_crop"] * parameters_and_flops("efficientnet_lite0", 3, row["test_size"])[1]


def test_steps_and_advice_say_what_is_not_told_apart(found: Results) -> None:
    front = pareto.pareto_front(found)
    words = pareto.steps(found, front)["against the row before, on test"]
    assert words.iloc[0] == ""
    gains = [found.difference(*pair) for pair in pairwise(keys(front))]
    told_apart = [gain is not None and not gain.low <= 0 <= gain.high for gain in gains]
    assert [not each.startswith("not told apart") for each in words[1:]] == told_apart
    assert "Without a limit validation prefers" in pareto.advice(found, front)
    even = changed(found, val_top1=found.table["test_size"] / 1000)  # chosen by size alone, adaptation none throughout
    front = pareto.pareto_front(even)
    assert list(front["test_size"]) == [64, 96, 128, 224]
    assert "told apart from it on test" in pareto.advice(even, front)
    assert "Nothing that was run is cheaper" in pareto.advice(found, front.head(1))


def test_nothing_to_recommend_where_nothing_ran(found: Results) -> None:
    assert "none to recommend" in pareto.advice(found, pareto.pareto_front(found).head(0))

"""The frontier of validation accuracy over cost, and the report's parts on data sets of every shape."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from throwaway import write_results

from fixres_poc import discussion, frontier, plots, results, statistics, tables
from fixres_poc.config import CROPS, InputError
from fixres_poc.datasets.loading import shown
from fixres_poc.preflight import parameters_and_flops
from fixres_poc.results import Results

SIZES = {"train_sizes": [64, 96], "test_sizes": [64, 96, 128]}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXRES_HOME", str(tmp_path_factory.mktemp("home")))
        yield results.load(write_results(3, 2000, **SIZES).name)


def changed(found: Results, **values: Any) -> Results:
    """The same with other columns of its table."""
    return Results(found.table.assign(**values), found.predictions, found.pictures, found.sweep)


def test_no_other_cell_beats_one_of_the_frontier(found: Results) -> None:
    front = frontier.frontier(found)
    every = found.ranked(("full", "baseline")).set_index(["test_size"])
    speed = found.table.groupby("test_size")["eval_images_per_second"].median()
    for row in front.itertuples():
        as_cheap = [size for size in speed.index if speed[size] >= row.pictures_per_second and size <= row.test_size]
        assert every.loc[as_cheap, "val_top1"].max() == row.val_top1
    assert list(front["flops"]) == sorted(front["flops"])
    assert front["flops"].iloc[0] == parameters_and_flops("efficientnet_lite0", 3, front["test_size"].iloc[0])[1]
    assert front["val_top1"].max() == every["val_top1"].max()
    assert "control" not in set(front["adaptation"])


def test_what_is_dearer_and_no_better_is_left_out(found: Results) -> None:
    table = found.table
    worse = changed(found, val_top1=table["val_top1"].where(table["test_size"] != 96, 0.1))
    assert 96 not in set(frontier.frontier(worse)["test_size"])


def test_a_faster_cell_stays_though_it_has_more_flops(found: Results) -> None:
    table = found.table
    speed = table["eval_images_per_second"].where(table["test_size"] != 128, 1e6)
    best_at_64 = table["val_top1"].where(table["test_size"] != 64, 0.999)
    front = frontier.frontier(changed(found, val_top1=best_at_64, eval_images_per_second=speed))
    assert set(front["test_size"]) == {64, 128}
    by_flops = frontier.frontier(changed(found, eval_images_per_second=float("nan")))
    assert list(by_flops["test_size"]) == list(frontier.frontier(found)["test_size"])
    assert len(by_flops) > 1


def test_crops_cost_their_number(found: Results) -> None:
    ten = found.table.assign(view="ten_crop", val_top1=1.0)
    front = frontier.frontier(Results(pd.concat([found.table, ten]), found.predictions, found.pictures, found.sweep))
    row = front[front["view"] == "ten_crop"].iloc[0]
    assert row["flops"] == CROPS["ten_crop"] * parameters_and_flops("efficientnet_lite0", 3, row["test_size"])[1]


def test_steps_and_advice_say_what_is_not_told_apart(found: Results) -> None:
    front = frontier.frontier(found)
    words = frontier.steps(found, front)["against the row before, on test"]
    assert words.iloc[0] == ""
    gains = [found.difference(*pair) for pair in pairwise(frontier.cells(front))]
    told_apart = [gain is not None and not gain.low <= 0 <= gain.high for gain in gains]
    assert [not text.startswith("not told apart") for text in words[1:]] == told_apart
    assert "Without a limit validation prefers" in frontier.advice(found, front)
    even = changed(found, val_top1=found.table["test_size"] / 1000)  # chosen by size alone, adaptation none throughout
    front = frontier.frontier(even)
    assert list(front["test_size"]) == [64, 96, 128, 224]
    assert "told apart from it on test" in frontier.advice(even, front)
    assert "Nothing that was run is cheaper" in frontier.advice(found, front.head(1))


@pytest.mark.parametrize(("classes", "pictures"), [(2, 30), (500, 3000), (3, 20_000)])
def test_report_of_any_shape(classes: int, pictures: int) -> None:
    found = results.load(write_results(classes, pictures, train_sizes=[96], test_sizes=[96, 128]).name)
    chosen = found.choose()
    assert f"{pictures:,} pictures, {classes} classes" in discussion.answer(found)
    wrong = found.test_predictions(chosen)
    bins = statistics.reliability(wrong["probability"], wrong["target"] == wrong["top1"])
    figures = [
        plots.class_distribution(found.pictures),
        plots.size_distribution(found.pictures),
        plots.confusions(wrong["target"], wrong["top1"], found.sweep["classes"]),
        plots.reliability({"none": bins}),
        plots.gain_path(results.gain_path(found)),
        plots.cost_accuracy(found.cells, frontier.frontier(found)),
    ]
    for figure in figures:
        figure.canvas.draw()
        boxes = [tick.get_window_extent() for axis in figure.axes for tick in axis.get_yticklabels() if tick.get_text()]
        edges = sorted((box.y0, box.y1) for box in boxes)
        assert all(one[1] <= next_one[0] + 2 for one, next_one in pairwise(edges) if one != next_one)
    plt.close("all")
    assert tables.heat_map(found).data.count("<small>") == found.cells.query("test_size != 224").shape[0]


def test_heat_map_is_coloured_by_accuracy_and_names_what_failed(found: Results) -> None:
    pairs = found.cells[found.cells["adaptation"] != "baseline"]
    html = tables.heat_map(found).data
    for top1, colour in (
        (pairs["top1"].max(), "#fee838; color: #000000"),
        (pairs["top1"].min(), "#00224e; color: #ffffff"),
    ):
        assert f'background-color: {colour}">{top1 * 100:.1f}<br>' in html
    failed = found.table["test_size"] == 96
    table = found.table.assign(status=found.table["status"].where(~failed, "failed"))
    table.loc[failed, ["top1", "top1_low", "top1_high"]] = float("nan")
    html = tables.heat_map(Results(table, found.predictions, found.pictures, found.sweep), ["none"]).data
    assert html.count("<td>failed</td>") == 2
    assert html.count("<small>") == 4


def test_pictures_that_are_gone_are_not_shown(found: Results) -> None:
    assert shown(found.data_settings(), found.pictures["picture"].head(3)) == []


def test_nothing_to_recommend_where_nothing_ran(found: Results) -> None:
    with pytest.raises(InputError, match="no results yet"):
        results.load("other")
    assert "none to recommend" in frontier.advice(found, frontier.frontier(found).head(0))

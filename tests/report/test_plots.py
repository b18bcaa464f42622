"""What the figures show: the right numbers, in percent, with failures marked."""

import importlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from made_up import grid, same, shaped
from matplotlib.patches import Rectangle

from fixres_poc.analysis.comparisons import gain_path
from fixres_poc.analysis.recommendation import recommend
from fixres_poc.analysis.statistics import reliability
from fixres_poc.config.geometry import neutral_test_size
from fixres_poc.report.plots import datasets, networks, results, style
from fixres_poc.report.tables import heat_map


@pytest.fixture(autouse=True)
def own_look() -> Iterator[None]:
    plt.switch_backend("Agg")
    with mpl.rc_context():
        style.use_style()
        yield
    plt.close("all")


@pytest.fixture
def table() -> pd.DataFrame:
    cells = [(96, 96, 0.8), (96, 128, 0.85), (128, 96, 0.7), (128, 128, np.nan)]
    rows = pd.DataFrame(cells, columns=["train_size", "test_size", "top1"])
    status = np.where(rows["top1"].isna(), "failed", "done")
    rows = rows.assign(
        adaptation="none",
        view="center",
        crop_pct=0.875,
        seed=0,
        status=status,
        eval_images_per_second=1e4 / rows["test_size"],
    )
    return rows.assign(top1_low=rows["top1"] - 0.03, top1_high=rows["top1"] + 0.03)


def test_lines_mark_the_neutral_size(table: pd.DataFrame) -> None:
    axis = results.accuracy_by_test_size(table).axes[0]
    points = [np.asarray(line.get_xydata()) for line in axis.lines]
    assert points[0].tolist() == [[96, pytest.approx(80)], [128, pytest.approx(85)]]
    assert any(np.allclose(each[:, 0], neutral_test_size(96)) for each in points if len(each))


def test_costs_show_every_arm_and_name_those_to_use() -> None:
    found = grid({(96, 96): same(0.6), (96, 128): same(0.8)}, once={"probe": 0.5})
    arms = recommend(found, "head_bn").arms
    axis = results.arms(arms).axes[0]
    assert [text.get_text() for text in axis.texts] == ["96/96 none", "96/128 none", "224 probe"]
    dots = [np.asarray(cast(Any, each).lines[0].get_xdata()) for each in axis.containers]
    assert sum(map(len, dots)) == len(arms)
    assert len(dots) == 2  # one train resolution, and what is not trained


def test_a_figure_is_described_by_what_is_written_in_it(table: pd.DataFrame) -> None:
    words = style.described(results.accuracy_by_test_size(table))
    assert words.startswith(
        "figure: adaptation: none; top-1 accuracy on test (%) against test resolution (px); "
        "trained at 96"
    )
    long = results.confusions([0], [1], ["a" * 40, "b" * 700])
    assert len(style.described(long)) <= 620


def test_imports_leave_the_look_as_it_is() -> None:
    mpl.rcdefaults()
    for module in (datasets, networks, results, style):
        importlib.reload(module)
    assert mpl.rcParams["axes.spines.right"]
    style.use_style()
    assert not mpl.rcParams["axes.spines.right"]


def test_notebooks_store_the_description() -> None:
    shell = InteractiveShell.instance()
    try:
        style.use_style()
        figure = results.training_history(
            pd.DataFrame({"epoch": [1], "loss": [1.0], "val_top1": [0.5]})
        )
        assert shell.display_formatter is not None
        _, metadata = shell.display_formatter.format(figure)  # type: ignore[no-untyped-call]
    finally:
        InteractiveShell.clear_instance()
    assert metadata["image/png"]["alt"] == style.described(figure)


def test_gain_path_tells_what_was_not_run() -> None:
    path = pd.DataFrame({"step": ["probe", "tuned", "control"], "top1": [0.8, 0.85, np.nan]})
    path["against"] = pd.Series([None, "probe", None], dtype=object)
    path = path.assign(gain=[np.nan, 0.05, np.nan], gain_low=0.02, gain_high=0.08)
    texts = [text.get_text() for text in results.gain_path(path).axes[0].texts]
    assert texts == ["80.0%", "+5.0 (+2.0 to +8.0)", "not run"]


@pytest.mark.parametrize("classes", [2, 50])  # bars, lines
def test_class_distribution_adds_up(classes: int) -> None:
    labels = [f"c{i % classes}" for i in range(100)]
    axis = datasets.class_distribution(
        pd.DataFrame({"label": labels, "split": ["train"] * 50 + ["test"] * 50})
    ).axes[0]
    bars = [bar.get_bbox().width for bar in axis.patches if isinstance(bar, Rectangle)]
    drawn = [*bars, *(value for line in axis.lines for value in np.asarray(line.get_ydata()))]
    assert len(drawn) == 2 * classes
    assert sum(drawn) == 100
    assert (
        axis.get_title(loc="left")
        == f"{classes} classes, {100 // classes} to {100 // classes} images each"
    )


def test_size_distribution_shows_means() -> None:
    images = pd.DataFrame({"width": [100, 300], "height": [100, 100]})
    labels = [axis.get_xlabel().split(", ")[-1] for axis in datasets.size_distribution(images).axes]
    assert labels == ["mean 200", "mean 100", "mean 2.00"]


def test_size_ratios_are_shown_where_a_pair_was_given() -> None:
    ratios = pd.DataFrame(
        {
            "train_size": [96, 96, 128],
            "test_size": [96, 128, 96],
            "mean_of_ratios": [0.8, 1.06, 0.6],
        }
    )
    axis = datasets.size_ratios(ratios).axes[0]
    assert [text.get_text() for text in axis.texts] == ["0.80", "1.06", "0.60"]


def test_apparent_sizes_name_the_medians() -> None:
    sizes = pd.DataFrame({"train_px": [10.0, 20.0, 90.0], "test_px": [30.0, 31.0, 32.0]})
    names = [text.get_text() for text in datasets.apparent_sizes(sizes).legends[0].get_texts()]
    assert names == ["train, median 20 px", "test, median 31 px"]


def test_sheet_wants_a_title_an_image_and_shows_its_lines() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    figure = datasets.sample_sheet(
        [image] * 5, ["03-marbled_harrier\n→ 09-ticked_dachsel", *"bcde"], columns=4
    )
    assert len(figure.axes) == 8
    assert figure.axes[0].get_title().split("\n") == ["03-marbled harrier", "→ 09-ticked dachsel"]
    with pytest.raises(ValueError, match="argument 2 is longer"):
        datasets.sample_sheet([image], ["a", "b"])


def test_framing_keeps_one_scale() -> None:
    rows = {"train": [np.zeros((8, 8, 3), np.uint8)], "test": [np.zeros((16, 16, 3), np.uint8)]}
    assert {axis.get_xlim() for axis in datasets.framing(rows).axes} == {(-0.5, 16.0)}


def test_confusions_count_images() -> None:
    axis = results.confusions([0, 0, 1], [1, 1, 1], ["a", "b"]).axes[0]
    assert [text.get_text() for text in axis.texts] == ["2"]
    assert "none" in results.confusions([0], [0], ["a"]).axes[0].get_title(loc="left")


def test_reliability_is_drawn_beside_the_diagonal() -> None:
    table = pd.DataFrame({"confidence": [0.5, 0.9], "accuracy": [0.4, 0.95], "images": [10, 90]})
    axis = results.reliability({"none": table, "head_bn": table}).axes[0]
    assert len(axis.get_lines()) == 3
    assert list(np.asarray(axis.get_lines()[1].get_ydata())) == [40, 95]


def test_activations_have_a_line_a_framing() -> None:
    axis = results.activations({"a": np.arange(101.0), "b": np.arange(101.0) * 2}).axes[0]
    first, second = axis.get_lines()
    values, shares = (
        np.asarray(first.get_xdata(), dtype=float),
        np.asarray(first.get_ydata(), dtype=float),
    )
    assert np.interp(50, values, shares) == pytest.approx(50)
    assert np.asarray(second.get_xdata())[-1] == 200


@pytest.mark.parametrize(("classes", "images"), [(2, 30), (500, 3000), (3, 20_000)])
def test_report_of_any_shape(classes: int, images: int) -> None:
    found = shaped(classes, images, train_sizes=[96], test_sizes=[96, 128])
    wrong = found.test_predictions(found.choose())
    bins = reliability(wrong["probability"], wrong["target"] == wrong["top1"])
    figures = [
        datasets.class_distribution(found.images),
        datasets.size_distribution(found.images),
        results.confusions(wrong["target"], wrong["top1"], found.sweep["classes"]),
        results.reliability({"none": bins}),
        results.gain_path(gain_path(found, found.choose())),
        results.arms(recommend(found, "head_bn").arms),
    ]
    for figure in figures:
        figure.canvas.draw()
        for axis in figure.axes:
            boxes = [tick.get_window_extent() for tick in axis.get_yticklabels() if tick.get_text()]
            edges = sorted((box.y0, box.y1) for box in boxes)
            assert all(one[1] <= next_one[0] + 2 for one, next_one in pairwise(edges))
    assert (
        heat_map(found).data.count("<small>") == found.cells.query("adaptation != 'probe'").shape[0]
    )


@pytest.mark.parametrize(
    "name",
    ["$\\frac{x$ $x^2$", "<b>", "two\nlines <b>", "x" * 200, "\x1b[31m", "\N{DOG FACE}", "_", " "],
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_show_names_as_they_are(name: str) -> None:
    figure = datasets.class_distribution(
        pd.DataFrame({"label": ["plain", name, name], "split": "train"})
    )
    shown = {text.get_text() for text in figure.axes[0].get_yticklabels()}
    assert shown == {"plain", style.short_label(name)}
    assert len(style.short_label(name)) <= 32
    sheet = datasets.sample_sheet([np.zeros((4, 4, 3), np.uint8)], [name])
    for each in (figure, sheet, results.confusions([0, 1], [1, 0], ["plain", name])):
        each.canvas.draw()

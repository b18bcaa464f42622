"""What the figures show: the right numbers, in percent, with failures marked."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from drawn import answered, inside, readable, words, xs, ys
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from fixres_poc.report.plots import answers, datasets, results, style

pytestmark = pytest.mark.usefixtures("own_look")
HISTORY = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "val_top1": [0.5, 0.75]})


def test_a_drawing_is_svg_with_its_text_and_a_photograph_png() -> None:
    _, content = answered()
    first, again = (style.packed(answers.forest(content)) for _ in range(2))
    assert first == again
    (shown, metadata), kind = first, style.SVG
    assert "FixRes's claim: adapted</text>" in shown[kind]
    assert metadata[kind]["alt"].startswith("Forest plot. ")
    sheet = datasets.sample_sheet([np.zeros((4, 4, 3), np.uint8)], ["a"])
    assert list(style.packed(sheet)[0]) == [style.PNG]


def test_a_figure_is_described_by_its_finding_or_by_what_is_written_in_it() -> None:
    confused = results.confusions([0, 0], [1, 1], ["pug", "beagle"])
    assert style.described(confused) == "Most frequent confusions. pug taken for beagle: 2"
    assert words(confused.axes[0].texts) == ["2"]
    assert "none" in results.confusions([0], [0], ["a"]).axes[0].get_title(loc="left")
    assert len(style.described(results.confusions([0], [1], ["a" * 40, "b" * 700]))) <= 600


def test_notebooks_store_the_description() -> None:
    shell = InteractiveShell.instance()
    try:
        style.use_style()
        figure = results.training_history(HISTORY)
        assert shell.display_formatter is not None
        _, metadata = shell.display_formatter.format(figure)  # type: ignore[no-untyped-call]
    finally:
        InteractiveShell.clear_instance()
    said = metadata["image/png"]["alt"]
    assert said == style.described(figure)
    assert said.startswith("figure: ")
    assert "training loss" in said


def test_gain_path_tells_what_was_not_run() -> None:
    path = pd.DataFrame({"step": ["probe", "tuned", "control"], "top1": [0.8, 0.85, np.nan]})
    path["against"] = pd.Series([None, "probe", None], dtype=object)
    path = path.assign(gain=[np.nan, 0.05, np.nan], gain_low=0.02, gain_high=0.08)
    texts = words(results.gain_path(path).axes[0].texts)
    assert texts == ["80.0 %", "+5.0 (2.0 to 8.0)", "not run"]


@pytest.mark.parametrize("classes", [2, 50])  # bars, lines
def test_class_distribution_adds_up(classes: int) -> None:
    labels = [f"c{i % classes}" for i in range(100)]
    axis = datasets.class_distribution(
        pd.DataFrame({"label": labels, "split": ["train"] * 50 + ["test"] * 50})
    ).axes[0]
    bars = [bar.get_bbox().width for bar in axis.patches if isinstance(bar, Rectangle)]
    drawn = [*bars, *(value for line in axis.lines for value in ys(line))]
    assert len(drawn) == 2 * classes
    assert sum(drawn) == 100


def test_short_sides_stand_beside_what_a_test_resolution_needs() -> None:
    images = pd.DataFrame({"width": [300, *[100] * 9], "height": [200, *[400] * 9]})
    figure = datasets.short_sides(images, [128, 224])
    (axis,) = figure.axes
    assert [xs(line)[0] for line in axis.lines] == [146, 256]
    assert words(axis.texts) == ["128 px", "224 px"]
    assert sum(bar.get_bbox().height for bar in axis.patches if isinstance(bar, Rectangle)) == 9
    assert inside(figure, axis.texts)


@pytest.mark.parametrize("larger", ["train", "test"])
def test_apparent_sizes_are_cumulative_with_the_medians_at_the_curves(larger: str) -> None:
    smaller = "test" if larger == "train" else "train"
    sizes = {f"{larger}_px": [60.0, 61.0, 90.0], f"{smaller}_px": [30.0, 31.0, 32.0]}
    figure = datasets.apparent_sizes(pd.DataFrame(sizes))
    (axis,) = figure.axes
    assert words(axis.texts) == [f"{smaller}: median 31 px", f"{larger}: median 61 px"]
    assert [xs(line)[-1] for line in axis.lines] == [32, 90]
    assert readable(figure, axis.texts)


def test_sheet_wants_a_title_an_image_and_shows_all_to_one_scale() -> None:
    images = [np.zeros((8, width, 3), np.uint8) for width in (8, 16, 16, 16, 16)]
    axes = datasets.sample_sheet(images, ["n02110958-pug_dog", *"bcde"], columns=4).axes
    assert (len(axes), axes[0].get_title()) == (8, "pug dog")
    assert {np.ptp(axis.get_xlim()) for axis in axes[:5]} == {16}
    with pytest.raises(ValueError, match="argument 2 is longer"):
        datasets.sample_sheet(images[:1], ["a", "b"])


@pytest.mark.parametrize("shape", [(200, 200), (100, 500)])
def test_the_method_is_drawn_to_one_scale_with_what_each_stage_trains(
    shape: tuple[int, int],
) -> None:
    figure = datasets.method(np.zeros((*shape, 3), np.uint8), 64, 96)
    whole, crop, network, _, at_test, frozen = figure.axes
    sides = [axis.images[0].get_array().shape[:2] for axis in (crop, at_test)]  # type: ignore[union-attr]
    assert sides == [(64, 64), (96, 96)]
    assert [np.ptp(axis.get_xlim()) for axis in (crop, at_test)] == [96, 96]
    assert f"× {96 / (0.875 * min(shape)):.2f}" in at_test.get_title()
    (frame,) = whole.patches
    assert isinstance(frame, Rectangle)
    assert frame.get_x() >= 0
    boxes = [{patch.get_facecolor() for patch in axis.patches} for axis in (network, frozen)]
    assert [len(colours) for colours in boxes] == [1, 2]
    assert "frozen" in " ".join(words(frozen.texts))
    assert inside(figure, [text for axis in figure.axes for text in [*axis.texts, axis.title]])


def test_reliability_is_drawn_beside_the_diagonal() -> None:
    table = pd.DataFrame({"confidence": [0.5, 0.9], "accuracy": [0.4, 0.95], "images": [10, 90]})
    axis = results.reliability({"none": table, "head_bn": table}).axes[0]
    assert [ys(line) for line in axis.get_lines()[1:]] == [[40, 95]] * 2


def test_activations_show_the_share_above_a_value_on_a_logarithmic_axis() -> None:
    axis = results.activations({"a": np.arange(101.0), "b": np.arange(101.0) * 2}).axes[0]
    first, second = axis.get_lines()
    assert np.interp(10, ys(first), xs(first)) == pytest.approx(90)
    assert xs(second) == pytest.approx(np.asarray(xs(first)) * 2)
    assert axis.get_yscale() == "log"


def test_training_stands_beside_the_probe() -> None:
    right = results.training_history(HISTORY, 0.6).axes[1]
    assert [ys(line) for line in right.lines] == [[50, 75], [60, 60]]
    assert len(results.training_history(HISTORY).axes[1].lines) == 1


def test_accuracy_by_size_has_intervals_and_names_at_the_ends() -> None:
    rows = pd.DataFrame({"test_size": [96, 224], "top1": [0.8, 0.9]})
    rows = rows.assign(top1_low=[0.7, 0.85], top1_high=[0.85, 0.95])
    figure = results.accuracy_by_size({"linear probe": rows, "zero-shot": rows})
    (axis,) = figure.axes
    first, _ = axis.collections
    assert isinstance(first, LineCollection)
    ends = [segment[:, 1].tolist() for segment in first.get_segments()]
    assert ends == [pytest.approx([70, 85]), pytest.approx([85, 95])]
    assert {*words(axis.texts)} == {"linear probe", "zero-shot"}
    assert readable(figure, axis.texts)


@pytest.mark.parametrize(("classes", "images"), [(2, 30), (500, 3000), (3, 20_000)])
def test_figures_of_any_number_of_classes_have_readable_labels(classes: int, images: int) -> None:
    names = [f"{n:03}-{'great_spotted_woodpecker_' * (n % 4)}bird" for n in range(classes)]
    right = np.random.default_rng(0).integers(0, classes, images)
    taken = np.where(np.arange(images) % 3, right, (right + 1) % classes)
    table = pd.DataFrame({"label": [names[n] for n in right], "split": "test"})
    for figure in (datasets.class_distribution(table), results.confusions(right, taken, names)):
        figure.canvas.draw()
        boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
        boxes.sort(key=lambda box: box.y0)
        assert all(lower.y1 <= upper.y0 + 2 for lower, upper in pairwise(boxes))


@pytest.mark.parametrize(
    "name",
    ["$\\frac{x$ $x^2$", "<b>", "two\nlines <b>", "x" * 200, "\x1b[31m", "\N{DOG FACE}", "_", " "],
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_show_names_as_they_are(name: str) -> None:
    table = pd.DataFrame({"label": ["plain", name, name], "split": "train"})
    figure = datasets.class_distribution(table)
    assert {*words(figure.axes[0].get_yticklabels())} == {"plain", style.short_label(name)}
    assert len(style.short_label(name)) <= 32
    sheet = datasets.sample_sheet([np.zeros((4, 4, 3), np.uint8)], [name])
    for each in (figure, sheet, results.confusions([0, 1], [1, 0], ["plain", name])):
        each.canvas.draw()

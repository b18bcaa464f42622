"""What the figures of the answers show: each comparison, each curve, labels apart."""

from typing import Any

import pandas as pd
import pytest
from drawn import answered, apart, readable, words, xs, ys

from fixres_poc.analysis.results import load_results
from fixres_poc.report import sentences
from fixres_poc.report.plots import answers, style
from fixres_poc.report.text import rows_of

pytestmark = pytest.mark.usefixtures("own_look")


@pytest.mark.parametrize(
    ("values", "parts"), [({}, 1), ({"photos": 0.5, "crop_pct": [0.75, 0.875]}, 2)]
)
def test_a_forest_plot_shows_each_comparison_with_its_verdict(
    values: dict[str, Any], parts: int
) -> None:
    _, content = answered(**values)
    figure = answers.forest(content)
    (axis,) = figure.axes
    rows = list[dict[str, Any]]()
    for row in rows_of(content):
        # question 4 repeats rows of others
        again = not row["primary"] and row["label"] in [each["label"] for each in rows]
        if row["part"] == "test" and not again and not row["adaptation"].startswith("equal_flops"):
            rows.append(row)
    short = [row["label"].replace(", adapted, against", " against") for row in rows]
    own = [row["label"] for row in rows if row["question"] == 1]
    assert words(axis.get_yticklabels()) == own + short[len(own) :]
    weights = [text.get_fontweight() for text in axis.get_yticklabels()]
    assert weights == ["bold" if row["primary"] else "normal" for row in rows]
    verdicts = [row["verdict"] for row in rows]
    assert [text for text in words(axis.texts) if text in answers.MARKS] == verdicts
    marks = [line for line in axis.lines if line.get_marker() not in ("None", None)]
    assert len(marks) == len(rows) * parts
    filled = [line for line in marks if line.get_markerfacecolor() != "white"]
    for line, row in zip(filled, rows, strict=True):  # the other part is hollow
        assert (line.get_color(), line.get_marker()) == answers.MARKS[row["verdict"]]
        assert xs(line) == pytest.approx([row["estimate"] * 100])
    assert readable(figure, [*axis.get_yticklabels(), *axis.texts])
    assert "96 \N{RIGHTWARDS ARROW} 112, adapted, against 112: " in style.described(figure)


def test_a_forest_plot_of_many_rows_keeps_the_primary_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    _, content = answered()
    monkeypatch.setattr(answers, "MOST_ROWS", 5)
    labels = answers.forest(content).axes[0].get_yticklabels()
    assert len(labels) == 5
    bold = [text for text in labels if text.get_fontweight() == "bold"]
    assert len(bold) == sum(row["primary"] for row in rows_of(content))


def test_what_lies_off_a_forest_plot_is_an_arrow_at_its_edge() -> None:
    row = {"estimate": 0.01, "low": -0.01, "high": 0.03, "delta": 0.01, "verdict": "can't tell"}
    row["primary"] = True
    rows = {(2, str(n)): {"test": row} for n in range(20)}
    rows[2, "far"] = {"test": row | {"estimate": -0.5, "low": -0.6, "high": -0.4, "primary": False}}
    (axis,) = answers.forest_of(rows, "test", {2: "x"}).axes
    (arrow,) = [line for line in axis.lines if line.get_marker() == "<"]
    assert xs(arrow) == [axis.get_xlim()[0]]
    rows[2, "wide"] = {"test": row | {"low": -0.6, "high": 0.6, "primary": False}}
    (axis,) = answers.forest_of(rows, "test", {2: "x"}).axes
    arrows = [line for line in axis.lines if line.get_marker() in ("<", ">")]
    assert sorted(xs(line)[0] for line in arrows[1:]) == list(axis.get_xlim())


def test_curves_have_a_panel_a_train_size_with_marks_and_labels_apart() -> None:
    found, content = answered(once={"probe": 0.5, "zero_shot": 0.55})
    figure = answers.curves(found, content, "head_bn")
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["trained at 96 px", "trained at 112 px"]
    axis = figure.axes[0]
    drawn = {line.get_label(): line for line in axis.lines}
    assert ys(drawn["adapted"]) == pytest.approx([60, 70, 66])
    names = {"adapted", "unadapted", "control", "linear probe", "zero-shot"}
    assert {*words(axis.texts)} == names
    arrows = [line for line in axis.lines if line.get_marker() == "v" and xs(line)]
    assert {tuple(xs(line)) for line in arrows} == {(160.0,)}
    rings = [line for line in axis.lines if line.get_markersize() == 11]
    assert [xs(ring) for ring in rings] == [[96]]
    for panel in figure.axes:
        assert readable(figure, panel.texts)
        assert apart(panel.get_xticklabels())
    assert "adapted: best 70.0 % at 112 px" in style.described(figure)


def test_names_of_near_resolutions_do_not_touch() -> None:
    report = "docs/reports/flowers102"
    figure = answers.curves(load_results(report), sentences.read(report), "head_bn")
    assert all(apart(panel.get_xticklabels()) for panel in figure.axes)


def test_the_front_names_what_nothing_beats_on_validation() -> None:
    _, content = answered(once={"probe": 0.5})
    figure = answers.front(pd.DataFrame(content["answers"][4]["arms"]), "test")
    (axis,) = figure.axes
    assert words(axis.texts) == ["96 \N{RIGHTWARDS ARROW} 112, adapted", "96"]
    (star,) = [line for line in axis.lines if line.get_marker() == "*"]
    assert ys(star) == pytest.approx([70])
    assert readable(figure, axis.texts)


def test_differences_are_to_the_same_training_at_its_own_size() -> None:
    found, _ = answered()
    plain, adapted = answers.differences(found, "head_bn").axes
    weights = {text.get_text(): text.get_fontweight() for text in [*plain.texts, *adapted.texts]}
    assert {"+10.0", "+6.0", "+0.0", "\N{MINUS SIGN}30.0"} <= set(weights)
    assert (weights["+10.0"], weights["+0.0"]) == ("bold", "normal")
    said = style.described(answers.differences(found, "head_bn"))
    assert "unadapted: largest +5.0 at 96 to 112 px; adapted: largest +10.0 at 96 to 112" in said

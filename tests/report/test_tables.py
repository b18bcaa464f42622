"""Tables of the report, and what it says around its answers."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import CLAIM, decided, grid, same, told, with_facts

from fixres_poc.analysis.cells import Cell
from fixres_poc.report import tables, text


def test_the_table_has_the_recommended_cell_first_and_one_row_for_both_seeds_of_a_cell() -> None:
    results = told(same(0.60), same(0.62) | {"head_bn": 0.8}, same(0.50), None)
    first, *others = tables.cells(results, Cell(96, 128, "head_bn")).to_dict("records")
    shown = [first[key] for key in ("choice", "test", "adaptation", "test top-1 %")]
    assert shown == ["use", 128, "head_bn", "80.0"]
    assert not any(row["choice"] for row in others)
    table = tables.cells(results, None)
    assert table["seeds"].tolist() == [*[1] * 3, *[2] * 4, *[1] * 7]
    assert table["status"].tolist()[:-3] == [*["done"] * 7, *["1 of 2 done"] * 4]


def test_a_shown_table_is_complete_formatted_and_escaped() -> None:
    table = pd.DataFrame({"name": ["<b>"] * 80, "top1": [0.5, float("nan")] * 40})
    html = tables.show(table, top1="{:.1%}").data
    assert [html.count(shown) for shown in ("&lt;b&gt;", "50.0%", "n/a")] == [80, 40, 40]
    table = pd.DataFrame({"val_top1": [1.0], "crop_pct": [0.875], "top-1 %": [2.0], 3: [3]})
    heads = re.findall("<th>(.*?)</th>", str(tables.show(table).data))
    assert heads == ["validation top-1", "crop pct", "top-1 %", "3"]


def test_activations_stand_once_a_framing_in_order_of_size() -> None:
    found = told(same(0.6), same(0.7))
    assert tables.activations(found).empty
    common = "train crops, 96 px", "test framing, 96 px"
    for run in found.sweep["runs"]:
        if size := run["test_size"]:
            names = dict.fromkeys([*common, f"test, {size} px"])
            run["activations"] = [{"images": name, "mean": 0.5} for name in names]
    images = tables.activations(found)["images"].tolist()
    assert images == [*common, "test, 96 px", "test, 128 px"]


def test_questions_have_answer_points_on_each_part_and_advice() -> None:
    answers = decided(grid(CLAIM, CLAIM, photos=0.5, epochs=4))
    table = tables.questions(answers)
    claim, own = table.iloc[1], answers["answers"][1]
    assert (claim["answer"], claim["what it means for you"]) == (own["sentence"], own["means"])
    assert claim["points on test"].startswith("+4.0 (")
    assert claim["points on test"].endswith(") against 112")
    assert claim["points on photos"].startswith("+2.0 (")
    assert table.iloc[3]["answer"] == "Not asked: one crop_pct."
    assert table.iloc[4]["points on photos"].startswith("35.0 % (")


def test_every_comparison_is_a_row_with_its_level() -> None:
    table = tables.comparisons(decided(grid(CLAIM, photos=0.5, epochs=4)))
    primary = table[(table["question"] == "2 *") & (table["on"] == "test")]
    start = "96 \N{RIGHTWARDS ARROW} 112, adapted, against 112"
    assert primary["comparison"].tolist() == [start, f"{start}, adapted"]
    assert primary["points"].str.startswith("+4.0").all()
    assert set(primary["level"]) == {"95.0 %"}
    assert set(table.loc[table["question"] == "1", "level"]) == {"98.3 %"}
    assert primary["training FLOPs"].str.startswith("× 0.").all()


def test_arms_say_what_to_use_and_speeds_that_scatter_are_not_given() -> None:
    found = grid(CLAIM)
    used: Any = tables.arms(decided(found)).query("pick == 'use'").iloc[0]
    assert used["arm"] == "96 \N{RIGHTWARDS ARROW} 112 px, adapted"
    assert used["points below the best"] == "0.0"
    assert float(used["images/s"]) == pytest.approx(3e6 / 112**2, abs=0.5)
    slow = found.table["train_size"].fillna(0) == 112
    speeds: Any = found.table["eval_images_per_second"] / np.where(slow, 1.6, 1)
    rows = found.table.assign(eval_images_per_second=speeds)
    given: Any = tables.arms(decided(replace(found, table=rows))).set_index("arm")["images/s"]
    unsure = given.index.str.contains("112 px") & ~given.index.str.contains("probe")
    assert set(given[unsure]) == {"n/a"}
    assert "n/a" not in set(given[given.index.str.startswith("96 px")])


def test_adaptations_on_request_stand_apart_from_the_primary_one() -> None:
    found = grid(CLAIM)
    table = tables.ablations(found, {96: 112}, "head_bn")
    assert table["adaptation"].tolist() == ["head", "head_bn_stats"]
    assert table["points over unadapted"].str.startswith("0.0").all()
    alone = replace(found, predictions=found.predictions.head(0))
    assert tables.ablations(alone, {96: 112}, "head_bn").empty


def test_a_stage_1_that_did_nothing_is_said_beside_the_sentences() -> None:
    found = grid({(96, 96): same(0.5), (112, 112): same(0.6)})
    assert "<li>Stage 1 did nothing at 96 px" in text.head(found, decided(found))


def test_what_came_from_data_is_escaped() -> None:
    found = grid(CLAIM)
    evil = with_facts(found, {"dataset": "<script>x", "backbone": "<b>"})
    head = text.head(evil, decided(found) | {"title": "<script>"})
    assert "<script>" not in head
    assert "<b>" not in head


def test_trust_names_seeds_stability_leaks_and_what_is_missing() -> None:
    missing = told(same(0.60), None)
    one = text.trust(missing, decided(missing))
    assert "The spread between trainings is not known" in one
    assert "1 of 5 pairs (with probes) lack results of some" in one
    leakage = {"verdict": "Look!", "near": {"listed": [["a_1.jpg", "b_2.jpg", 2]]}}
    found = with_facts(grid(CLAIM, CLAIM), leakage=leakage)
    two = text.trust(found, decided(found))
    assert "2 seeds of training. Accuracies are means over them" in two
    assert "Look! Near duplicates, for example: `a_1.jpg` and `b_2.jpg`." in two
    assert "Question 2: a true difference of" in two


def test_the_smallest_detectable_difference_is_the_larger_of_both_references() -> None:
    found = grid(CLAIM, CLAIM)
    answers = decided(found)
    first, second, *_ = [row for row in answers["answers"][1]["rows"] if row["primary"]]
    first["detectable"], second["detectable"] = 0.02, 0.03
    assert text.power(answers)[2] == 0.03
    for row in answers["answers"][2]["rows"]:
        row["detectable"] = 0.001
    assert text.chips(found, answers)["Power"].endswith(": 3.0 points")  # of the claim


@pytest.mark.parametrize(
    ("flagged", "part", "leaks"),
    [
        ({}, "test", "not checked against ImageNet"),
        ({"test": False, "val": False}, "test", "none found"),
        ({"test": True, "val": False}, "test", "test flagged, validation none found"),
        ({"test": True, "val": True}, "photos", "photos not checked, validation flagged"),
    ],
)
def test_the_chip_on_leakage(flagged: dict[str, bool], part: str, leaks: str) -> None:
    found = grid(CLAIM, CLAIM, photos=1).on(part)
    found = with_facts(found, leakage={"flagged": flagged})
    assert text.chips(found, decided(found))["Leakage"] == f"leakage: {leaks}"


def test_beside_the_arm_to_use_stand_the_best_and_common_practice() -> None:
    words = text.budget(
        decided(grid({(96, 96): same(0.7), (96, 128): same(0.8), (96, 160): same(0.805)}))
    )
    best = "validation's best, 96 \N{RIGHTWARDS ARROW} 160 px, unadapted, is within its error"
    assert best in words
    assert "has +0.5 points" in words
    assert "the recommended arm gains +10.0 points" in words

"""What the report says around its answers."""

from dataclasses import replace
from typing import Any

from made_up import CLAIM, grid, same, told

from fixres_poc.analysis.answers import decide
from fixres_poc.analysis.results import Results
from fixres_poc.report import sentences, text


def decided(found: Results) -> dict[str, Any]:
    return sentences.told(decide(found))


def test_a_stage_1_that_did_nothing_is_said_beside_the_sentences() -> None:
    found = grid({(96, 96): same(0.5), (112, 112): same(0.6)})
    assert "<li>Stage 1 did nothing at 96 px" in text.head(found, decided(found))


def test_what_came_from_data_is_escaped() -> None:
    found = grid(CLAIM)
    evil = found.sweep["settings"] | {"dataset": "<script>x", "backbone": "<b>"}
    found = replace(found, sweep=found.sweep | {"settings": evil})
    answers = decided(grid(CLAIM)) | {"title": "<script>"}
    assert "<script>" not in text.head(found, answers)
    assert "<b>" not in text.head(found, answers)


def test_trust_names_seeds_stability_leaks_and_what_is_missing() -> None:
    missing = told(same(0.60), None)
    one = text.trust(missing, decided(missing))
    assert "The spread between trainings is not known" in one
    assert "1 of 5 pairs (with probes) lack results of some" in one
    found = grid(CLAIM, CLAIM)
    near = {"listed": [["a_1.jpg", "b_2.jpg", 2]]}
    found = replace(found, sweep=found.sweep | {"leakage": {"verdict": "Look!", "near": near}})
    answers = decided(found)
    two = text.trust(found, answers)
    assert "2 seeds of training. Accuracies are means over them" in two
    assert "Look! Near duplicates, for example: `a_1.jpg` and `b_2.jpg`." in two
    assert "Question 2: a true difference of" in two


def test_the_smallest_detectable_difference_is_that_of_the_rows_that_decide() -> None:
    found = grid(CLAIM, CLAIM)
    answers = decided(found)
    rows = [row for row in answers["answers"][1]["rows"] if row["decides"]]
    assert text.power(answers)[2] == rows[0]["detectable"]
    assert (
        f"{min(text.power(answers).values()) * 100:.1f} points"
        in text.chips(found, answers)["Power"]
    )


def test_beside_the_arm_to_use_stand_the_best_and_common_practice() -> None:
    top1 = {(96, 96): same(0.70), (96, 128): same(0.80), (96, 160): same(0.805)}
    words = text.budget(decided(grid(top1)))
    assert (
        "validation's best, 96 \N{RIGHTWARDS ARROW} 160 px, unadapted, is within its error" in words
    )
    assert "has +0.5 points" in words
    assert "the recommended arm gains +10.0 points" in words

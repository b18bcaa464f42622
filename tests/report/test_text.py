"""What the report says around its answers."""

from made_up import CLAIM, decided, grid, same, told, with_facts

from fixres_poc.report import text


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


def test_the_smallest_detectable_difference_is_that_of_the_rows_that_decide() -> None:
    found = grid(CLAIM, CLAIM)
    answers = decided(found)
    first, *_ = [row for row in answers["answers"][1]["rows"] if row["decides"]]
    power = text.power(answers)
    assert power[2] == first["detectable"]
    assert f"{min(power.values()) * 100:.1f} points" in text.chips(found, answers)["Power"]


def test_beside_the_arm_to_use_stand_the_best_and_common_practice() -> None:
    words = text.budget(
        decided(grid({(96, 96): same(0.7), (96, 128): same(0.8), (96, 160): same(0.805)}))
    )
    best = "validation's best, 96 \N{RIGHTWARDS ARROW} 160 px, unadapted, is within its error"
    assert best in words
    assert "has +0.5 points" in words
    assert "the recommended arm gains +10.0 points" in words

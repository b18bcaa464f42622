"""Title, sentences and advice: combinations of verdicts."""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from made_up import CLAIM, KNOWN, decided, grid, row, same

from fixres_poc.analysis.answers import Decision
from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import Comparison
from fixres_poc.analysis.questions import Answer
from fixres_poc.analysis.recommendation import Recommendation, recommend
from fixres_poc.analysis.statistics import Difference
from fixres_poc.report.phrases import gap_on_validation, left_out, unshown_gain
from fixres_poc.report.sentences import told


def answer(number: int, *verdicts: str) -> Answer:
    rows = tuple(map(row, verdicts))
    short = Comparison((row("worse"),))
    return Answer(number, (Comparison(rows, primary=True),), equal_flops=(short, short))


USUAL = answer(1, "better"), answer(2, "better"), answer(3, "better", "better"), answer(4, "better")
Say = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def say(tmp_path_factory: pytest.TempPathFactory) -> Say:
    """What is said of these answers, and of `USUAL` ones to the other questions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXRES_HOME", str(tmp_path_factory.mktemp("home")))
        found = grid(CLAIM, CLAIM, epochs=9, crop_pct=[0.75, 0.875])
    best = recommend(found, "head_bn")

    def said(*given: Answer) -> dict[str, Any]:
        every = {each.number: each for each in (*USUAL, *given)}
        return told(Decision(found, list(every.values()), {}, best))

    return said


@pytest.mark.parametrize(
    ("training", "claim", "remedy", "title"),
    [
        ("better", "better", "can't tell", "Against the usual crop yes; against crop_pct"),
        ("better", "can't tell", "better", "Not decided"),
        ("better", "worse", "better", "Not decided"),
        ("can't tell", "better", "better", "Yes, at 96 \N{RIGHTWARDS ARROW} 112 px: better"),
    ],
)
def test_title(say: Say, training: str, claim: str, remedy: str, title: str) -> None:
    given = answer(2, claim, claim), answer(4, remedy, remedy)
    found = say(answer(1, training), *given)
    assert found["title"].startswith(f"Does FixRes pay on synthetic images? {title}")


def test_pairwise_combinations_of_verdicts_contradict_nothing(say: Say) -> None:
    """Each verdict of each question beside each of every other one."""
    for first, second in itertools.combinations(range(4), 2):
        for one, two in itertools.product(KNOWN, repeat=2):
            verdicts = ["better"] * 4
            verdicts[first], verdicts[second] = one, two
            sound(say(*(answer(n, each, each) for n, each in enumerate(verdicts, 1))), verdicts)


@pytest.mark.parametrize(
    ("verdict", "crop", "means"),
    [
        ("worse", 0.75, "Yes: train at 112 px and set crop_pct to 0.75"),
        ("worse", 0.875, "No other crop_pct helps the smaller"),
        ("better", 0.75, "A better crop_pct does not take its place"),
        ("better", 0.875, "No other crop_pct that was tried is better on validation"),
    ],
)
def test_a_crop_is_advised_where_it_is_not_the_usual_one(
    say: Say, verdict: str, crop: float, means: str
) -> None:
    compared = row(verdict)
    compared = replace(compared, reference=compared.reference._replace(crop_pct=crop))
    found = say(Answer(4, (Comparison((compared,), primary=True),)))
    assert found["answers"][3]["means"].startswith(means)


@pytest.mark.parametrize(("verdict", "means"), [("better", "no loss."), ("as good", "at most ")])
def test_what_is_lost_at_most_is_said(say: Say, verdict: str, means: str) -> None:
    found = say(answer(2, verdict, verdict))
    assert (
        f"less training, {'a loss of ' * (verdict == 'as good')}{means}"
        in (found["answers"][1]["means"])
    )


def sound(found: dict[str, Any], verdicts: list[str]) -> None:
    said = found["title"].split("? ")[1]
    training, claim, adaptation, remedy = verdicts
    good = ("better", "as good")
    if said.startswith("Yes"):
        assert claim in good
        assert remedy in good
        assert training != "worse"
    if said.startswith("No,"):
        assert claim == "worse"
    assert len(found["sentences"]) == 4
    for text in [*found["sentences"], *(each["sentence"] for each in found["answers"])]:
        assert text.endswith("."), text
        assert "nan" not in text, text
        assert len(text.split()) <= 25, text
        assert len(re.findall(r" to \N{MINUS SIGN}?\d+\.\d\)", text)) <= 1, text
    for number, verdict in ((2, claim), (4, remedy)):
        text = found["answers"][number - 1]["sentence"]
        assert ("is better than" in text) == (verdict == "better")
        assert ("cannot be told from" in text) == (verdict == "can't tell")
        assert ("cheaper" in text) == (verdict in good)
    third = found["answers"][2]
    assert ("because of the resolution" in third["sentence"]) == (adaptation == "better")
    assert ("Leave stage 2 out" in third["means"]) == (adaptation == "worse")


def words(found: dict[str, Any]) -> list[str]:
    """The sentences about the questions, and their answers."""
    return [*found["sentences"][1:3], *(each["sentence"] for each in found["answers"][1:4])]


def test_what_was_shown_at_other_sizes_is_among_fine_tuned_networks(say: Say) -> None:
    found = say(Answer(1, (Comparison((row("better", cell=Cell(96, 96, "none")),), True),)))
    assert all("among fine-tuned networks" in text for text in words(found))
    assert found["title"].endswith("112 px: better, cheaper, among fine-tuned networks")
    assert not any("among fine-tuned" in text for text in words(say()))


@pytest.mark.parametrize("short", [(), ("worse",), ("worse", "not run")])
def test_cheaper_is_not_said_where_equal_flops_were_not_checked(
    say: Say, short: tuple[str, ...]
) -> None:
    references = tuple(Comparison((row(each),)) for each in short)
    found = say(replace(answer(2, "better"), equal_flops=references))
    unchecked = "unchecked at equal FLOPs"
    told = found["title"], found["answers"][1]["sentence"], found["sentences"][3]
    assert [unchecked in text for text in told] == [short != ("worse",)] * 3
    assert "of the training FLOPs of 112 px, unadapted: " in told[2]


def test_the_sentence_names_the_reference_that_decides(say: Say) -> None:
    """Not that of the smaller estimate."""
    unsure = replace(
        row("can't tell"),
        reference=Cell(112, 112, "head_bn"),
        difference=Difference(0.04, -0.02, 0.10, 0.03, centre=0.04),
    )
    found = say(Answer(2, (Comparison((row("better"), unsure), True),)))
    assert "cannot be told from training at 112 px, adapted" in found["sentences"][1]
    assert "+4.0 points (\N{MINUS SIGN}1.9 to 9.9)" in found["sentences"][1]


def test_with_one_train_size_the_remedy_is_about_adapting() -> None:
    top1 = {(96, 96): same(0.6), (96, 112): same(0.6) | {"head_bn": 0.7, "none@0.75": 0.75}}
    found = decided(grid(top1, crop_pct=[0.75, 0.875]))
    start = (
        "Each at its own crop_pct, 96 \N{RIGHTWARDS ARROW} 112 px, adapted, is worse than unadapted"
    )
    assert found["answers"][3]["sentence"].startswith(start)
    assert "claim is not asked" in found["sentences"][1]
    assert (
        "Adapting pays at 96 \N{RIGHTWARDS ARROW} 112 px, by +10.0 points" in found["sentences"][2]
    )


def test_where_adapting_pays_names_the_primary_pair_and_counts_the_others() -> None:
    gains = same(0.60) | {"head_bn": 0.75, "control_head_bn": 0.60}
    first, second, third = ((96, 112), (112, 128), (128, 160))
    top1 = {first: gains, second: gains, third: gains} | {
        (r, r): same(0.6) for r, _ in (first, second, third)
    }
    where = decided(grid(top1, top1))["sentences"][2]
    assert where.startswith("Adapting pays at 112 \N{RIGHTWARDS ARROW} 128 px, by +15.0 points")
    assert "and at 2 other pairs" in where
    top1 |= {second: same(0.6)}
    nowhere = decided(grid(top1, top1))["sentences"][2]
    assert "pays at 2 other pairs, not shown at 112" in nowhere
    top1 |= {second: gains | {"control_head_bn": 0.75}}
    further = decided(grid(top1, top1))["sentences"][2]
    assert "gains +15.0 points" in further
    assert further.endswith("that the resolution is the reason is not shown.")


def test_nothing_finished_is_said_and_does_not_fail() -> None:
    found = decided(grid(dict.fromkeys(CLAIM), pretrained=False))
    assert found["title"].endswith("Not decided: its runs have not finished")
    assert "no arm was run to its end" in found["sentences"][0]
    json.dumps(found, allow_nan=False)


def test_one_seed_is_about_this_training_in_every_sentence() -> None:
    one, two = decided(grid(CLAIM)), decided(grid(CLAIM, CLAIM))
    assert all("of this training" in text for text in one["sentences"][:3])
    assert not any("of this training" in text for text in two["sentences"])


def test_a_title_before_the_last_planned_seed_says_so() -> None:
    found = grid(CLAIM, CLAIM)
    settings = found.sweep["settings"] | {"seeds": [0, 1, 2]}
    assert not decided(found)["title"].endswith(", so far")
    found = replace(found, sweep=found.sweep | {"settings": settings})
    assert decided(found)["title"].endswith(", so far")


def advice(top1: dict[tuple[int, int], Any], **values: Any) -> tuple[str, float]:
    """What question 5 means, and the training FLOPs of the arm to use in TFLOP."""
    settings = {"head_start": values.pop("head_start", "probe")}
    found = grid(top1, top1, **values)
    facts = {"settings": found.sweep["settings"] | settings}
    facts["leakage"] = {"flagged": {"test": "photos" in values}}
    found = replace(found, sweep=found.sweep | facts)
    use = decided(found)["answers"][4]
    (arm,) = [each for each in use["arms"] if each["pick"] == "use"]
    assert f"An image takes {arm['flops'] / 1e9:.3g} GFLOP, " in use["means"]
    return use["means"], arm["training_flops"] / 1e12


def test_advice_begins_with_the_cost_of_the_arm() -> None:
    means, training = advice(CLAIM, epochs=9)
    assert f" GFLOP, training {training:.3g} TFLOP. " in means
    means, _ = advice({(96, 96): same(0.6)}, once={"probe": 0.5, "zero_shot": 0.9})
    assert means.startswith("An image takes")
    assert " GFLOP, nothing is trained here. " in means


def test_of_a_network_trained_elsewhere_only_adapting_costs() -> None:
    means, adapting = advice(CLAIM, head_start="file")
    assert f" GFLOP, adapting {adapting * 1e3:.3g} GFLOP. " in means
    _, training = advice(CLAIM)
    assert adapting < training


def test_advice_to_adapt_says_where_its_gain_is_not_shown() -> None:
    """On the leading part: validation chose the arm by three images more."""
    small = CLAIM | {(96, 112): same(0.6874) | {"head_bn": 0.70}}
    unshown = "A gain over unadapted is not shown."
    assert unshown not in advice(small)[0]  # five images of test
    assert unshown in advice(small, photos=0.5)[0]  # one of these


def test_of_a_pair_that_is_as_good_but_not_used_validations_gap_is_told() -> None:
    use, pair = Cell(112, 112, "head_bn"), Cell(96, 112, "head_bn")
    best = Recommendation(pd.DataFrame({"cell": [use, pair], "gap": [0, 0.0226]}), use, use)
    gap = "On validation 96 \N{RIGHTWARDS ARROW} 112 px is 2.3 points below the best."
    assert gap_on_validation(pair, best) == gap
    as_good = answer(2, "as good", "as good")
    assert left_out(as_good, best) == pair
    assert left_out(answer(2, "worse", "worse"), best) is None
    for other in (pair, Cell(112, 128, "head_bn")):
        assert left_out(as_good, replace(best, use=other)) is None


def test_the_first_sentence_says_that_validation_prefers_another_training(say: Say) -> None:
    found = grid(CLAIM, CLAIM, epochs=9)
    best = recommend(found, "head_bn")
    use = Cell(112, 112, "head_bn")
    picks = ["use" if cell == use else "" for cell in best.arms["cell"]]
    best = replace(best, use=use, best=use, arms=best.arms.assign(pick=picks))
    content = told(Decision(found, list(USUAL), {}, best))
    prefers = "; validation prefers it to 96 \N{RIGHTWARDS ARROW} 112 px."
    assert content["sentences"][0].endswith(prefers)
    assert "On validation 96" in content["answers"][4]["means"]
    assert "validation prefers" not in say()["sentences"][0]


def test_of_a_gain_its_share_by_the_resolution_is_said(say: Say) -> None:
    plain, control = row("better"), row("better")
    gain = plain.difference.estimate * 100
    control = replace(control, difference=control.difference._replace(estimate=0.004))
    found = say(Answer(3, (Comparison((plain, control), primary=True),)))
    due = f"0.4 of the {gain:.1f} points are due to the resolution."
    assert found["answers"][2]["means"].endswith(due)


def test_an_adapted_arm_is_held_against_unadapted_at_its_own_crop() -> None:
    """Unadapted is far below at 0.875, and by one of 200 images at the crop that it prefers."""
    use = Cell(96, 112, "head_bn")
    crops: dict[str, Any] = {"crop_pct": [0.75, 0.875]}
    values = same(0.5) | {"head_bn": 0.705}
    assert unshown_gain(grid(CLAIM | {(96, 112): values}, **crops), use) == ""
    values |= {"none@0.75": 0.7}
    unshown = unshown_gain(grid(CLAIM | {(96, 112): values}, **crops), use)
    assert unshown == "A gain over unadapted is not shown."

"""Verdicts of a decision: precedences, the leading part, and answers.json."""

import json
from typing import Any

import pytest
from made_up import CLAIM, grid, row, same, with_facts

from fixres_poc.analysis.answers import decide
from fixres_poc.analysis.comparisons import Comparison
from fixres_poc.analysis.questions import Answer, did_nothing, fewest_steps
from fixres_poc.analysis.results import leading_part


@pytest.mark.parametrize(
    ("verdicts", "steps", "verdict"),
    [
        (["worse", "worse"], 100, "trained too briefly"),
        (["can't tell"], 100, "trained too briefly"),
        (["better", "worse"], 100, "pays"),
        (["worse", "worse"], 5000, "gains less than delta"),
        (["better", "can't tell"], 5000, "pays"),
        (["can't tell", "worse"], 5000, "not decided"),
        (["not run"], 100, "not run"),
    ],
)
def test_precedence_of_the_first_question(verdicts: list[str], steps: int, verdict: str) -> None:
    rows = [Comparison((row(each),), primary=not place) for place, each in enumerate(verdicts)]
    assert Answer(1, tuple(rows), steps).verdict == verdict


def test_short_references_do_not_make_a_training_brief() -> None:
    found = grid(CLAIM, epochs=4)
    steps = {run["steps"] for run in found.sweep["runs"] if run.get("equal_flops")}
    assert max(steps - {None}, default=1000) < 1000
    assert fewest_steps(found) == 1000


@pytest.mark.parametrize(
    ("flagged", "photos", "leading"),
    [
        ({}, 200, "test"),
        ({"test": True}, 200, "photos"),
        ({"photos": True}, 600, "test"),
        ({"test": True, "photos": True}, 600, "photos"),
        ({"test": False, "photos": None}, 600, "photos"),
    ],
)
def test_leading_part(flagged: dict[str, Any], photos: int, leading: str) -> None:
    images = {"test": 400, "photos": photos}
    found = with_facts(grid(CLAIM, photos=1), leakage={"flagged": flagged}, images=images)
    assert leading_part(found) == leading


def test_answers_json_has_the_agreed_shape() -> None:
    content = json.loads(json.dumps(decide(grid(CLAIM, epochs=9)).as_json(), allow_nan=False))
    answers = content["answers"]
    assert (content["schema"], content["leading_part"]) == (1, "test")
    assert [answer["id"] for answer in answers] == [1, 2, 3, 4, 5]
    assert (answers[1]["asked"], answers[3]["asked"]) == (True, "one crop_pct")
    first = answers[1]["rows"][0]
    assert first["reference"]["adaptation"] == "none"
    expected = {"primary": True, "k": 1, "level": 0.95, "estimate": pytest.approx(0.04)}
    assert first | expected == first
    assert first["low"] < 0.04 < first["high"]
    assert [arm["pick"] for arm in answers[4]["arms"]].count("use") == 1


def test_a_stage_1_that_predicts_as_the_probe_did_nothing() -> None:
    found = grid({(96, 96): same(0.5), (112, 112): same(0.6)})
    assert did_nothing(found) == [96]


def test_rows_on_other_parts_stand_beside_those_on_the_leading_one() -> None:
    content = decide(grid(CLAIM, photos=0.5, epochs=9)).as_json()
    claim = content["answers"][1]
    assert claim["elsewhere"] == {"photos": "as good, cheaper"}
    decides = [(row["part"], row["estimate"]) for row in claim["rows"] if row["decides"]]
    assert decides == [("test", pytest.approx(0.04)), ("photos", pytest.approx(0.02))]
    assert set(content["answers"][4]["accuracy"]) == {"test", "photos"}

"""Verdicts of a decision, answers.json, and primary rows on fewer and on groups of images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import ADAPTATIONS, CLAIM, grid, row, with_facts

from fixres_poc.analysis.answers import decide, primary_rows, variants
from fixres_poc.analysis.comparisons import Comparison
from fixres_poc.analysis.questions import Answer, Plan, answers, fewest_steps
from fixres_poc.analysis.results import Results, leading_part
from fixres_poc.config.errors import InputError


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


def test_rows_on_other_parts_stand_beside_those_on_the_leading_one() -> None:
    given = decide(grid(CLAIM, photos=0.5, epochs=9)).as_json()
    content = json.loads(json.dumps(given, allow_nan=False))
    assert (content["schema"], content["leading_part"]) == (1, "test")
    claim = content["answers"][1]
    assert claim["elsewhere"] == {"photos": "as good, cheaper"}
    decides = [(row["part"], row["estimate"]) for row in claim["rows"] if row["decides"]]
    assert decides == [("test", pytest.approx(0.04)), ("photos", pytest.approx(0.02))]
    assert {(row["k"], row["level"]) for row in claim["rows"] if row["primary"]} == {(1, 0.95)}


@pytest.fixture
def claim() -> Results:
    """Of 400 test images 240 to 280 are right, the same ones first."""
    results = grid(CLAIM)
    images = results.predictions[["image", "split"]].astype("str").drop_duplicates()
    return replace(with_facts(results, leakage=None), images=images.assign(looked_at=False))


def test_images_that_were_looked_at_are_left_out(claim: Results) -> None:
    """Adapted 280 against 264 of 400, and of the first 300: +4.0 and +5.3 points."""
    seen = (claim.images["split"] == "test") & (claim.images["image"] >= "test/300")
    assert primary_rows(claim, decide(claim).as_json()).empty
    claim = replace(claim, images=claim.images.assign(looked_at=seen))
    shown = primary_rows(claim, decide(claim).as_json())
    assert list(shown)[1:] == ["as answered", "the 300 not in looked_at"]
    _, every, unseen = shown[shown["question"].str.startswith("2")].iloc[0]
    assert every.startswith("+4.0 (")
    assert unseen.startswith("+5.3 (")
    assert unseen.endswith(", better")


def test_intervals_over_groups_are_those_of_as_many_images(claim: Results) -> None:
    """Equal images two by two: half the images, 1.41 times the width but for two added images."""
    twins = [[f"test/{2 * i:03}", f"test/{2 * i + 1:03}"] for i in range(200)]
    (name, own), *none = variants(with_facts(claim, leakage={"near": {"groups": twins}})).items()
    assert (name, none) == ("200 groups of near duplicates", [])
    one, two = (answers(Plan(results))[1].comparisons[0] for results in (claim, own))
    for plain, wide in zip(one.rows, two.rows, strict=True):
        assert wide.difference.estimate == pytest.approx(plain.difference.estimate)
        assert wide.difference.error / plain.difference.error == pytest.approx(2**0.5, abs=0.1)


def test_primary_rows_are_shown_by_their_own_spread_between_trainings() -> None:
    """Two trainings that agree here and differ at 112 px, which widens the pooled interval."""
    differing = CLAIM | {(112, 112): dict.fromkeys(ADAPTATIONS, 0.72)}
    results = with_facts(grid(CLAIM, differing), leakage=None)
    shown = primary_rows(results, decide(results).as_json()).set_index("question")
    assert list(shown) == ["as answered", "by its own spread between trainings"]
    pooled, own = shown.loc["1: 96 \N{RIGHTWARDS ARROW} 112, adapted, against linear probe"]
    assert str(pooled).startswith("+20.0 (11.5 to ")
    assert own == "+20.0 (16.0 to 23.8), better"  # as without the difference at 112 px


def test_the_list_of_a_sweep_marks_images(tmp_path: Path) -> None:
    listed = tmp_path / "seen.txt"
    listed.write_text("\ufeffold/1.jpg \n9.jpg\n", encoding="utf-8")
    images = grid(CLAIM, looked_at=str(listed)).images
    assert images.set_index("split")["looked_at"].to_dict() == {
        "train": False,
        "val": True,
        "test": False,
    }
    listed.write_text("1.jpg\n", encoding="utf-8")
    assert grid(CLAIM, looked_at=str(listed)).images["looked_at"].sum() == 1
    listed.write_text("9.jpg\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"1 of its 1 names are no images .* such as 9\.jpg"):
        grid(CLAIM, looked_at=str(listed))
    with pytest.raises(InputError, match=r"looked_at = '.*none.txt': cannot be read"):
        grid(CLAIM, looked_at=str(tmp_path / "none.txt"))

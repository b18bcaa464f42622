"""The primary rows on fewer images and on groups of images, counted by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_up import CLAIM, grid, with_facts

from fixres_poc.analysis.answers import decide, primary_rows, variants
from fixres_poc.analysis.questions import Plan, answers
from fixres_poc.analysis.results import Results
from fixres_poc.config.errors import InputError


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
    assert list(shown)[1:] == ["all", "the 300 not looked at before"]
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


def test_the_list_of_a_sweep_marks_images(tmp_path: Path) -> None:
    listed = tmp_path / "seen.txt"
    listed.write_text("1.jpg\n", encoding="utf-8")
    images = grid(CLAIM, looked_at=str(listed)).images
    assert images.set_index("split")["looked_at"].to_dict() == {
        "train": False,
        "val": True,
        "test": False,
    }
    with pytest.raises(InputError, match=r"looked_at = '.*none.txt': cannot be read"):
        grid(CLAIM, looked_at=str(tmp_path / "none.txt"))

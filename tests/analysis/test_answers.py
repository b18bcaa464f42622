"""Verdicts, title and sentences: precedences, and combinations of verdicts."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from made_up import grid, same

from fixres_poc.analysis import answers as decisions
from fixres_poc.analysis.answers import Decision, decide
from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import Comparison, Row
from fixres_poc.analysis.questions import Answer, did_nothing, fewest_steps
from fixres_poc.analysis.results import Results, leading_part
from fixres_poc.analysis.statistics import Difference

GRID = {
    (96, 96): same(0.60),
    (96, 112): same(0.65) | {"head_bn": 0.70, "control_head_bn": 0.66},
    (112, 112): same(0.66) | {"head_bn": 0.66},
}
KNOWN = {"better": (0.02, 0.04), "as good": (-0.005, 0.02), "worse": (-0.04, -0.02)}
KNOWN |= {"can't tell": (-0.03, 0.03), "not run": (math.nan, math.nan)}


def row(verdict: str, flops: float = 0.5, cell: Cell | None = None) -> Row:
    """A primary row with this verdict."""
    low, high = KNOWN[verdict]
    middle = (low + high) / 2
    error = (high - low) / 2 / 1.959964
    found = Difference(middle, low, high, error, centre=middle, seeds=2)
    cell = cell or Cell(96, 112, "head_bn", 0)
    return Row(cell, Cell(112, 112, "none", 0, crop_pct=0.75), found, 0.95, 0.01, (flops, 0.5))


def answer(number: int, *verdicts: str, flops: float = 0.5) -> Answer:
    rows = tuple(row(each, flops) for each in verdicts)
    short = Comparison((row("worse"),))
    return Answer(number, (Comparison(rows, primary=True),), equal_flops=(short, short))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXRES_HOME", str(tmp_path_factory.mktemp("home")))
        yield grid(GRID, GRID, epochs=9, crop_pct=[0.75, 0.875])


def decided(
    results: Results, monkeypatch: pytest.MonkeyPatch, *given: Answer, steps: int = 5000
) -> Decision:
    runs = [run | {"steps": steps} for run in results.sweep["runs"]]
    own = replace(results, sweep=results.sweep | {"runs": runs})
    monkeypatch.setattr(decisions, "answers", lambda _: list(given))
    return decide(own)


@pytest.mark.parametrize(
    ("training", "claim", "remedy", "flops", "title"),
    [
        ("better", "better", "better", 0.5, "Yes, at 112 px"),
        ("better", "as good", "as good", 0.5, "Yes, at 112 px"),
        ("better", "as good", "worse", 0.5, "Only against the usual crop; crop_pct 0.75 is better"),
        ("better", "better", "can't tell", 0.5, "Against the usual crop yes; against crop_pct"),
        ("better", "can't tell", "better", 0.5, "Not decided"),
        ("better", "worse", "better", 0.5, "Not decided"),
        ("better", "worse", "worse", 0.5, "No, at 112 px the smaller train resolution is worse"),
        ("better", "better", "better", 1.1, "No, at 112 px it is not worse, but dearer"),
        ("better", "not run", "better", 0.5, "Not decided: its runs have not finished"),
        ("worse", "better", "better", 0.5, "No: fine-tuning gains less than 1 point"),
        ("can't tell", "better", "better", 0.5, "Yes, at 112 px"),
    ],
)
def test_title(
    results: Results,
    monkeypatch: pytest.MonkeyPatch,
    training: str,
    claim: str,
    remedy: str,
    flops: float,
    title: str,
) -> None:
    given = [
        answer(1, training),
        answer(2, claim, claim, flops=flops),
        answer(3, "better", "better"),
    ]
    found = decided(results, monkeypatch, *given, answer(4, remedy, remedy, flops=flops))
    assert found.title.startswith(f"Does FixRes pay on synthetic? {title}")


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
def test_precedence_of_the_first_question(
    results: Results, monkeypatch: pytest.MonkeyPatch, verdicts: list[str], steps: int, verdict: str
) -> None:
    rows = [
        Comparison((row(each, cell=Cell(size, size, "none", 0)),), size == 96)
        for each, size in zip(verdicts, (96, 112), strict=False)
    ]
    given = (
        Answer(1, tuple(rows)),
        answer(2, "better"),
        answer(3, *["better"] * 2),
        answer(4, "better"),
    )
    found = decided(results, monkeypatch, *given, steps=steps)
    assert found.verdicts[1] == verdict


def test_pairwise_combinations_of_verdicts_contradict_nothing(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each verdict of each question beside each of every other one."""
    every = [list(KNOWN)] * 4
    for first, second in itertools.combinations(range(4), 2):
        for one, two in itertools.product(every[first], every[second]):
            verdicts = ["better"] * 4
            verdicts[first], verdicts[second] = one, two
            given = [answer(n, each, each) for n, each in enumerate(verdicts, 1)]
            sound(decided(results, monkeypatch, *given), verdicts)


def sound(found: Decision, verdicts: list[str]) -> None:
    told = found.title.split("? ")[1]
    training, claim, adaptation, remedy = verdicts
    good = ("better", "as good")
    if told.startswith("Yes"):
        assert claim in good
        assert remedy in good
        assert training != "worse"
    if told.startswith("No,"):
        assert claim == "worse"
    for number, text in found.sentences.items():
        assert text.endswith("."), text
        assert "nan" not in text, text
        for sentence in re.split(r"(?<=[a-z`)])\. (?=[A-Z])", text):
            assert len(sentence.split()) <= 26, sentence
        if number in (2, 4):
            verdict = (claim, remedy)[number == 4]
            assert ("is better than" in text) == (verdict == "better")
            assert ("cannot be told from" in text) == (verdict == "can't tell")
            assert ("cheaper" in text) == (verdict in good)
    assert ("because of the resolution" in found.sentences[3]) == (adaptation == "better")
    if adaptation == "worse":
        assert "is worse than none and its control" in found.sentences[3]


def test_sentences_at_other_sizes_are_among_fine_tuned_networks(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Answer(1, (Comparison((row("better", cell=Cell(96, 96, "none", 0)),), True),))
    rest = [answer(2, "better"), answer(3, "better", "better"), answer(4, "better")]
    found = decided(results, monkeypatch, elsewhere, *rest)
    assert all("among fine-tuned networks" in found.sentences[n] for n in (2, 3, 4))
    found = decided(results, monkeypatch, answer(1, "better"), *rest)
    assert not any("among fine-tuned" in text for text in found.sentences.values())


def test_a_yes_where_training_was_not_shown_to_pay_is_qualified(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = [answer(2, "better"), answer(3, "better", "better"), answer(4, "better")]
    found = decided(results, monkeypatch, answer(1, "can't tell"), *rest)
    assert found.title.endswith("Yes, at 112 px, among fine-tuned networks")


@pytest.mark.parametrize("short", [(), ("worse",), ("worse", "not run")])
def test_cheaper_is_not_said_where_equal_flops_were_not_checked(
    results: Results, monkeypatch: pytest.MonkeyPatch, short: tuple[str, ...]
) -> None:
    unchecked = replace(
        answer(2, "better"), equal_flops=tuple(Comparison((row(each),)) for each in short)
    )
    rest = [answer(3, "better", "better"), answer(4, "better")]
    found = decided(results, monkeypatch, answer(1, "better"), unchecked, *rest)
    if short == ("worse",):
        assert found.title.endswith("Yes, at 112 px")
    else:
        assert found.title.endswith(
            "Not decided: cheaper at equal epochs, unchecked at equal FLOPs"
        )
        assert "unchecked at equal FLOPs" in found.sentences[2]


def test_the_sentence_names_the_reference_that_decides(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the smaller estimate."""
    sure, unsure = row("better"), row("can't tell")
    unsure = replace(
        unsure,
        reference=Cell(112, 112, "head_bn", 0),
        difference=Difference(0.04, -0.02, 0.10, 0.03, centre=0.04),
    )
    claim = replace(answer(2, "better"), comparisons=(Comparison((sure, unsure), True),))
    rest = [answer(3, "better", "better"), answer(4, "better")]
    found = decided(results, monkeypatch, answer(1, "better"), claim, *rest)
    assert "cannot be told from" in found.sentences[2]
    assert "+4.0 (-1.9 to +9.9) against `head_bn`" in found.sentences[2]


def test_with_one_train_size_the_remedy_is_about_adapting() -> None:
    top1 = {(96, 96): same(0.6), (96, 112): same(0.6) | {"head_bn": 0.7, "none@0.75": 0.75}}
    found = decide(grid(top1, crop_pct=[0.75, 0.875]))
    assert found.sentences[4].startswith(
        "With chosen crops, adapting 96 \N{RIGHTWARDS ARROW} 112 is worse than none: -5.0"
    )
    assert "FLOPs" not in found.sentences[4]


def test_nothing_finished_is_said_and_does_not_fail() -> None:
    found = decide(grid(dict.fromkeys(GRID), pretrained=False))
    assert found.recommendation.why_not == "no arm was run to its end"
    assert found.title.endswith("Not decided: its runs have not finished")
    json.dumps(found.as_json(), allow_nan=False)


def test_short_references_do_not_make_a_training_brief() -> None:
    found = grid(GRID, epochs=4)
    steps = {run["steps"] for run in found.sweep["runs"] if run.get("equal_flops")}
    assert max(steps - {None}, default=1000) < 1000
    assert fewest_steps(found) == 1000


def test_one_seed_is_about_this_training_in_every_sentence() -> None:
    one, two = decide(grid(GRID)), decide(grid(GRID, GRID))
    assert all("of this training" in text for text in one.sentences.values())
    assert not any("of this training" in text for text in two.sentences.values())


@pytest.mark.parametrize(
    ("flagged", "counts", "leading"),
    [
        ({}, (400, 200), "test"),
        ({"test": True}, (400, 200), "photos"),
        ({"photos": True}, (200, 400), "test"),
        ({"test": True, "photos": True}, (200, 400), "photos"),
        ({"test": False, "photos": None}, (200, 400), "photos"),
    ],
)
def test_leading_part(flagged: dict[str, Any], counts: tuple[int, int], leading: str) -> None:
    found = grid(GRID, photos=1)
    facts = {
        "leakage": {"flagged": flagged},
        "images": dict(zip(("test", "photos"), counts, strict=True)),
    }
    assert leading_part(replace(found, sweep=found.sweep | facts)) == leading


def test_answers_json_has_the_agreed_shape() -> None:
    content = json.loads(json.dumps(decide(grid(GRID, epochs=9)).as_json(), allow_nan=False))
    assert content["schema"] == 1
    assert content["leading_part"] == "test"
    assert [each["id"] for each in content["answers"]] == [1, 2, 3, 4, 5]
    assert content["answers"][3]["asked"] == "one crop_pct"
    assert content["answers"][1]["asked"] is True
    first = content["answers"][1]["rows"][0]
    assert first["reference"]["adaptation"] == "none"
    assert first["estimate"] == pytest.approx(0.04)
    assert first["low"] < first["estimate"] < first["high"]
    assert (first["primary"], first["k"], first["level"]) == (True, 1, 0.95)
    assert content["sentences"]


def test_a_stage_1_that_predicts_as_the_probe_did_nothing() -> None:
    found = grid({(96, 96): same(0.5), (112, 112): same(0.6)})
    assert did_nothing(found) == [96]

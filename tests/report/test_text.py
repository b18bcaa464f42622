"""The report's sentences follow the numbers: where FixRes wins, loses, or cannot be told apart."""

import re
from dataclasses import replace
from itertools import product
from typing import Any, get_args

from made_up import grid, same, told

from fixres_poc.analysis.questions import Answer, Verdict, answers
from fixres_poc.analysis.statistics import Difference
from fixres_poc.report import text

MADE = {
    "gain": (Difference(0.05, 0.02, 0.08, 0.015, centre=0.05),),
    "loss": (Difference(-0.05, -0.08, -0.02, 0.015, centre=-0.05),),
    "equivalent": (Difference(0.0, -0.004, 0.004, 0.002, centre=0.0),),
    "can't tell": (Difference(0.0, -0.05, 0.05, 0.025, centre=0.0),),
    "not asked": (),
}
CLAIMS = {True: "gain", False: "loss", None: "can't tell", "not asked": "not asked"}


def sentences(words: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z*])", words)


def test_conclusion_of_every_combination_of_verdicts() -> None:
    """A bold sentence about the claim and one per question; other verdicts, other words."""
    found = set[str]()
    for size, adaptation, training in product(get_args(Verdict), repeat=3):
        for claim, seeds in product(CLAIMS, (1, 2)):
            verdicts = {
                "size": size,
                "adaptation": adaptation,
                "claim": CLAIMS[claim],
                "training": training,
            }
            given: list[Any] = [
                Answer(name, MADE[each], ratio=(0.5, 0.5))  # type: ignore[arg-type]
                for name, each in verdicts.items()
            ]
            assert {each.question: each.verdict for each in given} == verdicts
            words = text.conclusion(given, seeds)
            asked = [each for each in (size, adaptation, training) if each != "not asked"]
            assert (
                len(re.findall(r"\*\*.+?\*\*", words))
                == len(re.findall(r"\*\*[^*]*claim[^*]*\*\*", words))
                == 1
            )
            assert len(sentences(words)) == 1 + len(asked) + (seeds == 1)
            assert not {"{", "}"} & set(words)
            found.add(re.sub(r"[-+]?\d+\.\d+", "", words))  # what is said without the numbers
    assert len(found) == 5**3 * 4 * 2


def test_a_conclusion_names_its_numbers() -> None:
    claim = Answer("claim", MADE["gain"], delta=0.03, ratio=(0.51, 0.6))
    others = [
        Answer("size", MADE["loss"]),
        Answer("adaptation", MADE["can't tell"]),
        Answer("training"),
    ]
    first, size, adaptation = sentences(text.conclusion([claim, *others]))
    assert all(number in first for number in (" 3 points", MADE["gain"][0].points(), "0.51"))
    costlier = text.conclusion([Answer("claim", MADE["gain"], ratio=(1.26, 1)), *others])
    assert "does not hold" in costlier
    assert (
        f"is not worse by 1 point or more ({MADE['gain'][0].points()}), but costs 1.26" in costlier
    )
    assert "but costs" not in text.conclusion(
        [Answer("claim", MADE["loss"], ratio=(1.26, 1)), *others]
    )
    assert MADE["loss"][0].points() in size
    detectable = MADE["can't tell"][0].detectable() * 100
    assert f"{detectable:.1f} points" in adaptation


def test_questions_are_answered_on_each_test_part() -> None:
    found = grid({(64, 64): same(0.6), (64, 96): same(0.7), (96, 96): same(0.6)}, photos=0.5)
    table = text.question_table({part: answers(found.on(part)) for part in found.parts})
    points = table[["points on test (95 %)", "points on photos (95 %)"]].map(
        lambda words: words.split(" ")[0]
    )
    assert len(table) == 5
    assert points.iloc[0].tolist() == ["+10.0", "+5.0"]
    assert table["verdict on test"].iloc[0].startswith("gain")
    two = grid(
        {(64, 64): same(0.6), (64, 96): same(0.7), (96, 96): same(0.6), (96, 128): same(0.65)}
    )
    assert (
        text.question_table({"test": answers(two)})["points on test (95 %)"]
        .iloc[0]
        .endswith("; of +10.0, +5.0")
    )
    claim = table[table["question"].str.contains("claim")].iloc[0]
    assert claim["compared"] == "64/96 head − 96/96 head"


def test_the_choice_is_named_with_what_it_reaches_on_each_part() -> None:
    found = told(same(0.60), same(0.65) | {"head_bn": 0.80}, photos=0.5)
    words = text.choice(found)
    assert "trained at 96, tested at 128 px, `head_bn`" in words
    assert re.findall(r"([\d.]+%) \(.*? of (\d+) (\w+) images", words) == [
        ("80.0%", "400", "test"),
        ("40.0%", "200", "photos"),
    ]
    assert f"{found.stability():.0%} of draws" in words


def test_adaptations_are_counted_against_none_and_against_their_controls() -> None:
    lines = text.adaptations(
        told(same(0.60), same(0.65) | {"head_bn": 0.80, "control_head_bn": 0.85})
    ).splitlines()
    (against_none, against_control) = [line for line in lines if line.startswith("- `head_bn` ")]
    assert "`none`: +15.0 points on average over 1 pairs" in against_none
    assert "a gain in 1, a loss in 0, no difference shown in 0" in against_none
    assert "`control_head_bn`: -5.0 points" in against_control
    assert "a gain in 0, a loss in 1" in against_control


def test_where_validation_misled_the_loss_is_named() -> None:
    found = told(same(0.80), same(0.60))
    assert "20.0 points above" not in text.optimism(found)
    misled = found.table["adaptation"].eq("head_bn") & found.table["test_size"].eq(128)
    val_top1 = found.table["val_top1"].where(~misled, 0.99)
    assert "20.0 points above" in text.optimism(
        replace(found, table=found.table.assign(val_top1=val_top1))
    )


def test_failed_runs_and_missing_references_are_named() -> None:
    found = told(same(0.60), None)
    assert "1 of 5 pairs of resolutions (with probes) lack results" in text.trust(found)
    assert "No pair with test resolution > train resolution" in text.adaptations(found)


def test_over_two_seeds_everything_is_a_mean() -> None:
    second = same(0.56) | {"head_bn": 0.72}
    found = told(same(0.60), same(0.62) | {"head_bn": 0.80}, same(0.50), second)
    assert "It classifies 76.0% (95 % interval" in text.choice(found)
    assert text.trust(found).startswith("2 training seeds: accuracies are means over them")
    assert "`head_bn` against `none`: +17.0 points on average over 1 pairs" in text.adaptations(
        found
    )
    assert "No other cell that was trained here has a higher test accuracy" in text.optimism(found)

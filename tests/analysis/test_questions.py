"""The five questions, on predictions that are made up so that every answer is known."""

from dataclasses import replace

import numpy as np
import pytest
from made_up import TEST, VAL, grid, same

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.questions import Answer, answers
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.model.memory_plan import parameters_and_flops

OWN, LARGER = (96, 96), (96, 128)


def asked(results: Results) -> dict[str, Answer]:
    return {each.question: each for each in answers(results)}


@pytest.mark.parametrize(
    ("at_128", "right", "verdict"),
    [
        (0.65, 20, "gain"),
        (0.55, -20, "loss"),
        (0.60, 0, "equivalent"),
        (0.61, 4, "can't tell"),
        (None, None, "not asked"),
    ],
)
def test_verdict_on_the_test_size(at_128: float | None, right: int | None, verdict: str) -> None:
    """`right` more of 400 images are right at 128 px; Bonett and Price's interval."""
    size = asked(grid({OWN: same(0.60), LARGER: None if at_128 is None else same(at_128)}))["size"]
    assert size.verdict == verdict
    if right is None:
        assert np.isnan(size.difference.estimate)
        return
    p, q = (max(right, 0) + 1) / (TEST + 2), (max(-right, 0) + 1) / (TEST + 2)
    margin = 1.959964 * ((p + q - (p - q) ** 2) / (TEST + 2)) ** 0.5
    assert size.difference[:3] == pytest.approx((right / TEST, p - q - margin, p - q + margin))
    assert size.compared == (((Cell(*LARGER, "none", 0), Cell(*OWN, "none", 0)),),)


def test_adaptation_is_credited_with_the_smaller_of_its_two_gains() -> None:
    top1 = {"none": 0.60, "head": 0.70, "control_head": 0.66}
    found = asked(grid({OWN: same(0.60), LARGER: top1}, adaptations=["none", "head"]))["adaptation"]
    assert [each.estimate for each in found.differences] == pytest.approx([0.10, 0.04])
    assert found.difference.estimate == pytest.approx(0.04)
    assert found.verdict == "gain"
    better = top1 | {"control_head": 0.75}
    found = asked(grid({OWN: same(0.60), LARGER: better}, adaptations=["none", "head"]))[
        "adaptation"
    ]
    assert found.difference.estimate == pytest.approx(-0.05)
    assert found.verdict == "loss"


def test_bounds_are_the_smaller_ones_whichever_difference_has_them() -> None:
    sure, unsure = (
        Difference(0.05, 0.03, 0.07, 0.01, centre=0.05),
        Difference(0.06, -0.02, 0.14, 0.04, centre=0.06),
    )
    found = Answer("adaptation", (unsure, sure))
    assert found.difference[:3] == (0.05, -0.02, 0.07)
    assert found.within() == pytest.approx(
        (0.06 - 1.644854 * 0.04, 0.05 + 1.644854 * 0.01), abs=1e-6
    )
    assert found.smallest_delta == found.within()[1]
    assert found.detectable == pytest.approx(2.801585 * 0.04)


@pytest.mark.parametrize(
    ("smaller", "delta", "holds"),
    [
        (0.70, 0.01, True),
        (0.70, 0.005, None),
        (0.69, 0.01, None),
        (0.69, 0.03, True),
        (0.60, 0.01, False),
    ],
)
def test_claim_holds_where_the_smaller_size_is_not_worse_by_delta(
    smaller: float, delta: float, holds: bool | None
) -> None:
    top1 = {(64, 96): same(0.5) | {"head": smaller}, (96, 96): same(0.75) | {"head": 0.70}}
    claim = asked(grid(top1, delta=delta, epochs=4))["claim"]
    assert claim.compared == (((Cell(64, 96, "head", 0), Cell(96, 96, "head", 0)),),)
    assert claim.difference.estimate == pytest.approx(smaller - 0.70)
    assert claim.holds is holds
    at_64, at_96 = (parameters_and_flops("efficientnet_lite0", 2, size)[1] for size in (64, 96))
    # images passed, backward passes counted twice
    stage_1, stage_2 = 300 + VAL + 4 * (3 * 300 + VAL), 2 * 300
    flops = (stage_1 * at_64 + stage_2 * at_96) / ((stage_1 + stage_2) * at_96)
    assert claim.ratio == pytest.approx((flops, 1))


@pytest.mark.parametrize(("ratio", "holds"), [(0.99, True), (1.0, False), (np.nan, None)])
def test_claim_is_about_less_training(ratio: float, holds: bool | None) -> None:
    assert Answer("claim", (Difference(0.02, 0.01, 0.03),), ratio=(ratio, 1)).holds is holds


def test_train_sizes_have_equal_weight_however_many_test_sizes_they_have() -> None:
    top1 = {
        (64, 64): same(0.60),
        (64, 80): same(0.62),
        (64, 96): same(0.70),
        (96, 96): same(0.60),
        LARGER: same(0.58),
    }
    size = asked(grid(top1, adaptations=["none"]))["size"]
    assert [(cell.train_size, cell.test_size) for cell, _ in size.compared[0]] == [
        (64, 96),
        (96, 128),
    ]
    assert size.difference.estimate == pytest.approx((0.10 - 0.02) / 2)


def test_training_is_held_against_the_better_of_what_needs_none_at_the_same_test_size() -> None:
    top1 = {OWN: same(0.60), LARGER: same(0.65)}
    alone = asked(grid(top1, once={"probe": 0.50}))["training"]
    assert alone.compared == (((Cell(96, 128, "none", 0), Cell(None, 128, "probe", 0)),),)
    assert alone.difference.estimate == pytest.approx(0.15)
    both = asked(grid(top1, once={"probe": 0.50, "zero_shot": 0.70}))["training"]
    assert both.difference.estimate == pytest.approx(-0.05)
    assert [pair[1].adaptation for pair in both.binding[0]] == ["zero_shot"]
    less = asked(grid(top1, once={"probe": 0.50, "zero_shot": 0.40}))["training"]
    assert [pair[1].adaptation for pair in less.binding[0]] == ["probe"]


def test_what_is_compared_hangs_on_validation_alone() -> None:
    top1 = {
        (64, 64): same(0.6),
        (64, 96): same(0.7) | {"head": 0.8},
        OWN: same(0.75),
        LARGER: same(0.7),
    }
    found = grid(top1)
    turned = found.predictions["top1"].where(
        found.predictions["split"] == "val", 1 - found.predictions["top1"]
    )
    table = found.table.assign(top1=1 - found.table["top1"])
    other = replace(found, predictions=found.predictions.assign(top1=turned), table=table)
    for before, after in zip(answers(found), answers(other), strict=True):
        assert before.compared == after.compared != ()
        assert [each.estimate for each in after.differences] == [
            -each.estimate for each in before.differences
        ]


def test_without_train_size_tested_or_a_smaller_one_nothing_is_claimed() -> None:
    found = asked(grid({LARGER: same(0.7)}))
    assert [found[name].verdict for name in ("size", "claim")] == ["not asked", "not asked"]
    assert found["claim"].holds is None
    assert found["training"].verdict == "gain"

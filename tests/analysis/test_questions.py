"""Which rows the first four questions have, on made-up sweeps."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from made_up import CLAIM, grid, same

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.questions import Answer, Plan, answers
from fixres_poc.analysis.results import Results

GRID = CLAIM | {(112, 128): same(0.66)}


def asked(results: Results) -> dict[int, Answer]:
    return {each.number: each for each in answers(Plan(results))}


def short(cell: Cell) -> str:
    train = f"{cell.train_size}/" if cell.train_size else ""
    return f"{train}{cell.test_size} {cell.adaptation}"


def shown(answer: Answer) -> list[tuple[str, list[str]]]:
    return [
        (short(each.cell), [short(row.reference) for row in each.rows])
        for each in answer.comparisons
    ]


def test_training_claim_and_adaptation_have_the_rows_of_the_protocol() -> None:
    """Each r at itself and adapted at its matched size; claims where the test size was trained."""
    results = grid(GRID, once={"zero_shot": 0.4})
    assert Plan(results).matched == {96: 112, 112: 128}
    training, claim, adaptation = (asked(results)[number] for number in (1, 2, 3))
    assert shown(training) == [
        ("96/96 none", ["96 probe", "96 zero_shot"]),
        ("112/112 none", ["112 probe", "112 zero_shot"]),
        ("96/112 head_bn", ["112 probe", "112 zero_shot"]),
        ("112/128 head_bn", ["128 probe", "128 zero_shot"]),
    ]
    assert shown(claim) == [("96/112 head_bn", ["112/112 none", "112/112 head_bn"])]
    assert claim.comparisons[0].primary
    assert shown(adaptation) == [
        ("96/112 head_bn", ["96/112 none", "96/112 control_head_bn"]),
        ("112/128 head_bn", ["112/128 none", "112/128 control_head_bn"]),
    ]
    first, second = adaptation.comparisons
    assert [row.difference.estimate for row in first.rows] == pytest.approx([0.05, 0.04])
    assert (first.primary, second.primary) == (True, False)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({96: 0.84, 128: 1.08, 120: 0.93}, 120),  # |log 0.93| < |log 1.08|
        ({96: 1.0, 128: 1.2, 160: 1.4}, None),  # the train resolution itself is none
        ({96: 0.8, 128: 1.09}, 128),
        ({64: 0.95, 96: 0.8}, None),
    ],
)
def test_the_matched_resolution_is_the_larger_one_nearest_to_ratio_1(
    ratios: dict[int, float], expected: int | None
) -> None:
    own = pd.DataFrame({"test_size": list(ratios), "size_ratio": list(ratios.values())})
    other = pd.DataFrame({"train_size": [64, None], "test_size": [112, 96], "size_ratio": 1.0})
    table = pd.concat([own.assign(train_size=96), other]).assign(crop_pct=0.875)
    found = Plan(replace(grid({(96, 96): same(0.6)}), table=table)).matched
    assert found == {64: 112} | ({96: expected} if expected else {})


def test_the_cheaper_remedy_has_each_arm_at_its_own_crop() -> None:
    top1 = GRID | {(112, 112): same(0.66) | {"none@0.75": 0.72, "head_bn": 0.66}}
    found = asked(grid(top1, crop_pct=[0.75, 0.875]))[4]
    first = found.comparisons[0]
    assert first.primary
    assert [row.reference.crop_pct for row in first.rows] == [0.75, 0.875]
    assert first.cell.crop_pct == 0.875
    assert [row.difference.estimate for row in first.rows] == pytest.approx([-0.02, 0.04])
    # the same cell against none, and the other matched pair: three planned rows
    assert shown(found)[1:] == [
        ("96/112 head_bn", ["96/112 none"]),
        ("112/128 head_bn", ["112/128 none"]),
    ]
    assert {each.rows[0].level for each in found.comparisons[1:]} == {1 - 0.05 / 3}


@pytest.mark.parametrize(("values", "size"), [({}, 96), ({"primary": [64, 112]}, 64)])
def test_primary_pair_is_the_named_one(values: dict[str, Any], size: int) -> None:
    top1 = GRID | {(64, 112): same(0.5), (64, 64): same(0.5)}
    primary = asked(grid(top1, **values))[2].primary
    assert primary
    assert primary.cell == Cell(size, 112, "head_bn")


@pytest.mark.parametrize(
    ("top1", "values", "number", "reason"),
    [
        (GRID, {"adaptations": ["none"]}, 2, "no adaptation"),
        (GRID, {"pretrained": False}, 1, "no pre-trained weights"),
        (GRID, {}, 4, "one crop_pct"),
        ({(96, 96): same(0.6)}, {}, 3, "trained at 96 px, objects look as large at about 119 px"),
        ({(96, 96): same(0.6), (96, 112): same(0.7)}, {}, 2, "smaller train resolution"),
    ],
)
def test_what_is_not_asked_has_its_reason(
    top1: Any, values: dict[str, Any], number: int, reason: str
) -> None:
    found = asked(grid(top1, **values))[number]
    assert reason in found.why_not
    assert not found.comparisons


@pytest.mark.parametrize(
    ("short", "cost"), [(0.60, "cheaper"), (0.80, "cheaper only at equal epochs")]
)
def test_cheaper_needs_that_train_is_test_at_equal_flops_is_not_better(
    short: float, cost: str
) -> None:
    claim = asked(grid(GRID, equal_flops=same(short), epochs=4))[2]
    names = [short.cell.adaptation for short in claim.equal_flops]
    assert names == ["equal_flops_none", "equal_flops_head_bn"]
    assert (claim.primary_verdict, claim.cost) == ("better", cost)

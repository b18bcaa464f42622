"""Verdicts, levels and deltas of rows."""

import math

import numpy as np
import pytest
from made_up import grid, same

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import Bounds, compared, verdict_of
from fixres_poc.analysis.statistics import paired_gains

OWN, LARGER = Cell(96, 96, "none"), Cell(96, 128, "none")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.02, "better"),
        (0.0, 0.02, "as good"),
        (-0.009, 0.02, "as good"),
        (-0.009, -0.001, "as good"),
        (-0.02, -0.001, "worse"),
        (-0.02, 0.001, "can't tell"),
        (-0.01, 0.01, "can't tell"),
        (math.nan, math.nan, "not run"),
    ],
)
def test_verdicts_in_the_order_of_the_protocol(low: float, high: float, verdict: str) -> None:
    assert verdict_of([Bounds(low, high, 0.01)]) == verdict


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ((0.01, 0.02), (0.01, 0.02), "better"),
        ((0.01, 0.02), (-0.005, 0.02), "as good"),
        ((0.01, 0.02), (-0.02, 0.02), "can't tell"),
        ((0.01, 0.02), (-0.03, -0.01), "worse"),
        ((0.01, 0.02), (math.nan, math.nan), "not run"),
    ],
)
def test_two_references_are_answered_by_both_bounds(
    one: tuple[float, float], other: tuple[float, float], verdict: str
) -> None:
    """Not by the smaller estimate: here the first one's never decides."""
    for pair in ((one, other), (other, one)):
        assert verdict_of([Bounds(*each, 0.01) for each in pair]) == verdict


def test_the_primary_row_has_95_percent_and_others_share_5_unfinished_ones_counted() -> None:
    results = grid({(96, 96): same(0.60), (96, 128): same(0.65), (96, 160): None})
    missing = Cell(96, 160, "none")
    found = compared(results, [(each, [OWN]) for each in (LARGER, missing, OWN)], LARGER, 3)
    assert [each.primary for each in found] == [True, False, False]
    assert [each.rows[0].level for each in found] == pytest.approx(
        [0.95, 1 - 0.05 / 3, 1 - 0.05 / 3]
    )
    assert found[1].verdict == "not run"
    low, high, _ = found[0].rows[0].bounds
    assert (low, high) == found[0].rows[0].difference[1:3]


def test_delta_is_the_smaller_of_the_setting_and_a_quarter_of_the_validation_errors() -> None:
    for top1, delta in ((0.60, 0.01), (0.98, 0.005)):
        results = grid({(96, 96): same(top1), (96, 128): same(0.65)})
        (found,) = compared(results, [(LARGER, [OWN])], LARGER, 1)
        assert found.rows[0].delta == pytest.approx(delta)


def test_cost_is_a_ratio_of_both_trainings() -> None:
    results = grid({(64, 96): same(0.6), (96, 96): same(0.6)}, epochs=2)
    (found,) = compared(results, [(Cell(64, 96, "none"), [OWN])], None, 1, with_cost=True)
    assert found.rows[0].cost_ratio == pytest.approx(((64 / 96) ** 2, 1), rel=0.02)


def test_the_spread_between_trainings_is_pooled_over_rows_that_are_not_far_above_it() -> None:
    """Mean squares 2, 1 and 0: pooled 1, so the first keeps its own and its two degrees."""
    zeros = np.zeros((3, 400), dtype=bool)
    wide, middle, still = zeros.copy(), zeros.copy(), zeros.copy()
    wide[1, :40] = wide[2, :80] = True
    middle[0, :12] = middle[1, :40] = middle[2, :68] = True
    still[:, :40] = True
    alone = [paired_gains([(row, zeros)])[0] for row in (wide, middle, still)]
    rows = paired_gains([(wide, zeros), (middle, zeros), (still, zeros)])
    assert [each.estimate for each in rows] == pytest.approx([0.1] * 3)
    assert rows[0] == alone[0]
    assert rows[2].error > alone[2].error
    assert [each.freedom for each in alone[:2]] == pytest.approx([2, 2], abs=0.1)
    assert rows[1].freedom == pytest.approx(6, abs=0.3)

"""Verdicts, levels and deltas of rows."""

import math

import numpy as np
import pytest
from made_up import grid, same

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import Bounds, compared, verdict_of
from fixres_poc.analysis.statistics import paired_gains

OWN, LARGER = Cell(96, 96, "none"), Cell(96, 128, "none")


NOT_RUN = math.nan, math.nan
VERDICTS = [  # of intervals against each reference, in the order of the protocol
    ([(0.001, 0.02)], "better"),
    ([(0.0, 0.02)], "as good"),
    ([(-0.009, 0.02)], "as good"),
    ([(-0.009, -0.001)], "as good"),
    ([(-0.02, -0.001)], "worse"),
    ([(-0.02, 0.001)], "can't tell"),
    ([(-0.01, 0.01)], "can't tell"),
    ([NOT_RUN], "not run"),
    # not by the smaller estimate: here the first one's never decides
    ([(0.01, 0.02), (0.01, 0.02)], "better"),
    ([(0.01, 0.02), (-0.005, 0.02)], "as good"),
    ([(0.01, 0.02), (-0.02, 0.02)], "can't tell"),
    ([(0.01, 0.02), (-0.03, -0.01)], "worse"),
    ([(0.01, 0.02), NOT_RUN], "not run"),
]


@pytest.mark.parametrize(("intervals", "verdict"), VERDICTS)
def test_verdicts_follow_the_bounds(intervals: list[tuple[float, float]], verdict: str) -> None:
    for given in (intervals, intervals[::-1]):
        assert verdict_of([Bounds(*ends, 0.01) for ends in given]) == verdict


def test_delta_is_the_smaller_of_the_setting_and_a_quarter_of_the_validation_errors() -> None:
    for top1, delta in ((0.60, 0.01), (0.98, 0.005)):
        results = grid({(96, 96): same(top1), (96, 128): same(0.65)})
        (found,) = compared(results, [(LARGER, [OWN])], LARGER, 1)
        assert found.rows[0].delta == pytest.approx(delta)


def test_the_spread_between_trainings_is_pooled_over_rows_that_are_not_far_above_it() -> None:
    """Mean squares 2, 1 and 0: pooled 1, so the first keeps its own and its two degrees."""
    zeros = np.zeros((3, 400), dtype=bool)
    wide, middle, still = (
        np.arange(400) < np.array(right)[:, None]
        for right in ([0, 40, 80], [12, 40, 68], [40, 40, 40])
    )
    alone = [paired_gains([(row, zeros)])[0] for row in (wide, middle, still)]
    rows = paired_gains([(wide, zeros), (middle, zeros), (still, zeros)])
    assert [row.estimate for row in rows] == pytest.approx([0.1] * 3)
    assert rows[0] == alone[0]
    assert rows[2].error > alone[2].error
    freedom = [alone[0].freedom, alone[1].freedom, rows[1].freedom]
    assert freedom == pytest.approx([2, 2, 6], abs=0.2)

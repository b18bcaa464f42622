"""Controls of the instrument on committed predictions: arms without a difference, planted ones."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fixres_poc.analysis.answers import decide
from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.comparisons import Bounds, Comparison, verdict_of
from fixres_poc.analysis.results import Results, leading_part, load_results
from fixres_poc.analysis.statistics import paired_gains

pytestmark = [pytest.mark.slow, pytest.mark.simulations]

REPORTS = Path(__file__).parents[2] / "docs" / "reports"
DRAWS = 1000
DELTA = 0.01
SPLITS = 35  # ways to split eight trainings into two groups of four: the draws repeat them
Pair = NDArray[np.bool_]
"""Correctness (2, S, N) of a cell and its reference."""


def committed(name: str) -> Results:
    if not (REPORTS / name / "results.csv").is_file():
        pytest.skip(f"docs/reports/{name} is not committed yet")
    results = load_results(str(REPORTS / name))
    return results.on(leading_part(results))


def rows_of(results: Results, question: int) -> list[tuple[Comparison, list[Pair]]]:
    """The comparisons of a question that ran, with the correctness of each reference's pair."""
    found = []
    for each in decide(results).answers[question - 1].comparisons:
        pairs = [results.paired_hits(row.cell, row.reference) for row in each.rows]
        known = [pair for pair in pairs if pair is not None]
        if len(known) == len(pairs):
            found.append((each, known))
    return found


def excluded(
    rows: list[tuple[Comparison, list[Pair]]], draws: list[list[Pair]]
) -> tuple[bool, bool]:
    """Whether 0 lies outside of the primary row's first interval, and of any other row's."""
    differences = paired_gains([(first[0], first[1]) for first, *_ in draws])
    primary = others = False
    for (comparison, _), difference in zip(rows, differences, strict=True):
        low, high = difference.at(comparison.rows[0].level)
        outside = low > 0 or high < 0
        primary |= outside and comparison.primary
        others |= outside and not comparison.primary
    return primary, others


def test_without_pre_training_the_mechanism_is_there() -> None:
    """None gains at the matched size, adapted over its control at 1.5 times the train size."""
    results = committed("from_scratch")
    plain, adapted = (Cell(64, size, name) for size, name in ((80, "none"), (96, "head_bn")))
    matched = results.difference(plain, plain._replace(test_size=64))
    repaired = results.difference(adapted, adapted._replace(adaptation="control_head_bn"))
    for found in (matched, repaired):
        assert found
        print(found.points(), found.seeds)
        assert found.low > 0


def test_without_random_crops_the_matched_size_is_no_gain() -> None:
    results = committed("from_scratch_no_crop")
    for size in (48, 80):
        plain = Cell(64, size, "none")
        found = results.difference(plain, plain._replace(test_size=64))
        assert found
        print(size, found.points(), found.seeds)
        assert found.low <= 0


@pytest.mark.parametrize(("name", "question"), [("demo", 2), ("demo", 3), ("from_scratch", 3)])
def test_arms_that_are_swapped_at_random_are_rarely_told_apart(name: str, question: int) -> None:
    """The answers of cell and reference swapped per image, all trainings together."""
    rows, rng = rows_of(committed(name), question), np.random.default_rng(question)
    assert any(each.primary for each, _ in rows)
    errors = np.zeros(2)
    for _ in range(DRAWS):
        draws = []
        for _, (pair, *_) in rows:
            swap = rng.random(pair.shape[-1]) < 0.5
            draws.append([np.where(swap, pair[::-1], pair)])
        errors += excluded(rows, draws)
    primary, others = errors / DRAWS
    print(f"{name}, question {question}: primary {primary:.1%}, any other {others:.1%}")
    assert primary <= 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5
    assert others <= 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5


def test_disjoint_groups_of_trainings_of_one_arm_are_rarely_told_apart() -> None:
    results, rng = committed("from_scratch"), np.random.default_rng(0)
    (comparison,) = (each for each, _ in rows_of(results, 3) if each.primary)
    hits = np.stack(list(results.hits(comparison.cell).values()))
    told = 0
    for _ in range(DRAWS):
        order = rng.permutation(len(hits))
        half = len(hits) // 2
        found = paired_gains([(hits[order[:half]], hits[order[half : 2 * half]])])[0]
        told += not found.low <= 0 <= found.high
    print(f"disjoint groups: {told / DRAWS:.1%}")
    assert told / DRAWS <= 0.05 + 2 * (0.05 * 0.95 / SPLITS) ** 0.5


@pytest.mark.parametrize(("planted", "most"), [(2 * DELTA, 1.0), (-DELTA, 0.025)])
def test_planted_differences_are_found(planted: float, most: float) -> None:
    """+2 delta is better in 80 % of draws; -delta is as good in 2.5 % of them at most."""
    results, rng = committed("from_scratch"), np.random.default_rng(1)
    (pair,) = (pairs[0] for each, pairs in rows_of(results, 3) if each.primary)
    better = good = 0
    for _ in range(DRAWS):
        images = rng.integers(pair.shape[-1], size=pair.shape[-1])  # a test part drawn anew
        drawn = pair[..., images]
        cell, reference = np.where(rng.random(drawn.shape[-1]) < 0.5, drawn[::-1], drawn)
        cell = plant(cell, planted, rng)
        found = paired_gains([(cell, reference)])[0]
        verdict = verdict_of([Bounds(found.low, found.high, DELTA)])
        better += verdict == "better"
        good += verdict in ("better", "as good")
    print(f"planted {planted:+.1%}: better {better / DRAWS:.1%}, not worse {good / DRAWS:.1%}")
    if planted > 0:
        assert better / DRAWS >= 0.8
    assert good / DRAWS <= most + 3 * (most * (1 - most) / DRAWS) ** 0.5


def plant(cell: NDArray[np.bool_], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Correctness (S, N) in which each training is right on `share` of the images more, or less."""
    changed = cell.copy()
    for row in changed:
        candidates = np.flatnonzero(row == (share < 0))
        count = min(round(abs(share) * row.size), len(candidates))
        row[rng.choice(candidates, count, replace=False)] = share > 0
    return changed

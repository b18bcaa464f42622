"""The one-standard-error rule, on made-up sweeps."""

from typing import Any

import pytest
from made_up import TEST, grid, same

from fixres_poc.analysis.cells import Cell
from fixres_poc.analysis.recommendation import Recommendation, recommend

SIZES = [(96, 96), (96, 128), (96, 160)]


def accuracies(*top1: float) -> dict[tuple[int, int], dict[str, float] | None]:
    return {size: same(value) for size, value in zip(SIZES, top1, strict=True)}


def recommended(*top1: float, **values: Any) -> Recommendation:
    return recommend(grid(accuracies(*top1), **values), "head_bn")


@pytest.mark.parametrize(
    ("top1", "delta", "used"),
    [
        # one of 200 validation images: within an error and a point
        ((0.700, 0.800, 0.805), 0.01, 128),
        ((0.700, 0.800, 0.815), 0.01, 160),  # three of them: more than a point
        ((0.805, 0.805, 0.805), 0.01, 96),
        # the standard error of one image is about 0.7 points, the gap 0.5 or 1.0
        ((0.700, 0.800, 0.805), 0.5, 128),
        ((0.700, 0.790, 0.805), 0.5, 160),
    ],
)
def test_the_cheapest_arm_within_one_standard_error_and_delta(
    top1: tuple[float, ...], delta: float, used: int
) -> None:
    found = recommended(*top1, delta=delta)
    assert found.use == Cell(96, used, "none")


def test_the_probe_competes_and_ablations_do_not() -> None:
    top1 = {(96, 96): {"none": 0.7, "head": 0.9, "head_bn": 0.7, "head_bn_stats": 0.9}}
    found = recommend(grid(top1, once={"probe": 0.8}), "head_bn")
    assert found.use == Cell(None, 96, "probe")
    assert {cell.adaptation for cell in found.arms["cell"]} == {"probe", "none", "head_bn"}


def test_what_the_cheaper_choice_costs_and_gains_over_common_practice() -> None:
    found = recommended(0.700, 0.800, 0.805)
    assert found.best == Cell(96, 160, "none")
    assert found.price
    assert found.common
    gains = found.price.estimate, found.common.estimate
    assert gains == pytest.approx((2 / TEST, 0.1))
    assert 0.3 < found.share < 1


def test_each_test_resolution_has_its_pick() -> None:
    rows = recommended(0.700, 0.800, 0.900).arms.to_dict("records")
    picks = {row["cell"].test_size: row["pick"] for row in rows if row["pick"]}
    assert picks == dict.fromkeys([96, 128, 224], "at this resolution") | {160: "use"}


def test_few_validation_images_recommend_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fixres_poc.analysis.recommendation.FEWEST_VAL", 201)
    found = recommended(0.7, 0.8, 0.9)
    assert found.use is None
    assert found.why_not == "fewer than 201 validation images: 200"
    assert len(found.arms) > 3
    assert not any(found.arms["pick"])


def test_the_probe_alone_is_left_where_no_pair_finished() -> None:
    found = recommend(grid({(96, 96): None}), "")
    assert found.use == Cell(None, 96, "probe")
    assert found.common is None


def test_arms_are_at_the_crop_that_was_chosen() -> None:
    top1 = {(64, 96): same(0.5), (96, 96): same(0.6) | {"none@0.75": 0.7}}
    found = recommend(grid(top1, crop_pct=[0.75, 0.875]), "head_bn")
    assert found.use == Cell(96, 96, "none", crop_pct=0.75)


def test_an_arm_that_lacks_a_seed_still_competes() -> None:
    top1 = accuracies(0.7, 0.8, 0.9)
    found = recommend(grid(top1, top1 | {(96, 160): None}), "head_bn")
    assert found.use == Cell(96, 160, "none")


def test_a_larger_second_part_does_not_hide_the_probe() -> None:
    results = grid(accuracies(0.7, 0.8, 0.9), photos=1)
    results.table.loc[results.table["test_part"] == "photos", "n_test"] = 5000
    assert results.untrained == ["probe"]

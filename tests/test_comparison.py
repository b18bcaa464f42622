"""The table of 2020 as data, and sweeps made by hand beside it."""

from typing import Any

import pandas as pd
import pytest

from fixres_poc.comparison import beside_2020, compared_with_2020
from fixres_poc.published import STANFORD_DOGS_2020_BASELINE, stanford_dogs_2020
from fixres_poc.results import Results


def row(train_size: int, test_size: int, adaptation: str, val: float, top1: float, **other: Any) -> dict[str, Any]:
    """A row of results.csv with an interval of half a point on both sides."""
    cell = {"train_size": train_size, "test_size": test_size, "size_ratio": 0.809 * test_size / train_size}
    made = {"adaptation": adaptation, "view": "center", "seed": 0, "val_top1": val, "top1": top1, "status": "ok"}
    return cell | made | {"top1_low": top1 - 0.005, "top1_high": top1 + 0.005} | other


def found(*rows: dict[str, Any], dataset: str = "stanford_dogs") -> Results:
    table = pd.DataFrame([row(224, 224, "baseline", 0.97, 0.974), *rows])
    sweep = {"settings": {"dataset": dataset, "backbone": "timm:resnet50"}, "pictures": {"test": 8580}}
    return Results(table, pd.DataFrame(), pd.DataFrame(), sweep)


SOME = (
    row(224, 320, "none", 0.95, 0.930),
    row(224, 320, "head", 0.95, 0.931),
    row(224, 320, "head_bn", 0.96, 0.940),
    row(224, 320, "control", 0.99, 0.990),
    row(224, 320, "none", 0.99, 0.990, view="ten_crop"),
    row(320, 224, "none", 0.95, 0.948),
    row(320, 224, "head", 0.95, 0.900),
    row(224, 280, "none", 0.99, 0.990),
)


def test_the_table_of_2020_holds_its_eight_rows_and_its_baseline() -> None:
    table = stanford_dogs_2020().set_index(["train_size", "test_size"])
    top1 = {(224, 128): 0.8930, (224, 224): 0.9321, (224, 320): 0.9348, (320, 224): 0.9473, (320, 320): 0.9440}
    notes = {(128, 224): "left blank", (224, 400): "left blank", (320, 380): "CUDA out of memory"}
    assert table["top1"].dropna().to_dict() == top1
    assert table.loc[table["top1"].isna(), "note"].to_dict() == notes
    assert abs(table["top1"].max() - 0.037 - STANFORD_DOGS_2020_BASELINE) < 0.0005


def test_shared_pairs_stand_beside_the_adaptation_that_validation_prefers() -> None:
    compared = compared_with_2020(found(*SOME))
    assert compared is not None
    first, second = compared.to_dict("records")
    assert (first["train_size"], first["test_size"]) == (224, 320)
    assert (first["adaptation"], first["inside"]) == ("head_bn", "no")
    assert first["difference"] == pytest.approx(0.940 - 0.9348)
    assert (second["adaptation"], second["top1"], second["inside"], second["note"]) == ("none", 0.948, "yes", "")
    assert second["size_ratio"] == pytest.approx(0.57, abs=0.005)


def test_a_row_that_either_side_lacks_says_why() -> None:
    nothing: dict[str, Any] = {"top1_low": None, "top1_high": None, "status": "failed"}
    failed = [row(*pair, "none", float("nan"), float("nan"), **nothing) for pair in [(224, 128), (320, 380)]]
    compared = compared_with_2020(found(*failed, row(224, 400, "none", 0.95, 0.95)))
    assert compared is not None
    assert compared["note"].tolist() == [
        "here: no result",
        "2020: left blank",
        "2020: CUDA out of memory · here: no result",
    ]
    assert compared["inside"].tolist() == ["", "", ""]
    assert compared["difference"].isna().all()


def test_the_line_counts_what_lies_inside_and_names_both_experiments() -> None:
    results = found(*SOME)
    line = beside_2020(results, compared_with_2020(results))
    assert "1 of 2 figures of 2020 lie in" in line
    assert "Baseline: 91.0% in 2020, 97.4% here" in line
    assert "timm:resnet50 here, on 8,580 test pictures" in line


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (found(*SOME, dataset="data/pictures"), "another data set, Stanford Dogs"),
        (found(row(224, 280, "none", 0.9, 0.9)), "none of the pairs"),
    ],
)
def test_with_nothing_to_compare_the_line_says_so(results: Results, reason: str) -> None:
    assert compared_with_2020(results) is None
    assert reason in beside_2020(results, None)

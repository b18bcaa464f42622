"""Published figures, what is computed from them, and made-up sweeps beside 2020's."""

from typing import Any

import pandas as pd
import pytest
import timm
import torch

from fixres_poc.analysis.results import Results
from fixres_poc.model import backbones, memory_plan, trunk
from fixres_poc.report import published
from fixres_poc.report.published import beside_2020, compared_with_2020

NETWORKS = published.networks()
TIMM = NETWORKS[NETWORKS["source"].str.startswith("huggingface/pytorch-image-models")]


@pytest.mark.parametrize(
    ("model", "train_size", "test_size", "adapted", "top1"),
    [
        ("ResNet-50", 224, 224, "no", 0.770),
        ("ResNet-50", 224, 288, "no", 0.784),
        ("ResNet-50", 224, 384, "yes", 0.790),
        ("ResNet-50", 128, 224, "yes", 0.771),
        ("PNASNet-5", 331, 480, "yes", 0.837),
        ("ResNeXt-101 32x48d WSL", 224, 224, "no", 0.854),
        ("ResNeXt-101 32x48d WSL", 224, 320, "yes", 0.864),
        ("EfficientNet-B4 (Fix)", 380, 512, "yes", 0.840),
        ("EfficientNet-B7 (Fix)", 600, 632, "yes", 0.853),
        ("EfficientNet-L2 (Fix)", 475, 600, "yes", 0.885),
    ],
)
def test_figures_of_the_fixres_papers(
    model: str, train_size: int, test_size: int, adapted: str, top1: float
) -> None:
    row = published.imagenet().set_index(["model", "train_size", "test_size", "adapted"])["top1"]
    assert row[model, train_size, test_size, adapted] == top1


def test_parameters_of_2020() -> None:
    millions = published.imagenet().set_index("model")["parameters_millions"]
    assert set(millions["ResNeXt-101 32x48d WSL"]) == {829}
    assert millions["EfficientNet-L2 (Fix)"] == 480


def test_networks_are_in_range_and_have_a_source() -> None:
    needed = NETWORKS.drop(columns=["gmacs", "licence", "weights", "paper"])
    assert not needed.isna().any(axis=None)
    assert NETWORKS["top1"].between(0.7, 0.95).all()
    assert NETWORKS["parameters_millions"].between(1, 1100).all()
    assert NETWORKS["gmacs"].dropna().between(0.1, 2000).all()
    assert NETWORKS[["train_size", "test_size"]].isin(range(128, 801)).all(axis=None)
    assert set(NETWORKS["adapted"]) == set(NETWORKS["batch_norm"]) == {"yes", "no"}
    assert not NETWORKS.duplicated(
        ["model", "train_size", "test_size", "adapted", "extra_data"]
    ).any()


def test_year_is_that_of_the_paper() -> None:
    since = NETWORKS.dropna(subset="paper")
    assert (
        since["paper"]
        .str.extract(r"arXiv (\d\d)\d\d\.\d{5}$")[0]
        .astype(int)
        .add(2000)
        .equals(since["year"])
    )


@pytest.mark.parametrize("weights", TIMM["weights"].unique())
def test_sizes_and_licence_are_those_of_timm(weights: str) -> None:
    rows, known = TIMM[TIMM["weights"] == weights], timm.get_pretrained_cfg(weights)
    assert known is not None
    assert set(rows["train_size"]) == {known.input_size[-1]}
    assert rows["test_size"].tolist() == sorted(
        {each[-1] for each in (known.input_size, known.test_input_size) if each}
    )
    assert set(rows["licence"]) == {known.license}


@pytest.mark.parametrize(
    ("model", "backbone", "size"),
    [
        ("ResNet-50", "timm:resnet50", 288),
        ("EfficientNet-B0 (Fix)", "timm:tf_efficientnet_b0", 320),
        ("ResNeXt-101 32x48d WSL", "resnext101_32x48d_wsl", 224),
        ("ResNet-50 (2021 recipe)", "timm:resnet50", 288),
        ("EVA-02-S", "timm:eva02_small_patch14_336", 336),
        ("MobileNetV4-L", "timm:mobilenetv4_conv_large", 448),
    ],
)
def test_cost_counted_again(model: str, backbone: str, size: int) -> None:
    row = NETWORKS[(NETWORKS["model"] == model) & (NETWORKS["test_size"] == size)].iloc[0]
    parameters, flops = memory_plan.parameters_and_flops(backbone, 1000, size)
    assert row["parameters_millions"] == pytest.approx(parameters / 1e6, rel=0.005)
    assert row["gmacs"] == pytest.approx(flops / 2e9, rel=0.03)


@pytest.mark.parametrize(
    "weights", ["resnet50.a1_in1k", "tf_efficientnetv2_s.in1k", "convnext_base.fb_in1k"]
)
def test_batch_norm_is_there_as_told(weights: str) -> None:
    with torch.device("meta"):
        norm = trunk.last_batch_norm(backbones.create(f"timm:{weights}", pretrained=False))
    told = TIMM.loc[TIMM["weights"] == weights, "batch_norm"]
    assert set(told) == {"no" if norm is None else "yes"}


def test_frontier_leaves_out_what_another_one_beats() -> None:
    models = pd.DataFrame({"cost": [3.0, 1, 2, 2, None, 1], "top1": [0.8, 0.7, 0.7, 0.8, 0.9, 0.6]})
    assert published.undominated(models, "cost").tolist() == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]


def test_gains_are_those_over_the_train_size() -> None:
    gains = published.size_gains(published.networks()).set_index(["model", "test_size"])["gain"]
    assert gains["ResNet-50", 288] == pytest.approx(0.014)
    assert gains["EfficientNetV2-XL", 512] == pytest.approx(0.86748 - 0.85562)
    assert ("PNASNet-5", 480) not in gains.index


def test_stanford_dogs_is_sourced_and_holds_the_known_figures() -> None:
    dogs = published.stanford_dogs()
    assert dogs["source"].str.contains("arXiv|doi|OpenReview|2020 proof of concept").all()
    assert dogs["year"].is_monotonic_increasing
    assert dogs["top1"].between(0.5, 0.97).all()
    top1 = dogs.set_index("model")["top1"]
    assert top1["API-Net"] == 0.903
    assert (
        top1["ResNeXt-101 32x48d WSL, 320/224"]
        == published.stanford_dogs_2020()["top1"].max()
        == 0.9473
    )


def row(
    train_size: int, test_size: int, adaptation: str, val: float, top1: float, **other: Any
) -> dict[str, Any]:
    """A row of results.csv with an interval of half a point on both sides."""
    cell = {
        "train_size": train_size,
        "test_size": test_size,
        "size_ratio": 0.809 * test_size / train_size,
    }
    made = {
        "adaptation": adaptation,
        "view": "center",
        "seed": 0,
        "val_top1": val,
        "top1": top1,
        "status": "done",
    }
    return (
        cell
        | made
        | {"test_part": "test", "top1_low": top1 - 0.005, "top1_high": top1 + 0.005}
        | other
    )


def found(*rows: dict[str, Any], dataset: str = "stanford_dogs") -> Results:
    probes = [
        row(size, size, "probe", 0.97, top1)
        for size, top1 in [(128, 0.9), (224, 0.974), (320, 0.98)]
    ]
    table = pd.DataFrame([*probes, *rows])
    sweep = {
        "settings": {"dataset": dataset, "backbone": "timm:resnet50"},
        "images": {"test": 8580},
    }
    return Results(table, pd.DataFrame(), pd.DataFrame(), sweep)


SOME = (
    row(224, 320, "none", 0.95, 0.930),
    row(224, 320, "head", 0.95, 0.931),
    row(224, 320, "head_bn", 0.96, 0.940),
    row(224, 320, "control_head", 0.99, 0.990),
    row(224, 320, "none", 0.99, 0.990, view="ten_crop"),
    row(320, 224, "none", 0.95, 0.948),
    row(320, 224, "head", 0.95, 0.900),
    row(224, 280, "none", 0.99, 0.990),
)


def test_the_table_of_2020_holds_its_eight_rows_and_its_baseline() -> None:
    table = published.stanford_dogs_2020().set_index(["train_size", "test_size"])
    top1 = {
        (224, 128): 0.8930,
        (224, 224): 0.9321,
        (224, 320): 0.9348,
        (320, 224): 0.9473,
        (320, 320): 0.9440,
    }
    notes = {(128, 224): "left blank", (224, 400): "left blank", (320, 380): "CUDA out of memory"}
    assert table["top1"].dropna().to_dict() == top1
    assert table.loc[table["top1"].isna(), "note"].to_dict() == notes
    assert abs(table["top1"].max() - 0.037 - published.STANFORD_DOGS_2020_BASELINE) < 0.0005


def test_shared_pairs_are_compared_without_adaptation_and_have_the_preferred_one_beside() -> None:
    compared = compared_with_2020(found(*SOME))
    assert compared is not None
    first, second = compared.to_dict("records")
    assert (first["train_size"], first["test_size"]) == (224, 320)
    assert (first["top1"], first["inside"]) == (0.930, "yes")
    assert first["difference"] == pytest.approx(0.930 - 0.9348)
    assert (first["adaptation"], first["top1_adapted"]) == ("head_bn", 0.940)
    assert (second["adaptation"], second["top1"], second["inside"], second["note"]) == (
        "head",
        0.948,
        "yes",
        "",
    )
    assert second["size_ratio"] == pytest.approx(0.57, abs=0.005)


def test_a_row_that_either_side_lacks_says_why() -> None:
    nothing: dict[str, Any] = {"top1_low": None, "top1_high": None, "status": "failed"}
    failed = [
        row(*pair, "none", float("nan"), float("nan"), **nothing)
        for pair in [(224, 128), (320, 380)]
    ]
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
    compared = compared_with_2020(found(*SOME))
    assert compared is not None
    line = beside_2020(found(*SOME), compared)
    assert "2 of 2 accuracies of 2020 lie in" in line
    assert "Linear probe: 91.0% in 2020, 97.4% here" in line
    assert "timm:resnet50 here, on 8,580 test images" in line


@pytest.mark.parametrize(
    "results",
    [found(*SOME, dataset="data/images"), found(row(224, 280, "none", 0.9, 0.9))],
    ids=["images", "pairs"],
)
def test_another_dataset_and_other_pairs_are_not_compared(results: Results) -> None:
    assert compared_with_2020(results) is None

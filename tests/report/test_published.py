"""Published figures, what is computed from them, and made-up sweeps beside 2020's."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from made_up import grid, with_facts

from fixres_poc.analysis.results import Results
from fixres_poc.model import backbones, memory_plan, trunk
from fixres_poc.report import published
from fixres_poc.report.published import beside_2020, compared_with_2020

NETWORKS = published.networks()
TIMM = NETWORKS[NETWORKS["source"].str.startswith("huggingface/pytorch-image-models")]


def test_figures_of_the_fixres_papers() -> None:
    rows = published.imagenet().set_index(["model", "train_size", "test_size", "adapted"])
    expected = {
        ("ResNet-50", 224, 288, "no"): 0.784,
        ("ResNet-50", 224, 384, "yes"): 0.790,
        ("ResNeXt-101 32x48d WSL", 224, 320, "yes"): 0.864,
        ("EfficientNet-L2 (Fix)", 475, 600, "yes"): 0.885,
    }
    assert rows["top1"][[*expected]].to_dict() == expected


def test_networks_have_a_source_and_stand_there_once() -> None:
    needed = NETWORKS.drop(columns=["gmacs", "licence", "weights", "paper"])
    assert not needed.isna().any(axis=None)
    assert set(NETWORKS["adapted"]) == set(NETWORKS["batch_norm"]) == {"yes", "no"}
    keys = ["model", "train_size", "test_size", "adapted", "extra_data"]
    assert not NETWORKS.duplicated(keys).any()


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
    assert np.flatnonzero(published.undominated(models, "cost")).tolist() == [1, 3]


def test_gains_are_those_over_the_train_size() -> None:
    gains = published.size_gains(published.networks()).set_index(["model", "test_size"])["gain"]
    assert gains["ResNet-50", 288] == pytest.approx(0.014)
    assert gains["EfficientNetV2-XL", 512] == pytest.approx(0.86748 - 0.85562)
    assert ("PNASNet-5", 480) not in gains.index


def test_stanford_dogs_is_sourced_and_holds_the_known_figures() -> None:
    dogs = published.stanford_dogs()
    assert dogs["source"].str.contains("arXiv|doi|OpenReview|2020 proof of concept").all()
    top1 = dogs.set_index("model")["top1"]
    assert top1[["API-Net", "ResNeXt-101 32x48d WSL, 320/224"]].tolist() == [0.903, 0.9473]
    assert published.stanford_dogs_2020()["top1"].max() == 0.9473


SOME: dict[tuple[int, int], dict[str, float] | None] = {
    (224, 320): {"none": 0.930, "head_bn": 0.940},
    (320, 224): {"none": 0.9475},
    (320, 320): {"none": 0.9425},
    (224, 280): {"none": 0.99},
}


def found(*seeds: dict[tuple[int, int], dict[str, float] | None], **values: Any) -> Results:
    """A made-up sweep, as if on Stanford Dogs."""
    results = grid(*seeds, adaptations=["none", "head_bn"], **values)
    return with_facts(results, {"dataset": "stanford_dogs"})


def test_shared_pairs_are_compared_without_adaptation_as_single_trainings() -> None:
    top1 = SOME | {(224, 128): {"none": 0.75}, (320, 380): None, (224, 400): {"none": 0.95}}
    compared = compared_with_2020(found(top1, top1))
    assert compared is not None
    rows = compared.set_index(["train_size", "test_size"])
    first: Any = rows.loc[(224, 320)]
    assert (first["top1"], first["estimate"]) == (0.9348, 0.93)
    assert first["low"] < 0.91 < 0.95 < first["high"]  # 400 images of one training
    inside = {(224, 320): "yes", (320, 224): "yes", (224, 128): "no"}
    inside |= dict.fromkeys([(224, 400), (320, 380)], "")
    assert {key: rows["inside"][key] for key in inside} == inside
    assert np.isnan(rows["estimate"][320, 380])


def test_gains_stand_beside_their_reference() -> None:
    table = published.gains()
    network = table[table["network"] == "ResNet-50"]
    assert network["gain in points"].tolist() == ["reference", "+1.4", "+2.0", "+0.1"]
    assert "no reference" in set(table["gain in points"])


def test_the_line_counts_what_lies_inside_and_holds_the_two_pairs_of_320_px_together() -> None:
    results = found(SOME, SOME, once={"probe": 0.975})
    compared = compared_with_2020(results)
    assert compared is not None
    line = beside_2020(results, compared)
    for words in (
        "3 of 3 accuracies of 2020 lie where one training",
        "Linear probe: 91.0 % in 2020, 97.5 % here",
        "efficientnet_lite0 here, on 400 test images",
        "+0.3 points in 2020, +0.5 points",
    ):
        assert words in line


def test_another_dataset_and_other_pairs_are_not_compared() -> None:
    assert compared_with_2020(grid(SOME, adaptations=["none"])) is None
    assert compared_with_2020(found({(224, 280): {"none": 0.9}})) is None

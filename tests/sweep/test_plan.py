"""What a sweep is said to need."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from throwaway import tiny
from typer.testing import CliRunner

from fixres_poc.cli import app
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import home
from fixres_poc.config.settings import TrainSettings
from fixres_poc.model import memory_plan
from fixres_poc.report.tables import readable
from fixres_poc.sweep import plan

GIB = 2**30
TRAIN, VAL, TEST = 801, 191, 608  # synthetic images


def planned(memory: int = 16 * GIB, **values: object) -> dict[str, pd.DataFrame]:
    """The plan for a card of 0.1 TFLOP/s."""
    return plan.plan(tiny(batch_size=8, **values), memory, tflops=0.1)


def seconds(size: int) -> float:
    """Of one image's forward pass at that rate."""
    return memory_plan.parameters_and_flops("efficientnet_lite0", 10, size)[1] / 1e11


@pytest.mark.parametrize(("text", "gib"), [("16GiB", 16), ("16 GB", 16), ("0.5g", 0.5), ("80", 80)])
def test_memory_is_read_as_gib(text: str, gib: float) -> None:
    assert plan.memory_bytes(text) == gib * GIB


@pytest.mark.parametrize("text", ["", "16 MiB", "-1GiB"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="allowed is a number of GiB"):
        plan.memory_bytes(text)


def test_images_are_counted_without_drawing_or_downloading(colour_folder: Path) -> None:
    synthetic = {"train": TRAIN, "val": VAL, "test": TEST}
    assert plan.expected_images(tiny()) == (synthetic, 10)
    limited = plan.expected_images(tiny(dataset="stanford_dogs", image_limit=2058))
    assert limited == ({"train": 1020, "val": 180, "test": 858}, 120)
    counts, classes = plan.expected_images(tiny(dataset=str(colour_folder)))
    assert (sum(counts.values()), classes) == (36, 3)
    assert not home().exists()


def test_a_size_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"vit_tiny_patch16_224.* 64, 96 px"):
        planned(backbone="timm:vit_tiny_patch16_224", adaptations=["none", "head"])


def test_seconds_are_flops_over_the_rate() -> None:
    tables = planned(epochs=2, adapt_epochs=1, seeds=[0, 1])
    pairs, facts = tables["pairs"], tables["sweep"].iloc[0]
    small, large = seconds(64), seconds(96)
    # the probe's features, two epochs with validation after each, the controls
    train = (TRAIN + VAL + 3 * 2 * TRAIN + 2 * VAL + TRAIN + VAL) * small
    assert pairs["train_s"].tolist() == pytest.approx([train, train])
    adapt = [(TRAIN + VAL) * size for size in (small, large)]
    assert pairs["adapt_s"].tolist() == pytest.approx(adapt)
    assert pairs["eval_s"].tolist() == pytest.approx([(VAL + TEST) * s for s in (small, large)])
    once = train + pairs["adapt_s"].sum() + pairs["eval_s"].sum()
    probe = 1600 * (small + large + seconds(224))  # at each size
    assert facts["total_s"] == pytest.approx(probe + 2 * once)


def test_lists_cost_the_first_seed_the_other_recipes() -> None:
    few: dict[str, Any] = {"epochs": 2, "adapt_epochs": 4, "seeds": [0, 1]}
    lists = {
        "learning_rate": [0.01, 0.1],
        "batch_norm": ["train", "frozen"],
        "adapt_epochs": [1, 4],
    }
    one, several = planned(**few), planned(**few | lists)
    tuning = 3 * 2 * (3 * TRAIN + VAL) * seconds(64)
    assert several["pairs"]["tuning_s"].tolist() == pytest.approx([tuning, tuning])
    assert one["pairs"]["tuning_s"].tolist() == [0, 0]
    others = ["tuning_s", "test_bytes"]  # a larger grid has more tails in memory
    assert several["pairs"].drop(columns=others).equals(one["pairs"].drop(columns=others))
    difference = several["sweep"]["total_s"] - one["sweep"]["total_s"]
    assert difference.item() == pytest.approx(tuning)
    read = {"path": "own.pt", "train_size": 64}
    elsewhere = planned(trained=read, pairs=None, test_sizes=[64], adapt_epochs=4)["pairs"]
    assert elsewhere["train_s"][0] == pytest.approx((4 * TRAIN + VAL) * seconds(64))


def test_full_fine_tuning_and_more_crops_are_counted() -> None:
    plain = planned()["pairs"]
    more = planned(views=["center", "five_crop"], full_pairs=[[64, 96]])["pairs"]
    assert more["eval_s"][1] == pytest.approx(2 * 6 * plain["eval_s"][1])
    assert more["adapt_s"][1] > 3 * plain["adapt_s"][1]
    assert more["adapt_s"][0] == plain["adapt_s"][0]
    needed = memory_plan.training_bytes(TrainSettings(train_size=96, batch_size=8), 96, 10, 1, True)
    card = int((needed - 1) / memory_plan.CARD_SHARE)
    assert planned(card, full_pairs=[[64, 96]])["pairs"]["fits"].tolist() == [True, False]


def test_steps_shrink_with_the_micro_batch_and_with_checkpointing() -> None:
    table = planned(GIB, pairs=[[96, 96]])["steps"]
    assert table["precision"].tolist() == ["fp32", "fp32", "bf16", "bf16"]
    assert table["checkpointing"].tolist() == [False, True, False, True]
    assert list(table)[3:] == [f"micro_{n}_bytes" for n in (8, 4, 2, 1)]
    plain, recomputed, half, _ = table["micro_8_bytes"]
    assert max(recomputed, half) < plain
    assert (table["micro_1_bytes"] < table["micro_8_bytes"]).all()


def test_rate_is_measured_on_the_network_itself_unless_that_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "MEASURED_S", 0)
    rate, source = plan.measured_rate(tiny(batch_size=8))
    assert 1e7 < rate < 1e15
    assert source.startswith("steps of efficientnet_lite0")
    _, source = plan.measured_rate(tiny(batch_size=8, backbone="resnext101_32x48d_wsl"))
    assert source.startswith("steps of timm:resnext50_32x4d")


def test_time_on_a_card_that_is_not_here_is_unknown() -> None:
    tables = plan.plan(tiny(), 16 * GIB)
    assert tables["pairs"][["train_s", "adapt_s", "eval_s"]].isna().all(axis=None)
    assert readable(tables["sweep"])["total min"].item() == "unknown"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the budget is the GPU's")
def test_without_card_and_memory_the_budget_is_this_machines() -> None:
    facts = plan.plan(tiny(pairs=[[64, 64]]), tflops=1)["sweep"]
    assert facts["budget_bytes"].item() == memory_plan.budget_bytes()


def test_command_prints_tables_or_json(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("dataset: synthetic\npairs: [[64, 96]]\nbatch_size: 4\n")
    command = ["plan", str(file), "--memory", "16GiB", "--tflops", "1"]
    text = CliRunner().invoke(app, command).stdout
    assert "train GiB" in text
    assert "parameters" in text
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert set(found) == {"sweep", "steps", "pairs"}
    assert found["pairs"][0]["fits"] is True
    assert found["sweep"][0]["budget_bytes"] == int(16 * GIB * 0.9)


def test_framings_are_counted_for_probes_tails_and_controls() -> None:
    given: dict[str, Any] = {"pairs": [[64, 64], [64, 96]], "adapt_epochs": 1}
    plain, tried = planned(**given), planned(**given, crop_pct=[0.875, 0.71, 1.0])
    small, large = seconds(64), seconds(96)
    assert tried["pairs"]["adapt_s"][1] == pytest.approx((TRAIN + VAL) * (3 * large + 2 * small))
    assert tried["pairs"]["eval_s"][1] == pytest.approx(3 * plain["pairs"]["eval_s"][1])
    assert (
        tried["pairs"][["adapt_s", "eval_s"]]
        .iloc[0]
        .equals(plain["pairs"][["adapt_s", "eval_s"]].iloc[0])
    )
    rise = tried["sweep"]["total_s"].item() - plain["sweep"]["total_s"].item()
    rows = [each["pairs"][["adapt_s", "eval_s"]].to_numpy().sum() for each in (tried, plain)]
    assert rise == pytest.approx(2 * 1600 * large + rows[0] - rows[1])

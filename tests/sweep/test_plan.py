"""What a sweep is said to need."""

import itertools
import json
import sys
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
from fixres_poc.sweep import execution, plan
from fixres_poc.sweep.snakemake import Shares

GIB = 2**30
TRAIN, VAL, TEST = 801, 191, 608  # synthetic images


def planned(memory: int = 16 * GIB, **values: object) -> dict[str, pd.DataFrame]:
    """The plan for a card of 0.1 TFLOP/s."""
    return plan.plan(tiny(batch_size=8, **values), memory, tflops=0.1)


def seconds(size: int) -> float:
    """Of one image's forward pass at that rate."""
    return memory_plan.parameters_and_flops("efficientnet_lite0", 10, size)[1] / 1e11


def test_images_are_counted_without_drawing_or_downloading(colour_folder: Path) -> None:
    assert plan.expected_images(tiny()) == (TRAIN, VAL, TEST, 10)
    limited = plan.expected_images(tiny(dataset="stanford_dogs", image_limit=2058))
    assert limited == (1020, 180, 858, 120)
    *parts, classes = plan.expected_images(tiny(dataset=str(colour_folder)))
    assert (sum(parts), classes) == (36, 3)
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
    runs = dict(zip(*(tables["runs"][name] for name in ("run", "seconds")), strict=True))
    kernel, notebook = plan.START_S, plan.NOTEBOOK_S
    assert runs["baseline"] == pytest.approx(notebook + 1600 * (small + large + seconds(224)))
    assert runs["train64_seed1"] == pytest.approx(kernel + notebook + train)
    last = adapt[1] + (VAL + TEST) * large
    assert runs["train64_test96_seed1"] == pytest.approx(notebook + last)
    assert facts["total_s"] == pytest.approx(sum(runs.values())), "one card, one job at a time"


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
    longer = several["runs"]["seconds"] - one["runs"]["seconds"]
    of_first_seed = several["runs"]["run"] == "train64_seed0"
    assert longer.tolist() == pytest.approx([tuning * first for first in of_first_seed])
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
    speed, source = plan.measured_speed(tiny(batch_size=8), 1)
    assert 1e7 < speed.slow <= speed.median <= speed.fast < 1e15
    assert source.startswith("median of 5 steps of efficientnet_lite0")
    large = tiny(batch_size=8, backbone="resnext101_32x48d_wsl")
    assert "steps of timm:resnext50_32x4d" in plan.measured_speed(large, 1)[1]


def test_a_gpu_is_measured_by_a_process_that_ends(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tiny(dataset=str(colour_folder), batch_size=4)
    execution.lay_out(sweep, execution.prepare_data(sweep))
    monkeypatch.setattr(plan, "measured_speed", None)  # not in this one
    one_card = Shares(cores=2, cards=1, jobs=1, threads=2)
    following = plan.forecast(sweep, one_card)
    assert following.measured
    assert following.left_s() == pytest.approx(sum(following.seconds.values()))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert not plan.forecast(sweep, one_card).measured
    assert not plan.forecast(sweep, Shares(cores=None, cards=0, jobs=1, threads=1)).measured


def test_one_slow_step_in_ten_changes_the_range_and_not_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside other work single steps take many times as long."""
    steps_s = [9.0, *[1.0] * 8, 20.0, 20.0]  # the first one warms up
    clock = iter(itertools.accumulate([0.0, *steps_s]))
    monkeypatch.setattr(plan, "now", lambda _: next(clock))
    monkeypatch.setattr(plan, "MEASURED_S", sum(steps_s))
    speed, _ = plan.measured_speed(tiny(batch_size=8), 1)
    flops = 3 * 8 * memory_plan.parameters_and_flops("efficientnet_lite0", 10, 64)[1]
    assert speed == pytest.approx((flops, flops / 20, flops))


def test_time_on_a_card_that_is_not_here_is_unknown() -> None:
    tables = plan.plan(tiny(), 16 * GIB)
    assert tables["pairs"][["train_s", "adapt_s", "eval_s"]].isna().all(axis=None)
    assert readable(tables["sweep"])["total min"].item() == "unknown"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the budget is the GPU's")
def test_without_card_and_memory_the_budget_is_this_machines() -> None:
    facts = plan.plan(tiny(pairs=[[64, 64]]), tflops=1)["sweep"]
    assert facts["budget_bytes"].item() == memory_plan.budget_bytes()


def test_command_prints_three_lines_and_on_request_tables_or_json(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("dataset: synthetic\npairs: [[64, 96]]\nbatch_size: 4\n")
    command = ["plan", str(file), "--memory", "16GiB", "--tflops", "1"]
    short = CliRunner().invoke(app, command).stdout.splitlines()
    assert [line.partition(":")[0] for line in short] == ["time", "memory", "fits"]
    assert "1 training, 1 pair; 1e+03 GFLOP/s, --tflops" in short[0]
    text = CliRunner().invoke(app, [*command, "--details"]).stdout
    assert text.splitlines()[:3] == short
    assert "train GiB" in text
    assert "parameters" in text
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert set(found) == {"sweep", "steps", "pairs", "runs"}
    assert found["pairs"][0]["fits"] is True
    assert found["sweep"][0]["budget_bytes"] == int(16 * GIB * 0.9)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.0, "fits: yes"),
        (0.9, "fits: yes, with activations recomputed at 96 px: a third more work"),
        (0.4, "fits: yes, with 2 of 8 images at once, which changes batch norm; a smaller"),
        (0.1, "fits: no; set a smaller batch_size or test resolution, or precision: bf16"),
    ],
)
def test_what_does_not_fit_says_what_to_change(share: float, words: str) -> None:
    sweep = tiny(batch_size=8, pairs=[[96, 64]], batch_norm="train")
    whole = memory_plan.training_bytes(TrainSettings(train_size=96, batch_size=8), 96, 10, 8, False)
    card = int(whole * share / memory_plan.CARD_SHARE) + 1
    tables = plan.plan(sweep, card, 0.1, details=False)
    *_, last = plan.text(sweep, tables)
    assert last.startswith(words), tables["pairs"].T


def test_the_images_of_a_sweep_are_counted_once_they_are_prepared(colour_folder: Path) -> None:
    sweep = tiny(dataset=str(colour_folder))
    execution.prepare_data(sweep)
    (colour_folder / "red/00.png").unlink()
    *parts, classes = plan.prepared_images(sweep)
    assert (sum(parts), classes) == (36, 3)


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
    longer = tried["runs"]["seconds"] - plain["runs"]["seconds"]
    by_run = dict(zip(tried["runs"]["run"], longer, strict=True))
    assert by_run["baseline"] == pytest.approx(2 * 1600 * large)

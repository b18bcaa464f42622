"""What a sweep is said to need."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
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
from fixres_poc.sweep import execution, plan
from fixres_poc.sweep.snakemake import Shares

GIB, RATE = 2**30, 1e11
TRAIN, VAL, TEST = 801, 191, 608  # synthetic images
ALL = TRAIN + VAL + TEST
TIMES = ["tuning_s", "train_s", "adapt_s", "eval_s"]


def seconds(size: int) -> float:
    """Of one image's forward pass on a card of 0.1 TFLOP/s."""
    return memory_plan.parameters_and_flops("efficientnet_lite0", 10, size)[1] / RATE


SMALL, LARGE = seconds(64), seconds(96)


def pairs(memory: int = 16 * GIB, **values: object) -> pd.DataFrame:
    """The pairs 64/64 and 64/96 on that card."""
    return plan.plan(tiny(batch_size=8, **values), memory, tflops=0.1)["pairs"]


def runs(**values: object) -> dict[str, float]:
    sweep = tiny(batch_size=8, **values)
    return plan.run_seconds(sweep, plan.expected_images(sweep), RATE)


def test_images_are_counted_without_drawing_or_downloading(colour_folder: Path) -> None:
    assert plan.expected_images(tiny()) == (TRAIN, VAL, TEST, 10)
    limited = plan.expected_images(tiny(dataset="stanford_dogs", image_limit=2058))
    assert limited == (1020, 180, 858, 120)
    *parts, classes = plan.expected_images(tiny(dataset=str(colour_folder)))
    assert (sum(parts), classes) == (36, 3)
    assert not home().exists()


def test_a_size_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"vit_tiny_patch16_224.* 64, 96 px"):
        pairs(backbone="timm:vit_tiny_patch16_224", adaptations=["none", "head"])


def test_seconds_are_flops_over_the_rate() -> None:
    few: dict[str, Any] = {"epochs": 2, "adapt_epochs": 1, "seeds": [0, 1]}
    # the probe's features, two epochs with validation after each, the controls
    train = (TRAIN + VAL + 3 * 2 * TRAIN + 2 * VAL + TRAIN + VAL) * SMALL
    stages = ((TRAIN + VAL) * np.array([SMALL, LARGE]), (VAL + TEST) * np.array([SMALL, LARGE]))
    expected = np.column_stack([[0, 0], [train, train], *stages])
    assert pairs(**few)[TIMES].to_numpy() == pytest.approx(expected)
    took, kernel, notebook = runs(**few), plan.START_S, plan.NOTEBOOK_S
    names = ("baseline", "train64_seed1", "train64_test96_seed1")
    assert [took[name] - notebook for name in names] == pytest.approx(
        [ALL * (SMALL + LARGE + seconds(224)), kernel + train, expected[1, 2:].sum()]
    )
    (facts,) = plan.plan(tiny(batch_size=8, **few), GIB, 0.1)["sweep"].to_dict("records")
    assert facts["total_s"] == pytest.approx(sum(took.values())), "one card, one job at a time"
    assert facts["budget_bytes"] == int(GIB * 0.9)


def test_lists_cost_the_first_seed_the_other_recipes() -> None:
    few: dict[str, Any] = {"epochs": 2, "adapt_epochs": 4, "seeds": [0, 1]}
    lists = {"learning_rate": [0.01, 0.1], "batch_norm": ["train", "frozen"]}
    tuning = 3 * 2 * (3 * TRAIN + VAL) * SMALL
    one, several = pairs(**few), pairs(**few | lists | {"adapt_epochs": [1, 4]})
    pd.testing.assert_frame_equal(several[TIMES], one[TIMES].assign(tuning_s=tuning))
    plain, longer = runs(**few), runs(**few | lists)
    assert longer == pytest.approx(plain | {"train64_seed0": plain["train64_seed0"] + tuning})


def test_full_fine_tuning_and_more_crops_are_counted() -> None:
    plain, more = pairs(), pairs(views=["center", "five_crop"], full_pairs=[[64, 96]])
    assert more["eval_s"][1] == pytest.approx(2 * 6 * plain["eval_s"][1])
    assert more["adapt_s"][1] > 3 * plain["adapt_s"][1]
    assert more["adapt_s"][0] == plain["adapt_s"][0]
    needed = memory_plan.training_bytes(TrainSettings(train_size=96, batch_size=8), 96, 10, 1, True)
    card = int((needed - 1) / memory_plan.CARD_SHARE)
    assert pairs(card, full_pairs=[[64, 96]])["fits"].tolist() == [True, False]


def test_framings_are_counted_for_probes_tails_and_controls() -> None:
    lists: dict[str, Any] = {"crop_pct": [0.875, 0.71, 1.0], "adapt_epochs": 1}
    plain, tried = pairs(adapt_epochs=1), pairs(**lists)
    assert tried["adapt_s"][1] == pytest.approx((TRAIN + VAL) * (3 * LARGE + 2 * SMALL))
    assert tried["eval_s"][1] == pytest.approx(3 * plain["eval_s"][1])
    assert tried.loc[[0], TIMES].equals(plain.loc[[0], TIMES])
    longer = runs(**lists)["baseline"] - runs(adapt_epochs=1)["baseline"]
    assert longer == pytest.approx(2 * ALL * LARGE)


def test_rate_is_measured_on_the_network_itself_unless_that_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "MEASURED_S", 0)
    (median, slow, fast), source = plan.measured_speed(tiny(batch_size=8), 1)
    assert 1e7 < slow <= median <= fast < 1e15
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="the budget is the GPU's")
def test_without_a_rate_time_is_unknown_and_without_memory_the_budget_is_this_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = plan.plan(tiny(), 16 * GIB)
    assert tables["pairs"][TIMES].isna().all(axis=None)
    assert plan.text(tiny(), tables, False)[0].startswith("time: unknown without --tflops; 1 tr")
    monkeypatch.setattr(plan, "measured_speed", lambda *_: (np.array([2.0, 1.0, 4.0]), "here"))
    (facts,) = plan.plan(tiny(pairs=[[64, 64]]))["sweep"].to_dict("records")
    assert facts["budget_bytes"] == memory_plan.budget_bytes()
    assert (facts["slow_s"], facts["fast_s"]) == (2 * facts["total_s"], facts["total_s"] / 2)


def test_command_prints_three_lines_and_on_request_pairs_or_json(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("dataset: synthetic\npairs: [[64, 96]]\nbatch_size: 4\n")

    def said(*options: str) -> str:
        command = ["plan", str(file), "--memory", "16GiB", "--tflops", "1", *options]
        return CliRunner().invoke(app, command).stdout

    short = said().splitlines()
    assert [line.partition(":")[0] for line in short] == ["time", "memory", "fits", "validation"]
    assert "191 images; below 200" in short[3]
    tables = plan.plan(tiny(), tflops=1.0)
    tables["sweep"]["val"] = 200
    assert len(plan.text(tiny(), tables, False)) == 3
    assert "1 training, 1 pair; 1e+03 GFLOP/s, --tflops" in short[0]
    assert said("--details").splitlines()[:4] == short
    assert "train GiB" in said("--details")
    tables = json.loads(said("--json"))
    assert (set(tables), tables["pairs"][0]["fits"]) == ({"sweep", "pairs"}, True)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.0, "fits: yes"),
        (0.9, "fits: yes, with activations recomputed: a third more work"),
        (0.4, "fits: yes, with 2 of 8 images at once, which changes batch norm; a smaller"),
        (0.1, "fits: no; set a smaller batch_size or test resolution, or precision: bf16"),
    ],
)
def test_what_does_not_fit_says_what_to_change(share: float, words: str) -> None:
    sweep = tiny(batch_size=8, pairs=[[96, 64]], batch_norm="train")
    whole = memory_plan.training_bytes(TrainSettings(train_size=96, batch_size=8), 96, 10, 8, False)
    card = int(whole * share / memory_plan.CARD_SHARE) + 1
    fits = plan.text(sweep, plan.plan(sweep, card, 0.1), False)[2]
    assert fits.startswith(words)

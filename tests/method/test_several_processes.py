"""Two processes (gloo, on the CPU) and one of the same batch agree."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import several
import torch
from conftest import save_colours

from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.settings import TrainSettings
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import stage1
from fixres_poc.model import checkpoint, device

# `accelerate launch` starts several processes without a GPU through MPI only; for GPUs it calls
# this same launcher.
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
Result = dict[str, Any]


def launch(*command: str, **environment: str) -> str:
    own = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    own |= {"FIXRES_PROGRESS": "/dev/null", "ACCELERATE_USE_CPU": "true"}
    env = os.environ | own | environment
    done = subprocess.run(
        [*LAUNCH, *command], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def both(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    out = tmp_path_factory.mktemp("out")
    launch(several.__file__, str(folder), str(out), FIXRES_HOME=str(out))
    return [torch.load(out / f"{rank}_of_2.pt", weights_only=True) for rank in range(2)]


@pytest.fixture
def alone(folder: Path) -> Result:
    return several.work(device.accelerator_for("fp32"), folder)


def close(first: Result, second: Result, tolerance: float) -> bool:
    return all(
        torch.allclose(first[key].float(), second[key].float(), atol=tolerance) for key in first
    )


def test_two_processes_agree_with_one(both: list[Result], alone: Result) -> None:
    first, second = both
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert max(float(value.abs().max()) for value in alone["moved"].values()) > 1e-3
    assert close(first["moved"], alone["moved"], 1e-5)  # gradients of equal parts
    assert close(first["moved"], second["moved"], 0)
    assert close(first["buffers"], second["buffers"], 0)
    assert first["val_top1"] == second["val_top1"]
    assert max(first["val_top1"]) >= 0.6
    assert max(alone["val_top1"]) >= 0.6  # 6 images; chance is 0.33


def test_an_adapted_head_is_the_same_but_for_rounding(both: list[Result], alone: Result) -> None:
    for each in both:
        assert close(each["head"], alone["head"], 1e-5)
        assert each["top1"] == alone["top1"]
        assert each["probability"] == pytest.approx(alone["probability"], abs=1e-4)
    assert all(close(both[0][name], both[1][name], 0) for name in ("head_bn", "bn_stats"))


def test_a_launched_training_is_read_by_a_sweep(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "colours.yml"
    lists = "learning_rate: [0.01, 0.03]\nadapt_learning_rate: [0.01, 0.1]\n"
    file.write_text(
        f"dataset: {folder}\npairs: [[48, 64]]\nbatch_size: 6\nepochs: 1\nadapt_epochs: 1\n{lists}"
    )
    out = launch("-m", "fixres_poc", "train", str(file), FIXRES_HOME=str(tmp_path))
    assert out.count("train48_seed0: ") == 1
    run = tmp_path / "runs" / "colours" / "train48_seed0"
    stored = checkpoint.load(run / "checkpoint.safetensors", {})[1]
    assert stored["memory"]["processes"] == 2
    assert stored["memory"]["note"] == "batch norm saw 3 images at a time"
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path))
    monkeypatch.setattr(stage1, "train", lambda *_: pytest.fail("trained again"))
    parameters = json.loads((run / "settings.json").read_text())["parameters"]
    settings = validate(TrainSettings, parameters, "settings.json")
    assert len(stage1.train_or_load(settings, load_dataset(settings)).history) == 1

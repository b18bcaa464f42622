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

from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.settings import TrainSettings
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import stage1
from fixres_poc.model import checkpoint

# `accelerate launch` starts several processes without a GPU through MPI only; for GPUs it calls
# this same launcher.
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SWEEP = """
dataset: {}
pairs: [[48, 64]]
batch_size: 6
epochs: 1
adapt_epochs: 1
learning_rate: [0.01, 0.03]
batch_norm: train
adapt_learning_rate: [0.01, 0.1]
"""
Result = dict[str, Any]


def launch(*command: str, home: Path) -> str:
    own = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    own |= {"FIXRES_PROGRESS": "/dev/null", "ACCELERATE_USE_CPU": "true", "FIXRES_HOME": str(home)}
    done = subprocess.run(
        [*LAUNCH, *command], env=os.environ | own, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def both(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    out = tmp_path_factory.mktemp("out")
    launch(several.__file__, str(colours), str(out), home=out)
    return [torch.load(out / f"{rank}_of_2.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(colours: Path) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXRES_PROGRESS", "/dev/null")
        return several.work(colours)


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
    assert close(first["head"], alone["head"], 1e-5)
    assert first["top1"] == alone["top1"]
    assert first["probability"] == pytest.approx(alone["probability"], abs=1e-4)
    assert all(close(first[name], second[name], 0) for name in ("head", "head_bn", "bn_stats"))


def test_a_launched_training_is_read_by_a_sweep(
    colours: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own_home / "colours.yml"
    own_home.mkdir()
    file.write_text(SWEEP.format(colours))
    out = launch("-m", "fixres_poc", "train", str(file), home=own_home)
    assert out.count("train48_seed0: ") == 1
    run = own_home / "runs" / "colours" / "train48_seed0"
    stored = checkpoint.load(run / "checkpoint.safetensors", {})[1]
    assert stored["memory"]["processes"] == 2
    assert stored["memory"]["note"] == "batch norm saw 3 images at a time"
    monkeypatch.setattr(stage1, "train", lambda *_: pytest.fail("trained again"))
    parameters = json.loads((run / "settings.json").read_text())["parameters"]
    settings = validate(TrainSettings, parameters, "settings.json")
    assert len(stage1.train_or_load(settings, load_dataset(settings)).history) == 1

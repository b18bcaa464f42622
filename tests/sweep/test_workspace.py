"""What a change of anything makes outdated, and what is left of runs that did not end."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import throwaway

from fixres_poc.config import run_state
from fixres_poc.config.errors import InputError
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.run_state import state
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.sweep import execution

EVERY = set(throwaway.RUNS)
TRAINED = {"train64_seed0", "train64_test64_seed0", "train64_test96_seed0"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    throwaway.use(monkeypatch, tmp_path)
    (tmp_path / "weights.pth").write_text("a")
    return tmp_path


def laid_out(home: Path, fingerprint: str = "a", **settings: object) -> SweepSettings:
    sweep = throwaway.tiny(weights=str(home / "weights.pth"), **settings)
    execution.lay_out(sweep, fingerprint)
    return sweep


def lay_out(
    home: Path, fingerprint: str = "a", values: dict[str, Any] | None = None, **settings: object
) -> set[str]:
    """Lay a sweep out, then do what its runs would; returns the names of those that had to be done.

    Args:
        values: for metrics.json, beside what was used.
    """
    sweep = laid_out(home, fingerprint, **settings)
    lacking = [run for run in sweep.runs() if state(run) != "done"]
    for run in lacking:
        folder = home / "runs/tiny" / run.name
        used = {"used": json.loads((folder / "settings.json").read_text())["wanted"]}
        used["used"]["checkpoint"] = hashlib.sha256(b"").hexdigest()
        metrics = {"settings": json.loads(json.dumps(run.parameters))} | used | (values or {})
        for file in NOTEBOOKS[run.notebook].outputs:
            (folder / file).write_text(json.dumps(metrics))
        if run.notebook == "03_train":
            (folder / "checkpoint.safetensors").touch()
    for job in sweep.jobs():
        (home / "runs/tiny" / job / "job.done").touch()
    return {run.name for run in lacking}


def test_a_change_makes_outdated_what_used_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lay_out(home) == EVERY
    notebook = home / "notebooks/03_train.ipynb"
    notebook.write_text(notebook.read_text().replace("slow", "quick"))
    assert lay_out(home) == TRAINED  # with its pairs, which used what it had left
    reason = "1 finished runs are done again: made with other code of 03_train"
    assert reason in capsys.readouterr().err
    (home / "weights.pth").write_text("b")
    assert lay_out(home) == EVERY - {"state_of_the_art", "dataset"}
    monkeypatch.setattr(execution, "library_hash", lambda: "0" * 16)
    assert lay_out(home) == EVERY
    assert lay_out(home, "b") == EVERY
    assert lay_out(home, "b", adapt_epochs=3) == TRAINED
    settings = home / "runs/tiny/baseline/settings.json"
    written = settings.stat().st_mtime_ns
    assert lay_out(home, "b", adapt_epochs=3) == set()
    assert settings.stat().st_mtime_ns == written


def test_half_done_and_damaged_runs_go_with_what_killed_writers_left(home: Path) -> None:
    lay_out(home, values={"predictions_sha256": hashlib.sha256(b"whole").hexdigest()})
    folder = home / "runs/tiny/baseline"
    (folder / "predictions.parquet").write_bytes(b"whole")
    assert "baseline" not in lay_out(home)
    (folder / "predictions.parquet").write_bytes(b"whold")
    (folder / ".checkpoint.safetensors.x").touch()
    (home / "runs/tiny/dataset/metrics.json").write_text('{"half": ')
    laid_out(home)
    for name in ("baseline", "dataset"):
        assert [file.name for file in (home / "runs/tiny" / name).iterdir()] == ["settings.json"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("damaged")])
def test_a_training_without_its_checkpoint_is_done_again_if_a_pair_is_to_be_done(
    home: Path, damage: Callable[[Path], object]
) -> None:
    lay_out(home)
    more = [[64, 64], [64, 96], [64, 128]]
    assert lay_out(home, pairs=more) == {"train64_test128_seed0", "baseline"}
    damage(home / "runs/tiny/train64_seed0/checkpoint.safetensors")
    assert lay_out(home) == {"baseline"}
    (home / "runs/tiny/train64_test96_seed0/metrics.json").unlink()
    assert lay_out(home) == TRAINED


def test_the_training_whose_choices_a_later_seed_takes_over_is_done_again_without_its_checkpoint(
    home: Path,
) -> None:
    rates: Any = {"learning_rate": [0.01, 0.1]}
    lay_out(home, **rates)
    (home / "runs/tiny/train64_seed0/checkpoint.safetensors").unlink()
    later = {name.replace("seed0", "seed1") for name in TRAINED}
    assert lay_out(home, seeds=[0, 1], **rates) == TRAINED | later


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"batch_size": 8}, r"4 finished runs .* baseline \(batch_size\); .* say --replace"),
        # a folder or a weights file of the same name, too
        ({"dataset": "/your/birds"}, r"5 finished runs .* dataset \(dataset\)"),
    ],
)
def test_finished_runs_of_other_settings_are_not_lost_unasked(
    home: Path, other: dict[str, object], named: str
) -> None:
    lay_out(home)
    sweep = throwaway.tiny(weights=str(home / "weights.pth"))
    execution.refuse_loss(sweep)
    with pytest.raises(InputError, match=f"runs/tiny: {named}"):
        execution.refuse_loss(sweep.model_copy(update=other))


def test_another_test_resolution_of_the_probe_is_no_loss(home: Path) -> None:
    lay_out(home)
    metrics = home / "runs/tiny/baseline/metrics.json"
    metrics.write_text(json.dumps({"settings": {"test_sizes": [64], "crop_pct_sizes": [64]}}))
    changed = "made with other settings: test_sizes, crop_pct_sizes"
    assert run_state.outcomes(throwaway.tiny())[2].error == changed
    with pytest.raises(InputError, match="finished runs") as refused:
        execution.refuse_loss(throwaway.tiny(batch_size=8))
    assert "baseline" not in str(refused.value)

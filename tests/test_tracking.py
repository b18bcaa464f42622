from pathlib import Path

import pandas as pd
import pytest

from fixres_poc import tracking
from fixres_poc.config import InputError, TrainSettings

HISTORY = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.5], "val_top1": [0.25, 0.5], "seconds": [3.0, 3.0]})
SETTINGS = TrainSettings(train_size=64)


def test_off_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIXRES_TRACKER", raising=False)
    tracking.log_history(HISTORY, SETTINGS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_tensorboard_reads_the_epochs_of_the_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("FIXRES_TRACKER", "tensorboard")
    for _ in range(2):
        tracking.log_history(HISTORY, SETTINGS, tmp_path)
    (file,) = (tmp_path / "tracking").glob("events*")
    events = accumulator.EventAccumulator(str(file)).Reload()
    assert [(each.step, each.value) for each in events.Scalars("val_top1")] == [(1, 0.25), (2, 0.5)]
    assert [each.value for each in events.Scalars("loss")] == [2.0, 1.5]


def test_unknown_tracker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIXRES_TRACKER", "wandb")
    with pytest.raises(InputError, match="FIXRES_TRACKER = 'wandb': allowed is tensorboard"):
        tracking.log_history(HISTORY, SETTINGS, tmp_path)

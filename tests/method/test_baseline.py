"""The linear baseline on frozen features."""

from pathlib import Path

import pytest

from fixres_poc.config.settings import BaselineSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import baseline


def test_the_linear_baseline_learns_colours(colour_folder: Path) -> None:
    settings = BaselineSettings(dataset=str(colour_folder), batch_size=16)
    table = baseline.train_baseline(settings, load_dataset(settings)).predictions
    test = table[table["split"] == "test"]
    assert (test["top1"] == test["target"]).mean() > 0.9


def test_a_penalty_at_the_edge_is_told(colour_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = BaselineSettings(dataset=str(colour_folder), batch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baseline, "PENALTIES", (0.1, 1.0))
        baseline.train_baseline(settings, load_dataset(settings))
    assert "at an edge of those tried" in caplog.text

import json
from pathlib import Path

import pandas as pd
import pytest
from made_up import predictions

from fixres_poc.analysis.record import Metrics, write_run
from fixres_poc.config.settings import PairSettings

SETTINGS = PairSettings(train_size=96, test_size=96)
TABLE = predictions("none", right=(12, 40), images=(20, 60))


def test_metrics_hold_settings_environment_and_accuracies(tmp_path: Path) -> None:
    write_run(tmp_path, SETTINGS, Metrics(seconds={"adapt": {"head": 4}}, peak_memory_bytes=5), TABLE)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    keys = ["settings", "versions", "hardware", "predictions_sha256", "accuracies", "seconds", "peak_memory_bytes"]
    assert list(metrics) == keys
    assert metrics["settings"]["test_size"] == 96
    assert metrics["versions"]["pandas"] == pd.__version__
    assert metrics["accuracies"][0]["top1"] == pytest.approx(40 / 60)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.json", "predictions.parquet"]


def test_a_misspelt_metric_is_refused_by_python_itself() -> None:
    with pytest.raises(TypeError, match="peak_memory_byte"):
        Metrics(peak_memory_byte=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Metrics(["a", "b"])  # type: ignore[call-arg]


def test_predictions_are_checked(tmp_path: Path) -> None:
    for table, named in ((TABLE.drop(columns="top5"), "top5"), (TABLE.replace("val", "train"), "train")):
        with pytest.raises(ValueError, match=named):
            write_run(tmp_path, SETTINGS, Metrics(), table)
    assert not list(tmp_path.iterdir())

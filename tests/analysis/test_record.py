import json
import time
from pathlib import Path

import pandas as pd
import pytest
from made_up import predictions

from fixres_poc.analysis.record import TYPES, Metrics, record_run, write_run
from fixres_poc.config.files import file_digest, run_folder
from fixres_poc.config.provenance import LIBRARY
from fixres_poc.config.settings import DatasetSettings, PairSettings
from fixres_poc.data.dataset import load_dataset

SETTINGS = PairSettings(train_size=96, test_size=96)
TABLE = predictions("none", right=(12, 40), images=(20, 60))


def test_metrics_hold_settings_environment_and_accuracies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIXRES_BEGUN", str(time.time() - 1000))
    write_run(
        tmp_path, SETTINGS, Metrics(seconds={"adapt": {"head": 4}}, peak_memory_bytes=5), TABLE
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    stored = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(stored) == list(TYPES)
    assert (set(stored["train_size"]), set(stored["seed"])) == ({96}, {0})
    keys = "settings versions hardware wall_seconds predictions_sha256 accuracies used seconds"
    assert list(metrics) == [*keys.split(), "peak_memory_bytes"]
    assert metrics["wall_seconds"] == pytest.approx(1000, abs=60)
    assert metrics["accuracies"][0]["top1"] == pytest.approx(40 / 60)
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.json", "predictions.parquet"}


def test_a_notebook_leaves_its_numbers_with_data_and_tables_by_column(colours: Path) -> None:
    (listed := colours.parent / "listed.txt").write_text("n02088364_1\n", encoding="utf-8")
    settings = DatasetSettings(dataset=str(colours), imagenet_list=str(listed))
    data = load_dataset(settings)
    record_run(settings, data, history=pd.DataFrame({"epoch": [1, 2]}), steps=2)
    metrics = json.loads((run_folder("notebooks", "dataset") / "metrics.json").read_text())
    expected = {"history": {"epoch": [1, 2]}, "steps": 2, "images": data.counts()}
    used = {"library": LIBRARY, "imagenet_list": file_digest(listed), "data": data.fingerprint()}
    expected |= {"used": used}
    assert metrics | expected | {"classes": ["blue", "green", "red"]} == metrics
    assert metrics["peak_memory_bytes"] > 0


def test_predictions_are_checked(tmp_path: Path) -> None:
    for table, named in (
        (TABLE.drop(columns="top5"), "top5"),
        (TABLE.replace("val", "train"), "train"),
    ):
        with pytest.raises((KeyError, ValueError), match=named):
            write_run(tmp_path, SETTINGS, Metrics(), table)
    assert not list(tmp_path.iterdir())

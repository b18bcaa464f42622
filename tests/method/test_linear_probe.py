"""The linear probe on frozen features."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fixres_poc.config.settings import BaselineSettings, ExtraTest
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import linear_probe


def test_the_linear_baseline_learns_colours_at_every_size_and_is_tested_on_every_part(
    colour_folder: Path,
) -> None:
    again = ExtraTest(name="again", folder=str(colour_folder))
    settings = BaselineSettings(
        dataset=str(colour_folder), batch_size=16, test_sizes=(96, 224), extra_test=again
    )
    done = linear_probe.train_probes(settings, load_dataset(settings))
    right = done.predictions.assign(right=done.predictions["top1"] == done.predictions["target"])
    cells = right.groupby(["test_size", "split"], observed=True)["right"].agg(["size", "mean"])
    assert cells["size"].unstack().to_dict("records") == [{"again": 36, "test": 9, "val": 9}] * 2
    assert cells["mean"].min() > 0.9
    best = done.choices[done.choices["chosen"]].set_index("test_size")["val_top1"]
    assert best.to_dict() == {size: cells["mean"][size, "val"] for size in (96, 224)}


def test_one_more_size_leaves_the_others_as_they_are(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_probe, "features", features := Mock(wraps=linear_probe.features))
    settings = BaselineSettings(dataset=str(colour_folder), batch_size=16, test_sizes=(64,))
    data = load_dataset(settings)
    alone = linear_probe.train_probes(settings, data)
    both = linear_probe.train_probes(settings.model_copy(update={"test_sizes": (64, 96)}), data)
    assert [call.args[4] for call in features.call_args_list] == [64] * 3 + [96] * 3
    pd.testing.assert_frame_equal(
        both.predictions[both.predictions["test_size"] == 64], alone.predictions
    )
    assert both.images_per_second["64"] == alone.images_per_second["64"]
    fewer = data.without([data.split("test")["image"].iloc[0]])
    linear_probe.train_probes(settings, fewer)
    assert features.call_count == 9


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_layer_takes_over_the_probes_answers(classes: int) -> None:
    labels, generator = np.resize(range(classes), 60), np.random.default_rng(0)
    x = generator.normal(5, 3, (60, 8)) + labels[:, None]
    data: Any = SimpleNamespace(split=lambda _: pd.DataFrame({"label": labels}))
    probe, tried = linear_probe.fit_probe({"train": x, "val": x}, data)
    assert [row["C"] for row in tried] == list(linear_probe.PENALTIES)
    head = nn.Linear(8, classes)
    linear_probe.put_into(head, probe)
    found = head(torch.as_tensor(x, dtype=torch.float32)).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(found, probe.predict_proba(x), atol=1e-4)
    assert found.max(axis=1).min() < 0.9


def test_a_probe_is_fitted_in_each_framing_that_it_is_tested_in(colour_folder: Path) -> None:
    settings = BaselineSettings(
        dataset=str(colour_folder), batch_size=16, test_sizes=(32, 40), crop_pct=(1.0, 0.875)
    )
    some = settings.model_copy(update={"crop_pct_sizes": (40,)})
    data = load_dataset(settings)
    done = linear_probe.train_probes(some, data)
    cells = done.predictions.groupby(["test_size", "crop_pct"])["image"].nunique()
    assert cells.to_dict() == {(32, 0.875): 18, (40, 0.875): 18, (40, 1.0): 18}
    alone = linear_probe.train_probes(
        settings.model_copy(update={"test_sizes": (40,), "crop_pct": 1.0, "sweep": "other"}), data
    )
    rows = done.predictions.query("test_size == 40 and crop_pct == 1.0")
    pd.testing.assert_frame_equal(rows.reset_index(drop=True), alone.predictions)

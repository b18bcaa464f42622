"""Predictions of a network and its tails are those of the plain network, on photographs as well."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import usual
from fixres_poc.config.files import resolve
from fixres_poc.config.settings import BASELINE_SIZE, BaselineSettings, View
from fixres_poc.data.dataset import load_dataset
from fixres_poc.data.loading import SplitImages
from fixres_poc.method.evaluation import framings, predict, transforms_for
from fixres_poc.method.zero_shot import Restricted, mapping
from fixres_poc.model.backbones import create
from fixres_poc.model.device import accelerator_for, place
from fixres_poc.model.trunk import Tail, classifier

PHOTOGRAPHS = Path(os.environ.get("FIXRES_PHOTOGRAPHS") or resolve("data/stanford-dogs-10"))


@pytest.mark.parametrize("view", ["center", "ten_crop"])
def test_predictions_equal_those_of_the_plain_network(colour_folder: Path, view: View) -> None:
    settings = BaselineSettings(dataset=str(colour_folder), batch_size=5)
    data, model = load_dataset(settings), create("efficientnet_lite0", 3).eval()
    tails, accelerator = {"none": Tail(model)}, accelerator_for("fp32")
    table = predict(model, tails, data, "test", settings, 64, accelerator, view).table
    samples = SplitImages(data, "test", transforms_for(settings, 64, 64, view)["val_test"])
    with torch.no_grad():  # of several crops the probabilities are averaged
        rows = [
            model(samples[index][0].reshape(-1, 3, 64, 64)).softmax(1).mean(0)
            for index in range(len(samples))
        ]
    order = torch.stack(rows).sort(dim=1, descending=True)
    assert table[["top1", "top2", "top3"]].to_numpy().tolist() == order.indices.tolist()
    assert np.allclose(table["probability"], order.values[:, 0], atol=1e-5)
    assert table["image"].tolist() == samples.names
    assert table["target"].tolist() == samples.table["label"].tolist()
    assert (table[["top4", "top5"]] == -1).all(axis=None)
    assert (table["view"] == view).all()
    assert (table["test_size"] == 64).all()


@pytest.mark.skipif(
    not PHOTOGRAPHS.is_dir(), reason="needs ten breeds of Stanford Dogs in $FIXRES_PHOTOGRAPHS"
)
def test_the_fast_way_predicts_what_the_plain_way_does_on_photographs() -> None:
    settings, accelerator = BaselineSettings(dataset=str(PHOTOGRAPHS)), accelerator_for("fp32")
    data = load_dataset(settings)
    data = replace(data, table=data.table[::3].assign(split="test"))
    mapped, model = mapping(data.classes), create("efficientnet_lite0")
    assert len(mapped) == len(data.classes) == 10
    model.classifier = Restricted(classifier(model), mapped, 10)
    loaded = usual.loader(data, "test", settings, BASELINE_SIZE, "val_test")
    plain = usual.evaluate(model, loaded)[0].argmax(dim=1).numpy()
    placed = place(model, settings, accelerator)
    tails = {"own": Tail(model)}
    table = predict(placed, tails, data, "test", settings, BASELINE_SIZE, accelerator).table
    assert len(table) == 600
    assert (table["top1"].to_numpy() != plain).sum() <= 1


def test_values_that_would_enlarge_most_images_are_left_out(
    colour_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = BaselineSettings(
        dataset=str(colour_folder), crop_pct=(1.0, 0.71, 0.875), batch_size=5
    )
    data = load_dataset(settings)  # of 72 x 56 px
    framed, line = framings(settings, data, 48)
    tried = {value: own.crop_pct for value, own in framed.items()}
    assert tried == {0.875: 0.875, 1.0: 1.0}  # 48 / 0.71 = 67 px
    assert line == "crop_pct [0.71] at 48 px would enlarge most images: left out"
    assert line in caplog.text
    assert list(framings(settings, data, 128)[0]) == [0.875]  # which stays
    every, line = framings(settings, data, 32)
    assert (list(every), line) == ([0.875, 1.0, 0.71], "")  # ties go to the nearest to 0.875

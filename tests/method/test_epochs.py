"""Steps and epochs of stage 1: the gradient of the whole batch, and on from the last finished epoch."""

import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_training import first_step, same, settings_for, state_of, train

from fixres_poc.config.files import CHECKPOINT, run_folder
from fixres_poc.data.dataset import load_dataset
from fixres_poc.data.loading import SplitImages
from fixres_poc.method import epochs, stage1
from fixres_poc.model.device import accelerator_for


def test_gradients_of_parts_add_up_to_those_of_the_batch(colour_folder: Path) -> None:
    settings = settings_for(colour_folder, learning_rate=10.0)
    data, accelerator = load_dataset(settings), accelerator_for("fp32")
    whole, parts = (first_step(settings, data, accelerator, at_once, frozen_norms=True)[1] for at_once in (6, 4))
    assert whole["classifier.weight"].abs().max() > 1e-3
    assert all(torch.allclose(parts[key], value, rtol=1e-3, atol=1e-5) for key, value in whole.items())


def test_training_learns_colours_and_keeps_the_best_epoch(colour_folder: Path) -> None:
    settings = settings_for(colour_folder, epochs=8)
    data = load_dataset(settings)
    trained = train(settings, data)
    assert trained.history["epoch"].tolist() == list(range(1, 9))
    assert trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0]
    best = trained.history["val_top1"].max()
    assert best > 0.6
    assert epochs.val_top1(trained.model, settings, 48, data, accelerator_for("fp32")) == best


def test_the_same_seed_gives_the_same_weights_and_another_does_not(colour_folder: Path) -> None:
    settings = settings_for(colour_folder, epochs=1)
    largest = settings.model_copy(update={"seed": 2**31 - 1})
    data = load_dataset(settings)
    first, again, other = (state_of(train(each, data).model) for each in (settings, settings, largest))
    assert same(first, again)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_killed_training_ends_the_same(colour_folder: Path, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    settings = settings_for(colour_folder)
    data = load_dataset(settings)
    undisturbed = train(settings, data)
    original, begun = epochs.run_epoch, list[int]()

    def run(state: epochs.State, samples: SplitImages, *arguments: Any) -> float:
        begun.append(samples.epoch)
        if begun == list(range(1, epoch + 2)):
            raise KilledError
        return original(state, samples, *arguments)

    monkeypatch.setattr(epochs, "run_epoch", run)
    with pytest.raises(KilledError):
        stage1.train_or_load(settings, data)
    resumed = stage1.train_or_load(settings, data)
    assert begun == [*range(1, epoch + 2), *range(epoch + 1, 4)]
    assert same(state_of(undisturbed.model), state_of(resumed.model))
    times = ["seconds"]
    pd.testing.assert_frame_equal(resumed.history.drop(columns=times), undisturbed.history.drop(columns=times))
    assert [file.name for file in run_folder("notebooks", settings.run_name).iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize("damage", ["cut", "bit", "other settings"])
def test_a_damaged_or_foreign_state_is_not_used(colour_folder: Path, tmp_path: Path, damage: str) -> None:
    settings, file = settings_for(colour_folder, epochs=1), tmp_path / "state.pt"
    data = load_dataset(settings)
    first = train(settings, data, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if damage == "bit":  # of the middle of the largest part, which is one of `best`
        with zipfile.ZipFile(file) as parts:
            largest = max(parts.infolist(), key=lambda each: each.file_size)
        content = bytearray(file.read_bytes())
        content[largest.header_offset + largest.file_size // 2] ^= 64
        file.write_bytes(content)
    if damage == "other settings":
        settings = settings.model_copy(update={"seed": 1})
    again = train(settings, data, file)
    assert len(again.history) == 1
    assert same(state_of(first.model), state_of(again.model)) == (damage != "other settings")

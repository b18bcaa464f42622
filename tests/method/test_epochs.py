"""Steps and epochs of stage 1: the gradient of the whole batch, and resumed trainings."""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
import torch
from tiny_training import begun, first_step, recipe_for, same, state_of, tiny, train

from fixres_poc.config.files import CHECKPOINT, run_folder
from fixres_poc.config.settings import TrainSettings
from fixres_poc.data.loading import SplitImages
from fixres_poc.method import epochs, stage1
from fixres_poc.method.evaluation import transforms_for
from fixres_poc.model.trunk import classifier


def test_gradients_of_parts_add_up_to_those_of_the_batch(colour_folder: Path) -> None:
    given = tiny(colour_folder, learning_rate=10.0)
    whole, parts = (first_step(given, at_once, frozen_norms=True)[1] for at_once in (6, 4))
    assert whole["classifier.weight"].abs().max() > 1e-3
    assert all(
        torch.allclose(parts[key], value, rtol=1e-3, atol=1e-5) for key, value in whole.items()
    )


def test_a_training_ends_with_the_last_epoch(colour_folder: Path) -> None:
    settings, data, accelerator = given = tiny(colour_folder)
    trained = train(given)
    again = epochs.val_top1(trained.model, settings, 48, data, accelerator)
    assert trained.history["val_top1"].iloc[-1] == trained.val_top1 == again
    assert trained.steps == 3 * 3  # 18 images in batches of 6


def test_auto_gives_enough_steps_however_many_images_there_are() -> None:
    auto = TrainSettings(train_size=96)
    # 640 steps: of 7, 32 and 3,125 batches an epoch
    for images, expected in {200: 92, 1_000: 20, 100_000: 1}.items():
        assert epochs.number_of_epochs(auto, {"train": images, "val": 10}) == expected
    file = auto.model_copy(update={"head_start": "file", "weights": "a.pt"})
    assert epochs.number_of_epochs(file, {"train": 200, "val": 10}) == 0


def test_equal_flops_are_those_of_the_smaller_train_resolution_with_its_adaptation() -> None:
    """In passes of a train image at 96 px: the probe 1.2, an epoch 3.2, stage 2 two."""
    own = TrainSettings(train_size=96, epochs=20, equal_flops=64)
    near = own.model_copy(update={"equal_flops": 95, "adapt_epochs": 50})
    budget = (64 / 96) ** 2 * (1.2 + 20 * 3.2) + 2
    assert int((budget - 1.2) / 3.2) == 9
    for settings, expected in ((own, 9), (near, 20)):
        assert epochs.number_of_epochs(settings, {"train": 1_000, "val": 200}) == expected


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_trunk_has_a_part_of_the_classifier_rate(
    colour_folder: Path, name: Literal["adamw", "sgd"]
) -> None:
    given = tiny(colour_folder)
    recipe = replace(recipe_for(given[0]), optimizer=name, trunk_factor=0.1, learning_rate=0.5)
    state = begun(given, recipe=recipe)
    trunk, head = state.optimizer.param_groups
    assert set(head["params"]) == set(classifier(state.model).parameters())
    assert len(trunk["params"]) + len(head["params"]) == len(list(state.model.parameters()))
    assert (head["max_lr"], trunk["max_lr"]) == (0.5, 0.05)
    assert type(state.optimizer.optimizer).__name__.lower() == name


def test_images_may_pass_one_by_one_where_maps_are_one_pixel_wide(colour_folder: Path) -> None:
    settings, data, accelerator = given = tiny(colour_folder, train_size=32, epochs=1)
    state, seen = begun(given, at_once=1, recompute=True), list[int]()
    state.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    samples = SplitImages(data, "train", transforms_for(settings, 32, 32)["train"], seed=0)
    assert epochs.run_epoch(state, samples, settings, accelerator) > 0
    assert seen == [1] * len(samples)
    assert all(module.training for module in state.model.modules())
    assert int(state.model.get_buffer("bn1.num_batches_tracked")) == len(seen)


class KilledError(Exception):
    """Stands for the end of the process."""


def test_a_killed_training_ends_the_same(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, data, _ = given = tiny(colour_folder)
    undisturbed = train(given)
    original, started = epochs.run_epoch, list[int]()

    def run(state: epochs.State, samples: SplitImages, *arguments: Any) -> float:
        started.append(samples.epoch)
        if started == [1, 2]:
            raise KilledError
        return original(state, samples, *arguments)

    monkeypatch.setattr(epochs, "run_epoch", run)
    with pytest.raises(KilledError):
        stage1.train_or_load(settings, data)
    resumed = stage1.train_or_load(settings, data)
    assert started == [1, 2, 2, 3]
    assert same(state_of(undisturbed.model), state_of(resumed.model))
    first, second = (each.history.drop(columns="seconds") for each in (resumed, undisturbed))
    pd.testing.assert_frame_equal(first, second)
    left = run_folder("notebooks", settings.run_name).iterdir()
    assert [file.name for file in left] == [CHECKPOINT]


@pytest.mark.parametrize("damage", ["cut", "bit", "other settings"])
def test_a_damaged_or_foreign_state_is_not_used(
    colour_folder: Path, tmp_path: Path, damage: str
) -> None:
    given, file = tiny(colour_folder, epochs=1), tmp_path / "state.pt"
    first = train(given, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if damage == "bit":  # of the middle of the largest part
        with zipfile.ZipFile(file) as parts:
            largest = max(parts.infolist(), key=lambda each: each.file_size)
        content = bytearray(file.read_bytes())
        content[largest.header_offset + largest.file_size // 2] ^= 64
        file.write_bytes(content)
    if damage == "other settings":
        given = tiny(colour_folder, epochs=1, seed=1)
    again = train(given, file)
    assert len(again.history) == 1
    assert same(state_of(first.model), state_of(again.model)) == (damage != "other settings")

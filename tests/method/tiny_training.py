"""Trainings of a few seconds that the tests of both stages share."""

from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.settings import TrainSettings, several
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.method import epochs, stage1
from fixres_poc.method.epochs import Recipe
from fixres_poc.method.evaluation import transforms_for
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.memory_plan import StepPlan

State = dict[str, torch.Tensor]


def settings_for(folder: Path, **more: Any) -> TrainSettings:
    tiny: dict[str, Any] = {
        "train_size": 48,
        "batch_size": 8,
        "epochs": 3,
        "adapt_epochs": 1,
        "learning_rate": 0.03,
        "optimizer": "sgd",
        "trunk_factor": 1.0,
        "batch_norm": "train",
    }
    tiny["head_start"] = "random"
    return TrainSettings(dataset=str(folder), **(tiny | more))


def recipe_for(settings: TrainSettings) -> Recipe:
    return Recipe(
        settings.train_size,
        "train",
        cast(int, settings.epochs),
        max(several(settings.learning_rate)),
    )


def train(
    settings: TrainSettings, data: ImageDataset, state_file: Path | None = None
) -> stage1.Trained:
    return stage1.train(
        settings, recipe_for(settings), data, accelerator_for(settings.precision), state_file
    )


def first_step(
    settings: TrainSettings,
    data: ImageDataset,
    accelerator: Accelerator,
    at_once: int,
    frozen_norms: bool = False,
) -> tuple[torch.Tensor, State]:
    """Loss of a training's first batch, with so many images at once, and what its step changes."""
    state = epochs.begin(
        recipe_for(settings), settings, data, accelerator, StepPlan(at_once, False, 0)
    )
    state.model.train(not frozen_norms)
    before = {key: value.detach().clone() for key, value in state.model.named_parameters()}
    samples = SplitImages(data, "train", transforms_for(settings, 48, 48)["train"], settings.seed)
    rows = batches(samples, settings.batch_size)
    images, labels, _ = next(
        iter(loader(samples, rows, 0, accelerator.process_index, accelerator.num_processes))
    )
    loss = epochs.step(state, images, labels, len(rows[0]), settings, accelerator)
    return loss, {
        key: value.detach() - before[key] for key, value in state.model.named_parameters()
    }


def state_of(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(first: State, second: State) -> bool:
    return all(torch.equal(second[key], value) for key, value in first.items())

"""Trainings of a few seconds that the tests of both stages share."""

from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.settings import TrainSettings, several
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.method import epochs, stage1
from fixres_poc.method.evaluation import transforms_for
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.memory_plan import StepPlan

State = dict[str, torch.Tensor]
Tiny = tuple[TrainSettings, ImageDataset, Accelerator]
TINY: dict[str, Any] = {
    "train_size": 48,
    "batch_size": 8,
    "epochs": 3,
    "adapt_epochs": 1,
    "learning_rate": 0.03,
    "optimizer": "sgd",
    "trunk_factor": 1.0,
    "batch_norm": "train",
    "head_start": "random",
}


def tiny(folder: Path, **more: Any) -> Tiny:
    settings = TrainSettings(dataset=str(folder), **(TINY | more))
    return settings, load_dataset(settings), accelerator_for(settings.precision)


def recipe_for(settings: TrainSettings) -> epochs.Recipe:
    rate = max(several(settings.learning_rate))
    return epochs.Recipe(settings.train_size, "train", cast(int, settings.epochs), rate)


def begun(given: Tiny, at_once: int = 8, recompute: bool = False, **more: Any) -> epochs.State:
    plan = StepPlan(at_once, recompute, 0)
    return epochs.begin(more.pop("recipe", recipe_for(given[0])), *given, plan, **more)


def train(given: Tiny, state_file: Path | None = None) -> stage1.Trained:
    settings, data, accelerator = given
    return stage1.train(settings, recipe_for(settings), data, accelerator, state_file)


def first_step(given: Tiny, at_once: int, frozen_norms: bool = False) -> tuple[torch.Tensor, State]:
    """Loss of a training's first batch, with so many images at once, and what its step changes."""
    settings, data, accelerator = given
    state = begun(given, at_once)
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

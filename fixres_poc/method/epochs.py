"""Resumable epochs that train all weights, with the same steps whatever the memory.

A step has the batch size of the settings, on any number of processes. If a batch does not fit into
memory, gradients of its parts are added up. This changes the result only for batch norms in train
mode, which normalise each part alone. No batch has a single image; a part of a batch may.
"""

import json
import math
import time
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.accelerator import AcceleratedOptimizer, AcceleratedScheduler, Accelerator
from accelerate.utils import set_seed
from torch import nn

from fixres_poc.config.files import replacing
from fixres_poc.config.settings import (
    ENOUGH_STEPS,
    BatchNorm,
    TrainSettings,
    several,
    stage1_passes,
)
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages, batches, parts_of
from fixres_poc.method.evaluation import loaded, predict, transforms_for
from fixres_poc.method.stage2 import MOMENTUM, WEIGHT_DECAY
from fixres_poc.model.backbones import create
from fixres_poc.model.device import (
    format_name,
    is_batch_norm,
    place,
    recompute,
    share_buffers,
    spare_single_values,
)
from fixres_poc.model.memory_plan import StepPlan
from fixres_poc.model.trunk import Tail, classifier

ADAMW_DECAY = 0.05


@dataclass(frozen=True)
class Recipe:
    """How all weights of a network are fine-tuned."""

    size: int  # side of the crop in px, in training and on validation
    framing: Literal["train", "val_train"]  # of the train images: random crops, or as in stage 2
    epochs: int
    learning_rate: float  # of the classifier, the highest of the one-cycle schedule
    # frozen: normalise with the running statistics, and leave these unchanged
    batch_norm: BatchNorm = "train"
    optimizer: Literal["adamw", "sgd"] = "sgd"
    trunk_factor: float = 1.0  # learning rate of all other weights over the classifier's


@dataclass
class State:
    """A training at the end of an epoch."""

    recipe: Recipe
    model: nn.Module
    network: nn.Module  # the model, or its wrapper that averages gradients over processes
    optimizer: AcceleratedOptimizer
    schedule: AcceleratedScheduler
    plan: StepPlan
    # one per finished epoch, see `stage1.Trained`
    rows: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """The file that keeps a training after each epoch, and the record that it belongs to."""

    file: Path
    record: Mapping[str, Any]

    def keep(self, state: State, accelerator: Accelerator) -> None:
        """Write the state atomically, as tensors, numbers and strings."""
        content = {key: part.state_dict() for key, part in _parts(state, accelerator).items()}
        content |= {"record": json.dumps(self.record), "rows": state.rows}
        with replacing(self.file) as opened:  # given a path, torch does not report a full disk
            torch.save(content, opened)

    def resume(self, state: State, accelerator: Accelerator) -> None:
        """Load the state from the file, if that is present, undamaged and of this record."""
        try:
            # torch does not check sums: it reads a flipped bit as another weight
            if zipfile.ZipFile(self.file).testzip():
                return
            content = torch.load(self.file, map_location="cpu", weights_only=True)
            if content["record"] != json.dumps(self.record):
                return
        except Exception:  # an absent or damaged file raises many types
            return
        for key, part in _parts(state, accelerator).items():
            part.load_state_dict(content[key])
        state.rows = content["rows"]


def _parts(state: State, accelerator: Accelerator) -> dict[str, Any]:
    """The parts of a training that have a state, by name."""
    parts = {"model": state.model, "optimizer": state.optimizer, "schedule": state.schedule}
    if accelerator.scaler is not None:  # in fp16
        parts["scaler"] = accelerator.scaler
    return parts


def number_of_epochs(settings: TrainSettings, counts: Mapping[str, int]) -> int:
    """Epochs of stage 1; 0 if a network of a file replaces it.

    `auto` gives `ENOUGH_STEPS` steps or a little more. `equal_flops` cuts the epochs, to 1 at
    least: probe and stage 1 then cost no more than probe, stage 1 and stage 2 of that smaller train
    resolution at the same test resolution. An epoch of stage 2 costs one forward pass of the train
    part, for stage 1 see `stage1_passes`.

    Args:
        counts: images by split.
    """
    if settings.head_start == "file":
        return 0
    enough = math.ceil(ENOUGH_STEPS / parts_of(counts["train"], settings.batch_size))
    epochs = enough if settings.epochs == "auto" else settings.epochs
    if settings.equal_flops is None:
        return epochs
    share = (settings.equal_flops / settings.train_size) ** 2
    probe, one_epoch, all_epochs = (
        stage1_passes(settings.head_start, number, counts) for number in (0, 1, epochs)
    )
    adapt = max(several(settings.adapt_epochs)) * counts["train"]
    budget = share * all_epochs + adapt - probe
    return min(epochs, max(1, int(budget / (one_epoch - probe))))


def fine_tune(
    plan: StepPlan,
    recipe: Recipe,
    settings: TrainSettings,
    data: ImageDataset,
    accelerator: Accelerator,
    saved: Saved | None = None,
    start: nn.Module | None = None,
) -> State:
    """Train by one plan, from the saved state if there is one, else from `start`.

    The schedule is one-cycle, the loss has label smoothing. The last epoch is used: an annealed
    schedule ends at its best, and the best epoch on validation would be biased upwards.

    Returns:
        The training after its last epoch, with the model in eval mode.
    """
    try:
        state = begin(recipe, settings, data, accelerator, plan, start)
        if saved is not None:
            saved.resume(state, accelerator)
        transform = transforms_for(settings, recipe.size, recipe.size)[recipe.framing]
        samples = SplitImages(data, "train", transform, settings.seed)
        for epoch in range(1 + len(state.rows), recipe.epochs + 1):
            begun = time.perf_counter()
            samples.epoch = epoch
            # each epoch has its own seed, so that a resumed training equals one without a break
            set_seed((settings.seed * 1_000_003 + epoch) % 2**31, device_specific=True)
            loss = run_epoch(state, samples, settings, accelerator)
            row = {
                "epoch": epoch,
                "steps": epoch * len(batches(samples, settings.batch_size)),
                "loss": loss,
                "val_top1": val_top1(state.model, settings, recipe.size, data, accelerator),
                "micro_batch_size": plan.micro_batch_size,
                "seconds": time.perf_counter() - begun,
            }
            state.rows.append(row)
            if saved is not None and accelerator.is_main_process:
                saved.keep(state, accelerator)
        state.model.eval().zero_grad(set_to_none=True)
        return state
    finally:
        # the accelerator refers to the optimizer, and so to weights, gradients and momentum
        accelerator.free_memory()


def begin(
    recipe: Recipe,
    settings: TrainSettings,
    data: ImageDataset,
    accelerator: Accelerator,
    plan: StepPlan,
    start: nn.Module | None = None,
) -> State:
    """A training before its first epoch.

    Args:
        start: network with the first weights; None: pre-trained or random ones, by the settings.
    """
    set_seed(settings.seed)
    model = create(
        settings.backbone,
        len(data.classes),
        start is None and settings.pretrained,
        settings.weights,
        settings.weights_key,
    )
    if start is not None:
        model.load_state_dict(start.state_dict())
    spare_single_values(model)
    model = place(model, settings, accelerator)
    if plan.gradient_checkpointing:
        recompute(model)
    network = accelerator.prepare(model) if accelerator.num_processes > 1 else model
    weights = _optimizer(model, recipe)
    steps = parts_of(len(data.split("train")), settings.batch_size) * recipe.epochs
    rates = [group["lr"] for group in weights.param_groups]
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        weights, rates, max(steps, 2), pct_start=0.15, cycle_momentum=False
    )
    optimizer, schedule = accelerator.prepare(weights, cycle)
    return State(recipe, model, network, optimizer, schedule, plan)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    rate = recipe.learning_rate
    head = list(classifier(model).parameters())
    in_head = set(head)
    trunk = [parameter for parameter in model.parameters() if parameter not in in_head]
    groups = [{"params": trunk, "lr": rate * recipe.trunk_factor}, {"params": head, "lr": rate}]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=ADAMW_DECAY, fused=True)
    return torch.optim.SGD(
        groups, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True, fused=True
    )


def memory_facts(state: State, settings: TrainSettings, accelerator: Accelerator) -> dict[str, Any]:
    """How a batch fits into memory, for metrics.json."""
    at_once = state.plan.micro_batch_size
    note = None
    if state.recipe.batch_norm == "train" and at_once < settings.batch_size:
        note = f"batch norm saw {at_once} images at a time"
    return {
        "batch_size": settings.batch_size,
        "micro_batch_size": at_once,
        "processes": accelerator.num_processes,
        "gradient_checkpointing": state.plan.gradient_checkpointing,
        "memory_format": format_name(state.model),
        "predicted_peak_bytes": state.plan.peak_bytes,
        "note": note,
    }


def train_mode(model: nn.Module, batch_norm: BatchNorm) -> None:
    """Put the model into train mode, but `frozen` batch norms into eval mode."""
    model.train()
    if batch_norm == "frozen":
        for norm in filter(is_batch_norm, model.modules()):
            norm.eval()


def run_epoch(
    state: State, samples: SplitImages, settings: TrainSettings, accelerator: Accelerator
) -> float:
    """One pass over the train split, which changes the state; returns the mean loss."""
    train_mode(state.model, state.recipe.batch_norm)
    total = torch.zeros((), device=accelerator.device)
    title = f"epoch {samples.epoch}/{state.recipe.epochs}"
    processes = accelerator.process_index, accelerator.num_processes
    for images, labels, batch in loaded(samples, settings.batch_size, title, *processes):
        total += step(state, images, labels, batch, settings, accelerator)
    share_buffers(state.model, accelerator)
    return float(accelerator.reduce(total, "sum")) / len(samples)


def step(
    state: State,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch: int,
    settings: TrainSettings,
    accelerator: Accelerator,
) -> torch.Tensor:
    """One step of the optimizer with the mean loss over the whole batch; changes the state.

    Gradients of the micro-batches of the state's plan are added up.

    Args:
        images: this process' part of the batch, (n, 3, H, W).
        labels: (n,).
        batch: number of images of all processes.

    Returns:
        The sum of the losses of the n images, without gradient.
    """
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing, reduction="sum")
    parts = parts_of(len(images), state.plan.micro_batch_size)
    pieces = zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)
    total = torch.zeros((), device=accelerator.device)
    for left, (part, targets) in zip(reversed(range(parts)), pieces, strict=True):
        # processes exchange their gradients after the last part
        with accelerator.no_sync(state.network) if left else nullcontext():
            with accelerator.autocast():
                logits = state.network(part.to(accelerator.device, non_blocking=True))
                loss = criterion(logits, targets.to(accelerator.device, non_blocking=True))
            # gradients are averaged over processes
            accelerator.backward(loss * (accelerator.num_processes / batch))
        total += loss.detach()
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad()
    return total


def val_top1(
    model: nn.Module,
    settings: TrainSettings,
    size: int,
    data: ImageDataset,
    accelerator: Accelerator,
) -> float:
    """Top-1 accuracy on validation, in test framing at `size` px, shared among all processes."""
    part = data.only("val", slice(accelerator.process_index, None, accelerator.num_processes))
    hits = torch.tensor(0, device=accelerator.device)
    if part.counts()["val"]:
        tails = {"none": Tail(model)}
        table = predict(model, tails, part, "val", settings, size, accelerator).table
        hits += int((table["top1"] == table["target"]).sum())
    return int(accelerator.reduce(hits, "sum")) / data.counts()["val"]

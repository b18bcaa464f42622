"""The epochs of stage 1: the same steps however little memory there is, and on from the last finished epoch.

A step's batch is that of the settings, on any number of processes. Where it does not fit at once, gradients of parts
are added up. Batch norm alone sees the difference: it normalises with the statistics of the pictures of its own part.
"""

import json
import math
import time
import zipfile
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import broadcast, set_seed
from torch import nn

from fixres_poc.backbones import Tail, create, recompute
from fixres_poc.config import TrainSettings
from fixres_poc.datasets import Pictures
from fixres_poc.datasets.loading import PictureDataset, batches, loader
from fixres_poc.evaluation import place, predict, transforms_for, workers
from fixres_poc.files import replacing
from fixres_poc.preflight import Fit
from fixres_poc.progress import bar

MOMENTUM, WEIGHT_DECAY, WARM_UP = 0.9, 1e-4, 0.15
FUSED = ("cpu", "cuda")


@dataclass
class State:
    """A training at the end of an epoch.

    Attributes:
        model: the network itself.
        network: the same, or its wrapper that adds up gradients over several processes.
        optimizer: of its parameters.
        schedule: of the optimizer's rate.
        rows: one per finished epoch.
        best: the weights of the best epoch, on the CPU.
    """

    model: nn.Module
    network: nn.Module
    optimizer: AcceleratedOptimizer
    schedule: AcceleratedScheduler
    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)


def fine_tune(
    settings: TrainSettings,
    pictures: Pictures,
    engine: Accelerator,
    fit: Fit,
    file: Path | None,
    record: dict[str, Any],
    start: nn.Module | None = None,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Fine-tune all weights at the train size (SGD, one-cycle schedule, label smoothing).

    The epoch is chosen by top-1 on validation, with test framing at the train size.

    Args:
        settings: of the training.
        pictures: the data set.
        engine: device, precision, processes.
        fit: how many pictures pass at once in each process, and whether activations are computed twice.
        file: where the state is kept after each epoch; None for nowhere.
        record: what the kept state belongs to; one of another record is not used.
        start: a network to go on from, with stage 2's framing instead of random crops; None for the pre-trained one.

    Returns:
        The network in eval mode with the weights of the best epoch, and one row per epoch (see `training.Trained`).
    """
    state = begin(settings, pictures, engine, fit, start)
    if file is not None:
        _resume(file, record, state, engine)
    framing = "train" if start is None else "val_train"
    transform = transforms_for(settings, settings.train_size, settings.train_size)[framing]
    data = PictureDataset(pictures, "train", transform, settings.seed)
    for epoch in range(len(state.rows) + 1, settings.epochs + 1):
        mark = time.perf_counter()
        data.epoch = epoch
        set_seed(
            (settings.seed * 1_000_003 + epoch) % 2**31, device_specific=True
        )  # an epoch depends on none before it
        loss = run_epoch(state, data, settings, engine, fit.micro_batch_size)
        top1 = val_top1(state.model, settings, pictures, engine)
        if not state.rows or top1 > max(row["val_top1"] for row in state.rows):
            state.best = {key: value.to("cpu", copy=True) for key, value in state.model.state_dict().items()}
        row = {"epoch": epoch, "loss": loss, "val_top1": top1, "micro_batch_size": fit.micro_batch_size}
        state.rows.append(row | {"seconds": time.perf_counter() - mark})
        if file is not None and engine.is_main_process:
            _keep(file, record, state, engine)
    state.model.load_state_dict(state.best)
    state.model.zero_grad(set_to_none=True)
    engine.free_memory()  # it keeps the optimizer, and with it the momentum
    return state.model.eval(), state.rows


def begin(
    settings: TrainSettings, pictures: Pictures, engine: Accelerator, fit: Fit, start: nn.Module | None = None
) -> State:
    """A training before its first epoch; the arguments are those of `fine_tune`."""
    set_seed(settings.seed)
    model = create(settings.backbone, len(pictures.classes), pretrained=start is None, weights=settings.weights)
    if start is not None:
        model.load_state_dict(start.state_dict())
    model = place(model, settings, engine)
    if fit.gradient_checkpointing:
        recompute(model)
    network = engine.prepare(model) if engine.num_processes > 1 else model
    rate, fused = settings.learning_rate, engine.device.type in FUSED
    sgd = torch.optim.SGD(
        model.parameters(), rate, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True, fused=fused, foreach=False
    )
    steps = math.ceil(len(pictures.split("train")) / settings.batch_size) * settings.epochs
    cycle = torch.optim.lr_scheduler.OneCycleLR(sgd, rate, max(steps, 2), pct_start=WARM_UP, cycle_momentum=False)
    optimizer, schedule = engine.prepare(sgd, cycle)
    return State(model, network, optimizer, schedule)


def run_epoch(state: State, data: PictureDataset, settings: TrainSettings, engine: Accelerator, at_once: int) -> float:
    """One pass over the train split, `at_once` pictures at once; changes the state and returns the mean loss."""
    state.model.train()
    rows = batches(data, settings.batch_size)
    loaded = loader(data, rows, workers(), engine.process_index, engine.num_processes)
    total = torch.zeros((), device=engine.device)
    for batch, (images, labels, _) in zip(rows, bar(loaded, f"epoch {data.epoch}/{settings.epochs}"), strict=True):
        total += step(state, images, labels, len(batch), settings, engine, at_once)
    for buffer in state.model.buffers():  # each process has seen other pictures
        if engine.num_processes > 1:
            buffer.copy_(broadcast(buffer))
    return float(engine.reduce(total, "sum")) / len(data)


def step(
    state: State,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch: int,
    settings: TrainSettings,
    engine: Accelerator,
    at_once: int,
) -> torch.Tensor:
    """One step of the optimizer, with the gradient of the mean loss over the whole batch.

    Args:
        state: of the training; changed.
        images: (n, 3, H, W), this process's part of the batch.
        labels: (n,).
        batch: number of pictures in the whole batch, over all processes.
        settings: of the training.
        engine: device, precision, processes.
        at_once: pictures that pass the network at once; what they give is added up.

    Returns:
        The sum of the losses of the n pictures, without gradient.
    """
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing, reduction="sum")
    parts = max(1, math.ceil(len(images) / at_once))
    total = torch.zeros((), device=engine.device)
    for index, (part, targets) in enumerate(zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)):
        with engine.no_sync(state.network) if index < parts - 1 else nullcontext():
            with engine.autocast():
                logits = state.network(part.to(engine.device, non_blocking=True))
                loss = criterion(logits, targets.to(engine.device, non_blocking=True))
            engine.backward(loss * (engine.num_processes / batch))  # gradients are averaged over processes
        total += loss.detach()
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad()
    return total


def val_top1(model: nn.Module, settings: TrainSettings, pictures: Pictures, engine: Accelerator) -> float:
    """Top-1 accuracy on validation, with test framing at the train size; each process classifies its part."""
    own = pictures.part("val", engine.process_index, engine.num_processes)
    hits = 0
    if own.counts()["val"]:
        table = predict(model, {"none": Tail(model)}, own, "val", settings, settings.train_size, engine).table
        hits = int((table["top1"] == table["target"]).sum())
    return int(engine.reduce(torch.tensor(hits, device=engine.device), "sum")) / pictures.counts()["val"]


def _keep(file: Path, record: dict[str, Any], state: State, engine: Accelerator) -> None:
    """Write the state so that it is complete or not there; tensors, numbers and strings only."""
    content = {"record": json.dumps(record), "rows": state.rows, "best": state.best, "model": state.model.state_dict()}
    content |= {"optimizer": state.optimizer.state_dict(), "schedule": state.schedule.state_dict()}
    content |= {"scaler": engine.scaler.state_dict() if engine.scaler is not None else {}}
    with replacing(file) as opened:  # by path, torch would not say that the disk is full
        torch.save(content, opened)


def _resume(file: Path, record: dict[str, Any], state: State, engine: Accelerator) -> None:
    """Go on where the file's training stopped, if it is there, whole and of this record."""
    try:
        if zipfile.ZipFile(file).testzip():  # torch itself reads a flipped bit as another weight
            return
        content = torch.load(file, map_location="cpu", weights_only=True)
        if content["record"] != json.dumps(record):
            return
    except Exception:  # absent, or damaged in one of many ways
        return
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.schedule.load_state_dict(content["schedule"])
    if engine.scaler is not None:
        engine.scaler.load_state_dict(content["scaler"])
    state.rows, state.best = content["rows"], content["best"]

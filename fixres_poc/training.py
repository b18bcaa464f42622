"""Stage 1: fine-tune the whole network at the train size, and the checkpoint that all pairs of that size share."""

import copy
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import set_seed
from torch import nn

from fixres_poc import checkpoint, weights
from fixres_poc.adaptation import adapt
from fixres_poc.backbones import Tail, create
from fixres_poc.config import InputError, TrainSettings, run_folder
from fixres_poc.datasets import Pictures
from fixres_poc.datasets.loading import PictureDataset, loader
from fixres_poc.evaluation import accelerator, memory_layout, place, predict, transforms_for, workers
from fixres_poc.progress import bar
from fixres_poc.records import library_hash

MOMENTUM, WEIGHT_DECAY, WARM_UP = 0.9, 1e-4, 0.15
CHECKPOINT = "checkpoint.safetensors"
log = logging.getLogger(__name__)


@dataclass
class Trained:
    """A fine-tuned network.

    Attributes:
        model: in eval mode, on its device, with the weights of the best epoch.
        history: one row per epoch: epoch (from 1), loss (mean over the epoch), val_top1 (at the train size), seconds.
        control: the tail adapted as `head_bn` at the train size, for networks whose last batch norm is known.
        seconds: of the stages "train" and "control".
    """

    model: nn.Module
    history: pd.DataFrame
    control: Tail | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest validation accuracy."""
        return int(self.history["epoch"].iloc[int(self.history["val_top1"].argmax())])


def train_or_load(settings: TrainSettings, pictures: Pictures, engine: Accelerator | None = None) -> Trained:
    """The training of a train size and seed, from its checkpoint where that fits, else done now and kept.

    A checkpoint of other settings, other pictures or a damaged one is named in a warning and trained again.
    """
    engine = engine or accelerator(settings.precision)
    path = run_folder(settings.sweep, settings.run_name) / CHECKPOINT
    record = _record(settings, pictures)
    if path.is_file():
        try:
            return _restore(path, record, settings, len(pictures.classes), engine)
        except InputError as error:
            log.warning("%s; training again", error)
    start = time.perf_counter()
    trained = train(settings, pictures, engine)
    trained.seconds["train"] = time.perf_counter() - start
    tensors = {f"model.{key}": value for key, value in trained.model.state_dict().items()}
    if Tail(trained.model).norm is not None:
        adapted = adapt(trained.model, pictures, settings, settings.train_size, ["head_bn"], engine)
        trained.control, trained.seconds["control"] = adapted.tails["head_bn"], adapted.seconds["head_bn"]
        tensors |= {f"control.{key}": value for key, value in trained.control.state_dict().items()}
    checkpoint.save(path, tensors, record | {"history": trained.history.to_dict("list"), "seconds": trained.seconds})
    return trained


def _record(settings: TrainSettings, pictures: Pictures) -> dict[str, Any]:
    return {
        "settings": settings.model_dump(exclude={"sweep", "show_pictures", "dataset", "image_limit", "weights"}),
        "weights": weights.fingerprint(settings.weights),
        "classes": pictures.classes,
        "pictures": pictures.fingerprint(),
        "library": library_hash(),
    }


def _restore(path: Path, record: dict[str, Any], settings: TrainSettings, classes: int, engine: Accelerator) -> Trained:
    tensors, stored = checkpoint.load(path, record)
    model = create(settings.backbone, classes, pretrained=False)
    model.load_state_dict(_part(tensors, "model."))
    model = place(model.eval(), engine)
    control = Tail(model) if any(key.startswith("control.") for key in tensors) else None
    if control is not None:
        control.load_state_dict(_part(tensors, "control."))
    return Trained(model, pd.DataFrame(stored["history"]), control, stored["seconds"])


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def train(settings: TrainSettings, pictures: Pictures, engine: Accelerator | None = None) -> Trained:
    """Fine-tune all weights at the train size (SGD, one-cycle schedule, label smoothing).

    The epoch is chosen by top-1 on validation, with test framing at the train size.
    """
    engine = engine or accelerator(settings.precision)
    set_seed(settings.seed)
    model = place(create(settings.backbone, len(pictures.classes), weights=settings.weights), engine)
    transform = transforms_for(settings, settings.train_size, settings.train_size)["train"]
    data = PictureDataset(pictures, "train", transform, settings.seed)
    steps = len(loader(data, settings.batch_size)) * settings.epochs
    rate = settings.learning_rate
    sgd = torch.optim.SGD(model.parameters(), rate, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(sgd, rate, max(steps, 2), pct_start=WARM_UP, cycle_momentum=False)
    optimizer, schedule = engine.prepare(sgd, cycle)
    rows: list[dict[str, float]] = []
    best = copy.deepcopy(model.state_dict())
    for epoch in range(1, settings.epochs + 1):
        start = time.perf_counter()
        data.epoch = epoch
        loss = _epoch(model, data, settings, optimizer, schedule, engine)
        top1 = val_top1(model, settings, pictures, engine)
        if not rows or top1 > max(row["val_top1"] for row in rows):
            best = copy.deepcopy(model.state_dict())
        rows.append({"epoch": epoch, "loss": loss, "val_top1": top1, "seconds": time.perf_counter() - start})
    model.load_state_dict(best)
    return Trained(model.eval(), pd.DataFrame(rows))


def _epoch(
    model: nn.Module,
    data: PictureDataset,
    settings: TrainSettings,
    optimizer: AcceleratedOptimizer,
    schedule: AcceleratedScheduler,
    engine: Accelerator,
) -> float:
    """One pass over the train split; returns the mean loss."""
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    losses = []
    model.train()
    batches = loader(data, settings.batch_size, workers())
    for images, labels, _ in bar(batches, f"epoch {data.epoch}/{settings.epochs}"):
        images = images.to(engine.device, non_blocking=True, memory_format=memory_layout(engine))
        with engine.autocast():
            loss = criterion(model(images), labels.to(engine.device))
        engine.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def val_top1(model: nn.Module, settings: TrainSettings, pictures: Pictures, engine: Accelerator) -> float:
    """Top-1 accuracy on validation, with test framing at the train size."""
    result = predict(model, {"none": Tail(model)}, pictures, "val", settings, settings.train_size, engine)
    return float((result.table["top1"] == result.table["target"]).mean())

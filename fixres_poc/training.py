"""Stage 1: fine-tune the whole network at the train size, and the checkpoint that all pairs of that size share."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc import checkpoint, evaluation, preflight, weights
from fixres_poc.adaptation import adapt
from fixres_poc.backbones import Tail, create
from fixres_poc.config import InputError, TrainSettings, run_folder
from fixres_poc.datasets import Pictures
from fixres_poc.evaluation import accelerator, place
from fixres_poc.fine_tuning import fine_tune
from fixres_poc.machine import recall, remember
from fixres_poc.memory import out_of_memory, release
from fixres_poc.preflight import Fit
from fixres_poc.records import library_hash, processor

CHECKPOINT, STATE = "checkpoint.safetensors", "training.pt"
log = logging.getLogger(__name__)


@dataclass
class Trained:
    """A fine-tuned network.

    Attributes:
        model: in eval mode, on its device, with the weights of the best epoch.
        history: one row per epoch: epoch (from 1), loss (mean over the epoch), val_top1 (at the train size),
            micro_batch_size (pictures that passed at once), seconds.
        control: the tail adapted as `head_bn` at the train size, for networks whose last batch norm is known.
        seconds: of the stages "train" and "control".
        memory: how a batch was made to fit: batch_size, micro_batch_size, processes, gradient_checkpointing,
            memory_format, predicted_peak_bytes, out_of_memory (what happened) and a note where batch norm saw less.
    """

    model: nn.Module
    history: pd.DataFrame
    control: Tail | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)

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
    state = path.with_name(STATE)
    trained = train(settings, pictures, engine, state)
    trained.seconds["train"] = float(trained.history["seconds"].sum())
    tensors = {f"model.{key}": value for key, value in trained.model.state_dict().items()}
    if Tail(trained.model).norm is not None:
        adapted = adapt(trained.model, pictures, settings, settings.train_size, ["head_bn"], engine)
        trained.control, trained.seconds["control"] = adapted.tails["head_bn"], adapted.seconds["head_bn"]
        tensors |= {f"control.{key}": value for key, value in trained.control.state_dict().items()}
    if engine.is_main_process:
        done = {"history": trained.history.to_dict("list"), "seconds": trained.seconds, "memory": trained.memory}
        checkpoint.save(path, tensors, record | done)
        state.unlink(missing_ok=True)
    engine.wait_for_everyone()
    return trained


def finished(folder: Path, settings: TrainSettings, known: Mapping[str, Any], engine: Accelerator) -> Trained:
    """The training that a run's folder holds, whichever version of the library made it.

    Args:
        folder: of the training's run.
        settings: of the training.
        known: `classes`, and whatever else of the checkpoint's record must agree, such as the `pictures`' fingerprint.
        engine: from `accelerator`.

    Raises:
        InputError: no checkpoint, a damaged one, or one that differs.
    """
    record = {"settings": _lasting(settings), **known}
    return _restore(folder / CHECKPOINT, record, settings, len(known["classes"]), engine)


def _lasting(settings: TrainSettings) -> dict[str, Any]:
    return settings.model_dump(exclude={"sweep", "show_pictures", "dataset", "image_limit", "weights"})


def _record(settings: TrainSettings, pictures: Pictures) -> dict[str, Any]:
    return {
        "settings": _lasting(settings),
        "weights": weights.fingerprint(settings.weights),
        "classes": pictures.classes,
        "pictures": pictures.fingerprint(),
        "library": library_hash(),
    }


def _restore(path: Path, record: dict[str, Any], settings: TrainSettings, classes: int, engine: Accelerator) -> Trained:
    tensors, stored = checkpoint.load(path, record)
    model = create(settings.backbone, classes, pretrained=False)
    model.load_state_dict(_part(tensors, "model."))
    model = place(model.eval(), settings, engine)
    control = Tail(model) if any(key.startswith("control.") for key in tensors) else None
    if control is not None:
        control.load_state_dict(_part(tensors, "control."))
    return Trained(model, pd.DataFrame(stored["history"]), control, stored["seconds"], stored["memory"])


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def train(
    settings: TrainSettings,
    pictures: Pictures,
    engine: Accelerator | None = None,
    file: Path | None = None,
    start: nn.Module | None = None,
) -> Trained:
    """Fine-tune, with fewer pictures at once, but the same batch, whenever memory runs out.

    What is tried first is what the shapes say will fit, or what fitted here before. Then activations are computed
    twice instead of kept, if the settings leave that open, since it changes no result; then half as many pictures pass.

    Args:
        settings: of the training.
        pictures: the data set.
        engine: from `evaluation.accelerator`.
        file: where the state is kept after each epoch, so that a killed training goes on; None for nowhere.
        start: see `fine_tuning.fine_tune`.

    Raises:
        InputError: not even one picture at once fits.
    """
    engine = engine or accelerator(settings.precision)
    own = settings.model_copy(update={"batch_size": math.ceil(settings.batch_size / engine.num_processes)})
    classes = len(pictures.classes)
    key = _fit_key(own, classes)
    known = recall(key)
    fit = Fit(**known) if known else preflight.fit(own, classes, preflight.budget_bytes())
    record, messages = _record(settings, pictures), list[str]()
    while True:
        try:
            model, rows = fine_tune(settings, pictures, engine, fit, file, record, start)
            return Trained(
                model,
                pd.DataFrame(rows),
                memory=_memory(settings, fit, engine, messages, evaluation.format_name(model)),
            )
        except (MemoryError, RuntimeError) as error:
            smaller = _smaller(fit, settings)
            if not out_of_memory(error):
                raise
            if smaller is None:
                remember(key, None)
                raise InputError(f"train_size = {settings.train_size}: not even one picture fits into memory") from None
        peak = preflight.training_bytes(own, classes, smaller.micro_batch_size, smaller.gradient_checkpointing)
        smaller = replace(smaller, peak_bytes=peak)
        engine.free_memory()  # it keeps the optimizer, and with it weights and gradients
        release()
        messages.append(f"out of memory with {_described(fit)}: on with {_described(smaller)}")
        log.warning(messages[-1])
        remember(key, asdict(smaller))
        if engine.num_processes > 1:  # the others cannot know, so all have to start again
            raise RuntimeError(f"{messages[-1]} at the next start")
        fit = smaller


def _fit_key(settings: TrainSettings, classes: int) -> str:
    """What a way of fitting depends on; runs/machine.json may be removed to try anew."""
    device = f"{evaluation.device_name() or processor()} of {preflight.budget_bytes()} bytes, torch {torch.__version__}"
    model = f"{settings.backbone} with {classes} classes at {settings.train_size} px in {settings.precision}"
    return f"fit of {settings.batch_size} x {model}, checkpointing {settings.gradient_checkpointing}, on {device}"


def _smaller(fit: Fit, settings: TrainSettings) -> Fit | None:
    open_to_it = settings.gradient_checkpointing == "auto" and preflight.can_recompute(settings.backbone)
    if open_to_it and not fit.gradient_checkpointing:
        return replace(fit, gradient_checkpointing=True)
    return replace(fit, micro_batch_size=math.ceil(fit.micro_batch_size / 2)) if fit.micro_batch_size > 1 else None


def _described(fit: Fit) -> str:
    recomputed = ", activations recomputed" if fit.gradient_checkpointing else ""
    return f"{fit.micro_batch_size} pictures at once{recomputed}"


def _memory(
    settings: TrainSettings, fit: Fit, engine: Accelerator, messages: list[str], memory_format: str
) -> dict[str, Any]:
    """For metrics.json: how the batch was made to fit."""
    part = min(fit.micro_batch_size, math.ceil(settings.batch_size / engine.num_processes))
    note = f"batch norm saw {part} pictures at a time" if part < settings.batch_size else None
    return {
        "batch_size": settings.batch_size,
        "micro_batch_size": part,
        "processes": engine.num_processes,
        "gradient_checkpointing": fit.gradient_checkpointing,
        "memory_format": memory_format,
        "predicted_peak_bytes": fit.peak_bytes,
        "out_of_memory": messages,
        "note": note,
    }

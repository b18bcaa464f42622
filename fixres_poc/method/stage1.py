"""Stage 1: fine-tune the whole network at the train resolution, and the checkpoint that all its pairs share."""

import copy
import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
from accelerate import Accelerator
from pydantic import TypeAdapter
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import CHECKPOINT, file_digest, run_folder
from fixres_poc.config.provenance import LIBRARY
from fixres_poc.config.settings import CONTROL, BatchNorm, TrainSettings
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.method.epochs import Recipe, Saved, begin, fine_tune, recipes, val_top1
from fixres_poc.method.linear_probe import head_started
from fixres_poc.method.stage2 import Variant, adapt_tails, choose
from fixres_poc.model import checkpoint, memory_plan, weights
from fixres_poc.model.backbones import create
from fixres_poc.model.device import (
    accelerator_for,
    first_that_fits,
    format_name,
    out_of_memory,
    place,
)
from fixres_poc.model.trunk import Tail

STATE = "training_{}.pt"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """What was chosen on validation for a train resolution, from what the settings list."""

    learning_rate: float  # of stage 1; 0 where the pre-trained trunk stays as it is
    batch_norm: BatchNorm  # of stage 1, frozen or in train mode
    adapt: dict[str, Variant]  # of stage 2, by adaptation


CHOICES = TypeAdapter(Choices)


@dataclass
class Trained:
    """A fine-tuned network.

    The history has one row per epoch: epoch (from 1; 0 alone where nothing is trained), loss (mean
    over the epoch), val_top1 (at the train resolution), micro_batch_size (images that passed at
    once), seconds.
    """

    model: nn.Module  # in eval mode, on its device, with the weights of the best epoch
    history: pd.DataFrame
    # how a batch was made to fit, for metrics.json
    memory: dict[str, Any] = field(default_factory=dict)
    # by adaptation, adapted at the train resolution
    controls: dict[str, Tail] = field(default_factory=dict)
    choices: Choices | None = None
    # "stage1", "stage2": what was tried, in rows
    tried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    # "probe", "train" (the chosen rate), "tuning", "adapt"
    seconds: dict[str, Any] = field(default_factory=dict)
    digest: str | None = None  # SHA-256 of its checkpoint, once that was read or written

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest validation accuracy."""
        return int(self.history["epoch"].iloc[int(self.history["val_top1"].argmax())])

    @property
    def val_top1(self) -> float:
        """The highest validation accuracy of any epoch."""
        return float(self.history["val_top1"].max())


def train_or_load(
    settings: TrainSettings, data: ImageDataset, accelerator: Accelerator | None = None
) -> Trained:
    """The training of a train resolution and seed, from its checkpoint where that fits, else done now and kept."""
    accelerator = accelerator or accelerator_for(settings.precision)
    path, record = (
        run_folder(settings.sweep, settings.run_name) / CHECKPOINT,
        _record(settings, data),
    )
    try:
        if path.is_file():
            return _restore(path, record, settings, accelerator)
    except InputError as error:  # a checkpoint of other settings or images, or a damaged one
        log.warning("%s; training again", error)
    trained = train_with_controls(settings, data, accelerator)
    tensors = {f"model.{key}": value for key, value in trained.model.state_dict().items()}
    for name, tail in trained.controls.items():
        tensors |= {f"{CONTROL}{name}.{key}": value for key, value in tail.state_dict().items()}
    if accelerator.is_main_process:
        done = {key: getattr(trained, key) for key in ("seconds", "memory", "tried")}
        done |= {
            "history": trained.history.to_dict("list"),
            "choices": asdict(cast(Choices, trained.choices)),
        }
        checkpoint.save(path, tensors, record | done)
        trained.digest = file_digest(path)
        for state in path.parent.glob(STATE.format("*")):
            state.unlink()
    accelerator.wait_for_everyone()
    return trained


def load_training(settings: TrainSettings, data: ImageDataset, accelerator: Accelerator) -> Trained:
    """The training of a train resolution and seed, from the checkpoint that notebook 03 left.

    Raises:
        InputError: there is none, a damaged one, or one of other settings, images or code.
    """
    path = run_folder(settings.sweep, settings.run_name) / CHECKPOINT
    if not path.is_file():
        raise InputError(
            f"training {settings.run_name} is missing; run notebook 03_train with these parameters first"
        )
    try:
        return _restore(path, _record(settings, data), settings, accelerator)
    except InputError as error:
        raise InputError(
            f"training {settings.run_name}: {error}; run notebook 03_train again"
        ) from None


def train_with_controls(
    settings: TrainSettings, data: ImageDataset, accelerator: Accelerator
) -> Trained:
    """Train with each recipe of the settings, keep what validation prefers, and adapt its controls.

    Stage 1's recipe and stage 2's choices are those of the training `settings.tuned_by`, where that
    is named.
    """
    folder = run_folder(settings.sweep, settings.run_name)
    known = None if settings.tuned_by is None else _choices_of(settings)
    start, probe_s = head_started(settings, data, accelerator)
    start = start and start.cpu()  # a card holds one network at a time
    best, tried, spent_s = None, list[dict[str, Any]](), 0.0
    for recipe in recipes(settings, known or settings):
        state_file = folder / STATE.format(f"{recipe.learning_rate:g}_{recipe.batch_norm}")
        each = train(settings, recipe, data, accelerator, state_file, start)
        spent_s += float(each.history["seconds"].sum())
        row = {"learning_rate": recipe.learning_rate, "batch_norm": recipe.batch_norm}
        tried.append(row | {"val_top1": each.val_top1, "best_epoch": each.best_epoch})
        if best is None or each.val_top1 > best.val_top1:  # the first of equals
            best, chosen = each, recipe
        each.model.cpu()
        del each
    assert best is not None
    best.model = place(best.model, settings, accelerator)
    mark = time.perf_counter()
    adapt, rows = (known.adapt, []) if known else choose(best.model, data, settings, accelerator)
    train_s = float(best.history["seconds"].sum())
    tuning_s = time.perf_counter() - mark + spent_s - train_s
    found = adapt_tails(best.model, data, settings, settings.train_size, adapt, accelerator)
    best.choices, best.controls = (
        Choices(chosen.learning_rate, chosen.batch_norm, adapt),
        found.tails,
    )
    best.tried = {"stage1": tried, "stage2": rows}
    best.seconds = {"probe": probe_s, "train": train_s, "tuning": tuning_s, "adapt": found.seconds}
    return best


def _choices_of(settings: TrainSettings) -> Choices:
    """What the training of the seed `tuned_by` has chosen."""
    first = settings.model_copy(update={"seed": settings.tuned_by, "tuned_by": None})
    _, stored = checkpoint.load(
        run_folder(settings.sweep, first.run_name) / CHECKPOINT, {"settings": _lasting(first)}
    )
    return CHOICES.validate_python(stored["choices"])


def finished(
    folder: Path, settings: TrainSettings, known: Mapping[str, Any], accelerator: Accelerator
) -> Trained:
    """The training that a run's folder holds, whichever version of the library made it.

    `known` has `classes`, and whatever else of the checkpoint's record must agree, such as the
    `images`' fingerprint.

    Raises:
        InputError: no checkpoint, a damaged one, or one that differs.
    """
    return _restore(
        folder / CHECKPOINT, {"settings": _lasting(settings), **known}, settings, accelerator
    )


def _lasting(settings: TrainSettings) -> dict[str, Any]:
    return settings.model_dump(
        exclude={"sweep", "show_images", "dataset", "image_limit", "weights", "extra_test"}
    )


def _record(settings: TrainSettings, data: ImageDataset) -> dict[str, Any]:
    return {
        "settings": _lasting(settings),
        "weights": weights.fingerprint(settings.weights),
        "classes": data.classes,
        "images": data.fingerprint(),
        "library": LIBRARY,
    }


def _restore(
    path: Path, record: dict[str, Any], settings: TrainSettings, accelerator: Accelerator
) -> Trained:
    tensors, stored = checkpoint.load(path, record)
    parts: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    model = create(settings.backbone, len(record["classes"]), pretrained=False)
    model.load_state_dict(parts["model"])
    model, choices = (
        place(model.eval(), settings, accelerator),
        CHOICES.validate_python(stored["choices"]),
    )
    controls = {name: Tail(model) for name in choices.adapt}
    for name, tail in controls.items():
        tail.load_state_dict(parts[CONTROL + name])
        tail.requires_grad_(False).eval()
    known = {key: stored[key] for key in ("memory", "tried", "seconds")} | {
        "digest": file_digest(path)
    }
    return Trained(
        model, pd.DataFrame(stored["history"]), controls=controls, choices=choices, **known
    )


def train(
    settings: TrainSettings,
    recipe: Recipe,
    data: ImageDataset,
    accelerator: Accelerator,
    state_file: Path | None = None,
    start: nn.Module | None = None,
) -> Trained:
    """Fine-tune all weights, the same batch with fewer images at once whenever memory runs out.

    With the rate 0 nothing is trained: the network is `start`, with one row of history. Otherwise
    the plans of `memory_plan.step_plans` are tried in order (`first_that_fits`). A killed training
    goes on from `state_file`, where its state is kept after each epoch. It starts with the weights
    of `start`, or with the pre-trained ones.

    Raises:
        InputError: not even one image at once fits, or of several processes one ran out of memory.
    """
    if recipe.learning_rate == 0 and start is not None:
        return _untrained(settings, recipe, data, accelerator, start)
    own = settings.model_copy(
        update={"batch_size": math.ceil(settings.batch_size / accelerator.num_processes)}
    )
    plans = memory_plan.step_plans(own, recipe.size, len(data.classes), memory_plan.budget_bytes())
    saved = Saved(state_file, _record(settings, data)) if state_file else None
    attempt = partial(_try, recipe, settings, data, accelerator, saved, start)
    trained, trained.memory["out_of_memory"] = first_that_fits(plans, attempt)
    return trained


def _untrained(
    settings: TrainSettings,
    recipe: Recipe,
    data: ImageDataset,
    accelerator: Accelerator,
    start: nn.Module,
) -> Trained:
    mark, model = time.perf_counter(), place(copy.deepcopy(start).eval(), settings, accelerator)
    top1 = val_top1(model, settings, recipe.size, data, accelerator)
    row = {"epoch": 0, "loss": math.nan, "val_top1": top1, "micro_batch_size": 0}
    history = pd.DataFrame([row | {"seconds": time.perf_counter() - mark}])
    memory = {
        "batch_size": settings.batch_size,
        "micro_batch_size": 0,
        "predicted_peak_bytes": 0,
        "out_of_memory": [],
    }
    return Trained(
        model, history, memory | {"gradient_checkpointing": False, "note": "nothing was trained"}
    )


def _try(
    recipe: Recipe,
    settings: TrainSettings,
    data: ImageDataset,
    accelerator: Accelerator,
    saved: Saved | None,
    start: nn.Module | None,
    plan: memory_plan.StepPlan,
) -> Trained:
    """The training done by one plan."""
    try:
        state = begin(recipe, settings, data, accelerator, plan, start)
        fine_tune(state, settings, data, accelerator, saved)
    except (MemoryError, RuntimeError) as error:
        if accelerator.num_processes == 1 or not out_of_memory(error):
            raise
        # the others wait for this one
        advice = "set gradient_checkpointing: true, or a smaller batch_size"
        raise InputError(f"out of memory with {plan} in each process: {advice}") from None
    finally:
        # it keeps the optimizer, and with it weights, gradients and momentum
        accelerator.free_memory()
    part = min(
        state.plan.micro_batch_size, math.ceil(settings.batch_size / accelerator.num_processes)
    )
    in_parts = recipe.batch_norm == "train" and part < settings.batch_size
    memory = {
        "batch_size": settings.batch_size,
        "micro_batch_size": part,
        "processes": accelerator.num_processes,
        "gradient_checkpointing": state.plan.gradient_checkpointing,
        "memory_format": format_name(state.model),
        "predicted_peak_bytes": state.plan.peak_bytes,
        "note": f"batch norm saw {part} images at a time" if in_parts else None,
    }
    return Trained(state.model, pd.DataFrame(state.rows), memory=memory)

"""Stage 1: fine-tune the whole network at the train size, and the checkpoint that all pairs of that size share."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.paths import run_folder
from fixres_poc.config.provenance import library_hash
from fixres_poc.config.settings import TrainSettings
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.method.epochs import Recipe, Saved, begin, fine_tune
from fixres_poc.method.stage2 import adapt_tails
from fixres_poc.model import checkpoint, memory_plan, weights
from fixres_poc.model.backbones import create
from fixres_poc.model.device import accelerator_for, format_name, place
from fixres_poc.model.micro_batches import first_that_fits, out_of_memory
from fixres_poc.model.trunk import Tail, last_batch_norm

CHECKPOINT, STATE = "checkpoint.safetensors", "training.pt"
log = logging.getLogger(__name__)


@dataclass
class Trained:
    """A fine-tuned network.

    The history has one row per epoch: epoch (from 1), loss (mean over the epoch), val_top1 (at the train size),
    micro_batch_size (images that passed at once), seconds.
    """

    model: nn.Module  # in eval mode, on its device, with the weights of the best epoch
    history: pd.DataFrame
    control: Tail | None = None  # adapted as `head_bn` at the train size, where the last batch norm is known
    seconds: dict[str, float] = field(default_factory=dict)  # of the stages "train" and "control"
    memory: dict[str, Any] = field(default_factory=dict)  # how a batch was made to fit, for metrics.json

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest validation accuracy."""
        return int(self.history["epoch"].iloc[int(self.history["val_top1"].argmax())])


def train_or_load(settings: TrainSettings, data: ImageDataset, accelerator: Accelerator | None = None) -> Trained:
    """The training of a train size and seed, from its checkpoint where that fits, else done now and kept."""
    accelerator = accelerator or accelerator_for(settings.precision)
    path, record = run_folder(settings.sweep, settings.run_name) / CHECKPOINT, _record(settings, data)
    if path.is_file():
        try:
            return _restore(path, record, settings, accelerator)
        except InputError as error:  # a checkpoint of other settings or images, or a damaged one
            log.warning("%s; training again", error)
    state, recipe = path.with_name(STATE), Recipe(settings.train_size, "train", settings.epochs, settings.learning_rate)
    trained = train(settings, recipe, data, accelerator, state)
    trained.seconds["train"] = float(trained.history["seconds"].sum())
    tensors = {f"model.{key}": value for key, value in trained.model.state_dict().items()}
    if last_batch_norm(trained.model) is not None:
        adapted = adapt_tails(trained.model, data, settings, settings.train_size, ["head_bn"], accelerator)
        trained.control, trained.seconds["control"] = adapted.tails["head_bn"], adapted.seconds["head_bn"]
        tensors |= {f"control.{key}": value for key, value in trained.control.state_dict().items()}
    if accelerator.is_main_process:
        done = {"history": trained.history.to_dict("list"), "seconds": trained.seconds, "memory": trained.memory}
        checkpoint.save(path, tensors, record | done)
        state.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return trained


def finished(folder: Path, settings: TrainSettings, known: Mapping[str, Any], accelerator: Accelerator) -> Trained:
    """The training that a run's folder holds, whichever version of the library made it.

    `known` has `classes`, and whatever else of the checkpoint's record must agree, such as the `images`' fingerprint.

    Raises:
        InputError: no checkpoint, a damaged one, or one that differs.
    """
    return _restore(folder / CHECKPOINT, {"settings": _lasting(settings), **known}, settings, accelerator)


def _lasting(settings: TrainSettings) -> dict[str, Any]:
    return settings.model_dump(exclude={"sweep", "show_images", "dataset", "image_limit", "weights"})


def _record(settings: TrainSettings, data: ImageDataset) -> dict[str, Any]:
    return {
        "settings": _lasting(settings),
        "weights": weights.fingerprint(settings.weights),
        "classes": data.classes,
        "images": data.fingerprint(),
        "library": library_hash(),
    }


def _restore(path: Path, record: dict[str, Any], settings: TrainSettings, accelerator: Accelerator) -> Trained:
    tensors, stored = checkpoint.load(path, record)
    own, of_control = (
        {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for prefix in ("model.", "control.")
    )
    model = create(settings.backbone, len(record["classes"]), pretrained=False)
    model.load_state_dict(own)
    model = place(model.eval(), settings, accelerator)
    control = Tail(model) if of_control else None
    if control is not None:
        control.load_state_dict(of_control)
    return Trained(model, pd.DataFrame(stored["history"]), control, stored["seconds"], stored["memory"])


def train(
    settings: TrainSettings,
    recipe: Recipe,
    data: ImageDataset,
    accelerator: Accelerator,
    state_file: Path | None = None,
    start: nn.Module | None = None,
) -> Trained:
    """Fine-tune all weights, the same batch with fewer images at once whenever memory runs out.

    The plans of `memory_plan.step_plans` are tried in order (`first_that_fits`). A killed training goes on
    from `state_file`, where its state is kept after each epoch. It starts with the weights of `start`, or with the
    pre-trained ones.

    Raises:
        InputError: not even one image at once fits, or of several processes one ran out of memory.
    """
    own = settings.model_copy(update={"batch_size": math.ceil(settings.batch_size / accelerator.num_processes)})
    plans = memory_plan.step_plans(own, recipe.size, len(data.classes), memory_plan.budget_bytes())
    saved = Saved(state_file, _record(settings, data)) if state_file else None
    attempt = partial(_try, recipe, settings, data, accelerator, saved, start)
    trained, trained.memory["out_of_memory"] = first_that_fits(plans, attempt)
    return trained


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
        fine_tune(state, recipe, settings, data, accelerator, saved)
    except (MemoryError, RuntimeError) as error:
        if accelerator.num_processes == 1 or not out_of_memory(error):
            raise
        advice = "set gradient_checkpointing: true, or a smaller batch_size"  # the others wait for this one
        raise InputError(f"out of memory with {plan} in each process: {advice}") from None
    finally:
        accelerator.free_memory()  # it keeps the optimizer, and with it weights, gradients and momentum
    part = min(state.plan.micro_batch_size, math.ceil(settings.batch_size / accelerator.num_processes))
    memory = {
        "batch_size": settings.batch_size,
        "micro_batch_size": part,
        "processes": accelerator.num_processes,
        "gradient_checkpointing": state.plan.gradient_checkpointing,
        "memory_format": format_name(state.model),
        "predicted_peak_bytes": state.plan.peak_bytes,
        "note": f"batch norm saw {part} images at a time" if part < settings.batch_size else None,
    }
    return Trained(state.model, pd.DataFrame(state.rows), memory=memory)

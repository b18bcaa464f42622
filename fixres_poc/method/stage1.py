"""Stage 1: fine-tune the network at the train resolution; all its pairs share the checkpoint."""

import itertools
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import pandas as pd
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from pydantic import TypeAdapter
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import CHECKPOINT, file_digest, run_folder
from fixres_poc.config.settings import CONTROL, Adaptation, BatchNorm, TrainSettings, several
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.method.epochs import (
    Recipe,
    Saved,
    fine_tune,
    memory_facts,
    number_of_epochs,
    val_top1,
)
from fixres_poc.method.evaluation import choose_on_validation
from fixres_poc.method.linear_probe import head_started, ingredients, lasting
from fixres_poc.method.stage2 import Variant, adapt_best, tail_for
from fixres_poc.model import checkpoint, memory_plan
from fixres_poc.model.backbones import create
from fixres_poc.model.device import accelerator_for, out_of_memory, place
from fixres_poc.model.trunk import Tail

STATE = "training_{}.pt"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """What was chosen on validation for a train resolution, from what the settings list."""

    learning_rate: float  # of stage 1; 0 without stage 1, see `head_start: file`
    batch_norm: BatchNorm  # of stage 1, frozen or in train mode
    # of the controls, by adaptation
    adapt: dict[str, Variant] = field(default_factory=dict)


CHOICES = TypeAdapter(Choices)
STORED = ("seconds", "memory", "tried")
"""Fields of `Trained` that a checkpoint's record has as they are."""


@dataclass
class Trained:
    """A fine-tuned network.

    The history has one row per epoch: epoch (from 1; 0 alone where nothing is trained), steps (of
    the optimizer, so far), loss (mean over the epoch), val_top1 (at the train resolution),
    micro_batch_size (images that passed at once), seconds.
    """

    model: nn.Module  # in eval mode, on its device, with the weights of the last epoch
    history: pd.DataFrame
    choices: Choices
    # how a batch was made to fit, for metrics.json
    memory: dict[str, Any] = field(default_factory=dict)
    # by adaptation, adapted at the train resolution
    controls: dict[str, Tail] = field(default_factory=dict)
    # what was tried, in rows: "probe": penalties, "stage1": recipes, "stage2": variants of controls
    tried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    # "probe", "train" (the chosen recipe), "tuning", "adapt" (by adaptation)
    seconds: dict[str, Any] = field(default_factory=dict)
    digest: str | None = None  # SHA-256 of its checkpoint, once that was read or written

    @property
    def val_top1(self) -> float:
        """The validation accuracy after the last epoch."""
        return float(self.history["val_top1"].iloc[-1])

    @property
    def steps(self) -> int:
        """Steps of the optimizer."""
        return int(self.history["steps"].iloc[-1])


def train_or_load(
    settings: TrainSettings, data: ImageDataset, accelerator: Accelerator | None = None
) -> Trained:
    """The training of a train resolution and seed: from its checkpoint, else done now and kept.

    Controls that the checkpoint lacks are added to it.
    """
    accelerator = accelerator or accelerator_for(settings.precision)
    path = run_folder(settings.sweep, settings.run_name) / CHECKPOINT
    record = ingredients(settings, data)
    trained = None
    try:
        if path.is_file():
            trained = restore(path, record, settings, accelerator)
    except InputError as error:  # a checkpoint of other settings or images, or a damaged one
        log.warning("%s; training again", error)
    if trained is None or _lacking(trained, settings):
        trained = train_with_controls(settings, data, accelerator, trained)
        if accelerator.is_main_process:
            _keep(trained, path, record)
        accelerator.wait_for_everyone()
    return trained


def _keep(trained: Trained, path: Path, record: Mapping[str, Any]) -> None:
    """Write the checkpoint of a training, and remove what was kept of it after each epoch."""
    done = {key: getattr(trained, key) for key in STORED}
    done["history"] = trained.history.to_dict("list")
    done["choices"] = asdict(trained.choices)
    checkpoint.save(path, _modules(trained).state_dict(), {**record, **done})
    trained.digest = file_digest(path)
    for state in path.parent.glob(STATE.format("*")):
        state.unlink()


def _modules(trained: Trained) -> nn.ModuleDict:
    """The network and its controls, under the names that a checkpoint has for them."""
    controls = {CONTROL + name: tail for name, tail in trained.controls.items()}
    return nn.ModuleDict({"model": trained.model, **controls})


def load_training(settings: TrainSettings, data: ImageDataset, accelerator: Accelerator) -> Trained:
    """The training of a train resolution and seed, from the checkpoint that notebook 03 left.

    Raises:
        InputError: there is none, a damaged one, or one of other settings, images or code.
    """
    path = run_folder(settings.sweep, settings.run_name) / CHECKPOINT
    try:
        trained = restore(path, ingredients(settings, data), settings, accelerator)
        if lacking := _lacking(trained, settings):
            raise InputError(f"it has no control of {', '.join(lacking)}")
        return trained
    except InputError as error:
        raise InputError(
            f"training {settings.run_name}: {error}; run notebook 03_train with these parameters"
        ) from None


def _lacking(trained: Trained, settings: TrainSettings) -> list[Adaptation]:
    return [name for name in settings.adapted if name not in trained.controls]


def train_with_controls(
    settings: TrainSettings,
    data: ImageDataset,
    accelerator: Accelerator,
    trained: Trained | None = None,
) -> Trained:
    """Train with each recipe of the settings, keep what validation prefers, and adapt its controls.

    The recipe is that of the training `settings.tuned_by`, where that is named. Stage 2's rates are
    chosen by each training. To `trained`, if it is given, the controls that it lacks are added.
    """
    trained = trained or _stage_1(settings, data, accelerator)
    names, size = _lacking(trained, settings), settings.train_size
    done = adapt_best(trained.model, data, settings, size, names, accelerator)
    trained.controls |= done.tails
    trained.choices.adapt.update(done.choices)
    trained.tried.setdefault("stage2", []).extend(done.tried)
    trained.seconds.setdefault("adapt", {}).update(done.seconds)
    trained.seconds["tuning"] += done.tuning_s
    return trained


def _stage_1(settings: TrainSettings, data: ImageDataset, accelerator: Accelerator) -> Trained:
    """The best recipe's training, on its device; the network of a file as it is."""
    begun = time.perf_counter()
    start, probes = head_started(settings, data, accelerator)
    probe_s = time.perf_counter() - begun
    if settings.head_start == "file":
        trained = _as_it_is(cast(nn.Module, start), settings, data, accelerator)
    else:
        trained = _train_recipes(settings, data, accelerator, start)
        trained.model = place(trained.model, settings, accelerator)
    trained.tried["probe"], trained.seconds["probe"] = probes, probe_s
    return trained


def _as_it_is(
    model: nn.Module, settings: TrainSettings, data: ImageDataset, accelerator: Accelerator
) -> Trained:
    """A network that was trained elsewhere, in place of stage 1."""
    row = {"epoch": 0, "steps": 0, "loss": math.nan, "micro_batch_size": 0, "seconds": 0.0}
    row["val_top1"] = val_top1(model, settings, settings.train_size, data, accelerator)
    memory = {"batch_size": settings.batch_size, "micro_batch_size": 0, "out_of_memory": []}
    memory["note"] = "nothing was trained"
    norms: tuple[BatchNorm, ...] = several(settings.batch_norm)
    history, choices = pd.DataFrame([row]), Choices(0.0, norms[0])
    seconds = {"train": 0.0, "tuning": 0.0}
    return Trained(model, history, choices, memory, tried={"stage1": []}, seconds=seconds)


def _train_recipes(
    settings: TrainSettings, data: ImageDataset, accelerator: Accelerator, start: nn.Module | None
) -> Trained:
    """The best of the trainings with each rate and batch norm mode, smaller rates first."""
    lists = settings if settings.tuned_by is None else _choices_of(settings)
    folder = run_folder(settings.sweep, settings.run_name)
    if start is not None:
        start.cpu()  # a card holds one network at a time
    shared = {key: getattr(settings, key) for key in ("optimizer", "trunk_factor")}
    epochs, seconds = number_of_epochs(settings, data.counts()), []

    def trial(values: Mapping[str, Any]) -> tuple[float, Trained]:
        recipe = Recipe(settings.train_size, "train", epochs, **values, **shared)
        state = folder / STATE.format(f"{recipe.learning_rate:g}_{recipe.batch_norm}")
        trained = train(settings, recipe, data, accelerator, state, start)
        trained.model.cpu()
        seconds.append(float(trained.history["seconds"].sum()))
        return trained.val_top1, trained

    ways = itertools.product(sorted(several(lists.learning_rate)), several(lists.batch_norm))
    candidates = [{"learning_rate": rate, "batch_norm": norm} for rate, norm in ways]
    best, tried = choose_on_validation(candidates, trial)
    best.tried["stage1"] = tried
    own = float(best.history["seconds"].sum())
    best.seconds = {"train": own, "tuning": sum(seconds) - own}
    return best


def _choices_of(settings: TrainSettings) -> Choices:
    """What the training of the seed `tuned_by` has chosen."""
    first = settings.model_copy(update={"seed": settings.tuned_by, "tuned_by": None})
    path = run_folder(settings.sweep, first.run_name) / CHECKPOINT
    _, stored = checkpoint.load(path, {"settings": lasting(first)})
    return CHOICES.validate_python(stored["choices"])


def restore(
    path: Path, record: Mapping[str, Any], settings: TrainSettings, accelerator: Accelerator
) -> Trained:
    """A training from its checkpoint.

    Args:
        record: `classes`, and what else must agree with what the checkpoint was made from, see
            `ingredients`.

    Raises:
        InputError: no checkpoint, a damaged one, or one that differs.
    """
    tensors, stored = checkpoint.load(path, record)
    model = create(settings.backbone, len(record["classes"]), pretrained=False)
    model = place(model.eval(), settings, accelerator)
    choices = CHOICES.validate_python(stored["choices"])
    controls = {name: tail_for(model, name).requires_grad_(False).eval() for name in choices.adapt}
    known = {key: stored[key] for key in STORED} | {"digest": file_digest(path)}
    history = pd.DataFrame(stored["history"])
    trained = Trained(model, history, choices, controls=controls, **known)
    _modules(trained).load_state_dict(tensors)
    return trained


def train(
    settings: TrainSettings,
    recipe: Recipe,
    data: ImageDataset,
    accelerator: Accelerator,
    state_file: Path | None = None,
    start: nn.Module | None = None,
) -> Trained:
    """Fine-tune all weights, the same batch with fewer images at once whenever memory runs out.

    The plans of `memory_plan.step_plans` are tried in order. A killed training goes on from
    `state_file`, where its state is kept after each epoch. It starts with the weights of `start`,
    or with the pre-trained ones.

    Raises:
        InputError: not even one image at once fits, or of several processes one ran out of memory.
    """
    saved = Saved(state_file, ingredients(settings, data)) if state_file else None
    share = math.ceil(settings.batch_size / accelerator.num_processes)
    own = settings.model_copy(update={"batch_size": share})
    failures: list[str] = []
    budget = memory_plan.budget_bytes()
    for plan in memory_plan.step_plans(own, recipe.size, len(data.classes), budget):
        try:
            state = fine_tune(plan, recipe, settings, data, accelerator, saved, start)
            memory = memory_facts(state, settings, accelerator) | {"out_of_memory": failures}
            choices = Choices(recipe.learning_rate, recipe.batch_norm)
            return Trained(state.model, pd.DataFrame(state.rows), choices, memory)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        failures.append(f"out of memory with {plan}")
        log.warning(failures[-1])
        clear_device_cache(garbage_collection=True)
        if accelerator.num_processes > 1:  # the others wait for this one
            raise InputError(
                f"{failures[-1]} in each process: set gradient_checkpointing: true, or a smaller "
                "batch_size"
            )
    raise InputError(f"{failures[-1]}: not even one image fits into memory")

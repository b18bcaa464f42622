"""Stage 1: fine-tune the network at the train resolution. All pairs of it share the checkpoint."""

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
    """Choices on validation for a train resolution, among the values of the settings."""

    learning_rate: float  # of stage 1; 0 with `head_start: file`
    batch_norm: BatchNorm  # of stage 1, frozen or in train mode
    # of the controls, by adaptation
    adapt: dict[str, Variant] = field(default_factory=dict)


CHOICES = TypeAdapter(Choices)
STORED = ("seconds", "memory", "tried")
"""Fields of `Trained` that go into a checkpoint's record unchanged."""


@dataclass
class Trained:
    """A fine-tuned network.

    The history has one row per epoch: epoch (from 1; a single 0 if nothing is trained), steps (of
    the optimizer, so far), loss (mean over the epoch), val_top1 (at the train resolution),
    micro_batch_size (images at once), seconds.
    """

    model: nn.Module  # in eval mode, on its device, with the weights of the last epoch
    history: pd.DataFrame
    choices: Choices
    # of `epochs.memory_facts`, and the failed plans
    memory: dict[str, Any] = field(default_factory=dict)
    # by adaptation, adapted at the train resolution
    controls: dict[str, Tail] = field(default_factory=dict)
    # rows of candidates: "probe": penalties, "stage1": recipes, "stage2": variants of controls
    tried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    # "probe", "train" (the chosen recipe), "tuning", "adapt" (by adaptation)
    seconds: dict[str, Any] = field(default_factory=dict)
    digest: str | None = None  # SHA-256 of its checkpoint, once read or written

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
    """Load the training of a train resolution and seed from its checkpoint, or train and save it.

    Controls that the checkpoint lacks are added to it.
    """
    accelerator = accelerator or accelerator_for(settings.precision)
    path = run_folder(settings.sweep, settings.run_name) / CHECKPOINT
    record = ingredients(settings, data)
    trained = None
    try:
        if path.is_file():
            trained = restore(path, record, settings, accelerator)
    except InputError as error:  # damaged, or of other settings or images
        log.warning("%s; training again", error)
    if trained is None or _lacking(trained, settings):
        trained = train_with_controls(settings, data, accelerator, trained)
        if accelerator.is_main_process:
            _keep(trained, path, record)
        accelerator.wait_for_everyone()
    return trained


def _keep(trained: Trained, path: Path, record: Mapping[str, Any]) -> None:
    """Write the checkpoint of a training, and remove its states after single epochs."""
    fields = {key: getattr(trained, key) for key in STORED}
    fields["history"] = trained.history.to_dict("list")
    fields["choices"] = asdict(trained.choices)
    checkpoint.save(path, _modules(trained).state_dict(), {**record, **fields})
    trained.digest = file_digest(path)
    for state in path.parent.glob(STATE.format("*")):
        state.unlink()


def _modules(trained: Trained) -> nn.ModuleDict:
    """The network and its controls, under their names in a checkpoint."""
    controls = {CONTROL + name: tail for name, tail in trained.controls.items()}
    return nn.ModuleDict({"model": trained.model, **controls})


def load_training(settings: TrainSettings, data: ImageDataset, accelerator: Accelerator) -> Trained:
    """Load the training of a train resolution and seed from the checkpoint of notebook 03.

    Raises:
        InputError: the checkpoint is absent, damaged, or of other settings, images or code.
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
    """Train with each recipe of the settings, keep the best on validation, and adapt its controls.

    With `settings.tuned_by` the recipe is the one of that training. Each training chooses stage 2's
    rates for itself.

    Args:
        trained: add only the controls that this training lacks.
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
    """The training with the best recipe, on its device; or the network of `head_start: file`."""
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
    choices = Choices(0.0, norms[0])
    seconds = {"train": 0.0, "tuning": 0.0}
    history = pd.DataFrame([row])
    return Trained(model, history, choices, memory, tried={"stage1": []}, seconds=seconds)


def _train_recipes(
    settings: TrainSettings, data: ImageDataset, accelerator: Accelerator, start: nn.Module | None
) -> Trained:
    """The best of the trainings with each rate and batch norm mode, smaller rates first."""
    values = settings if settings.tuned_by is None else _choices_of_tuning(settings)
    folder = run_folder(settings.sweep, settings.run_name)
    if start is not None:
        start.cpu()  # a GPU holds one network at a time
    epochs = number_of_epochs(settings, data.counts())
    shared = {key: getattr(settings, key) for key in ("optimizer", "trunk_factor")}
    seconds = []

    def trial(candidate: Mapping[str, Any]) -> tuple[float, Trained]:
        recipe = Recipe(settings.train_size, "train", epochs, **candidate, **shared)
        state = folder / STATE.format(f"{recipe.learning_rate:g}_{recipe.batch_norm}")
        trained = train(settings, recipe, data, accelerator, state, start)
        trained.model.cpu()
        seconds.append(float(trained.history["seconds"].sum()))
        return trained.val_top1, trained

    candidates = [
        {"learning_rate": rate, "batch_norm": norm}
        for rate in sorted(several(values.learning_rate))
        for norm in several(values.batch_norm)
    ]
    best, tried = choose_on_validation(candidates, trial)
    best.tried["stage1"] = tried
    best_s = float(best.history["seconds"].sum())
    best.seconds = {"train": best_s, "tuning": sum(seconds) - best_s}
    return best


def _choices_of_tuning(settings: TrainSettings) -> Choices:
    """The choices of the training with the seed `tuned_by`."""
    tuning = settings.model_copy(update={"seed": settings.tuned_by, "tuned_by": None})
    path = run_folder(settings.sweep, tuning.run_name) / CHECKPOINT
    _, stored = checkpoint.load(path, {"settings": lasting(tuning)})
    return CHOICES.validate_python(stored["choices"])


def restore(
    path: Path, record: Mapping[str, Any], settings: TrainSettings, accelerator: Accelerator
) -> Trained:
    """A training from its checkpoint.

    Args:
        record: `classes`, and other entries of `ingredients` that must agree with the checkpoint's.

    Raises:
        InputError: the checkpoint is absent or damaged, or its record differs.
    """
    tensors, stored = checkpoint.load(path, record)
    model = create(settings.backbone, len(record["classes"]), pretrained=False)
    model = place(model.eval(), settings, accelerator)
    choices = CHOICES.validate_python(stored["choices"])
    controls = {name: tail_for(model, name).requires_grad_(False).eval() for name in choices.adapt}
    fields = {key: stored[key] for key in STORED} | {"digest": file_digest(path)}
    history = pd.DataFrame(stored["history"])
    trained = Trained(model, history, choices, controls=controls, **fields)
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
    """Fine-tune all weights, with fewer images of a batch at once whenever memory runs out.

    The plans of `memory_plan.step_plans` are tried in order.

    Args:
        state_file: keeps the state after each epoch; a killed training resumes from it.
        start: see `epochs.begin`.

    Raises:
        InputError: a single image does not fit, or one of several processes ran out of memory.
    """
    saved = Saved(state_file, ingredients(settings, data)) if state_file else None
    share = math.ceil(settings.batch_size / accelerator.num_processes)
    of_process = settings.model_copy(update={"batch_size": share})
    failures: list[str] = []
    budget = memory_plan.budget_bytes()
    for plan in memory_plan.step_plans(of_process, recipe.size, len(data.classes), budget):
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

"""Stage 2 of one pair of sizes: all adaptations of the settings, and their predictions.

Besides the tails of `stage2` and their controls, which the training run adapts at the train
resolution, there are: `none`; `equalised`, which maps the activations back without training; and
`full`, the upper reference, which fine-tunes all weights at the test resolution with stage 2's
framing, and epochs and rate of `head_bn` (without it, the first ones listed).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.geometry import usual_crop_pct
from fixres_poc.config.settings import CONTROL, PairSettings
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.method import equalise, stage2
from fixres_poc.method.epochs import Recipe
from fixres_poc.method.evaluation import Predictions, framings, predict
from fixres_poc.method.stage1 import Trained, train
from fixres_poc.model import checkpoint
from fixres_poc.model.device import now
from fixres_poc.model.trunk import Tail

TAILS = "adapted_{:g}.safetensors"


@dataclass
class AdaptedPair(stage2.AdaptedTails):
    """All adaptations of a pair.

    Attributes:
        tails: by adaptation, in the settings' order, then controls; all but `full` on the trunk of
            stage 1.
        tried: empty at test = train, where the training has it.
        full: the network of `full`.
        activations: from `equalise.distributions`, for `equalised`.
    """

    full: nn.Module | None = None
    activations: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def on_stage_1(self) -> dict[str, Tail]:
        """The tails whose trunk is that of stage 1."""
        return {name: tail for name, tail in self.tails.items() if name != "full"}

    def entering(self) -> pd.DataFrame:
        """The `equalise.summary` of what enters the classifier; empty without `equalised`."""
        return equalise.summary(self.activations) if self.activations else pd.DataFrame()


def adapt_framings(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> tuple[dict[float, AdaptedPair], str]:
    """`adapt_pair` in each framing of `evaluation.framings`, by crop_pct, and that function's line.

    Each tail and each control is adapted in the framing that it is tested in.
    """
    framed, left_out = framings(settings, data, settings.test_size)
    model, size = trained.model, settings.train_size
    pairs = dict[float, AdaptedPair]()
    for crop_pct, framing in framed.items():
        if pairs:  # the training has the controls of the usual framing, which comes first
            done = stage2.adapt_best(model, data, framing, size, framing.adapted, accelerator)
            choices = replace(trained.choices, adapt=done.choices)
            seconds = {"adapt": done.seconds}
            trained = replace(trained, controls=done.tails, choices=choices, seconds=seconds)
        pairs[crop_pct] = adapt_pair(trained, data, framing, accelerator)
    return pairs, left_out


def adapt_pair(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> AdaptedPair:
    """Every adaptation of a pair's settings.

    Raises:
        InputError: an adaptation that the network cannot have.
    """
    model = trained.model
    size = settings.test_size
    wanted = list[str](settings.adaptations)
    if size == settings.train_size:  # controls have the same steps from the same random state
        seconds = dict(trained.seconds["adapt"])
        adapted = AdaptedPair(dict(trained.controls), seconds, trained.choices.adapt)
    else:
        done = stage2.adapt_best(model, data, settings, size, settings.adapted, accelerator)
        adapted = AdaptedPair(**vars(done))
        adapted.tails |= {CONTROL + name: tail for name, tail in trained.controls.items()}
        wanted += [CONTROL + name for name in settings.adapted]
    adapted.tails["none"] = Tail(model)
    if "equalised" in wanted:
        start = now(accelerator)
        adapted.activations = equalise.distributions(model, data, settings, accelerator)
        in_training, *_, in_test = adapted.activations.values()
        adapted.tails["equalised"] = equalise.equalise(model, in_training, in_test)
        adapted.seconds["equalised"] = now(accelerator) - start
    if "full" in wanted:
        chosen = adapted.choices.get("head_bn")
        variant = chosen or stage2.Variant("head_bn", **settings.grid("head_bn")[0])
        norm = trained.choices.batch_norm
        recipe = Recipe(size, "val_train", variant.epochs, variant.learning_rate, norm)
        full = train(settings.train_settings(), recipe, data, accelerator, start=model)
        adapted.full, adapted.tails["full"] = full.model, Tail(full.model)
        adapted.seconds["full"] = float(full.history["seconds"].sum())
    adapted.tails = {name: adapted.tails[name].eval() for name in wanted}
    return adapted


@dataclass(frozen=True)
class PairPredictions:
    """Predictions of all adaptations of a pair.

    Attributes:
        table: one row per image, adaptation and view, of val and test parts; columns as in
            `evaluation.Predictions`.
        seconds: in all.
        images_per_second: on "test", by view; all adaptations of one trunk together.
        at_once: images in the network at once, as in `evaluation.Predictions`.
    """

    table: pd.DataFrame
    seconds: float
    images_per_second: dict[str, float]
    at_once: int


def predict_pair(
    model: nn.Module,
    adapted: AdaptedPair,
    data: ImageDataset,
    settings: PairSettings,
    accelerator: Accelerator,
) -> PairPredictions:
    """Classify val and every test part at the test resolution, in every adaptation and view."""
    networks = [(model, adapted.on_stage_1)] if adapted.on_stage_1 else []
    if adapted.full is not None:
        networks.append((adapted.full, {"full": adapted.tails["full"]}))
    splits = ["val", *data.test_parts[1:], "test"]  # the last one gives the speed
    size = settings.test_size
    done: list[Predictions] = []
    speed: dict[str, float] = {}
    for view, (network, tails) in itertools.product(settings.views, networks):
        for split in splits:
            done.append(predict(network, tails, data, split, settings, size, accelerator, view))
        speed.setdefault(view, done[-1].images_per_second)
    return PairPredictions(
        pd.concat([predictions.table for predictions in done], ignore_index=True),
        sum(predictions.seconds for predictions in done),
        speed,
        min(predictions.at_once for predictions in done),
    )


def adaptation_costs(model: nn.Module, adapted: AdaptedPair) -> pd.DataFrame:
    """Cost of each adaptation alone, and how far it moves the last batch norm's weights.

    Returns:
        Columns adaptation, learning_rate, affine_factor and epochs (as chosen; nan if nothing is
        trained), seconds and moved (see `stage2.moved`), without the controls, which cost nothing
        here.
    """
    rows = []
    for name, tail in adapted.tails.items():
        if not name.startswith(CONTROL):
            chosen = vars(adapted.choices[name]) if name in adapted.choices else {}
            seconds = adapted.seconds.get(name, 0.0)
            moved = stage2.moved(model, tail)
            rows.append({**chosen, "adaptation": name, "seconds": seconds, "moved": moved})
    names = ("adaptation", "learning_rate", "affine_factor", "epochs", "seconds", "moved")
    return pd.DataFrame(rows, columns=names)


def changed_tensors(model: nn.Module, tail: Tail) -> list[str]:
    """Names of a tail's parameters and buffers that differ from the model's, or are new."""
    before = Tail(model).state_dict()
    return [
        name
        for name, value in tail.state_dict().items()
        if name not in before or not torch.equal(value, before[name])
    ]


def save_tails(
    adapted: AdaptedPair,
    model: nn.Module,
    folder: Path,
    settings: PairSettings,
    classes: Sequence[str],
) -> None:
    """Write the tails of a pair in one framing, but for `full`, to adapted_<crop_pct>.safetensors.

    Tensors are named `<adaptation>.<parameter>`. The record has settings, classes and the digest of
    the network of stage 1, whose trunk the tails belong to.
    """
    record: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "classes": list(classes),
        "tails": list(adapted.on_stage_1),
        "stage1": checkpoint.digest(model.state_dict()),
    }
    name = TAILS.format(usual_crop_pct(settings.crop_pct))
    checkpoint.save(folder / name, nn.ModuleDict(adapted.on_stage_1).state_dict(), record)

"""Stage 2 of one pair of sizes: all adaptations that are asked for, and how each classifies.

Besides the tails of `stage2` and their controls, adapted by the training run at the train
resolution, there are: `none`; `equalised`, which maps the activations back without training; and
`full`, the upper reference, all weights fine-tuned at the test resolution with stage 2's framing,
and epochs and rate of `head_bn` (without it, the first ones listed).
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
    """What the adaptations of a pair give.

    Attributes:
        tails: by adaptation, in the settings' order, then controls; on the trunk of stage 1, but
            `full`.
        tried: at test = train the training has it.
        full: the network of `full`.
        activations: of `equalise.distributions`, for `equalised`.
    """

    full: nn.Module | None = None
    activations: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def on_stage_1(self) -> dict[str, Tail]:
        """The tails whose trunk is that of stage 1."""
        return {name: tail for name, tail in self.tails.items() if name != "full"}

    def entering(self) -> pd.DataFrame:
        """What enters the classifier, see `equalise.summary`; empty without `equalised`."""
        return equalise.summary(self.activations) if self.activations else pd.DataFrame()


def adapt_framings(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> tuple[dict[float, AdaptedPair], str]:
    """`adapt_pair` in each framing of `evaluation.framings`, by crop_pct; its line on the others.

    Each tail is adapted in the framing that it is tested in, and so is each control.
    """
    framed, left_out = framings(settings, data, settings.test_size)
    found = dict[float, AdaptedPair]()
    for value, own in framed.items():
        if found:  # the training has the controls of the usual framing, which comes first
            size = own.train_size
            done = stage2.adapt_best(trained.model, data, own, size, own.adapted, accelerator)
            choices = replace(trained.choices, adapt=done.choices)
            seconds = {"adapt": done.seconds}
            trained = replace(trained, controls=done.tails, choices=choices, seconds=seconds)
        found[value] = adapt_pair(trained, data, own, accelerator)
    return found, left_out


def adapt_pair(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> AdaptedPair:
    """Every adaptation that a pair asks for.

    Raises:
        InputError: an adaptation that the network cannot have.
    """
    model, size, wanted = trained.model, settings.test_size, list[str](settings.adaptations)
    if size == settings.train_size:  # the same steps from the same random state as the controls
        seconds, choices = trained.seconds["adapt"], trained.choices.adapt
        adapted = AdaptedPair(dict(trained.controls), dict(seconds), choices)
    else:
        done = stage2.adapt_best(model, data, settings, size, settings.adapted, accelerator)
        adapted = AdaptedPair(**vars(done))
        adapted.tails |= {CONTROL + name: tail for name, tail in trained.controls.items()}
        wanted += [CONTROL + name for name in settings.adapted]
    adapted.tails["none"] = Tail(model)
    if "equalised" in wanted:
        start = now(accelerator)
        adapted.activations = equalise.distributions(model, data, settings, accelerator)
        # two where test resolution = train resolution
        seen, *_, given = adapted.activations.values()
        adapted.tails["equalised"] = equalise.equalise(model, seen, given)
        adapted.seconds["equalised"] = now(accelerator) - start
    if "full" in wanted:
        way = adapted.choices.get("head_bn") or stage2.Variant(
            "head_bn", **settings.grid("head_bn")[0]
        )
        norm = trained.choices.batch_norm
        recipe = Recipe(size, "val_train", way.epochs, way.learning_rate, norm)
        full = train(settings.train_settings(), recipe, data, accelerator, start=model)
        adapted.full, adapted.tails["full"] = full.model, Tail(full.model)
        adapted.seconds["full"] = float(full.history["seconds"].sum())
    adapted.tails = {name: adapted.tails[name].eval() for name in wanted}
    return adapted


@dataclass(frozen=True)
class PairPredictions:
    """What `predict_pair` gives.

    Attributes:
        table: one row per image, adaptation and view (see `evaluation.Predictions`), of val and
            test parts.
        seconds: for all of it.
        images_per_second: of test images by view, all adaptations of one trunk together.
        at_once: images that passed at once, as in `evaluation.Predictions`.
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
    parts = ["val", *data.test_parts[1:], "test"]  # the last one gives the speed
    size = settings.test_size
    found: list[Predictions] = []
    speed: dict[str, float] = {}
    for view, (network, tails) in itertools.product(settings.views, networks):
        for split in parts:
            found.append(predict(network, tails, data, split, settings, size, accelerator, view))
        speed.setdefault(view, found[-1].images_per_second)
    return PairPredictions(
        pd.concat([each.table for each in found], ignore_index=True),
        sum(each.seconds for each in found),
        speed,
        min(each.at_once for each in found),
    )


def adaptation_costs(model: nn.Module, adapted: AdaptedPair) -> pd.DataFrame:
    """What each adaptation costs, done alone, and how far it moves the last batch norm's weights.

    Returns:
        Columns adaptation, learning_rate, affine_factor and epochs (as chosen; nan where nothing is
        trained), seconds and moved (see `stage2.moved`). Controls, which cost nothing here, are
        left out.
    """
    rows = [
        {
            "adaptation": name,
            **(vars(adapted.choices[name]) if name in adapted.choices else {}),
            "seconds": adapted.seconds.get(name, 0.0),
            "moved": stage2.moved(model, tail),
        }
        for name, tail in adapted.tails.items()
        if not name.startswith(CONTROL)
    ]
    names = ("adaptation", "learning_rate", "affine_factor", "epochs", "seconds", "moved")
    return pd.DataFrame(rows, columns=names)


def changed_tensors(model: nn.Module, tail: Tail) -> list[str]:
    """Names of a tail's parameters and buffers that differ from the model's, or are new."""
    own = Tail(model).state_dict()
    return [
        name
        for name, value in tail.state_dict().items()
        if name not in own or not torch.equal(value, own[name])
    ]


def save_tails(
    adapted: AdaptedPair,
    model: nn.Module,
    folder: Path,
    settings: PairSettings,
    classes: Sequence[str],
) -> None:
    """Keep the tails of a pair in one framing, as `<adaptation>.<parameter>`; not that of `full`.

    The file is `adapted_<crop_pct>.safetensors`. With them go settings, classes and the digest of
    the network of stage 1, whose trunk they belong to.
    """
    record: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "classes": list(classes),
        "tails": list(adapted.on_stage_1),
        "stage1": checkpoint.digest(model.state_dict()),
    }
    name = TAILS.format(usual_crop_pct(settings.crop_pct))
    checkpoint.save(folder / name, nn.ModuleDict(adapted.on_stage_1).state_dict(), record)

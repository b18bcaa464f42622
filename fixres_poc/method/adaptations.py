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

    full: Trained | None = None
    activations: dict[str, np.ndarray] = field(default_factory=dict)

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
        start = _with_controls(trained, data, own, accelerator) if found else trained
        found[value] = adapt_pair(start, data, own, accelerator)
    return found, left_out


def _with_controls(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> Trained:
    """The training with controls adapted in another framing than its own."""
    size, names = settings.train_size, settings.adapted
    done = stage2.adapt_best(trained.model, data, settings, size, names, accelerator)
    choices = replace(trained.choices, adapt=done.choices)
    seconds = {"adapt": done.seconds}
    return replace(trained, controls=done.tails, choices=choices, seconds=seconds)


def adapt_pair(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> AdaptedPair:
    """Every adaptation that a pair asks for.

    Raises:
        InputError: an adaptation that the network cannot have.
    """
    model, wanted = trained.model, list[str](settings.adaptations)
    adapted = _adapt_tails(trained, data, settings, accelerator)
    adapted.tails["none"] = Tail(model)
    if "equalised" in wanted:
        start = now(accelerator)
        adapted.activations = equalise.distributions(model, data, settings, accelerator)
        # two where test resolution = train resolution
        framings = list(adapted.activations.values())
        adapted.tails["equalised"] = equalise.equalise(model, framings[0], framings[-1])
        adapted.seconds["equalised"] = now(accelerator) - start
    if "full" in wanted:
        adapted.full = _fine_tune_fully(trained, adapted, data, settings, accelerator)
        adapted.tails["full"] = Tail(adapted.full.model)
        adapted.seconds["full"] = float(adapted.full.history["seconds"].sum())
    if settings.test_size != settings.train_size:  # there the two are one
        wanted += [CONTROL + name for name in settings.adapted]
    adapted.tails = {name: adapted.tails[name].eval() for name in wanted}
    return adapted


def _adapt_tails(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> AdaptedPair:
    """The adaptations that train a tail, and their controls."""
    size = settings.test_size
    if size == settings.train_size:  # the same steps from the same random state
        names: list[str] = list(settings.adapted)
        seconds = {name: trained.seconds["adapt"][name] for name in names}
        choices = {name: trained.choices.adapt[name] for name in names}
        return AdaptedPair(dict(trained.controls), seconds, choices)
    done = stage2.adapt_best(trained.model, data, settings, size, settings.adapted, accelerator)
    done.tails |= {CONTROL + name: tail for name, tail in trained.controls.items()}
    return AdaptedPair(**vars(done))


def _fine_tune_fully(
    trained: Trained,
    adapted: AdaptedPair,
    data: ImageDataset,
    settings: PairSettings,
    accelerator: Accelerator,
) -> Trained:
    first = stage2.Variant("head_bn", **settings.grid("head_bn")[0])
    like = adapted.choices.get("head_bn", first)
    recipe = Recipe(
        settings.test_size, "val_train", like.epochs, like.learning_rate, trained.choices.batch_norm
    )
    return train(settings.train_settings(), recipe, data, accelerator, start=trained.model)


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
    of_stage_1 = {name: tail for name, tail in adapted.tails.items() if name != "full"}
    networks = [(model, of_stage_1)] if of_stage_1 else []
    if adapted.full is not None:
        networks.append((adapted.full.model, {"full": adapted.tails["full"]}))
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
    rows = []
    for name in [each for each in adapted.tails if not each.startswith(CONTROL)]:
        chosen = vars(adapted.choices[name]) if name in adapted.choices else {"adaptation": name}
        known = {
            "seconds": adapted.seconds.get(name, 0.0),
            "moved": stage2.moved(model, adapted.tails[name]),
        }
        rows.append({**chosen, **known})
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
    """Keep all tails of a pair in one framing, as `<adaptation>.<parameter>`.

    The file is `adapted_<crop_pct>.safetensors`. With them go settings, classes and the digest of
    the network of stage 1, whose trunk they belong to.
    """
    tensors = {
        f"{name}.{key}": value
        for name, tail in adapted.tails.items()
        for key, value in tail.state_dict().items()
    }
    record: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "classes": list(classes),
        # that one's network is not kept
        "tails": [name for name in adapted.tails if name != "full"],
        "stage1": checkpoint.digest(model.state_dict()),
    }
    name = TAILS.format(usual_crop_pct(settings.crop_pct))
    checkpoint.save(folder / name, tensors, record)

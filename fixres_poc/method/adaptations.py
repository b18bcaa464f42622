"""Stage 2 of one pair of sizes: every adaptation that is asked for, and how each of them classifies.

Besides the tails of `stage2` and their controls, adapted by the training run at the train
resolution, there are: `none`; `equalised`, which maps the activations back without training; and
`full`, the upper reference, all weights fine-tuned at the test resolution with stage 2's framing,
and epochs and rate of `head_bn`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import ADAPTED, CONTROL, PairSettings
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.method import stage2
from fixres_poc.method.epochs import Recipe
from fixres_poc.method.evaluation import Predictions, predict
from fixres_poc.method.stage1 import Choices, Trained, train
from fixres_poc.method.stage2 import AdaptedTails, Variant, adapt_tails
from fixres_poc.model import checkpoint
from fixres_poc.model.device import now
from fixres_poc.model.trunk import Tail


@dataclass
class AdaptedPair:
    """What the adaptations of a pair give."""

    # by adaptation, in the settings' order, then controls; on the trunk of stage 1, but `full`
    tails: dict[str, Tail]
    # what each would have cost alone; `none` and controls cost nothing here
    seconds: dict[str, float]
    full: Trained | None = None  # the network of `full`
    # from `stage2.distributions`, for `equalised`
    activations: dict[str, np.ndarray] = field(default_factory=dict)

    def entering(self) -> pd.DataFrame:
        """What enters the classifier, see `stage2.summary`; empty without `equalised`."""
        return stage2.summary(self.activations) if self.activations else pd.DataFrame()


def adapt_pair(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> AdaptedPair:
    """Every adaptation that a pair asks for.

    Raises:
        InputError: an adaptation that the network cannot have.
    """
    model, wanted, size = trained.model, settings.adaptations, settings.test_size
    choices = cast(Choices, trained.choices)
    variants = choices.adapt
    own: dict[str, Variant] = {name: variants[name] for name in wanted if name in variants}
    if lacking := [name for name in wanted if name in ADAPTED and name not in variants]:
        raise InputError(
            f"adaptation {lacking[0]!r}: the last batch norm is not known; use 'none' or 'head'"
        )
    if size == settings.train_size:  # the same steps from the same random state
        done = AdaptedTails(
            {name: trained.controls[name] for name in own}, dict(trained.seconds["adapt"])
        )
        controls: dict[str, Tail] = {}
    else:
        done = adapt_tails(model, data, settings, size, own, accelerator)
        controls = {CONTROL + name: trained.controls[name] for name in own}
    tails: dict[str, Tail] = {"none": Tail(model), **done.tails}
    seconds: dict[str, float] = {name: done.seconds[name] for name in own}
    adapted = AdaptedPair(tails, seconds)
    if "equalised" in wanted:
        start = now(accelerator)
        adapted.activations = stage2.distributions(model, data, settings, accelerator)
        # two where test resolution = train resolution
        framings = list(adapted.activations.values())
        tails["equalised"] = stage2.equalise(model, framings[0], framings[-1])
        seconds["equalised"] = now(accelerator) - start
    if "full" in wanted:
        like = variants.get("head_bn", variants["head"])
        recipe = Recipe(size, "val_train", like.epochs, like.learning_rate, choices.batch_norm)
        adapted.full = train(settings.train_settings(), recipe, data, accelerator, start=model)
        tails["full"], seconds["full"] = (
            Tail(adapted.full.model),
            float(adapted.full.history["seconds"].sum()),
        )
    adapted.tails = {name: tails[name].eval() for name in wanted} | controls
    return adapted


@dataclass(frozen=True)
class PairPredictions:
    """What `predict_pair` gives."""

    # one row per image, adaptation and view (see `evaluation.Predictions`), of val and test parts
    table: pd.DataFrame
    seconds: float  # for all of it
    # of test images by view, all adaptations of one trunk together
    images_per_second: dict[str, float]
    at_once: int  # images that passed at once, as in `evaluation.Predictions`


def predict_pair(
    model: nn.Module,
    adapted: AdaptedPair,
    data: ImageDataset,
    settings: PairSettings,
    accelerator: Accelerator,
) -> PairPredictions:
    """Classify val and every test part at the test resolution, with every adaptation and view of the settings."""
    of_stage_1 = {name: tail for name, tail in adapted.tails.items() if name != "full"}
    networks = [(model, of_stage_1)] if of_stage_1 else []
    if adapted.full is not None:
        networks.append((adapted.full.model, {"full": adapted.tails["full"]}))
    parts = ["val", *data.test_parts[1:], "test"]  # the last one gives the speed
    common, found, speed = (
        (settings, settings.test_size, accelerator),
        list[Predictions](),
        dict[str, float](),
    )
    for view, (network, tails) in itertools.product(settings.views, networks):
        found += [predict(network, tails, data, split, *common, view) for split in parts]
        speed.setdefault(view, found[-1].images_per_second)
    table = pd.concat([each.table for each in found], ignore_index=True)
    return PairPredictions(
        table, sum(each.seconds for each in found), speed, min(each.at_once for each in found)
    )


def costs(trained: Trained, adapted: AdaptedPair) -> pd.DataFrame:
    """What each adaptation costs, done alone.

    Returns:
        Columns adaptation, learning_rate and epochs (as chosen; nan where nothing is trained) and
        seconds. Controls, which cost nothing here, are left out.
    """
    rows = []
    for name in [each for each in adapted.tails if not each.startswith(CONTROL)]:
        way = cast(Choices, trained.choices).adapt.get(name)
        how = {"learning_rate": way.learning_rate, "epochs": way.epochs} if way else {}
        rows.append({"adaptation": name, **how, "seconds": adapted.seconds.get(name, 0.0)})
    return pd.DataFrame(rows, columns=["adaptation", "learning_rate", "epochs", "seconds"])


def changed(model: nn.Module, tail: Tail) -> list[str]:
    """Names of the parameters and buffers of a tail that differ from the model's, or that it does not have."""
    own = Tail(model).state_dict()
    return [
        name
        for name, value in tail.state_dict().items()
        if name not in own or not torch.equal(value, own[name])
    ]


@torch.no_grad()
def moved(model: nn.Module, adapted: AdaptedPair) -> dict[str, float]:
    """How far each adaptation moved the affine weights of the last batch norm: |change| / |weights|, by adaptation."""
    own = Tail(model).norm
    if own is None:
        return {}
    before, found = torch.cat([own.weight, own.bias]), dict[str, float]()
    for name, tail in adapted.tails.items():
        after = torch.cat(
            [cast(nn.BatchNorm2d, tail.norm).weight, cast(nn.BatchNorm2d, tail.norm).bias]
        )
        found[name] = float((after - before).norm() / before.norm())
    return found


def save(
    adapted: AdaptedPair,
    model: nn.Module,
    folder: Path,
    settings: PairSettings,
    classes: Sequence[str],
) -> None:
    """Keep all tails of a pair in `adapted.safetensors`, as `<adaptation>.<parameter>`.

    With them go settings, classes and the digest of the network of stage 1, whose trunk they belong
    to.
    """
    tensors = {
        f"{name}.{key}": value
        for name, tail in adapted.tails.items()
        for key, value in tail.state_dict().items()
    }
    record: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "classes": list(classes),
    }
    # that one's network is not kept
    record["tails"] = [name for name in adapted.tails if name != "full"]
    record["stage1"] = checkpoint.digest(model.state_dict())
    checkpoint.save(folder / "adapted.safetensors", tensors, record)

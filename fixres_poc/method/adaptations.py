"""Stage 2 of one pair of sizes: all adaptations that are asked for, and how each classifies.

Besides the tails of `stage2` and their controls, adapted by the training run at the train
resolution, there are: `none`; `equalised`, which maps the activations back without training; and
`full`, the upper reference, all weights fine-tuned at the test resolution with stage 2's framing,
and epochs and rate of `head_bn`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.geometry import usual_crop_pct
from fixres_poc.config.settings import ADAPTED, CONTROL, PairSettings
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.method import stage2
from fixres_poc.method.epochs import Recipe
from fixres_poc.method.evaluation import Predictions, framings, predict
from fixres_poc.method.stage1 import Trained, train
from fixres_poc.model import checkpoint
from fixres_poc.model.device import now
from fixres_poc.model.trunk import Tail

TAILS = "adapted_{:g}.safetensors"


@dataclass
class AdaptedPair:
    """What the adaptations of a pair give.

    Attributes:
        tails: by adaptation, in the settings' order, then controls; on the trunk of stage 1, but
            `full`.
        seconds: what each would have cost alone; `none` and controls cost nothing here.
        full: the network of `full`.
        activations: of `stage2.distributions`, for `equalised`.
    """

    tails: dict[str, Tail]
    seconds: dict[str, float]
    full: Trained | None = None
    activations: dict[str, np.ndarray] = field(default_factory=dict)

    def entering(self) -> pd.DataFrame:
        """What enters the classifier, see `stage2.summary`; empty without `equalised`."""
        return stage2.summary(self.activations) if self.activations else pd.DataFrame()


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
    every = trained.choices.adapt.items()
    own = {str(name): each for name, each in every if name in settings.adaptations}
    size = settings.train_size
    done = stage2.adapt_tails(trained.model, data, settings, size, own, accelerator)
    return replace(trained, controls=done.tails, seconds={"adapt": done.seconds})


def adapt_pair(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> AdaptedPair:
    """Every adaptation that a pair asks for.

    Raises:
        InputError: an adaptation that the network cannot have.
    """
    model, wanted = trained.model, settings.adaptations
    adapted, controls = _adapt_tails(trained, data, settings, accelerator)
    adapted.tails["none"] = Tail(model)
    if "equalised" in wanted:
        start = now(accelerator)
        adapted.activations = stage2.distributions(model, data, settings, accelerator)
        # two where test resolution = train resolution
        framings = list(adapted.activations.values())
        adapted.tails["equalised"] = stage2.equalise(model, framings[0], framings[-1])
        adapted.seconds["equalised"] = now(accelerator) - start
    if "full" in wanted:
        adapted.full = _fine_tune_fully(trained, data, settings, accelerator)
        adapted.tails["full"] = Tail(adapted.full.model)
        adapted.seconds["full"] = float(adapted.full.history["seconds"].sum())
    adapted.tails = {name: adapted.tails[name].eval() for name in wanted} | controls
    return adapted


def _adapt_tails(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> tuple[AdaptedPair, dict[str, Tail]]:
    """The adaptations that train a tail, and their controls."""
    variants = trained.choices.adapt
    names: list[str] = [name for name in settings.adaptations if name in ADAPTED]
    for name in names:
        if name not in variants:
            raise InputError(
                f"adaptation {name!r}: the last batch norm is not known; use 'none' or 'head'"
            )
    controls = {name: trained.controls[name] for name in names}
    if settings.test_size == settings.train_size:  # the same steps from the same random state
        seconds = trained.seconds["adapt"]
        return AdaptedPair(controls, {name: seconds[name] for name in names}), {}
    own = {name: variants[name] for name in names}
    done = stage2.adapt_tails(trained.model, data, settings, settings.test_size, own, accelerator)
    named = {CONTROL + name: tail for name, tail in controls.items()}
    return AdaptedPair(done.tails, done.seconds), named


def _fine_tune_fully(
    trained: Trained, data: ImageDataset, settings: PairSettings, accelerator: Accelerator
) -> Trained:
    choices = trained.choices
    like = choices.adapt.get("head_bn", choices.adapt["head"])
    recipe = Recipe(
        settings.test_size, "val_train", like.epochs, like.learning_rate, choices.batch_norm
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


def adaptation_costs(trained: Trained, adapted: AdaptedPair) -> pd.DataFrame:
    """What each adaptation costs, done alone.

    Returns:
        Columns adaptation, learning_rate and epochs (as chosen; nan where nothing is trained) and
        seconds. Controls, which cost nothing here, are left out.
    """
    variants = trained.choices.adapt
    rows = []
    for name in adapted.tails:
        if not name.startswith(CONTROL):
            chosen = vars(variants[name]) if name in variants else {"adaptation": name}
            rows.append({**chosen, "seconds": adapted.seconds.get(name, 0.0)})
    return pd.DataFrame(rows, columns=["adaptation", "learning_rate", "epochs", "seconds"])


def changed_tensors(model: nn.Module, tail: Tail) -> list[str]:
    """Names of a tail's parameters and buffers that differ from the model's, or are new."""
    own = Tail(model).state_dict()
    return [
        name
        for name, value in tail.state_dict().items()
        if name not in own or not torch.equal(value, own[name])
    ]


@torch.no_grad()
def norm_changes(model: nn.Module, adapted: AdaptedPair) -> dict[str, float]:
    """How far each adaptation moved the affine weights of the last batch norm.

    Returns:
        |change| / |weights| by adaptation; empty where that batch norm is not known.
    """

    def weights(tail: Tail) -> torch.Tensor:
        return torch.cat([*cast(nn.BatchNorm2d, tail.norm).parameters()])

    own = Tail(model)
    if own.norm is None:
        return {}
    before = weights(own)
    return {
        name: float((weights(tail) - before).norm() / before.norm())
        for name, tail in adapted.tails.items()
    }


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

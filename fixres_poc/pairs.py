"""Stage 2 of one pair of sizes: every adaptation that is asked for, and how each of them classifies.

Besides the trained tails of `adaptation` there are: `none`; `control`, adapted by the training run at the train size;
`equalised`, which maps the activations back without training; and `full`, the upper reference, all weights fine-tuned
at the test size with stage 2's framing, epochs and rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc import activations, checkpoint, preflight
from fixres_poc.adaptation import TRAINED, adapt
from fixres_poc.backbones import Tail
from fixres_poc.config import InputError, PairSettings, TrainSettings
from fixres_poc.datasets import Pictures
from fixres_poc.evaluation import Predictions, now, predict
from fixres_poc.training import Trained, train

SPLITS = ("val", "test")


@dataclass
class Adapted:
    """What the adaptations of a pair give.

    Attributes:
        tails: by adaptation, in the settings' order; all on the trunk of stage 1, but for `full`.
        seconds: what each would have cost alone; `none` and `control` cost nothing here.
        full: the network of `full`, None without it.
        activations: pooled features by framing, from `activations.distributions`; empty without `equalised`.
    """

    tails: dict[str, Tail]
    seconds: dict[str, float]
    full: Trained | None = None
    activations: dict[str, np.ndarray] = field(default_factory=dict)

    def entering(self) -> pd.DataFrame:
        """What enters the classifier, see `activations.summary`; empty without `equalised`."""
        return activations.summary(self.activations) if self.activations else pd.DataFrame()


def adapt_pair(trained: Trained, pictures: Pictures, settings: PairSettings, engine: Accelerator) -> Adapted:
    """Every adaptation that a pair asks for.

    Args:
        trained: of stage 1.
        pictures: the data set.
        settings: of the pair.
        engine: from `evaluation.accelerator`.

    Raises:
        InputError: an adaptation that the network cannot have.
    """
    if "control" in settings.adaptations and trained.control is None:
        raise InputError("adaptation 'control': the last batch norm is not known; use 'none' or 'head'")
    model, wanted = trained.model, settings.adaptations
    done = adapt(model, pictures, settings, settings.test_size, [name for name in wanted if name in TRAINED], engine)
    tails, seconds = {"none": Tail(model), **done.tails}, done.seconds
    if trained.control is not None:
        tails["control"] = trained.control
    found: dict[str, np.ndarray] = {}
    if "equalised" in wanted:
        start = now(engine)
        found = activations.distributions(model, pictures, settings, engine)
        framings = list(found.values())  # two where test size = train size
        tails["equalised"] = activations.equalise(model, framings[0], framings[-1])
        seconds["equalised"] = now(engine) - start
    full = _fully(trained, pictures, settings, engine) if "full" in wanted else None
    if full is not None:
        tails["full"], seconds["full"] = Tail(full.model), float(full.history["seconds"].sum())
    return Adapted({name: tails[name].eval() for name in wanted}, seconds, full, found)


def _fully(trained: Trained, pictures: Pictures, settings: PairSettings, engine: Accelerator) -> Trained:
    values = settings.model_dump(include=set(TrainSettings.model_fields))
    values |= {"train_size": settings.test_size, "epochs": settings.adapt_epochs}
    own = TrainSettings(**values | {"learning_rate": settings.adapt_learning_rate})
    return train(own, pictures, engine, start=trained.model)


@dataclass(frozen=True)
class Classified:
    """What `classify` gives.

    Attributes:
        table: one row per picture, adaptation and view (see `evaluation.Predictions`), of val and test.
        seconds: for all of it.
        images_per_second: test pictures a second by view, all adaptations of one trunk together.
        at_once: pictures that passed at once: the batch size, on a CPU 8 at most; less if memory was short.
    """

    table: pd.DataFrame
    seconds: float
    images_per_second: dict[str, float]
    at_once: int


def classify(
    model: nn.Module, adapted: Adapted, pictures: Pictures, settings: PairSettings, engine: Accelerator
) -> Classified:
    """Classify val and test at the test size, with every adaptation and in every view that the settings name."""
    of_stage_1 = {name: tail for name, tail in adapted.tails.items() if name != "full"}
    networks = [(model, of_stage_1)] if of_stage_1 else []
    if adapted.full is not None:
        networks.append((adapted.full.model, {"full": adapted.tails["full"]}))
    common, found = (settings, settings.test_size, engine), list[Predictions]()
    speed: dict[str, float] = {}
    for view in settings.views:
        for network, tails in networks:
            parts = [predict(network, tails, pictures, split, *common, view) for split in SPLITS]
            speed.setdefault(view, parts[-1].images_per_second)
            found += parts
    table = pd.concat([each.table for each in found], ignore_index=True)
    return Classified(table, sum(each.seconds for each in found), speed, min(each.at_once for each in found))


def costs(adapted: Adapted, settings: PairSettings, classes: int) -> pd.DataFrame:
    """What each adaptation costs, done alone.

    Returns:
        Columns adaptation, seconds, and step_mib: the predicted peak of tensors in a training step, in MiB; nan where
        nothing is trained here.
    """
    rows = []
    for name in adapted.tails:
        peak = float("nan")
        if name in TRAINED:
            peak = preflight.adapting_bytes(settings.model_copy(update={"adaptations": (name,)}), classes)
        elif name == "full" and adapted.full is not None:
            peak = adapted.full.memory["predicted_peak_bytes"]
        rows.append({"adaptation": name, "seconds": adapted.seconds.get(name, 0.0), "step_mib": peak / 2**20})
    return pd.DataFrame(rows)


def changed(model: nn.Module, tail: Tail) -> list[str]:
    """Names of the parameters and buffers of a tail that differ from the model's, or that it does not have."""
    before = Tail(model).state_dict()
    after = tail.state_dict()
    return [name for name, value in after.items() if name not in before or not torch.equal(value, before[name])]


def save(adapted: Adapted, folder: Path, settings: PairSettings, classes: Sequence[str]) -> None:
    """Keep all tails of a pair in `adapted.safetensors`, as `<adaptation>.<parameter>`, with settings and classes."""
    states = {name: tail.state_dict() for name, tail in adapted.tails.items()}
    tensors = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    record = {"settings": settings.model_dump(mode="json"), "classes": list(classes)}
    checkpoint.save(folder / "adapted.safetensors", tensors, record)

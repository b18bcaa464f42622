"""The linear probe, a logistic regression on frozen features. Stage 1 may start from it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import run_folder
from fixres_poc.config.provenance import LIBRARY
from fixres_poc.config.settings import (
    BaselineSettings,
    MethodSettings,
    ModelSettings,
    TrainSettings,
)
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages
from fixres_poc.method.evaluation import (
    choose_on_validation,
    framings,
    loaded,
    prediction_table,
    transforms_for,
)
from fixres_poc.model import checkpoint, weights
from fixres_poc.model.backbones import create, trained_elsewhere
from fixres_poc.model.device import Portions, accelerator_for, place
from fixres_poc.model.trunk import Tail, classifier, fold_batch_norms

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse penalties C to choose from."""
PLACES = {"sweep", "show_images", "dataset", "image_limit", "weights", "extra_test", "test_sizes"}
# controls that a checkpoint lacks are added to it
PLACES |= {"crop_pct_sizes", "adaptations"}
"""Settings that a checkpoint does not depend on; it depends on the images and weights they name."""


def features(
    model: nn.Module,
    data: ImageDataset,
    split: str,
    settings: ModelSettings,
    size: int,
    accelerator: Accelerator,
    framing: str = "val_test",
) -> np.ndarray:
    """Pooled features (N, D) of one split, of crops of `size` px.

    Only with the framing "val_test" they are in the order of paths. The model is left in eval mode.
    """
    transform = transforms_for(settings, size, size)[framing]
    seed = None if framing == "val_test" else settings.split_seed
    samples = SplitImages(data, split, transform, seed)
    tail = Tail(model.eval())
    trunk = Portions(fold_batch_norms(model, size), settings.batch_size, accelerator.device)
    batches = loaded(samples, settings.batch_size, f"features of {split} at {size} px")
    with torch.inference_mode(), accelerator.autocast():
        parts = [tail.pooled(*trunk(images)).float().cpu() for images, _, _ in batches]
    return torch.cat(parts).numpy()


def fit_probe(x: Mapping[str, np.ndarray], data: ImageDataset) -> tuple[Any, list[dict[str, Any]]]:
    """Logistic regression on features (N, D) of "train", its penalty chosen on those of "val".

    Returns:
        sklearn's pipeline of a scaler and a logistic regression with the chosen C, and a row per C:
        C, val_top1.
    """
    from sklearn.linear_model import LogisticRegression  # a slow import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit(values: Mapping[str, Any]) -> tuple[float, Any]:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, **values))
        probe.fit(x["train"], data.split("train")["label"].to_numpy())
        return float(probe.score(x["val"], data.split("val")["label"].to_numpy())), probe

    return choose_on_validation([{"C": penalty} for penalty in PENALTIES], fit)


@torch.no_grad()
def put_into(head: nn.Linear, probe: Any) -> None:
    """Set a linear layer's weights, so that it computes the logits of a probe of `fit_probe`."""
    scaler, regression = probe
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    if len(weight) == 1:  # for two classes the probe has one logit
        weight = np.concatenate([-weight, weight]) / 2
        bias = np.concatenate([-bias, bias]) / 2
    head.weight.copy_(torch.as_tensor(weight))
    head.bias.copy_(torch.as_tensor(bias))


def from_file(settings: MethodSettings, classes: Sequence[str]) -> nn.Module:
    """The network of the weights file with its own classifier, for these classes in this order.

    Raises:
        InputError: see `trained_elsewhere`; or the classes differ.
    """
    model, names, source = trained_elsewhere(
        settings.backbone, cast(str, settings.weights), settings.weights_key, settings.class_order
    )
    places = weights.outputs_of(classes, names, cast(Any, model).num_classes, source)
    head = classifier(model)
    head.load_state_dict({name: value[places] for name, value in head.state_dict().items()})
    return model


def head_started(
    settings: TrainSettings, data: ImageDataset, accelerator: Accelerator
) -> tuple[nn.Module | None, list[dict[str, Any]]]:
    """The network that stage 1 starts from, and a row per penalty of its probe.

    With `head_start: probe` it is the pre-trained network with the linear probe of the train
    resolution as its classifier: a random classifier would distort the features in fine-tuning
    (Kumar et al. 2022, arXiv 2202.10054). With `random` it is None, with `file` the network of the
    weights file.

    Raises:
        InputError: the probe cannot replace the classifier, which is not a linear layer.
    """
    if settings.head_start == "random":
        return None, []
    if settings.head_start == "file":
        return place(from_file(settings, data.classes).eval(), settings, accelerator), []
    model = create(
        settings.backbone, len(data.classes), True, settings.weights, settings.weights_key
    )
    model = place(model.eval(), settings, accelerator)
    head = classifier(model)
    if not isinstance(head, nn.Linear):
        raise InputError(
            "head_start = 'probe': the classifier is more than a linear layer; "
            "set head_start: random"
        )
    x = {
        split: features(model, data, split, settings, settings.train_size, accelerator)
        for split in ("train", "val")
    }
    probe, tried = fit_probe(x, data)
    put_into(head, probe)
    return model, tried


def lasting(settings: ModelSettings) -> dict[str, Any]:
    """The settings that a checkpoint depends on."""
    return settings.model_dump(exclude=PLACES)


def ingredients(settings: ModelSettings, data: ImageDataset) -> dict[str, Any]:
    """Record of what a checkpoint is made from; a checkpoint with another record is not used."""
    return {
        "settings": lasting(settings),
        "weights": weights.fingerprint(settings.weights),
        "classes": data.classes,
        "images": data.fingerprint(),
        "library": LIBRARY,
    }


@dataclass(frozen=True)
class Probes:
    """The linear probes at all sizes.

    Attributes:
        predictions: on val and every test part.
        choices: one row per size, framing and penalty: test_size, crop_pct, C, val_top1, chosen.
        seconds: "features" (extraction) and "fit".
        images_per_second: by test resolution (a string), in the usual framing.
        left_out: lines of `framings` on values of crop_pct that were not tried.
    """

    predictions: pd.DataFrame
    choices: pd.DataFrame
    seconds: dict[str, float]
    images_per_second: dict[str, float]
    left_out: list[str]


def train_probes(settings: BaselineSettings, data: ImageDataset) -> Probes:
    """A linear probe at each of the settings' sizes, in each framing.

    Each is kept in the run's folder, so that another run with more sizes adds only these.
    """
    accelerator = accelerator_for(settings.precision)
    model = create(settings.backbone, weights=settings.weights, weights_key=settings.weights_key)
    model = place(model, settings, accelerator)
    tables = []
    probes: list[dict[str, Any]] = []
    speed: dict[str, float] = {}
    left_out: list[str] = []
    for size in settings.test_sizes:
        framed, line = framings(settings, data, size)
        left_out += [line] if line else []
        for crop_pct, framing in framed.items():
            by_part, facts = _probe_of_size(framing, data, size, model, accelerator)
            probes.append(facts)
            speed.setdefault(str(size), facts["images_per_second"])
            for part, probabilities in by_part.items():
                rows, values = data.split(part), probabilities.numpy()
                tables.append(prediction_table(rows, "probe", values, size, crop_pct=crop_pct))
    return Probes(
        pd.concat(tables, ignore_index=True),
        pd.DataFrame([row for facts in probes for row in facts["choices"]]),
        {name: sum(facts["seconds"][name] for facts in probes) for name in ("features", "fit")},
        speed,
        left_out,
    )


def _probe_of_size(
    settings: BaselineSettings,
    data: ImageDataset,
    size: int,
    model: nn.Module,
    accelerator: Accelerator,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Probabilities (N, C) of a size's probe by part, and measurements; from the cache if there."""
    name = f"probe_{size}_{settings.crop_pct}.safetensors"
    file = run_folder(settings.sweep, settings.run_name) / name
    record = ingredients(settings, data)
    tested = ["val", *data.test_parts]
    with suppress(InputError):  # absent, damaged, or of other settings or images
        tensors, stored = checkpoint.load(file, record)
        return {part: tensors[part] for part in tested}, stored
    start = time.perf_counter()
    x = {
        part: features(model, data, part, settings, size, accelerator)
        for part in ["train", *tested]
    }
    extracted = time.perf_counter()
    probe, tried = fit_probe(x, data)
    probabilities = {part: torch.as_tensor(probe.predict_proba(x[part])) for part in tested}
    cell = {"test_size": size, "crop_pct": settings.crop_pct}
    facts = {
        "choices": [{**cell, **row, "chosen": row["C"] == probe[-1].C} for row in tried],
        "images_per_second": sum(map(len, x.values())) / (extracted - start),
        "seconds": {"features": extracted - start, "fit": time.perf_counter() - extracted},
    }
    checkpoint.save(file, probabilities, record | facts)
    return probabilities, facts

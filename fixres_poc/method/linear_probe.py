"""The linear probe: frozen features and a logistic regression. Stage 1 may start from it."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
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
from fixres_poc.config.run_state import bar
from fixres_poc.config.settings import (
    BaselineSettings,
    MethodSettings,
    ModelSettings,
    TrainSettings,
)
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.loading import SplitImages, batches, loader
from fixres_poc.method.evaluation import log, prediction_table, transforms_for
from fixres_poc.model import checkpoint, weights
from fixres_poc.model.backbones import create, trained_elsewhere
from fixres_poc.model.device import Portion, accelerator_for, place, workers
from fixres_poc.model.trunk import Tail, classifier, folded

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)


def features(
    model: nn.Module,
    data: ImageDataset,
    split: str,
    settings: ModelSettings,
    size: int,
    accelerator: Accelerator,
    framing: str = "val_test",
) -> np.ndarray:
    """Pooled features (N, D) of one split, of crops of `size` px; in order of path for the framing "val_test" alone."""
    transform = transforms_for(settings, size, size)[framing]
    samples = SplitImages(
        data, split, transform, None if framing == "val_test" else settings.split_seed
    )
    tail, portion, rows = (
        Tail(model.eval()),
        Portion(settings.batch_size),
        batches(samples, settings.batch_size),
    )
    trunk = folded(model, size)

    def pooled(images: torch.Tensor) -> tuple[torch.Tensor]:
        return (
            tail.pooled(*trunk(images.to(accelerator.device, non_blocking=True))).float().cpu(),
        )

    with torch.inference_mode(), accelerator.autocast():
        loaded = bar(loader(samples, rows, workers()), f"features of {split} at {size} px")
        parts = [portion.run(pooled, images)[0] for images, _, _ in loaded]
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class Probe:
    """A linear classifier of pooled features."""

    fitted: Any  # sklearn's pipeline of scaler and logistic regression, with the chosen penalty
    penalty: float  # the chosen inverse penalty C
    val_top1: dict[float, float]  # by C

    def probabilities(self, features: np.ndarray, classes: int) -> np.ndarray:
        """Probabilities (N, C) of features (N, D); 0 for a class without images in the train split."""
        found = np.zeros((len(features), classes))
        found[:, self.fitted.classes_] = self.fitted.predict_proba(features)
        return found

    def put_into(self, head: nn.Linear) -> None:
        """Let a linear layer give this classifier's logits, in place; a class without train images gets a low one."""
        scaler, regression = self.fitted[0], self.fitted[1]
        weight, bias = regression.coef_ / scaler.scale_, regression.intercept_
        bias = bias - weight @ scaler.mean_
        if len(weight) == 1:  # of two classes it has one logit
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(float(bias.min()) - 10)
            head.weight[self.fitted.classes_] = torch.as_tensor(weight, dtype=head.weight.dtype).to(
                head.weight.device
            )
            head.bias[self.fitted.classes_] = torch.as_tensor(bias, dtype=head.bias.dtype).to(
                head.bias.device
            )


def fit_probe(
    train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray
) -> Probe:
    """Logistic regression on features (N, D), its penalty chosen on validation."""
    from sklearn.linear_model import LogisticRegression  # here, since most commands fit nothing
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = {
        c: make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        for c in PENALTIES
    }
    fitted = {c: each.fit(train, train_labels) for c, each in models.items()}
    val_top1 = {c: float(each.score(val, val_labels)) for c, each in fitted.items()}
    best = max(PENALTIES, key=lambda penalty: val_top1[penalty])
    if best in (PENALTIES[0], PENALTIES[-1]):
        log.warning(
            "probe: the chosen C = %g is at an edge of those tried, so a better one may lie beyond",
            best,
        )
    return Probe(fitted[best], best, val_top1)


def probe_at(
    model: nn.Module,
    data: ImageDataset,
    settings: ModelSettings,
    size: int,
    accelerator: Accelerator,
) -> Probe:
    """The linear probe of a frozen network, fitted on crops of `size` px in the test framing."""
    x = {
        split: features(model, data, split, settings, size, accelerator)
        for split in ("train", "val")
    }
    y = {split: data.split(split)["label"].to_numpy() for split in x}
    return fit_probe(x["train"], y["train"], x["val"], y["val"])


def from_file(settings: MethodSettings, classes: Sequence[str]) -> nn.Module:
    """The network of the weights file with its own classifier, for these classes in this order.

    Raises:
        InputError: as `trained_elsewhere`; another number of classes, or other ones.
    """
    file = cast(str, settings.weights)
    model, names, source = trained_elsewhere(
        settings.backbone, file, settings.weights_key, settings.class_order
    )
    places = weights.outputs_of(classes, names, cast(Any, model).num_classes, source, "the dataset")
    head = classifier(model)
    head.load_state_dict({name: value[places] for name, value in head.state_dict().items()})
    return model


def head_started(
    settings: TrainSettings, data: ImageDataset, accelerator: Accelerator
) -> tuple[nn.Module | None, float]:
    """The pre-trained network with the linear probe of the train resolution as its classifier, and the seconds it took.

    Linear probing before fine-tuning keeps features from being distorted by a random classifier
    (Kumar et al. 2022, arXiv 2202.10054). None with `head_start: random`; with `file` the network
    of the weights file as it is.

    Raises:
        InputError: the classifier is not a linear layer.
    """
    if settings.head_start == "random":
        return None, 0.0
    mark = time.perf_counter()
    if settings.head_start == "file":
        model = from_file(settings, data.classes)
        return place(model.eval(), settings, accelerator), time.perf_counter() - mark
    model = create(
        settings.backbone, len(data.classes), True, settings.weights, settings.weights_key
    ).eval()
    head = classifier(model)
    if not isinstance(head, nn.Linear):
        raise InputError(
            "head_start = 'probe': the classifier is more than a linear layer; set head_start: random"
        )
    model = place(model, settings, accelerator)
    probe_at(model, data, settings, settings.train_size, accelerator).put_into(
        cast(nn.Linear, classifier(model))
    )
    return model, time.perf_counter() - mark


@dataclass(frozen=True)
class Probes:
    """The linear probes at all sizes.

    Attributes:
        choices: one row per size and penalty: test_size, C, val_top1, chosen.
        images_per_second: by test resolution, as text.
    """

    predictions: pd.DataFrame  # on val and every test part
    choices: pd.DataFrame
    seconds: dict[str, float]
    images_per_second: dict[str, float]


def train_probes(settings: BaselineSettings, data: ImageDataset) -> Probes:
    """Frozen pre-trained features and logistic regression, fitted and tested at each of the settings' sizes alike.

    Each size is kept in the run's folder, so that one more test resolution costs no more than that.
    """
    accelerator = accelerator_for(settings.precision)
    network = functools.partial(
        create, settings.backbone, weights=settings.weights, weights_key=settings.weights_key
    )
    model = functools.cache(lambda: place(network(), settings, accelerator))
    rows, tables, speed, seconds = (
        list[dict[str, Any]](),
        list[pd.DataFrame](),
        {},
        {"features": 0.0, "fit": 0.0},
    )
    own = settings.model_dump(
        exclude={"sweep", "test_sizes", "show_images", "dataset", "image_limit", "extra_test"}
    )
    record: dict[str, Any] = {"settings": own, "weights": weights.fingerprint(settings.weights)}
    record |= {"classes": data.classes, "images": data.fingerprint(), "library": LIBRARY}
    for size in settings.test_sizes:
        found, facts = _at_size(settings, data, size, model, accelerator, record)
        rows += facts["choices"]
        tables += [
            prediction_table(data.split(part), "probe", found[part].numpy(), size)
            for part in _tested(data)
        ]
        speed[str(size)] = facts["images_per_second"]
        seconds = {name: seconds[name] + facts["seconds"][name] for name in seconds}
    return Probes(pd.concat(tables, ignore_index=True), pd.DataFrame(rows), seconds, speed)


def _tested(data: ImageDataset) -> list[str]:
    return ["val", *data.test_parts]


def _at_size(
    settings: BaselineSettings,
    data: ImageDataset,
    size: int,
    model: Callable[[], nn.Module],
    accelerator: Accelerator,
    record: Mapping[str, Any],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Probabilities (N, C) by part of the probe of one size, and how they came about; read where they are there."""
    file = run_folder(settings.sweep, settings.run_name) / f"probe_{size}.safetensors"
    with suppress(InputError):  # absent, damaged, or of other settings or images
        return checkpoint.load(file, record)
    start, parts = time.perf_counter(), ["train", *_tested(data)]
    x = {part: features(model(), data, part, settings, size, accelerator) for part in parts}
    y = {part: data.split(part)["label"].to_numpy() for part in ("train", "val")}
    extracted = time.perf_counter()
    probe = fit_probe(x["train"], y["train"], x["val"], y["val"])
    found = {
        part: torch.as_tensor(probe.probabilities(x[part], len(data.classes)))
        for part in _tested(data)
    }
    tried = [{"test_size": size, "C": c, "val_top1": top1} for c, top1 in probe.val_top1.items()]
    facts: dict[str, Any] = {
        "choices": [row | {"chosen": row["C"] == probe.penalty} for row in tried]
    }
    facts["images_per_second"] = sum(map(len, x.values())) / (extracted - start)
    facts["seconds"] = {"features": extracted - start, "fit": time.perf_counter() - extracted}
    checkpoint.save(file, found, {**record, **facts})
    return found, facts

"""Zero-shot: the backbone's own ImageNet classifier, for classes that it has by name.

Nothing is trained on the images. A class is mapped to one of ImageNet's 1,000 by the WordNet id at
the start of its name (`n02088364-beagle`), else by its name, if exactly one ImageNet class has that
name. Case, `_`, `-` and spaces do not matter. There is no fuzzy match, and homonyms go unnoticed
(`mouse` is the computer's).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pandas as pd
import timm
import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import nn
from torch.nn.functional import pad

from fixres_poc.config.settings import (
    EMBEDDED_BACKBONES,
    WSL_BACKBONES,
    BaselineSettings,
    ModelSettings,
)
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.method.evaluation import framings, predict, prediction_table
from fixres_poc.model.backbones import create
from fixres_poc.model.device import accelerator_for, place
from fixres_poc.model.trunk import Tail


@dataclass(frozen=True)
class ZeroShot:
    """Predictions of the pre-trained classifier for val and test images of the mapped classes."""

    predictions: pd.DataFrame  # with adaptation "zero_shot"; empty if there is an obstacle
    mapped: dict[str, str]  # class of the dataset to its name in ImageNet
    classes: int  # number of the dataset's classes
    seconds: float = 0.0  # for reading, transforming and classifying
    obstacle: str = ""  # why nothing is predicted, else ""


def mapping(classes: Sequence[str]) -> dict[int, int]:
    """Labels of classes to indices of ImageNet-1k, for classes with a match that no other has."""
    imagenet = ImageNetInfo("imagenet-1k")
    ids = {name: index for index, name in enumerate(imagenet.label_names())}  # type: ignore[no-untyped-call]
    by_name: dict[str, set[int]] = defaultdict(set)
    # a description lists the names of a class
    for index, names in enumerate(imagenet.label_descriptions()):
        for name in names.split(","):
            by_name[_normalised(name)].add(index)
    matches: dict[int, int] = {}
    for label, name in enumerate(classes):
        wordnet = re.match(r"(n\d{8})(?!\d)", name)
        if wordnet and wordnet[1] in ids:
            matches[label] = ids[wordnet[1]]
        elif len(indices := by_name[_normalised(name)]) == 1:
            (matches[label],) = indices
    uses = Counter(matches.values())
    return {label: index for label, index in matches.items() if uses[index] == 1}


def _normalised(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()


def has_imagenet_classifier(settings: ModelSettings) -> bool:
    """Whether the backbone's classifier is known to have ImageNet's classes, in order."""
    if settings.weights is not None:  # a file of unknown classes
        return False
    if settings.backbone in (*EMBEDDED_BACKBONES, *WSL_BACKBONES):
        return True
    published = timm.get_pretrained_cfg(settings.backbone.removeprefix("timm:"))
    return published is not None and published.num_classes == 1000 and "in1k" in str(published.tag)


class Restricted(nn.Module):
    """ImageNet's classifier for the dataset's classes; it never predicts one that is not mapped."""

    def __init__(self, head: nn.Module, mapped: dict[int, int], classes: int) -> None:
        """Take over the 1,000-class `head`; `mapped`: see `mapping`."""
        super().__init__()
        self.head = head
        # -1 is the logit that `forward` appends
        self.outputs = [mapped.get(label, -1) for label in range(classes)]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of features (N, D); minus infinity for classes that are not mapped."""
        return pad(self.head(features), (0, 1), value=-torch.inf)[:, self.outputs]


def predict_zero_shot(settings: BaselineSettings, data: ImageDataset) -> ZeroShot:
    """Classify val and test images of mapped classes with the backbone's ImageNet classifier.

    It is tested at every size, in every framing that is tried there.
    """
    mapped = mapping(data.classes)
    count = len(data.classes)
    names = cast(list[str], ImageNetInfo("imagenet-1k").label_descriptions())
    named = {data.classes[label]: names[index].split(",")[0] for label, index in mapped.items()}
    subset = replace(data, table=data.table[data.table["label"].isin(list(mapped))])
    obstacle = ""
    if not has_imagenet_classifier(settings):
        file = settings.weights or settings.backbone
        obstacle = f"the classifier of {file} is not known to be that of ImageNet's classes"
    elif subset.split("test")["label"].nunique() < 2:
        obstacle = "fewer than 2 classes with test images are ImageNet's by name"
    if obstacle:
        empty = prediction_table(subset.table.iloc[:0], "zero_shot", np.empty((0, 1)), 0)
        return ZeroShot(empty, named, count, obstacle=obstacle)
    accelerator = accelerator_for(settings.precision)
    model = place(create(settings.backbone), settings, accelerator)
    tail = Tail(model)
    tail.classifier = Restricted(tail.classifier, mapped, count)
    splits = [split for split in ("val", *subset.test_parts) if len(subset.split(split))]
    done = [
        predict(model, {"zero_shot": tail}, subset, split, framing, size, accelerator)
        for size in settings.test_sizes
        for framing in framings(settings, data, size)[0].values()
        for split in splits
    ]
    table = pd.concat([predictions.table for predictions in done], ignore_index=True)
    return ZeroShot(table, named, count, sum(predictions.seconds for predictions in done))

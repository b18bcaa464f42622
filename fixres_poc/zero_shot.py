"""What a backbone already knows of the classes: its own ImageNet classifier, restricted to those that it has by name.

Nothing is trained on the pictures. A class is mapped to one of ImageNet's 1,000 by the WordNet id that its name begins
with (`n02088364-beagle`), else by its name where that is one of the names of exactly one ImageNet class, whatever the
case, with `_`, `-` and spaces alike. Nothing nearer is guessed; homonyms are not noticed (`mouse` is the computer's).
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

from fixres_poc.backbones import Tail, classifier, create
from fixres_poc.config import BASELINE_SIZE, EMBEDDED_BACKBONES, WSL_BACKBONES, ModelSettings
from fixres_poc.datasets import Pictures
from fixres_poc.evaluation import accelerator, place, predict, prediction_table
from fixres_poc.statistics import paired_difference

FEWEST = 2
IMAGENET_CLASSES = 1000
WORDNET_ID = re.compile(r"^(n\d{8})(?!\d)")


@dataclass(frozen=True)
class ZeroShot:
    """The pre-trained classifier's answers.

    Attributes:
        predictions: of the val and test pictures of the mapped classes, with adaptation "zero_shot"; empty where there
            is nothing to ask.
        mapped: data set's class to ImageNet's name of it.
        classes: number of the data set's classes.
        seconds: for reading, transforming and classifying.
        obstacle: why there is nothing to ask, "" where there is.
    """

    predictions: pd.DataFrame
    mapped: dict[str, str]
    classes: int
    seconds: float = 0.0
    obstacle: str = ""

    def verdict(self, baseline: pd.DataFrame) -> str:
        """What it says about the baseline's accuracy, "" where there is nothing to ask; Markdown.

        Args:
            baseline: the linear baseline's predictions.
        """
        if self.obstacle:
            return ""
        known, every = len(self.mapped), self.classes
        both = pd.concat([_correct(baseline), _correct(self.predictions)], axis=1, join="inner", keys=["linear", "own"])
        own, linear = both["own"].mean(), both["linear"].mean()
        gain = paired_difference(both["linear"], both["own"])
        told = "more" if gain.low > 0 else "less" if gain.high < 0 else "not told apart from that"
        return (
            f"Without any training here the backbone's own ImageNet classifier, asked for the {known} of {every} "
            f"classes that it has by name, is right on **{own:.1%}** of their {len(both):,} test pictures. The linear "
            f"baseline, which chooses among all {every} classes, is right on {linear:.1%} of the same, {told} "
            f"({gain.estimate * 100:+.1f} points, 95 % interval {gain.low * 100:+.1f} to {gain.high * 100:+.1f})."
        )


def _correct(predictions: pd.DataFrame) -> "pd.Series[bool]":
    test = predictions[predictions["split"] == "test"].astype({"picture": str}).set_index("picture")
    return test["target"] == test["top1"]


def mapping(classes: Sequence[str]) -> dict[int, int]:
    """Class numbers to ImageNet-1k's, for those classes that can be told; never two to one.

    Args:
        classes: names; a label is an index into them.
    """
    ids = {name: index for index, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}  # type: ignore[no-untyped-call]
    meanings: dict[str, set[int]] = defaultdict(set)
    for index, names in enumerate(_imagenet_names()):
        for name in names.split(","):
            meanings[_normalised(name)].add(index)
    found: dict[int, int] = {}
    for label, name in enumerate(classes):
        wordnet = WORDNET_ID.match(name)
        indices = {ids[wordnet[1]]} if wordnet and wordnet[1] in ids else meanings.get(_normalised(name), set())
        if len(indices) == 1:
            found[label] = next(iter(indices))
    uses = Counter(found.values())
    return {label: index for label, index in found.items() if uses[index] == 1}


def _imagenet_names() -> list[str]:
    """ImageNet's 1,000 classes in order, each with its names, commas between."""
    return cast(list[str], ImageNetInfo("imagenet-1k").label_descriptions())


def _normalised(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()


def has_imagenet_classifier(settings: ModelSettings) -> bool:
    """Is the backbone's pre-trained classifier known to be that of ImageNet's 1,000 classes, in their usual order?

    Of a weights file nothing is known, so the answer is no.
    """
    if settings.weights is not None:
        return False
    if settings.backbone in (*EMBEDDED_BACKBONES, *WSL_BACKBONES):
        return True
    published = timm.get_pretrained_cfg(settings.backbone.removeprefix("timm:"))
    if published is None or published.num_classes != IMAGENET_CLASSES:
        return False
    return "in1k" in str(published.tag)


class Restricted(nn.Module):
    """ImageNet's classifier as one of the data set's classes: those that are not mapped are never chosen."""

    def __init__(self, head: nn.Module, mapped: dict[int, int], classes: int) -> None:
        """Take over the 1,000-class `head`, with `mapped` as from `mapping` and the data set's number of classes."""
        super().__init__()
        self.head, self.classes = head, classes
        self.own, self.imagenet = list(mapped), list(mapped.values())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of features (N, D); minus infinity for classes that are not mapped."""
        known = cast(torch.Tensor, self.head(features))
        logits = known.new_full((len(known), self.classes), -torch.inf)
        logits[:, self.own] = known[:, self.imagenet]
        return logits


def zero_shot(settings: ModelSettings, pictures: Pictures) -> ZeroShot:
    """Ask the backbone's own ImageNet classifier for the val and test pictures of the mapped classes, at 224 px."""
    mapped, count = mapping(pictures.classes), len(pictures.classes)
    names = _imagenet_names()
    named = {pictures.classes[label]: names[index].split(",")[0] for label, index in mapped.items()}
    part = replace(pictures, table=pictures.table[pictures.table["label"].isin(list(mapped))])
    nothing = prediction_table(part.table.iloc[:0], "zero_shot", np.empty((0, 1)))
    if not has_imagenet_classifier(settings):
        why = f"the classifier of {settings.weights or settings.backbone} is not known to be that of ImageNet's classes"
        return ZeroShot(nothing, named, count, obstacle=why)
    if part.split("test")["label"].nunique() < FEWEST:
        why = f"fewer than {FEWEST} classes with test pictures are ImageNet's by name"
        return ZeroShot(nothing, named, count, obstacle=why)
    engine = accelerator(settings.precision)
    model = place(create(settings.backbone), settings, engine)
    if not isinstance(classifier(model), nn.Linear):
        return ZeroShot(nothing, named, count, obstacle="the backbone's classifier is more than one linear layer")
    tail = Tail(model)
    tail.classifier = Restricted(tail.classifier, mapped, count)
    splits = [split for split in ("val", "test") if len(part.split(split))]
    done = [predict(model, {"zero_shot": tail}, part, split, settings, BASELINE_SIZE, engine) for split in splits]
    table = pd.concat([each.table for each in done], ignore_index=True)
    return ZeroShot(table, named, count, sum(each.seconds for each in done))

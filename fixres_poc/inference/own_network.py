"""A network of one's own, adapted to a test resolution on a folder of images: FixRes in one call, without a sweep."""

import codecs
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
from accelerate import Accelerator
from torch import nn

from fixres_poc.analysis.cells import CANDIDATES
from fixres_poc.analysis.record import summarise
from fixres_poc.analysis.statistics import Difference, paired_difference
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import check_output
from fixres_poc.config.settings import TrainSettings, Triple
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.data.transforms import Transform
from fixres_poc.method.evaluation import predict, transforms_for
from fixres_poc.method.stage2 import Variant, adapt_tails, possible_adaptations
from fixres_poc.model import checkpoint, weights
from fixres_poc.model.backbones import check_sizes, trained_elsewhere
from fixres_poc.model.device import accelerator_for, place
from fixres_poc.model.trunk import Tail, merge_tail
from fixres_poc.report import run_text

SHOWN = ["test_size", "adaptation", "val_top1", "top1", "top1_low", "top1_high"]


@dataclass(frozen=True)
class Adapted:
    """An adapted network.

    Attributes:
        model: the network with its last layers adapted, in eval mode, on the CPU; its state dict
            fits the one given.
        transform: from a PIL image, or uint8 (3, H, W), to what the network takes, (3, K, K).
        classes: in the order of the network's outputs.
        adaptation: what validation prefers; "none" where nothing is better than the network as it
            was.
        accuracies: one row per size and adaptation: test_size, adaptation, val_top1, top1 on test
            with its 95 % Wilson interval, top1_low and top1_high. "none" at the train resolution is
            the network as it was trained.
        gain: top-1 on test of `adaptation` minus "none", at the test resolution, on the same
            images.
    """

    model: nn.Module
    transform: Transform
    classes: tuple[str, ...]
    adaptation: str
    accuracies: pd.DataFrame
    gain: Difference
    settings: TrainSettings
    test_size: int

    def near_chance(self) -> str:
        """What may be wrong where the network as it was does hardly better than chance; empty otherwise."""
        return run_text.near_chance(float(self.accuracies["top1_low"].iloc[0]), len(self.classes))

    def save(self, file: str | Path) -> None:
        """Write the state dict as safetensors, with classes, sizes and accuracies in its metadata.

        Raises:
            InputError: the name does not end in .safetensors, or its folder cannot be written to.
        """
        check_output(Path(file), ".safetensors")
        record = {
            "classes": self.classes,
            "adaptation": self.adaptation,
            "test_size": self.test_size,
        }
        record |= {
            "settings": self.settings.model_dump(
                mode="json", exclude={"dataset", "weights", "extra_test"}
            )
        }
        record["accuracies"] = self.accuracies.to_dict("records")
        checkpoint.save(Path(file), self.model.state_dict(), record)


def adapt(
    model: nn.Module,
    folder: str | Path,
    train_size: int,
    test_size: int,
    classes: Sequence[str] | None = None,
    mean_std: tuple[Triple, Triple] | None = None,
    source: str = "the network",
    **settings: Any,
) -> Adapted:
    """Adapt the last layers of a trained timm network to a test resolution, and measure what that gives.

    All of `stage2`'s adaptations that the network can have are done in one pass over the frozen
    trunk, and the one that validation prefers is taken. Whether the network saw the folder's test
    part when it was trained, only its maker knows. What more training at the train resolution would
    have given, a sweep with `trained:` tells.

    Args:
        model: a ResNet, ResNeXt, EfficientNet or MobileNetV3 of timm, which stays as it is.
        folder: class folders, split here; or train, val and test with class folders in each.
        train_size: side of the crop in px that it was trained on.
        test_size: side of the crop in px to adapt it to.
        classes: names of the folders in the order of the network's outputs; None for sorted.
        mean_std: that it was trained with, per channel, for images in [0, 1]; None for timm's.
        source: where the network and its classes come from, for errors.
        settings: others of `TrainSettings`, such as adapt_epochs, adapt_learning_rate, batch_size,
            seed.

    Raises:
        InputError: no such folder, other classes than the network's, or a network or settings that
            cannot be used.
    """
    chosen = _settings(model, folder, train_size, mean_std, settings)
    data = load_dataset(chosen)
    names = None if classes is None else weights.class_list(tuple(classes), source)
    places = weights.outputs_of(
        data.classes, names, cast(Any, model).num_classes, source, str(folder)
    )
    labels = data.table["label"].map(dict(enumerate(places)))
    data = replace(
        data, classes=tuple(names or data.classes), table=data.table.assign(label=labels)
    )
    accelerator = accelerator_for(chosen.precision)
    network = place(copy.deepcopy(model).eval(), chosen, accelerator)
    check_sizes(network, chosen.backbone, (train_size, test_size))
    rate, epochs = cast(float, chosen.adapt_learning_rate), cast(int, chosen.adapt_epochs)
    variants = {name: Variant(name, rate, epochs) for name in possible_adaptations(network)}
    tails = {"none": Tail(network)} | adapt_tails(
        network, data, chosen, test_size, variants, accelerator
    ).tails
    return _measured(network, tails, data, chosen, test_size, accelerator)


def _measured(
    network: nn.Module,
    tails: dict[str, Tail],
    data: ImageDataset,
    settings: TrainSettings,
    test_size: int,
    accelerator: Accelerator,
) -> Adapted:
    tables = {}
    for size, each in {settings.train_size: {"none": tails["none"]}, test_size: tails}.items():
        parts = [
            predict(network, each, data, part, settings, size, accelerator).table
            for part in ("val", "test")
        ]
        tables[size] = pd.concat(parts, ignore_index=True)
    rows = pd.concat(
        [summarise(table).assign(test_size=size) for size, table in tables.items()],
        ignore_index=True,
    )
    top1 = rows[rows["test_size"] == test_size].set_index("adaptation")["val_top1"]
    # the simplest of equals
    best = max((name for name in CANDIDATES if name in tails), key=lambda name: top1[name])
    frame, gain = (
        transforms_for(settings, test_size, test_size)["val_test"],
        _gain(tables[test_size], best),
    )
    return Adapted(
        merge_tail(network, tails[best]),
        frame,
        data.classes,
        best,
        rows[SHOWN],
        gain,
        settings,
        test_size,
    )


def read(
    file: Path, architecture: str, classes: Path | None = None, weights_key: str | None = None
) -> tuple[nn.Module, list[str] | None, str]:
    """A trained timm network from its weights file, its classes, and where they come from, as `trained_elsewhere`.

    Args:
        architecture: its name in timm, with or without `timm:`.
        classes: a text file with one class a line, in the network's order; UTF-8, or UTF-16 with
            its mark.
        weights_key: which of several sets of weights in the file.

    Raises:
        InputError: no such file or architecture, or they do not fit.
    """
    source, names = f"classes = {str(classes)!r}", None
    try:
        if classes is not None:
            content = classes.read_bytes()
            codec = (
                "utf-16"
                if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                else "utf-8-sig"
            )
            names = [line.strip() for line in content.decode(codec).splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"{source}: cannot be read as text in UTF-8 ({type(error).__name__})"
        ) from None
    return trained_elsewhere(
        f"timm:{architecture.removeprefix('timm:')}", str(file), weights_key, names, source
    )


def _settings(
    model: nn.Module,
    folder: str | Path,
    train_size: int,
    mean_std: tuple[Triple, Triple] | None,
    given: dict[str, Any],
) -> TrainSettings:
    published: Any = getattr(model, "pretrained_cfg", None) or {}
    if "architecture" not in published:
        raise InputError(
            f"{type(model).__name__}: not made by timm.create_model, so how it takes images is not known"
        )
    values: dict[str, Any] = {
        "dataset": str(folder),
        "backbone": f"timm:{published['architecture']}",
    }
    values |= {
        "mean_std": mean_std or (tuple(published["mean"]), tuple(published["std"])),
        "train_size": train_size,
    }
    chosen = validate(TrainSettings, values | given, "adapt")
    if chosen.tuned:
        raise InputError(
            "adapt_epochs, adapt_learning_rate: one value each; a sweep chooses from lists"
        )
    return chosen


def _gain(predictions: pd.DataFrame, adaptation: str) -> Difference:
    """Top-1 on test of an adaptation minus "none"."""
    test = predictions[predictions["split"] == "test"]
    hits = test.assign(hit=test["top1"] == test["target"]).pivot(
        index="image", columns="adaptation", values="hit"
    )
    return paired_difference(hits[adaptation], hits["none"])

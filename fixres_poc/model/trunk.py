"""A network split before its last batch norm into a frozen `Trunk` and a trainable `Tail`.

Stage 2 trains the classifier and the last batch norm, the one before global pooling (ResNet and
ResNeXt: `layer4[-1].bn3`, EfficientNet: `bn2` after `conv_head`, MobileNetV3:
`blocks[-1][-1].bn1`), on request also `conv_head` of an EfficientNet. Several tails share one pass
of the trunk. A network without such a norm is split after global pooling, so that only its
classifier is trainable.
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
FOLDED = (nn.BatchNorm2d, BatchNormAct2d)  # without their subclasses


def classifier(model: nn.Module) -> nn.Module:
    """The model's last layer: features (N, D) to logits (N, C)."""
    network: Any = model
    return cast(nn.Module, network.get_classifier())


def last_batch_norm(model: nn.Module) -> nn.BatchNorm2d | None:
    """The batch norm before global pooling of an EfficientNet, MobileNetV3, ResNet or ResNeXt.

    None for other networks, for variants with another norm there, and for variants whose last block
    continues in a way that `Tail` does not implement.
    """
    network: Any = model
    norm: Any = None
    if isinstance(model, EfficientNet):
        norm = network.bn2
    elif isinstance(model, ResNet):
        block = _last_block(model)
        if isinstance(block, BasicBlock | Bottleneck):
            norm = getattr(block, "bn3", block.bn2)
    elif isinstance(model, MobileNetV3):
        block = network.blocks[-1][-1]
        if isinstance(block, ConvBnAct) and not block.has_skip:
            norm = block.bn1
    return norm if isinstance(norm, nn.BatchNorm2d) else None


def conv_head(model: nn.Module) -> nn.Module | None:
    """The convolution before the last batch norm of an EfficientNet; None for other networks."""
    if isinstance(model, EfficientNet) and last_batch_norm(model) is not None:
        return cast(nn.Module, model.conv_head)
    return None


def _last_block(resnet: Any) -> Any:
    return resnet.layer4[-1]


class Trunk:
    """The frozen part of a network, from normalised images (N, 3, H, W) to the input of a `Tail`.

    The first output is the input of the last batch norm (N, D, h, w). The second is, for a ResNet,
    the shortcut that is added after the norm; for an EfficientNet, the input of `conv_head`. For a
    network without such a norm the only output is the pooled features (N, D). The outputs carry no
    gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        """Keep a reference to a network in eval mode, and leave the network unchanged."""
        self.network: Any = model
        self.norm = last_batch_norm(model)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Maps:
        """Maps for all images."""
        network = self.network
        if self.norm is None:
            return (network.forward_head(network.forward_features(images), pre_logits=True),)
        maps: dict[int, torch.Tensor] = {}
        with ExitStack() as hooks:

            def keep(index: int, register: Any) -> None:
                """Record a module's output, or its input if `register` registers a pre-hook."""

                def hook(_: nn.Module, inputs: Any, output: Any = None) -> None:
                    maps[index] = inputs[0] if output is None else output

                hooks.enter_context(register(hook))

            keep(0, self.norm.register_forward_pre_hook)
            if (convolution := conv_head(network)) is not None:
                keep(1, convolution.register_forward_pre_hook)
            if isinstance(network, ResNet):
                block = _last_block(network)
                if block.downsample is None:
                    keep(1, block.register_forward_pre_hook)
                else:  # the only block of its stage
                    keep(1, block.downsample.register_forward_hook)
            network.forward_features(images)
        return tuple(maps[index] for index in sorted(maps))


class Tail(nn.Module):
    """The layers after a trunk, with copies of those that an adaptation may train.

    The copies are the last batch norm and the classifier; the layers between them are the model's.
    """

    network: Any

    def __init__(self, model: nn.Module, with_conv_head: bool = False) -> None:
        """Copy the trainable layers, with `conv_head` of an EfficientNet on request."""
        super().__init__()
        self.conv_head = copy.deepcopy(conv_head(model)) if with_conv_head else None
        self.norm = copy.deepcopy(last_batch_norm(model))  # None: see `last_batch_norm`
        self.classifier = copy.deepcopy(classifier(model))  # features (N, D) to logits (N, C)
        vars(self)["network"] = model  # no submodule: its weights do not belong to the tail

    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) from the output of a `Trunk`."""
        return cast(torch.Tensor, self.classifier(self.pooled(*maps)))

    def pooled(self, *maps: torch.Tensor) -> torch.Tensor:
        """Features (N, D) after global pooling, from the output of a `Trunk`."""
        if self.norm is None:
            return maps[0]
        norm_input = maps[0] if self.conv_head is None else self.conv_head(maps[1])
        features = self.norm(norm_input)
        if isinstance(self.network, ResNet):
            features = _finish_block(_last_block(self.network), features, maps[1])
        return cast(torch.Tensor, self.network.forward_head(features, pre_logits=True))


def _finish_block(block: Any, maps: torch.Tensor, shortcut: torch.Tensor) -> Any:
    """Apply the layers after the last batch norm in the last block of a ResNet."""
    if getattr(block, "se", None) is not None:
        maps = block.se(maps)
    activation = block.act3 if hasattr(block, "act3") else block.act2
    return activation(maps + shortcut)


def merge_tail(model: nn.Module, tail: Tail) -> nn.Module:
    """A copy of a network on the CPU, in eval mode, with the layers of an adapted tail."""
    network = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
    names = {module: name for name, module in network.named_modules()}
    for old, new in (
        (conv_head(network), tail.conv_head),
        (last_batch_norm(network), tail.norm),
        (classifier(network), tail.classifier),
    ):
        if old is not None and new is not None:
            network.set_submodule(names[old], copy.deepcopy(new).cpu())
    return network


@torch.no_grad()
def fold_batch_norms(model: nn.Module, size: int) -> Trunk:
    """The trunk of a network with batch norms folded into convolutions, which is faster on a CPU.

    In eval mode a batch norm is an affine map per channel, so the weights and the bias of the
    convolution before it can include it. Results differ only by rounding. A batch norm stays if its
    input is not the output of one convolution, and so does the last one, which a `Tail` copies. The
    trunk is not folded on a GPU, nor if its output for noise of `size` px would differ. The model
    does not change.

    Raises:
        ValueError: the model is in train mode.
    """
    if model.training:
        raise ValueError("the network is in train mode; a trunk needs eval mode")
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
    folded = Trunk(fast)
    for maps, expected in zip(folded(noise), plain(noise), strict=True):
        if not torch.allclose(maps, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
            log.info("batch norms of %s cannot be folded", type(model).__name__)
            return plain
    return folded


def _foldable(model: nn.Module, images: torch.Tensor) -> list[tuple[nn.Conv2d, Any]]:
    """Pairs of a convolution and the batch norm on its output, from one forward pass."""
    last = last_batch_norm(model)
    sources: dict[torch.Tensor, nn.Conv2d] = {}
    pairs: list[tuple[nn.Conv2d, Any]] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            sources[output] = module
        elif type(module) in FOLDED and module is not last and inputs[0] in sources:
            pairs.append((sources[inputs[0]], module))

    with register_module_forward_hook(record):
        Trunk(model)(images)
    return pairs


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Freeze a network inside the context, with the layers that its tails share."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()

"""Batch norms folded into the convolutions before them, so that a frozen network runs faster on a CPU.

In eval mode a batch norm is an affine map per channel, which a convolution's weights and bias can take over. Results
differ by rounding only. Batch norms whose input is not the output of one convolution, and the last one, which a `Tail`
has its own copy of, stay.
"""

import copy
import logging
from typing import cast

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fixres_poc.backbones import last_batch_norm, trunk

log = logging.getLogger(__name__)


@torch.no_grad()
def folded(model: nn.Module, size: int) -> nn.Module:
    """A copy of a network for `trunk` alone, with its batch norms folded; on a GPU the network itself.

    Args:
        model: in eval mode; nothing of it changes.
        size: side in px of a picture that the network takes.

    Returns:
        The copy, or the network itself where the copy's output for noise is not the same.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        return model
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    fast = copy.deepcopy(model)
    for convolution, norm in _pairs(fast, noise):
        before, after = cast(nn.Conv2d, fast.get_submodule(convolution)), cast(nn.BatchNorm2d, fast.get_submodule(norm))
        fast.set_submodule(convolution, fuse_conv_bn_eval(before, after))
        rest = [after.drop, after.act] if isinstance(after, BatchNormAct2d) else []
        fast.set_submodule(norm, nn.Sequential(*rest))
    for found, expected in zip(trunk(fast, noise), trunk(model, noise), strict=True):
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
            log.info("batch norms of %s cannot be folded; it is used as it is", type(model).__name__)
            return model
    return fast


def _pairs(model: nn.Module, images: torch.Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that take their output as it is, seen as a picture passes."""
    last, made, pairs, hooks = last_batch_norm(model), list[tuple[str, torch.Tensor]](), list[tuple[str, str]](), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            keep = lambda _, __, output, name=name: made.append((name, output))  # noqa: E731
            hooks.append(module.register_forward_hook(keep))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module is not last:
            find = lambda _, inputs, name=name: pairs.extend((n, name) for n, output in made if output is inputs[0])  # noqa: E731
            hooks.append(module.register_forward_pre_hook(find))
    trunk(model, images)
    for hook in hooks:
        hook.remove()
    return pairs

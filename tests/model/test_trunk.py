"""The split of a network into trunk and tail, and trunks whose batch norms are folded."""

import copy
import functools
from typing import Any, cast

import pytest
import torch
from timm.models.resnet import ResNet
from torch import nn

from fixres_poc.model.backbones import create, recompute
from fixres_poc.model.trunk import Tail, Trunk, classifier, folded, last_batch_norm

KNOWN = {  # and the batch norm before pooling
    "efficientnet_lite0": "bn2",
    "timm:mobilenetv3_small_050": "blocks.5.0.bn1",
    "timm:resnet10t": "layer4.0.bn2",  # the last stage is one block, with a downsampling shortcut
    "timm:resnet18": "layer4.1.bn2",
    "timm:resnet26t": "layer4.1.bn3",
    "timm:seresnet50": "layer4.2.bn3",
    "timm:resnext50_32x4d": "layer4.2.bn3",
    "timm:mobilenetv4_conv_small": "blocks.4.0.bn1",
}
UNKNOWN = [
    "timm:skresnet18",
    "timm:res2net50_26w_4s",
    "timm:resnet50_gn",
    "timm:lcnet_050",
    "timm:convnext_atto",
    "timm:regnety_002",
]


@functools.cache
def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = create(name, 7, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.8, 1.25)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.8, 1.25)
    return model


def network(name: str) -> nn.Module:
    """With batch norms that do something."""
    return copy.deepcopy(_network(name))


@torch.no_grad()
def by_hooks(model: Any, norm: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """What enters a batch norm as the whole network runs, and a ResNet's shortcut beside it."""
    seen: dict[str, torch.Tensor] = {}

    def note(name: str, tensor: torch.Tensor) -> None:
        seen[name] = tensor.clone()

    norm.register_forward_pre_hook(lambda _, inputs: note("maps", inputs[0]))
    if isinstance(model, ResNet):
        block: Any = cast(nn.Sequential, model.layer4)[-1]
        if block.downsample is None:
            block.register_forward_pre_hook(lambda _, inputs: note("shortcut", inputs[0]))
        else:
            block.downsample.register_forward_hook(lambda *each: note("shortcut", each[-1]))
    model(images)
    return [seen[name] for name in ("maps", "shortcut") if name in seen]


@pytest.mark.parametrize(("name", "norm"), KNOWN.items())
def test_a_trunk_gives_what_enters_the_last_batch_norm_and_changes_nothing(
    name: str, norm: str
) -> None:
    model, images = network(name), torch.randn(2, 3, 64, 64)
    assert last_batch_norm(model) is model.get_submodule(norm)
    parts, logits = dict(model.named_modules()), model(images)
    state = copy.deepcopy(model.state_dict())
    trunk = Trunk(model)
    maps = trunk(images)
    Tail(model)(*maps)
    trunk(torch.zeros_like(images))
    assert dict(model.named_modules()) == parts
    for part in parts.values():
        assert not part._forward_hooks  # noqa: SLF001  torch has no public name
        assert not part._forward_pre_hooks  # noqa: SLF001
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(images), logits)
    expected = by_hooks(model, model.get_submodule(norm), images)
    assert len(maps) == (2 if isinstance(model, ResNet) else 1)
    assert all(torch.equal(found, each) for found, each in zip(maps, expected, strict=True))
    assert not any(each.requires_grad for each in maps)


@pytest.mark.parametrize("recomputing", [False, True])
@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_tail_of_trunk_is_the_whole_network(name: str, recomputing: bool) -> None:
    model, images = network(name), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        if recomputing:
            recompute(model)
        assert torch.equal(Tail(model)(*Trunk(model)(images)), expected)
    assert (last_batch_norm(model) is not None) == (name in KNOWN)


def test_a_tail_has_parameters_of_its_own() -> None:
    model = create("timm:resnet18", classes=7, pretrained=False)
    tail = Tail(model)
    nn.init.zeros_(tail.classifier.get_parameter("weight"))
    assert classifier(model).get_parameter("weight").abs().sum() > 0
    own = [name for name, _ in tail.named_parameters()]
    assert own == ["norm.weight", "norm.bias", "classifier.weight", "classifier.bias"]


@pytest.mark.parametrize("name", [*list(KNOWN)[:4], "timm:convnext_atto"])
def test_folding_leaves_no_batch_norm_but_the_last_and_changes_no_result(name: str) -> None:
    model, images = network(name), torch.randn(2, 3, 64, 64)
    before = copy.deepcopy(model.state_dict())
    fast = folded(model, 64)
    assert fast.network is not model
    norms = [each for each in fast.network.modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms == [each for each in [last_batch_norm(fast.network)] if each is not None]
    for found, expected in zip(fast(images), Trunk(model)(images), strict=True):
        most = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=most)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Odd(nn.Module):
    """Its convolution's output is used beside the batch norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.convolution(images)
        return torch.relu(self.norm(maps)) + maps

    def forward_head(self, maps: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        assert pre_logits
        return maps.mean(dim=(2, 3))


def test_a_network_that_cannot_be_folded_is_used_as_it_is() -> None:
    model = Odd().eval()
    nn.init.constant_(model.norm.weight, 3.0)
    assert last_batch_norm(model) is None
    assert folded(model, 32).network is model

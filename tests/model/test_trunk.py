"""The split of a network into trunk and tail, and trunks with folded batch norms."""

import pytest
import torch
from torch import nn

from fixres_poc.model.backbones import create
from fixres_poc.model.device import recompute
from fixres_poc.model.trunk import Tail, Trunk, fold_batch_norms, last_batch_norm, merge_tail

KNOWN = {  # and the batch norm before pooling
    "efficientnet_lite0": "bn2",
    "timm:mobilenetv3_small_050": "blocks.5.0.bn1",
    "resnext_small": "layer4.0.bn3",
    "timm:resnet10t": "layer4.0.bn2",  # the last stage is one block, with a downsampling shortcut
    "timm:resnet18": "layer4.1.bn2",
    "timm:seresnet50": "layer4.2.bn3",
    "timm:mobilenetv4_conv_small": "blocks.4.0.bn1",
}
UNKNOWN = ["skresnet18", "resnet50_gn", "lcnet_050", "convnext_atto"]


def network(name: str) -> nn.Module:
    """With batch norms that do something."""
    torch.manual_seed(0)
    model = create(name, 7, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.8, 1.25)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.8, 1.25)
    return model


def hooks_of(model: nn.Module) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(vars(part)[name]) for part in model.modules() for name in names)


@pytest.mark.parametrize("recomputing", [False, True])
@pytest.mark.parametrize("name", [*KNOWN, *(f"timm:{name}" for name in UNKNOWN)])
def test_trunk_and_tail_are_the_whole_network_and_leave_it_as_it_was(
    name: str, recomputing: bool
) -> None:
    model, images = network(name), torch.randn(2, 3, 64, 64)
    expected = model(images)
    if recomputing:
        recompute(model)
    parts, hooks = dict(model.named_modules()), hooks_of(model)
    trunk = Trunk(model)
    maps = trunk(images)
    before = [part.clone() for part in maps]
    assert torch.equal(Tail(model)(*maps), expected)
    trunk(torch.zeros_like(images))
    assert all(map(torch.equal, maps, before))
    assert not any(part.requires_grad for part in maps)
    assert (dict(model.named_modules()), hooks_of(model)) == (parts, hooks)
    assert torch.equal(model(images), expected)
    norm = model.get_submodule(KNOWN[name]) if name in KNOWN else None
    assert last_batch_norm(model) is norm


def test_a_tail_may_begin_before_conv_head_of_an_efficientnet() -> None:
    model, images = network("efficientnet_lite0"), torch.randn(2, 3, 64, 64)
    tail, maps = Tail(model, with_conv_head=True), Trunk(model)(images)
    assert torch.equal(tail(*maps), model(images))
    assert tail.conv_head is not None
    nn.init.zeros_(tail.conv_head.get_parameter("weight"))
    assert not torch.equal(tail(*maps), model(images))
    merged = merge_tail(model, tail)(images)
    torch.testing.assert_close(merged, tail(*maps))


@pytest.mark.parametrize("name", [*list(KNOWN)[:4], "timm:convnext_atto"])
def test_folding_leaves_no_batch_norm_but_the_last_and_changes_neither_results_nor_the_network(
    name: str,
) -> None:
    model, images = network(name), torch.randn(2, 3, 64, 64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = fold_batch_norms(model, 64)
    assert fast.network is not model
    last = last_batch_norm(fast.network)
    assert not any(
        isinstance(each, nn.BatchNorm2d) and each is not last for each in fast.network.modules()
    )
    for found, expected in zip(fast(images), Trunk(model)(images), strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Odd(nn.Module):
    """Its convolution's output is used beside the batch norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.convolution(images)
        return torch.relu(self.norm(maps)) + maps

    def forward_head(self, maps: torch.Tensor, **_: bool) -> torch.Tensor:
        return maps.mean(dim=(2, 3))


def test_a_network_that_cannot_be_fold_batch_norms_is_used_as_it_is() -> None:
    model = Odd().eval()
    nn.init.constant_(model.norm.weight, 3.0)
    assert last_batch_norm(model) is None
    assert fold_batch_norms(model, 32).network is model

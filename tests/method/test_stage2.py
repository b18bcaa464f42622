"""Stage 2: only what may change changes, in parameters and in buffers."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DataSettings, TrainSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import stage2
from fixres_poc.model.backbones import create
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.trunk import Tail, classifier, last_batch_norm

STATISTICS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
CLASSIFIER = {"classifier.weight", "classifier.bias"}
MAY_CHANGE = {
    "head": CLASSIFIER,
    "head_bn_stats": CLASSIFIER | STATISTICS,
    "head_bn": CLASSIFIER | STATISTICS | {"norm.weight", "norm.bias"},
}


def adapted(folder: Path, model: nn.Module, names: list[str], **more: object) -> stage2.AdaptedTails:
    settings = TrainSettings(train_size=48, batch_size=6, adapt_epochs=1, **more)  # type: ignore[arg-type]
    data = load_dataset(DataSettings(dataset=str(folder)))
    return stage2.adapt_tails(model, data, settings, 64, names, accelerator_for("fp32"))


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "timm:resnet18"])
def test_only_what_may_change_changes(colour_folder: Path, backbone: str) -> None:
    model = create(backbone, 3, pretrained=False)
    before = copy.deepcopy(model.state_dict())
    fresh = Tail(model).state_dict()
    done = adapted(colour_folder, model, list(MAY_CHANGE))
    for name, tail in done.tails.items():
        changed = {key for key, value in tail.state_dict().items() if not torch.equal(value, fresh[key])}
        assert changed == MAY_CHANGE[name]
        assert done.seconds[name] > 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_tail_adapted_beside_others_equals_one_adapted_alone(colour_folder: Path) -> None:
    model = create("efficientnet_lite0", 3, pretrained=False)
    together = adapted(colour_folder, model, ["head", "head_bn"]).tails["head_bn"].state_dict()
    alone = adapted(colour_folder, model, ["head_bn"]).tails["head_bn"].state_dict()
    assert all(torch.equal(alone[key], value) for key, value in together.items())


def test_the_head_moves_as_softmax_gradients_do(colour_folder: Path) -> None:
    model = create("efficientnet_lite0", 3, pretrained=False)
    rate = 0.5
    done = adapted(colour_folder, model, ["head"], adapt_learning_rate=rate, label_smoothing=0.0, seed=1)
    seen = done.tails["head"].classifier.get_parameter("bias") - classifier(model).get_parameter("bias")
    assert seen.sum().item() == pytest.approx(0, abs=1e-5)  # softmax gradients sum to zero over classes
    assert 0 < seen.abs().max().item() < rate * 3  # three steps of at most the rate each


def test_a_network_without_batch_norm_can_only_have_its_head_adapted() -> None:
    model = create("timm:convnext_atto", 3, pretrained=False)
    assert last_batch_norm(model) is None
    assert len(stage2.free(Tail(model), "head")) == 2
    with pytest.raises(InputError, match="use 'none' or 'head'"):
        stage2.free(Tail(model), "head_bn")
    with pytest.raises(InputError, match="'all'"):
        stage2.free(Tail(model), "all")

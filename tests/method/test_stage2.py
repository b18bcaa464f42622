"""Stage 2: only what may change changes, in parameters and in buffers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_training import same, state_of
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DataSettings, TrainSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import stage2
from fixres_poc.method.evaluation import predict
from fixres_poc.method.stage2 import Variant
from fixres_poc.model.backbones import create
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.trunk import Tail, classifier, last_batch_norm

STATISTICS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
CLASSIFIER = {"classifier.weight", "classifier.bias"}
MAY_CHANGE = {
    "bn_stats": STATISTICS,
    "head": CLASSIFIER,
    "head_bn_stats": CLASSIFIER | STATISTICS,
    "head_bn": CLASSIFIER | STATISTICS | {"norm.weight", "norm.bias"},
}


def adapted(
    folder: Path, model: nn.Module, variants: dict[str, Variant], size: int = 64
) -> stage2.AdaptedTails:
    settings = TrainSettings(train_size=48, batch_size=6, seed=1)
    data = load_dataset(DataSettings(dataset=str(folder)))
    return stage2.adapt_tails(model, data, settings, size, variants, accelerator_for("fp32"))


def network(backbone: str = "efficientnet_lite0") -> nn.Module:
    return create(backbone, 3, pretrained=False).eval()


@pytest.mark.parametrize(
    "backbone", ["efficientnet_lite0", "timm:resnet18", "timm:mobilenetv3_small_050"]
)
def test_only_what_may_change_changes(colour_folder: Path, backbone: str) -> None:
    model = network(backbone)
    before = state_of(model)
    fresh = Tail(model).state_dict()
    variants = {name: Variant(name, 0.01, 1) for name in MAY_CHANGE}
    done = adapted(colour_folder, model, variants)
    for name, tail in done.tails.items():
        state = tail.state_dict()
        changed = {key for key, value in state.items() if not torch.equal(value, fresh[key])}
        assert changed == MAY_CHANGE[name]
        assert done.seconds[name] > 0
        assert not any(weight.requires_grad for weight in tail.parameters())
    assert same(before, state_of(model))
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(weight.grad is not None for weight in model.parameters())


def test_a_network_in_train_mode_is_refused(colour_folder: Path) -> None:
    with pytest.raises(ValueError, match="train mode"):
        adapted(colour_folder, network().train(), {"head": Variant("head", 0.1, 1)})


def test_a_tail_adapted_beside_others_for_longer_or_shorter_equals_one_adapted_alone(
    colour_folder: Path,
) -> None:
    model = network()
    variants = {"short": Variant("head_bn", 0.05, 1), "long": Variant("head_bn", 0.05, 2)}
    together = adapted(colour_folder, model, variants)
    for name, variant in variants.items():
        alone = adapted(colour_folder, model, {name: variant}).tails[name]
        assert same(state_of(alone), state_of(together.tails[name]))
    heads = [tail.classifier.get_parameter("weight") for tail in together.tails.values()]
    assert not torch.equal(*heads)
    assert 0 < together.seconds["short"] < together.seconds["long"]


def test_a_process_may_get_one_image(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage2, "batches", lambda *_: [[0], [1, 2]])
    variants = {"head_bn": Variant("head_bn", 0.1, 1)}
    tail = adapted(colour_folder, network(), variants, size=32).tails["head_bn"]
    # the lone image is in no statistics
    assert int(tail.get_buffer("norm.num_batches_tracked")) == 1


def test_the_head_moves_as_softmax_gradients_do(colour_folder: Path) -> None:
    model, rate = network(), 0.5
    tail = adapted(colour_folder, model, {"head": Variant("head", rate, 1)}).tails["head"]
    bias = classifier(model).get_parameter("bias")
    seen = tail.classifier.get_parameter("bias") - bias
    # softmax gradients sum to zero over classes
    assert seen.sum().item() == pytest.approx(0, abs=1e-5)
    assert 0 < seen.abs().max().item() < rate * 3  # three steps of at most the rate each


def test_a_network_without_batch_norm_can_only_have_its_head_adapted() -> None:
    model = network("timm:convnext_atto")
    assert last_batch_norm(model) is None
    assert stage2.possible_adaptations(model) == ["head"]
    assert len(stage2.unfreeze(Tail(model), "head")) == 2
    with pytest.raises(InputError, match="use 'none' or 'head'"):
        stage2.unfreeze(Tail(model), "head_bn")
    with pytest.raises(InputError, match="'all'"):
        stage2.unfreeze(Tail(model), "all")


LISTS: dict[str, Any] = {
    "adapt_learning_rate": (0.5, 0.1),
    "adapt_epochs": (3, 1),
    "tuning_size": 64,
}


def chosen(
    monkeypatch: pytest.MonkeyPatch, top1: Callable[[Variant], float]
) -> tuple[dict[str, Variant], list[Any]]:
    """What is chosen from `LISTS`, and what was tried, with these accuracies of ten images."""
    seen: dict[str, Variant] = {}

    def adapt(*given: Any) -> Any:
        _, _, _, size, variants, _ = given
        assert size == 64
        seen.update(variants)
        return stage2.AdaptedTails({}, {})

    def answers(*_: object) -> Any:
        cells = [
            {"adaptation": name, "top1": int(image < 10 * top1(variant)), "target": 1}
            for name, variant in seen.items()
            for image in range(10)
        ]
        return SimpleNamespace(table=pd.DataFrame(cells))

    monkeypatch.setattr(stage2, "adapt_tails", adapt)
    monkeypatch.setattr(stage2, "predict", answers)
    nothing: Any = None
    settings = TrainSettings(train_size=48, **LISTS)
    return stage2.choose_variants(network(), nothing, settings, nothing)


def test_every_combination_is_tried_and_equals_go_to_fewer_epochs_then_to_the_smaller_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    best, tried = chosen(monkeypatch, lambda _: 0.5)
    assert best == {name: Variant(name, 0.1, 1) for name in MAY_CHANGE}
    found = sorted((each["adaptation"], each["learning_rate"], each["epochs"]) for each in tried)
    trained = [(name, rate, n) for name in MAY_CHANGE for rate in (0.1, 0.5) for n in (1, 3)]
    # which has no rate
    assert found == sorted(each for each in trained if each[:2] != ("bn_stats", 0.5))
    assert {each["val_top1"] for each in tried} == {0.5}
    faster, _ = chosen(monkeypatch, lambda each: each.learning_rate)
    assert faster["head"] == Variant("head", 0.5, 1)
    longer, _ = chosen(monkeypatch, lambda each: each.epochs / 10)
    assert longer["head_bn"] == Variant("head_bn", 0.1, 3)
    assert longer["bn_stats"].epochs == 3


def test_what_is_tried_has_the_accuracy_of_its_tail_at_the_tuning_size(colour_folder: Path) -> None:
    settings = TrainSettings(train_size=48, batch_size=6, dataset=str(colour_folder), **LISTS)
    data, accelerator = load_dataset(settings), accelerator_for("fp32")
    model = create("efficientnet_lite0", 3).eval()
    _, tried = stage2.choose_variants(model, data, settings, accelerator)
    top1 = [each.pop("val_top1") for each in tried]
    variants = {str(number): Variant(**each) for number, each in enumerate(tried)}
    tails = stage2.adapt_tails(model, data, settings, 64, variants, accelerator).tails
    table = predict(model, tails, data, "val", settings, 64, accelerator).table
    right = (table["top1"] == table["target"]).groupby(table["adaptation"], sort=False).mean()
    assert right.tolist() == top1
    assert len(set(top1)) > 1
    single = settings.model_copy(update={"adapt_epochs": 1, "adapt_learning_rate": 0.2})
    expected = {name: Variant(name, 0.2, 1) for name in MAY_CHANGE}
    assert stage2.choose_variants(model, data, single, accelerator) == (expected, [])

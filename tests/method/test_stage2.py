"""Stage 2: only what may change changes, in parameters and in buffers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_training import same, state_of
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import ADAPTED, AFFINE, DataSettings, TrainSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import evaluation, stage2
from fixres_poc.method.stage2 import Variant
from fixres_poc.model.backbones import create
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.trunk import Tail, classifier, fold_batch_norms, last_batch_norm

STATISTICS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
CLASSIFIER = {"classifier.weight", "classifier.bias"}
MAY_CHANGE = {
    "bn_stats": STATISTICS,
    "head": CLASSIFIER,
    "head_bn_stats": CLASSIFIER | STATISTICS,
    "head_bn": CLASSIFIER | STATISTICS | {"norm.weight", "norm.bias"},
}
WITH_CONV_HEAD = MAY_CHANGE["head_bn"] | {"conv_head.weight"}


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
    fresh = Tail(model, with_conv_head=True).state_dict()
    may = MAY_CHANGE | ({"conv_head_bn": WITH_CONV_HEAD} if "lite0" in backbone else {})
    variants = {name: Variant(name, 0.01, 1, 10 if "_bn" in name else None) for name in may}
    variants["frozen"] = replace(variants["head_bn"], batch_norm="frozen")
    may["frozen"] = may["head_bn"] - STATISTICS
    done = adapted(colour_folder, model, variants)
    for name, tail in done.tails.items():
        state = tail.state_dict()
        changed = {key for key, value in state.items() if not torch.equal(value, fresh[key])}
        assert changed == may[name]
        assert done.seconds[name] > 0
        assert not any(weight.requires_grad for weight in tail.parameters())
    assert same(before, state_of(model))
    left = {(weight.requires_grad, weight.grad) for weight in model.parameters()}
    assert left == {(True, None)}


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


def test_the_factor_moves_the_affine_weights_further_and_the_classifier_as_far(
    colour_folder: Path,
) -> None:
    model = network()
    variants = {str(each): Variant("head_bn", 1e-4, 1, each) for each in (None, 1.0, 10.0)}
    variants["conv"] = Variant("conv_head_bn", 1e-4, 1, 10.0)
    tails = adapted(colour_folder, model, variants).tails
    none, one, ten, conv = (stage2.moved(model, tail) or 0 for tail in tails.values())
    assert none == one
    assert ten == pytest.approx(10 * one, rel=0.2)  # weights move little
    assert conv > 0
    bias = classifier(model).get_parameter("bias")
    first, second = (
        tails[name].classifier.get_parameter("bias") - bias for name in ("1.0", "10.0")
    )
    assert torch.allclose(first, second, rtol=0.01, atol=1e-6)


def test_a_process_may_get_one_image(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "batches", lambda *_: [[0], [1, 2]])
    variants = {"head_bn": Variant("head_bn", 0.1, 1)}
    tail = adapted(colour_folder, network(), variants, size=32).tails["head_bn"]
    # the lone image is in no statistics
    assert int(tail.get_buffer("norm.num_batches_tracked")) == 1


def test_what_a_network_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="train mode"):
        fold_batch_norms(network().train(), 64)
    with pytest.raises(InputError, match="'conv_head_bn': for EfficientNets alone; use 'head_bn'"):
        stage2.tail_for(network("timm:resnet18"), "conv_head_bn")
    model = network("timm:convnext_atto")
    assert last_batch_norm(model) is None
    assert len(stage2.unfreeze(Tail(model), "head")) == 2
    assert stage2.moved(model, Tail(model)) is None


LISTS: dict[str, Any] = {
    "adapt_learning_rate": (0.5, 0.1),
    "adapt_epochs": (3, 1),
    "affine_factor": (10.0, 1.0),
    "adapt_batch_norm": ("train", "frozen"),
}


def chosen(
    monkeypatch: pytest.MonkeyPatch, top1: Callable[[Variant], float]
) -> stage2.AdaptedTails:
    """What is chosen from `LISTS` at 64 px with these accuracies of ten images."""
    seen: dict[str, Variant] = {}

    def adapt(*given: Any) -> Any:
        model, _, _, size, variants, _ = given
        assert size == 64
        seen.update(variants)
        tails = {name: stage2.tail_for(model, each.adaptation) for name, each in variants.items()}
        return stage2.AdaptedTails(tails, dict.fromkeys(variants, 1.0))

    def answers(*given: Any) -> Any:
        _, _, _, split, _, size, _ = given
        assert (split, size) == ("val", 64)
        cells = [
            {"image": image, "adaptation": name, "top1": int(image < 10 * top1(each)), "target": 1}
            for name, each in seen.items()
            for image in range(10)
        ]
        return SimpleNamespace(table=pd.DataFrame(cells))

    monkeypatch.setattr(stage2, "adapt_tails", adapt)
    monkeypatch.setattr(stage2, "predict", answers)
    nothing: Any = None
    settings = TrainSettings(train_size=48, **LISTS)
    return stage2.adapt_best(network(), nothing, settings, 64, ADAPTED, nothing)


def test_every_combination_is_tried_and_equals_go_to_the_simplest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = chosen(monkeypatch, lambda _: 0.5)
    simplest = {name: (1.0, "frozen") if name in AFFINE else () for name in ADAPTED}
    assert done.choices == {name: Variant(name, 0.1, 1, *simplest[name]) for name in ADAPTED}
    # bn_stats has no rate, and two others have factors and modes
    assert len(done.tried) == 2 + 2 * 4 + 2 * 16
    assert {each["val_top1"] for each in done.tried} == {0.5}
    further = chosen(monkeypatch, lambda variant: (variant.affine_factor or 0) / 10)
    assert further.choices["conv_head_bn"] == Variant("conv_head_bn", 0.1, 1, 10.0, "frozen")
    differ = {way["affine_factor"]: way["differs"] for way in further.tried}
    assert differ == {None: 0, 1.0: 1, 10.0: 10}

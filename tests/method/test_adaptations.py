"""Every adaptation of a pair, in every view."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_training import same, state_of
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import ADAPTED, CONTROL, ExtraTest, PairSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import adaptations, stage1, stage2
from fixres_poc.method.evaluation import predict
from fixres_poc.model import checkpoint
from fixres_poc.model.backbones import create
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.trunk import Tail

TINY = {
    "train_size": 48,
    "test_size": 64,
    "batch_size": 6,
    "epochs": 1,
    "adapt_epochs": 2,
    "adapt_learning_rate": 0.05,
    "affine_factor": (1.0, 10.0),
}
EVERY = ("none", "equalised", *ADAPTED, "full")


@pytest.fixture
def settings(colour_folder: Path) -> PairSettings:
    given: dict[str, Any] = {"head_start": "random", "adaptations": EVERY, **TINY}
    given["views"] = ("center", "five_crop")
    return PairSettings(dataset=str(colour_folder), **given)


def adapt(
    settings: PairSettings, **change: object
) -> tuple[PairSettings, stage1.Trained, adaptations.AdaptedPair]:
    """A pair, some of its settings changed, that is trained and adapted."""
    chosen = settings.model_copy(update=change)
    data, accelerator = load_dataset(chosen), accelerator_for("fp32")
    trained = stage1.train_or_load(chosen.train_settings(), data, accelerator)
    return chosen, trained, adaptations.adapt_pair(trained, data, chosen, accelerator)


def test_every_adaptation_and_control_in_every_view_on_the_same_images(
    settings: PairSettings, tmp_path: Path
) -> None:
    data, accelerator = load_dataset(settings), accelerator_for("fp32")
    trained = stage1.train_or_load(settings.train_settings(), data, accelerator)
    before = state_of(trained.model)
    adapted = adaptations.adapt_pair(trained, data, settings, accelerator)
    assert list(adapted.tails) == [*settings.adaptations, *(CONTROL + name for name in ADAPTED)]
    assert same(before, state_of(trained.model))
    classified = adaptations.predict_pair(trained.model, adapted, data, settings, accelerator)
    cells = classified.table.groupby(["adaptation", "view", "split"], observed=True)["image"].agg(
        list
    )
    assert len(cells) == (8 + 5) * 2 * 2
    assert all(cells[key] == cells["none", "center", key[2]] for key in cells.index)
    assert set(classified.images_per_second) == {"center", "five_crop"}
    assert adapted.seconds.keys() == {*ADAPTED, "equalised", "full"}
    assert all(seconds > 0 for seconds in adapted.seconds.values())
    adaptations.save_tails(adapted, trained.model, tmp_path, settings, data.classes)
    checkpoint.load(tmp_path / "adapted_0.875.safetensors", {"stage1": checkpoint.digest(before)})
    assert list(adapted.choices) == list(ADAPTED)
    assert len(adapted.tried) == 3 + 2 * 2  # two factors


def test_full_fine_tuning_starts_from_stage_1_and_changes_all_of_it(settings: PairSettings) -> None:
    only, trained, adapted = adapt(
        settings, adaptations=("full",), views=("center",), batch_norm="train"
    )
    data, accelerator = load_dataset(only), accelerator_for("fp32")
    assert adapted.full is not None
    first, second = trained.model.state_dict(), adapted.full.state_dict()
    moved = {
        key: float((first[key] - second[key]).abs().max())
        for key in first
        if first[key].is_floating_point()
    }
    assert all(moved.values())
    key = "conv_head.weight"
    # near where it started
    assert torch.cosine_similarity(first[key].flatten(), second[key].flatten(), dim=0) > 0.8
    table = adaptations.predict_pair(trained.model, adapted, data, only, accelerator).table
    assert set(table["adaptation"]) == {"full"}
    tails = {"full": Tail(adapted.full)}
    plain = predict(adapted.full, tails, data, "test", only, 64, accelerator).table
    test = table[table["split"] == "test"].reset_index(drop=True)
    pd.testing.assert_frame_equal(test, plain)


def test_controls_are_what_a_pair_at_the_train_size_adapts(settings: PairSettings) -> None:
    at_train, trained, adapted = adapt(settings, test_size=48, adaptations=EVERY[:-1])
    assert list(adapted.tails) == list(EVERY[:-1])  # no control of itself
    assert adapted.seconds["head"] == trained.seconds["adapt"]["head"]
    assert adapted.choices == trained.choices.adapt
    data, variants = load_dataset(at_train), trained.choices.adapt
    accelerator = accelerator_for("fp32")
    again = stage2.adapt_tails(trained.model, data, at_train, 48, variants, accelerator).tails
    elsewhere = adapt(settings, adaptations=ADAPTED)[2].tails
    for name in ADAPTED:
        states = [
            each.state_dict()
            for each in (again[name], adapted.tails[name], elsewhere[CONTROL + name])
        ]
        assert all(same(states[0], each) for each in states)
        assert not same(states[0], elsewhere[name].state_dict())
    assert list(adapted.activations) == ["train crops, 48 px", "test framing, 48 px"]
    assert adapted.entering()["images"].tolist() == list(adapted.activations)
    assert adaptations.AdaptedPair({}, {}).entering().empty


def test_an_adaptation_that_the_network_cannot_have_is_refused(settings: PairSettings) -> None:
    other = settings.model_copy(update={"backbone": "timm:test_convnext"})
    model = create(other.backbone, 3, pretrained=False).eval()
    with pytest.raises(InputError, match="adaptation 'head_bn': the last batch norm is not known"):
        stage2.adapt_best(
            model, load_dataset(other), other, 64, ("head", "head_bn"), accelerator_for("fp32")
        )


def test_an_extra_test_part_is_classified_as_the_same_images_elsewhere(
    settings: PairSettings,
) -> None:
    extra = ExtraTest(name="again", folder=settings.dataset)
    own, trained, adapted = adapt(
        settings, adaptations=("none", "head"), views=("center",), extra_test=extra
    )
    table = adaptations.predict_pair(
        trained.model, adapted, load_dataset(own), own, accelerator_for("fp32")
    ).table
    assert table.groupby("split").size().to_dict() == {
        "val": 6 * 3,
        "test": 12 * 3,
        "again": 36 * 3,
    }
    again, rest = table[table["split"] == "again"], table[table["split"] != "again"]
    both = again.assign(image=again["image"].str.removeprefix("again/")).merge(
        rest, on=["image", "adaptation"]
    )
    assert len(both) == 18 * 3
    assert (both["target_x"] == both["target_y"]).all()
    assert np.allclose(both["probability_x"], both["probability_y"], atol=1e-5)


def test_costs_are_those_of_what_was_chosen(settings: PairSettings) -> None:
    _, trained, adapted = adapt(settings, adaptations=("none", "head", "full"))
    table = adaptations.adaptation_costs(trained.model, adapted).set_index("adaptation")
    assert list(table.index) == ["none", "head", "full"]
    assert table["seconds"]["none"] == 0 < table["seconds"]["head"]
    assert (table["learning_rate"]["head"], table["epochs"]["head"]) == (0.05, 2)
    assert table["moved"][["none", "head"]].tolist() == [0, 0]
    adapted.tails.pop("head")
    assert adaptations.adaptation_costs(trained.model, adapted)["learning_rate"].isna().all()


def test_moved_is_the_relative_change_of_the_affine_weights() -> None:
    model = create("efficientnet_lite0", 3)
    tails = {name: Tail(model) for name in ("none", "bn_stats", "head_bn")}
    for norm, factor in ((tails["bn_stats"].norm, 1.0), (tails["head_bn"].norm, 1.1)):
        assert norm is not None
        nn.init.ones_(norm.running_mean)  # type: ignore[arg-type]
        norm.weight.data *= factor
        norm.bias.data *= factor
    found = {name: stage2.moved(model, tail) for name, tail in tails.items()}
    assert found == pytest.approx({"none": 0, "bn_stats": 0, "head_bn": 0.1}, abs=1e-6)
    other = create("timm:convnext_atto", 3, pretrained=False)
    assert stage2.moved(other, Tail(other)) is None


def test_each_tail_and_its_control_is_adapted_in_the_framing_it_is_tested_in(
    settings: PairSettings,
) -> None:
    own = {"adaptations": ("none", "head"), "views": ("center",), "train_size": 32, "test_size": 48}
    chosen, trained, usual = adapt(settings, **own, crop_pct=(1.0, 0.875))
    data, accelerator = load_dataset(chosen), accelerator_for("fp32")
    found, left_out = adaptations.adapt_framings(trained, data, chosen, accelerator)
    assert (list(found), left_out) == ([0.875, 1.0], "")
    variants = {"head": trained.choices.adapt["head"]}
    for value, name, size in [(1.0, "head", 48), (1.0, "control_head", 32), (0.875, "head", 48)]:
        framed = chosen.framed(value)
        alone = stage2.adapt_tails(trained.model, data, framed, size, variants, accelerator)
        assert same(found[value].tails[name].state_dict(), alone.tails["head"].state_dict())
    for name in ("head", "control_head"):
        states = [pair.tails[name].state_dict() for pair in (usual, *found.values())]
        assert same(*states[:2])
        assert not same(*states[1:])
    # where the two resolutions are one, the tail is its own control
    at_train = chosen.model_copy(update={"test_size": 32})
    alike, _ = adaptations.adapt_framings(trained, data, at_train, accelerator)
    control = found[1.0].tails["control_head"]
    assert same(alike[1.0].tails["head"].state_dict(), control.state_dict())
    table = adaptations.predict_pair(
        trained.model, found[1.0], data, chosen.framed(1.0), accelerator
    ).table
    assert set(table["crop_pct"]) == {1.0}

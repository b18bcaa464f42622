"""Every adaptation of a pair, in every view."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from tiny_training import same, state_of

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import ADAPTED, CONTROL, ExtraTest, PairSettings
from fixres_poc.data.dataset import ImageDataset, load_dataset
from fixres_poc.method import adaptations, stage1, stage2
from fixres_poc.method.evaluation import predict
from fixres_poc.model import checkpoint
from fixres_poc.model.backbones import create
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.trunk import Tail

TINY: dict[str, Any] = {
    "train_size": 48,
    "test_size": 64,
    "batch_size": 6,
    "epochs": 1,
    "adapt_epochs": 2,
    "adapt_learning_rate": 0.05,
    "affine_factor": (1.0, 10.0),
    "head_start": "random",
}
EVERY = ("none", "equalised", *ADAPTED, "full")


class Pair(NamedTuple):
    """A pair that is trained and adapted."""

    settings: PairSettings
    data: ImageDataset
    accelerator: Accelerator
    trained: stage1.Trained
    adapted: adaptations.AdaptedPair

    def alone(self, settings: PairSettings, size: int, *names: str) -> dict[str, Tail]:
        """Tails adapted apart from all others, as validation chose at the train size."""
        variants = {name: self.trained.choices.adapt[name] for name in names}
        common = (self.data, settings, size, variants, self.accelerator)
        return stage2.adapt_tails(self.trained.model, *common).tails


def adapt(folder: Path, **change: Any) -> Pair:
    settings = PairSettings(dataset=str(folder), **(TINY | change))
    data, accelerator = load_dataset(settings), accelerator_for("fp32")
    trained = stage1.train_or_load(settings.train_settings(), data, accelerator)
    adapted = adaptations.adapt_pair(trained, data, settings, accelerator)
    return Pair(settings, data, accelerator, trained, adapted)


def test_every_adaptation_and_control_in_every_view_on_the_same_images(
    colour_folder: Path, tmp_path: Path
) -> None:
    views = ("center", "five_crop")
    extra = ExtraTest(name="again", folder=str(colour_folder))
    settings, data, accelerator, trained, adapted = adapt(
        colour_folder, adaptations=EVERY, views=views, extra_test=extra
    )
    assert list(adapted.tails) == [*EVERY, *(CONTROL + name for name in ADAPTED)]
    before = state_of(trained.model)
    done = adaptations.predict_pair(trained.model, adapted, data, settings, accelerator)
    cells = done.table.groupby(["adaptation", "view", "split"], observed=True)["image"].agg(list)
    assert len(cells) == (8 + 5) * 2 * 3
    assert len(cells["none", "center", "again"]) == 36
    assert all(cells[key] == cells["none", "center", key[2]] for key in cells.index)
    assert set(done.images_per_second) == set(views)
    assert adapted.seconds.keys() == {*ADAPTED, "equalised", "full"}
    names = ["train crops, 48 px", "test framing, 48 px", "test framing, 64 px"]
    assert list(adapted.activations) == names
    costs = adaptations.adaptation_costs(trained.model, adapted).set_index("adaptation")
    assert list(costs.index) == list(EVERY)
    assert costs["seconds"]["none"] == 0 < costs["seconds"]["head"]
    assert (costs["learning_rate"]["head"], costs["epochs"]["head"]) == (0.05, 2)
    assert costs["learning_rate"][["none", "equalised", "full"]].isna().all()
    assert costs["moved"][["none", "head"]].tolist() == [0, 0]
    adaptations.save_tails(adapted, trained.model, tmp_path, settings, data.classes)
    record = {"stage1": checkpoint.digest(before)}
    kept = checkpoint.load(tmp_path / "adapted_0.875.safetensors", record)[1]["tails"]
    assert kept == [name for name in adapted.tails if name != "full"]


def test_full_fine_tuning_starts_from_stage_1_and_changes_all_of_it(colour_folder: Path) -> None:
    settings, data, accelerator, trained, adapted = adapt(
        colour_folder, adaptations=("full",), batch_norm="train"
    )
    full = adapted.full
    assert full is not None
    first, second = trained.model.state_dict(), full.state_dict()
    floats = [key for key in first if first[key].is_floating_point()]
    assert not any(torch.equal(first[key], second[key]) for key in floats)
    key = "conv_head.weight"
    # near where it started
    assert torch.cosine_similarity(first[key].flatten(), second[key].flatten(), dim=0) > 0.8
    done = adaptations.predict_pair(trained.model, adapted, data, settings, accelerator).table
    plain = predict(full, {"full": Tail(full)}, data, "test", settings, 64, accelerator).table
    test = done.query("split == 'test'").reset_index(drop=True)
    pd.testing.assert_frame_equal(test, plain)


def test_controls_are_what_a_pair_at_the_train_size_adapts(colour_folder: Path) -> None:
    pair = adapt(colour_folder, test_size=48, adaptations=EVERY[:-1])
    trained, adapted = pair.trained, pair.adapted
    assert list(adapted.tails) == list(EVERY[:-1])  # no control of itself
    assert adapted.seconds["head"] == trained.seconds["adapt"]["head"]
    assert adapted.choices == trained.choices.adapt
    again = pair.alone(pair.settings, 48, *ADAPTED)
    elsewhere = adapt(colour_folder, adaptations=ADAPTED).adapted.tails
    for name in ADAPTED:
        first, *others = (
            each.state_dict()
            for each in (again[name], adapted.tails[name], elsewhere[CONTROL + name])
        )
        assert all(same(first, each) for each in others)
        assert not same(first, elsewhere[name].state_dict())
    assert list(adapted.activations) == ["train crops, 48 px", "test framing, 48 px"]
    assert adapted.entering()["images"].tolist() == list(adapted.activations)
    assert adaptations.AdaptedPair({}, {}).entering().empty


def test_an_adaptation_that_the_network_cannot_have_is_refused(colour_folder: Path) -> None:
    settings = PairSettings(dataset=str(colour_folder), **TINY)
    model = create("timm:test_convnext", 3, pretrained=False).eval()
    common = (load_dataset(settings), settings, 64, ("head", "head_bn"), accelerator_for("fp32"))
    with pytest.raises(InputError, match=r"'head_bn': the last batch norm .*; use 'none' or"):
        stage2.adapt_best(model, *common)  # type: ignore[arg-type]


def test_each_tail_and_its_control_is_adapted_in_the_framing_it_is_tested_in(
    colour_folder: Path,
) -> None:
    own = {"adaptations": ("none", "head"), "train_size": 32, "test_size": 48}
    pair = adapt(colour_folder, **own, crop_pct=(1.0, 0.875))
    settings, data, accelerator, trained, _ = pair
    found, left_out = adaptations.adapt_framings(trained, data, settings, accelerator)
    assert (list(found), left_out) == ([0.875, 1.0], "")
    for name, size in (("head", 48), ("control_head", 32)):
        states = {value: each.tails[name].state_dict() for value, each in found.items()}
        for value, state in states.items():
            alone = pair.alone(settings.framed(value), size, "head")["head"]
            assert same(state, alone.state_dict())
        assert not same(*states.values())
    # where the two resolutions are one, the tail is its own control
    at_train = settings.model_copy(update={"test_size": 32})
    alike, _ = adaptations.adapt_framings(trained, data, at_train, accelerator)
    control = found[1.0].tails["control_head"]
    assert same(alike[1.0].tails["head"].state_dict(), control.state_dict())

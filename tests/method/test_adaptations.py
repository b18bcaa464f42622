"""Every adaptation of a pair, in every view."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fixres_poc.config.settings import ADAPTATIONS, PairSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import adaptations, stage1
from fixres_poc.method.evaluation import predict
from fixres_poc.model import checkpoint
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.trunk import Tail

TINY = {"train_size": 48, "test_size": 64, "batch_size": 6, "epochs": 1, "adapt_epochs": 2, "adapt_learning_rate": 0.05}


@pytest.fixture
def settings(colour_folder: Path) -> PairSettings:
    every = (*ADAPTATIONS, "full")
    return PairSettings(dataset=str(colour_folder), adaptations=every, views=("center", "five_crop"), **TINY)  # type: ignore[arg-type]


def adapt(settings: PairSettings, **change: object) -> tuple[PairSettings, stage1.Trained, adaptations.AdaptedPair]:
    """A pair, some of its settings changed, that is trained and adapted."""
    chosen = settings.model_copy(update=change)
    data, accelerator = load_dataset(chosen), accelerator_for("fp32")
    trained = stage1.train_or_load(chosen.train_settings(), data, accelerator)
    return chosen, trained, adaptations.adapt_pair(trained, data, chosen, accelerator)


def test_every_adaptation_in_every_view_on_the_same_images(settings: PairSettings, tmp_path: Path) -> None:
    data, accelerator = load_dataset(settings), accelerator_for("fp32")
    trained = stage1.train_or_load(settings.train_settings(), data, accelerator)
    before = {key: value.clone() for key, value in trained.model.state_dict().items()}
    adapted = adaptations.adapt_pair(trained, data, settings, accelerator)
    assert list(adapted.tails) == list(settings.adaptations)
    assert all(torch.equal(before[key], value) for key, value in trained.model.state_dict().items())
    classified = adaptations.predict_pair(trained.model, adapted, data, settings, accelerator)
    cells = classified.table.groupby(["adaptation", "view", "split"], observed=True)["image"].agg(list)
    assert len(cells) == 7 * 2 * 2
    assert all(cells[key] == cells["none", "center", key[2]] for key in cells.index)
    assert set(classified.images_per_second) == {"center", "five_crop"}
    assert adapted.seconds.keys() == {"head", "head_bn_stats", "head_bn", "equalised", "full"}
    assert all(seconds > 0 for seconds in adapted.seconds.values())
    adaptations.save(adapted, trained.model, tmp_path, settings, data.classes)
    checkpoint.load(tmp_path / "adapted.safetensors", {"stage1": checkpoint.digest(before)})


def test_full_fine_tuning_starts_from_stage_1_and_changes_all_of_it(settings: PairSettings) -> None:
    only, trained, adapted = adapt(settings, adaptations=("full",), views=("center",))
    data, accelerator = load_dataset(only), accelerator_for("fp32")
    assert adapted.full is not None
    first, second = trained.model.state_dict(), adapted.full.model.state_dict()
    moved = {key: float((first[key] - second[key]).abs().max()) for key in first if first[key].is_floating_point()}
    assert all(moved.values())
    key = "conv_head.weight"
    assert torch.cosine_similarity(first[key].flatten(), second[key].flatten(), dim=0) > 0.8  # near where it started
    table = adaptations.predict_pair(trained.model, adapted, data, only, accelerator).table
    assert set(table["adaptation"]) == {"full"}
    plain = predict(adapted.full.model, {"full": Tail(adapted.full.model)}, data, "test", only, 64, accelerator).table
    test = table[table["split"] == "test"].reset_index(drop=True)
    pd.testing.assert_frame_equal(test, plain)


def test_at_the_train_size_everything_works_as_well(settings: PairSettings) -> None:
    _, _, adapted = adapt(settings, test_size=48, adaptations=("none", "equalised"))
    assert list(adapted.activations) == ["train crops, 48 px", "test framing, 48 px"]
    assert adapted.entering()["images"].tolist() == list(adapted.activations)
    assert adaptations.AdaptedPair({}, {}).entering().empty


def test_costs_are_those_of_training_steps(settings: PairSettings) -> None:
    few, _, adapted = adapt(settings, adaptations=("none", "head", "full"))
    table = adaptations.costs(adapted, few, 3).set_index("adaptation")
    step_mib = table["step_mib"]
    assert np.isnan(step_mib["none"])
    assert table["seconds"]["none"] == 0
    assert 0 < 2 * step_mib["head"] < step_mib["full"]

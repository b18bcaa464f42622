"""Every adaptation of a pair, in every view."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fixres_poc import datasets, pairs, training
from fixres_poc.backbones import Tail
from fixres_poc.config import ADAPTATIONS, PairSettings
from fixres_poc.evaluation import accelerator, predict

TINY = {"train_size": 48, "test_size": 64, "batch_size": 6, "epochs": 1, "adapt_epochs": 2, "adapt_learning_rate": 0.05}


@pytest.fixture
def settings(colour_folder: Path) -> PairSettings:
    every = (*ADAPTATIONS, "full")
    return PairSettings(dataset=str(colour_folder), adaptations=every, views=("center", "five_crop"), **TINY)  # type: ignore[arg-type]


def test_every_adaptation_in_every_view_on_the_same_pictures(settings: PairSettings, tmp_path: Path) -> None:
    pictures, engine = datasets.load(settings), accelerator("fp32")
    trained = training.train_or_load(settings.train_settings(), pictures, engine)
    before = {key: value.clone() for key, value in trained.model.state_dict().items()}
    adapted = pairs.adapt_pair(trained, pictures, settings, engine)
    assert list(adapted.tails) == list(settings.adaptations)
    assert all(torch.equal(before[key], value) for key, value in trained.model.state_dict().items())
    classified = pairs.classify(trained.model, adapted, pictures, settings, engine)
    cells = classified.table.groupby(["adaptation", "view", "split"], observed=True)["picture"].agg(list)
    assert len(cells) == 7 * 2 * 2
    assert all(cells[key] == cells["none", "center", key[2]] for key in cells.index)
    assert set(classified.images_per_second) == {"center", "five_crop"}
    assert adapted.seconds.keys() == {"head", "head_bn_stats", "head_bn", "equalised", "full"}
    assert all(seconds > 0 for seconds in adapted.seconds.values())
    pairs.save(adapted, tmp_path, settings, pictures.classes)
    assert (tmp_path / "adapted.safetensors").exists()


def test_full_fine_tuning_starts_from_stage_1_and_changes_all_of_it(settings: PairSettings) -> None:
    only = settings.model_copy(update={"adaptations": ("full",), "views": ("center",)})
    pictures, engine = datasets.load(only), accelerator("fp32")
    trained = training.train_or_load(only.train_settings(), pictures, engine)
    adapted = pairs.adapt_pair(trained, pictures, only, engine)
    assert adapted.full is not None
    first, second = trained.model.state_dict(), adapted.full.model.state_dict()
    moved = {key: float((first[key] - second[key]).abs().max()) for key in first if first[key].is_floating_point()}
    assert all(moved.values())
    key = "conv_head.weight"
    assert torch.cosine_similarity(first[key].flatten(), second[key].flatten(), dim=0) > 0.8  # near where it started
    table = pairs.classify(trained.model, adapted, pictures, only, engine).table
    assert set(table["adaptation"]) == {"full"}
    plain = predict(adapted.full.model, {"full": Tail(adapted.full.model)}, pictures, "test", only, 64, engine).table
    test = table[table["split"] == "test"].reset_index(drop=True)
    pd.testing.assert_frame_equal(test, plain)


def test_at_the_train_size_everything_works_as_well(settings: PairSettings) -> None:
    same = settings.model_copy(update={"test_size": 48, "adaptations": ("none", "equalised"), "views": ("center",)})
    pictures, engine = datasets.load(same), accelerator("fp32")
    trained = training.train_or_load(same.train_settings(), pictures, engine)
    adapted = pairs.adapt_pair(trained, pictures, same, engine)
    assert list(adapted.activations) == ["train crops, 48 px", "test framing, 48 px"]
    assert adapted.entering()["pictures"].tolist() == list(adapted.activations)
    assert pairs.Adapted({}, {}).entering().empty


def test_costs_are_those_of_training_steps(settings: PairSettings) -> None:
    few = settings.model_copy(update={"adaptations": ("none", "head", "full")})
    pictures, engine = datasets.load(few), accelerator("fp32")
    trained = training.train_or_load(few.train_settings(), pictures, engine)
    table = pairs.costs(pairs.adapt_pair(trained, pictures, few, engine), few, 3).set_index("adaptation")
    step_mib = table["step_mib"]
    assert np.isnan(step_mib["none"])
    assert table["seconds"]["none"] == 0
    assert 0 < 2 * step_mib["head"] < step_mib["full"]

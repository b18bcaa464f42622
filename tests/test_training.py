"""Stage 1, its checkpoint, and predictions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fixres_poc import checkpoint, datasets, evaluation, fine_tuning, training
from fixres_poc.backbones import Tail, create
from fixres_poc.config import BaselineSettings, InputError, TrainSettings, run_folder
from fixres_poc.datasets.loading import PictureDataset

TINY = {"train_size": 48, "batch_size": 6, "epochs": 2, "adapt_epochs": 1, "learning_rate": 0.03}


def settings_for(folder: Path, **more: object) -> TrainSettings:
    return TrainSettings(dataset=str(folder), **(TINY | more))  # type: ignore[arg-type]


def weights(trained: training.Trained) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trained.model.state_dict().items()}


def test_training_learns_colours_and_keeps_the_best_epoch(colour_folder: Path) -> None:
    settings = settings_for(colour_folder, epochs=8)
    pictures = datasets.load(settings)
    trained = training.train(settings, pictures)
    assert trained.history["epoch"].tolist() == list(range(1, 9))
    assert trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0]
    best = trained.history["val_top1"].max()
    assert best > 0.6
    assert fine_tuning.val_top1(trained.model, settings, pictures, evaluation.accelerator("fp32")) == best


def test_the_same_seed_gives_the_same_weights_and_another_does_not(colour_folder: Path) -> None:
    settings = settings_for(colour_folder, epochs=1)
    pictures = datasets.load(settings)
    first, again = (weights(training.train(settings, pictures)) for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = weights(training.train(settings_for(colour_folder, epochs=1, seed=1), pictures))
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_finished_training_is_read_and_not_done_again(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(colour_folder)
    pictures = datasets.load(settings)
    first = training.train_or_load(settings, pictures)
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    second = training.train_or_load(settings, pictures)
    assert all(torch.equal(value, weights(first)[key]) for key, value in weights(second).items())
    assert second.control is not None
    assert first.control is not None
    weight = "classifier.weight"
    assert torch.equal(second.control.state_dict()[weight], first.control.state_dict()[weight])
    assert second.history.equals(first.history)
    assert second.seconds == first.seconds


@pytest.mark.parametrize("change", [{"epochs": 1}, {"train_size": 64}, {"seed": 5}, {"batch_size": 4}])
def test_a_checkpoint_of_other_settings_is_refused_by_name(colour_folder: Path, change: dict[str, int]) -> None:
    settings = settings_for(colour_folder)
    path = run_folder("notebooks", "x") / training.CHECKPOINT
    checkpoint.save(path, {"a": torch.ones(2)}, {"settings": settings.model_dump(), "classes": ["a"]})
    assert checkpoint.load(path, {"settings": settings.model_dump()})[1]["classes"] == ["a"]
    with pytest.raises(InputError, match=next(iter(change))):
        checkpoint.load(path, {"settings": settings.model_copy(update=change).model_dump()})


def test_a_damaged_checkpoint_is_refused_and_trained_again(
    colour_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(colour_folder, epochs=1)
    pictures = datasets.load(settings)
    first = weights(training.train_or_load(settings, pictures))
    path = run_folder(settings.sweep, settings.run_name) / training.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    again = weights(training.train_or_load(settings, pictures))
    assert "training again" in caplog.text
    assert torch.equal(first["classifier.weight"], again["classifier.weight"])
    assert [each.name for each in path.parent.iterdir()] == [training.CHECKPOINT]


@pytest.mark.parametrize("change", [{"backbone": "timm:resnet18"}, {"epochs": 3, "seed": 2}])
def test_a_refusal_names_what_differs_and_nothing_else(tmp_path: Path, change: dict[str, object]) -> None:
    settings = settings_for(tmp_path)
    checkpoint.save(tmp_path / "x", {"a": torch.ones(2)}, {"settings": settings.model_dump(), "classes": ["a"]})
    with pytest.raises(InputError) as refusal:
        checkpoint.load(tmp_path / "x", {"settings": settings.model_copy(update=change).model_dump()})
    assert all(f"settings.{key} = " in str(refusal.value) for key in change)
    assert str(refusal.value).count("settings.") == len(change)
    with pytest.raises(InputError, match=r"classes = \['a'\], this run has \['a', 'b'\]"):
        checkpoint.load(tmp_path / "x", {"classes": ["a", "b"]})


def test_one_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x", {"a": torch.ones(1000), "b": torch.ones(3).bfloat16()}, {})
    content = bytearray((tmp_path / "x").read_bytes())
    assert torch.equal(checkpoint.load(tmp_path / "x", {})[0]["a"], torch.ones(1000))
    content[-2000] ^= 1
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="checkpoint x: damaged"):
        checkpoint.load(tmp_path / "x", {})


def test_a_changed_picture_set_is_trained_anew(colour_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_for(colour_folder, epochs=1)
    training.train_or_load(settings, datasets.load(settings))
    (colour_folder / "red" / "00.png").rename(colour_folder / "red" / "renamed.png")
    training.train_or_load(settings, datasets.load(settings))
    assert "pictures" in caplog.text


def test_own_weights_are_used_and_another_file_at_the_same_path_is_trained_anew(
    colour_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = create("efficientnet_lite0").state_dict()
    file = tmp_path / "own.pth"
    torch.save(state, file)
    plain = settings_for(colour_folder, epochs=1)
    settings = plain.model_copy(update={"weights": str(file)})
    pictures = datasets.load(settings)
    first, expected = (weights(training.train(each, pictures)) for each in (settings, plain))
    assert all(torch.equal(first[key], expected[key]) for key in first)
    training.train_or_load(settings, pictures)
    file.rename(tmp_path / "moved.pth")
    training.train_or_load(settings.model_copy(update={"weights": str(tmp_path / "moved.pth")}), pictures)
    assert not caplog.text
    torch.save({key: value * 0.9 if value.is_floating_point() else value for key, value in state.items()}, file)
    training.train_or_load(settings, pictures)
    assert "made with weights = " in caplog.text


def test_predictions_share_one_trunk_and_equal_the_plain_network(colour_folder: Path) -> None:
    settings = settings_for(colour_folder, epochs=1)
    pictures = datasets.load(settings)
    engine = evaluation.accelerator("fp32")
    model = training.train(settings, pictures, engine).model
    table = evaluation.predict(
        model, {"none": Tail(model), "again": Tail(model)}, pictures, "test", settings, 64, engine
    ).table
    plain = table[table["adaptation"] == "none"].reset_index(drop=True)
    data = PictureDataset(pictures, "test", evaluation.transforms_for(settings, 64, 64)["val_test"])
    with torch.no_grad():
        logits = model(torch.stack([data[index][0] for index in range(len(data))]))
    assert plain["top1"].tolist() == logits.argmax(1).tolist()
    assert np.allclose(plain["probability"], logits.softmax(1).max(1).values, atol=1e-5)
    assert plain["picture"].tolist() == data.names
    assert (plain["top4"] == -1).all()


def test_prediction_table_orders_by_probability() -> None:
    rows = pd.DataFrame({"picture": ["a", "b"], "split": ["test"] * 2, "label": [0, 2]})
    table = evaluation.prediction_table(rows, "none", np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]))
    assert table[["top1", "top2", "top3", "top4"]].to_numpy().tolist() == [[1, 2, 0, -1], [2, 0, 1, -1]]
    assert table["probability"].tolist() == pytest.approx([0.5, 0.8])


def test_the_linear_baseline_learns_colours(colour_folder: Path) -> None:
    settings = BaselineSettings(dataset=str(colour_folder), batch_size=16)
    result = evaluation.baseline(settings, datasets.load(settings))
    test = result.predictions[result.predictions["split"] == "test"]
    assert (test["top1"] == test["target"]).mean() > 0.9
    assert result.penalty in result.val_top1
    assert json.dumps(result.seconds)


def test_a_penalty_at_the_edge_of_those_tried_is_told(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(evaluation, "PENALTIES", (0.1, 1.0))
    settings = BaselineSettings(dataset=str(colour_folder), batch_size=16)
    evaluation.baseline(settings, datasets.load(settings))
    assert "at an edge of those tried" in caplog.text


def test_loader_processes_are_as_many_as_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 6})
    assert evaluation.workers() == 3


def test_half_precision_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="fp16"):
        evaluation.accelerator("fp16")


def test_a_checkpoint_of_other_library_code_is_trained_anew(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(colour_folder, epochs=1)
    pictures = datasets.load(settings)
    training.train_or_load(settings, pictures)
    monkeypatch.setattr(training, "library_hash", lambda: "0" * 16)
    training.train_or_load(settings, pictures)
    assert "library" in caplog.text


def test_probabilities_of_several_crops_are_averaged(colour_folder: Path) -> None:
    settings = settings_for(colour_folder, batch_size=5)
    pictures = datasets.load(settings)
    engine = evaluation.accelerator("fp32")
    model = create("efficientnet_lite0", 3).eval()
    tails = {"none": Tail(model)}
    table = evaluation.predict(model, tails, pictures, "test", settings, 48, engine, "ten_crop").table
    assert (table["view"] == "ten_crop").all()
    data = PictureDataset(pictures, "test", evaluation.transforms_for(settings, 48, 48, "ten_crop")["val_test"])
    with torch.no_grad():
        mean = torch.stack([model(data[index][0]).softmax(1).mean(0) for index in range(len(data))])
    assert np.allclose(table["probability"], mean.max(1).values, atol=1e-5)
    assert table["top1"].tolist() == mean.argmax(1).tolist()

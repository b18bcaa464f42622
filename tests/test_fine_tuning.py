"""Stage 1's steps, resumption and several processes: the same result however little memory there is."""

import itertools
import os
import weakref
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from fixres_poc import checkpoint, datasets, evaluation, fine_tuning, machine, preflight, training
from fixres_poc.backbones import create, trunk
from fixres_poc.config import InputError, TrainSettings, run_folder
from fixres_poc.datasets.loading import PictureDataset, batches, loader
from fixres_poc.memory import Portion, out_of_memory
from fixres_poc.preflight import Fit

WHOLE = Fit(micro_batch_size=8, gradient_checkpointing=False, peak_bytes=0, fits=True)
State = dict[str, torch.Tensor]


def settings_for(folder: Path, **more: Any) -> TrainSettings:
    tiny: dict[str, Any] = {"train_size": 48, "batch_size": 8, "epochs": 3, "adapt_epochs": 1, "learning_rate": 0.03}
    return TrainSettings(dataset=str(folder), **(tiny | more))


def state_of(trained: training.Trained) -> State:
    return {key: value.clone() for key, value in trained.model.state_dict().items()}


def same(first: State, second: State) -> bool:
    return all(torch.equal(second[key], value) for key, value in first.items())


@pytest.fixture
def fits_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "fit", lambda *_: WHOLE)


def run_out(monkeypatch: pytest.MonkeyPatch, error: BaseException, most: int, after: int = 0) -> list[int]:
    """Let every network raise `error` when more than `most` pictures pass it in training, after `after` good passes."""
    seen: list[int] = []
    original = create

    def create_small(*arguments: Any, **named: Any) -> Any:
        model = original(*arguments, **named)

        def check(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if module.training:
                seen.append(len(inputs[0]))
                if len(inputs[0]) > most and len(seen) > after:
                    raise type(error)(*error.args)  # a fresh one, since an error keeps the frames it passed

        model.register_forward_pre_hook(check)
        return model

    monkeypatch.setattr(fine_tuning, "create", create_small)
    return seen


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()], ids=["gpu", "cpu"]
)
def test_training_that_runs_out_of_memory_ends_with_a_smaller_part_and_the_same_batch(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, fits_whole: None, error: BaseException
) -> None:
    seen = run_out(monkeypatch, error, most=2)
    settings = settings_for(colour_folder)
    trained = training.train_or_load(settings, datasets.load(settings))
    assert seen == [6, 6, 3] + [2] * 27  # 3 epochs of 3 batches of 6 pictures
    kept = checkpoint.load(run_folder("notebooks", settings.run_name) / training.CHECKPOINT, {})[1]["memory"]
    assert kept == trained.memory
    assert {key: kept[key] for key in ("batch_size", "micro_batch_size", "gradient_checkpointing")} == {
        "batch_size": 8,
        "micro_batch_size": 2,
        "gradient_checkpointing": True,
    }
    assert kept["note"] == "batch norm saw 2 pictures at a time"
    assert kept["out_of_memory"] == [
        "out of memory with 8 pictures at once: on with 8 pictures at once, activations recomputed",
        "out of memory with 8 pictures at once, activations recomputed: "
        "on with 4 pictures at once, activations recomputed",
        "out of memory with 4 pictures at once, activations recomputed: "
        "on with 2 pictures at once, activations recomputed",
    ]
    assert trained.history["micro_batch_size"].tolist() == [2, 2, 2]


def test_a_way_that_did_not_fit_leaves_nothing_in_memory(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, fits_whole: None
) -> None:
    weights: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    start = fine_tuning.begin

    def remember_weights(*arguments: Any) -> fine_tuning.State:
        alive.append(sum(each() is not None for each in weights))
        state = start(*arguments)
        weights.append(weakref.ref(next(state.model.parameters())))
        return state

    run_out(monkeypatch, MemoryError(), most=3)
    monkeypatch.setattr(fine_tuning, "begin", remember_weights)
    settings = settings_for(colour_folder, epochs=1)
    trained = training.train(settings, datasets.load(settings))
    assert alive == [0, 0, 0]
    assert trained.memory["predicted_peak_bytes"] == preflight.training_bytes(settings, 3, 4, True)


def test_a_large_seed_is_a_seed(colour_folder: Path) -> None:
    settings = settings_for(colour_folder, epochs=1, seed=2**31 - 1)
    assert len(training.train(settings, datasets.load(settings)).history) == 1


def test_what_fitted_is_remembered_and_gives_the_same_again(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, fits_whole: None
) -> None:
    seen = run_out(monkeypatch, MemoryError(), most=3)
    settings = settings_for(colour_folder)
    pictures = datasets.load(settings)
    first = training.train(settings, pictures)
    seen.clear()
    again = training.train(settings, pictures)
    assert max(seen) == 3
    assert again.memory["out_of_memory"] == []
    assert same(state_of(first), state_of(again))


def test_memory_that_runs_out_later_costs_one_epoch_only(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, fits_whole: None
) -> None:
    run_out(monkeypatch, MemoryError(), most=3, after=4)  # in epoch 2
    settings = settings_for(colour_folder, gradient_checkpointing=False)
    trained = training.train_or_load(settings, datasets.load(settings))
    assert trained.history["epoch"].tolist() == [1, 2, 3]
    assert trained.history["micro_batch_size"].tolist() == [8, 4, 4]
    assert trained.memory["gradient_checkpointing"] is False


def test_what_does_not_fit_at_all_is_one_line_and_other_errors_pass(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, fits_whole: None
) -> None:
    settings = settings_for(colour_folder)
    pictures = datasets.load(settings)
    with monkeypatch.context() as patch:
        run_out(patch, RuntimeError("shapes differ"), most=0)
        with pytest.raises(RuntimeError, match="shapes differ"):
            training.train(settings, pictures)
    with monkeypatch.context() as patch:
        run_out(patch, MemoryError(), most=0)
        with pytest.raises(InputError, match="train_size = 48: not even one picture"):
            training.train(settings, pictures)
    assert training.train(settings, pictures).memory["micro_batch_size"] == 8  # the failure is not kept for good


def test_which_errors_mean_that_memory_ran_out() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 GB"))
    assert not out_of_memory(RuntimeError("shapes differ"))
    assert not out_of_memory(ValueError("x"))


def test_a_frozen_network_takes_fewer_pictures_at_once_and_gives_the_same(caplog: pytest.LogCaptureFixture) -> None:
    model = create("efficientnet_lite0", 3, pretrained=False).eval()
    images = torch.randn(8, 3, 48, 48)

    def narrow(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(part) > 3:
            raise MemoryError
        return trunk(model, part)

    portion = Portion(8)
    assert torch.allclose(portion.run(narrow, images)[0], trunk(model, images)[0], atol=1e-5)
    assert portion.size == 2
    assert "on with 2 pictures at once" in caplog.text
    with pytest.raises(MemoryError):
        Portion(4).run(lambda part: (_ for _ in ()).throw(MemoryError()), images)


def gradients(settings: TrainSettings, at_once: int) -> State:
    """Of the mean loss over one batch, batch norm frozen."""
    pictures, engine = datasets.load(settings), evaluation.accelerator("fp32")
    fit = Fit(at_once, False, 0, True)
    state = fine_tuning.begin(settings, pictures, engine, fit)
    state.model.eval()
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    transform = evaluation.transforms_for(settings, 48, 48)["train"]
    data = PictureDataset(pictures, "train", transform, settings.seed)
    rows = batches(data, settings.batch_size)
    images, labels, _ = next(iter(loader(data, rows)))
    fine_tuning.step(state, images, labels, len(rows[0]), settings, engine, at_once)
    return {key: value - before[key] for key, value in state.model.state_dict().items() if value.is_floating_point()}


def test_gradients_of_parts_add_up_to_those_of_the_batch(colour_folder: Path) -> None:
    settings = settings_for(colour_folder, learning_rate=10.0)
    whole, parts = gradients(settings, 6), gradients(settings, 4)
    assert whole["classifier.weight"].abs().max() > 1e-3
    assert all(torch.allclose(parts[key], value, rtol=1e-3, atol=1e-5) for key, value in whole.items())


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    settings = settings_for(colour_folder)
    pictures = datasets.load(settings)
    undisturbed = training.train(settings, pictures)
    original, epochs = fine_tuning.run_epoch, list[int]()

    def run(state: fine_tuning.State, data: PictureDataset, *arguments: Any) -> float:
        epochs.append(data.epoch)
        if epochs == list(range(1, epoch + 2)):
            raise KilledError
        return original(state, data, *arguments)

    monkeypatch.setattr(fine_tuning, "run_epoch", run)
    with pytest.raises(KilledError):
        training.train_or_load(settings, pictures)
    resumed = training.train_or_load(settings, pictures)
    assert epochs == [*range(1, epoch + 2), *range(epoch + 1, 4)]
    assert same(state_of(undisturbed), state_of(resumed))
    times = ["seconds"]
    pd.testing.assert_frame_equal(resumed.history.drop(columns=times), undisturbed.history.drop(columns=times))
    assert not (run_folder("notebooks", settings.run_name) / training.STATE).exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "other settings", "code"])
def test_a_kept_state_that_does_not_belong_or_is_damaged_is_not_used(
    colour_folder: Path, tmp_path: Path, damage: str
) -> None:
    settings = settings_for(colour_folder, epochs=1)
    pictures = datasets.load(settings)
    file = tmp_path / training.STATE
    first = training.train(settings, pictures, file=file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if damage == "bit":  # of the middle of the largest part, which is one of `best`
        with zipfile.ZipFile(file) as parts:
            largest = max(parts.infolist(), key=lambda each: each.file_size)
        content = bytearray(file.read_bytes())
        content[largest.header_offset + largest.file_size // 2] ^= 64
        file.write_bytes(content)
    if damage == "other settings":
        settings = settings.model_copy(update={"seed": 1})
    if damage == "code":
        torch.save({"record": os.getcwd, "rows": []}, file)
    again = training.train(settings, pictures, file=file)
    assert len(again.history) == 1
    assert same(state_of(first), state_of(again)) == (damage != "other settings")


def test_an_epoch_has_batches_of_one_size_and_every_picture(colour_folder: Path) -> None:
    pictures = datasets.load(settings_for(colour_folder))
    data = PictureDataset(pictures, "train", lambda image: image, seed=0)
    data.epoch = 1
    first = batches(data, 8)
    assert [len(batch) for batch in first] == [6, 6, 6]
    assert sorted(itertools.chain(*first)) == list(range(18))
    data.epoch = 2
    assert batches(data, 8) != first
    assert batches(PictureDataset(pictures, "train", lambda image: image), 8)[0] == list(range(8))


def test_processes_share_every_batch_without_overlap(colour_folder: Path) -> None:
    pictures = datasets.load(settings_for(colour_folder))
    data = PictureDataset(pictures, "train", evaluation.transforms_for(settings_for(colour_folder), 48, 48)["train"], 0)
    rows = batches(data, 5)
    parts = [[batch[2].tolist() for batch in loader(data, rows, 0, rank, 3)] for rank in range(3)]
    assert [list(itertools.chain(*each)) for each in zip(*parts, strict=True)] == rows


def test_measured_once_and_kept() -> None:
    values = iter(["x", "y"])
    assert [machine.remembered("a", lambda: next(values)) for _ in range(2)] == ["x", "x"]
    machine.remember("a", 3)
    assert machine.recall("a") == 3
    assert machine.recall("b") is None
    (run_folder("x", "y").parents[1] / "machine.json").write_text("{")
    assert machine.remembered("a", lambda: "new") == "new"


def test_the_memory_format_is_measured_once_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def faster(*_: Any) -> str:
        measured.append("x")
        return "NCHW"

    monkeypatch.setattr(evaluation, "_faster_format", faster)
    engine, settings = evaluation.accelerator("fp32"), TrainSettings(train_size=48)
    for _ in range(2):
        model = evaluation.place(create("efficientnet_lite0", pretrained=False), settings, engine)
    assert measured == ["x"]
    assert model.get_parameter("conv_head.weight").is_contiguous()
    assert evaluation.format_name(model) == "NCHW"
    assert evaluation.format_name(model.to(memory_format=torch.channels_last)) == "channels_last"


def test_measuring_the_memory_format_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = create("efficientnet_lite0", 3, pretrained=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    engine = evaluation.accelerator("fp32")
    assert evaluation._faster_format(model, TrainSettings(train_size=48), engine) in evaluation.FORMATS
    assert same(before, dict(model.state_dict()))
    assert all(each.grad is None for each in model.parameters())

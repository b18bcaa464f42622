"""Stage 1: the same batch however little memory there is, and its checkpoint."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from tiny_training import begun, recipe_for, same, state_of, tiny, train

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import CHECKPOINT, run_folder
from fixres_poc.config.settings import TrainSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method import epochs, linear_probe, stage1
from fixres_poc.model import checkpoint, memory_plan, weights
from fixres_poc.model.backbones import create


def run_out(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, most: int, after: int = 0
) -> list[int]:
    """Let networks raise `error` when more than `most` images pass in training, after some passes.

    Every batch is predicted to fit as a whole.
    """
    seen: list[int] = []

    def create_small(*arguments: Any, **named: Any) -> Any:
        model = create(*arguments, **named)

        def check(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if module.training:
                seen.append(len(inputs[0]))
                if len(inputs[0]) > most and len(seen) > after:
                    # a fresh one, since an error keeps the frames it passed
                    raise type(error)(*error.args)

        model.register_forward_pre_hook(check)
        return model

    monkeypatch.setattr(epochs, "create", create_small)
    monkeypatch.setattr(memory_plan, "budget_bytes", lambda: 2**50)
    return seen


def test_a_batch_is_done_in_parts_and_what_did_not_fit_leaves_nothing_in_memory(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, alive, begin = list[weakref.ref[torch.Tensor]](), list[int](), epochs.begin

    def remember_weights(*arguments: Any) -> epochs.State:
        alive.append(sum(reference() is not None for reference in held))
        state = begin(*arguments)
        held.append(weakref.ref(next(state.model.parameters())))
        return state

    seen = run_out(monkeypatch, MemoryError(), most=2)
    monkeypatch.setattr(epochs, "begin", remember_weights)
    settings, data, _ = tiny(colour_folder)
    trained = stage1.train_or_load(settings, data)
    assert alive == [0, 0, 0, 0]
    assert seen == [6, 6, 3] + [2] * 27  # 3 epochs of 3 batches of 6 images
    kept = checkpoint.load(run_folder("notebooks", settings.run_name) / CHECKPOINT, {})[1]["memory"]
    assert kept == trained.memory
    recomputed = [f"{images} images at once, activations recomputed" for images in (8, 4)]
    expected = {
        "gradient_checkpointing": True,
        "predicted_peak_bytes": memory_plan.training_bytes(settings, 48, 3, 2, True),
        "note": "batch norm saw 2 images at a time",
        "out_of_memory": [
            f"out of memory with {plan}" for plan in ("8 images at once", *recomputed)
        ],
    }
    assert expected.items() <= kept.items()
    assert trained.history["micro_batch_size"].tolist() == [2, 2, 2]


def test_memory_that_runs_out_later_costs_one_epoch(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(monkeypatch, MemoryError(), most=3, after=4)  # in epoch 2
    settings, data, _ = tiny(colour_folder, gradient_checkpointing=False)
    trained = stage1.train_or_load(settings, data)
    assert trained.history["epoch"].tolist() == [1, 2, 3]
    assert trained.history["micro_batch_size"].tolist() == [8, 4, 4]
    assert trained.memory["gradient_checkpointing"] is False


def test_what_does_not_fit_at_all_is_one_line_and_other_errors_pass(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tiny(colour_folder)
    run_out(monkeypatch, RuntimeError("shapes differ"), most=0)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(given)
    run_out(monkeypatch, MemoryError(), most=0)
    with pytest.raises(InputError, match=r"1 images at once, .*: not even one image fits"):
        train(given)


def test_several_processes_that_run_out_get_advice(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "begin", Mock(side_effect=MemoryError))
    settings, data, _ = tiny(colour_folder)
    two: Any = SimpleNamespace(num_processes=2, free_memory=lambda: None)
    with pytest.raises(InputError, match="4 images at once in each process: set gradient_check"):
        stage1.train(settings, recipe_for(settings), data, two)


def test_a_finished_training_is_read_and_controls_that_it_lacks_are_added(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, data, accelerator = tiny(colour_folder, epochs=1)
    with pytest.raises(InputError, match=r"training train48_seed0: .* cannot be read"):
        stage1.load_training(settings, data, accelerator)
    first = stage1.train_or_load(settings, data)
    monkeypatch.setattr(stage1, "train", lambda *_: pytest.fail("trained again"))
    read = stage1.train_or_load(settings, data)
    assert same(state_of(read.model), state_of(first.model))
    assert read.history.equals(first.history)
    for name in ("seconds", "memory", "choices", "tried", "steps"):
        assert getattr(read, name) == getattr(first, name)
    wanted = settings.model_copy(update={"adaptations": ("none", "head", "head_bn")})
    with pytest.raises(InputError, match="training train48_seed0: it has no control of head; run"):
        stage1.load_training(wanted, data, accelerator)
    second = stage1.train_or_load(wanted, data)
    assert list(second.controls) == ["head_bn", "head"]
    for other in (read, second):
        assert same(*(state_of(each.controls["head_bn"]) for each in (first, other)))
    assert {each["adaptation"] for each in second.tried["stage2"]} == {"head_bn", "head"}
    assert stage1.load_training(settings, data, accelerator).choices == second.choices


@pytest.mark.parametrize("change", ["images", "library", "weights", "damage"])
def test_a_checkpoint_that_does_not_fit_is_trained_anew(
    colour_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    file, moved = tmp_path / "own.pth", tmp_path / "moved.pth"
    torch.save(create("efficientnet_lite0").state_dict(), file)
    settings, data, _ = tiny(colour_folder, epochs=1, weights=str(file))
    path = run_folder(settings.sweep, settings.run_name) / CHECKPOINT
    first = state_of(stage1.train_or_load(settings, data).model)
    file.rename(moved)  # the same weights at another place
    settings = settings.model_copy(update={"weights": str(moved)})
    stage1.train_or_load(settings, data)
    assert not caplog.text
    if change == "library":
        monkeypatch.setattr(linear_probe, "LIBRARY", "0" * 16)
    elif change == "weights":
        weights.USED.clear()  # of this process, as if the next training ran in another
        torch.save(create("efficientnet_lite0", pretrained=False).state_dict(), moved)
    elif change == "images":
        (colour_folder / "red" / "00.png").rename(colour_folder / "red" / "renamed.png")
    else:
        path.write_bytes(path.read_bytes()[:-100])
    data = load_dataset(settings)
    again = state_of(stage1.train_or_load(settings, data).model)
    assert (f"made with {change} = " if change != "damage" else "cannot be read") in caplog.text
    assert "training again" in caplog.text
    assert change == "images" or same(first, again) == (change != "weights")


def told(monkeypatch: pytest.MonkeyPatch, tops: dict[float, float]) -> list[float]:
    """Let trainings end at once with these validation accuracies by rate.

    Returns:
        The rates that are trained from now on.
    """
    model, trained = create("efficientnet_lite0", 3).eval(), list[float]()

    def end_at_once(_: TrainSettings, recipe: epochs.Recipe, *__: object) -> stage1.Trained:
        trained.append(recipe.learning_rate)
        row = {"epoch": 1, "loss": 1.0, "val_top1": tops[recipe.learning_rate], "seconds": 2.0}
        choices = stage1.Choices(recipe.learning_rate, "train")
        return stage1.Trained(model, pd.DataFrame([row]), choices)

    monkeypatch.setattr(stage1, "train", end_at_once)
    return trained


def test_the_recipe_that_validation_prefers_is_kept_and_later_seeds_take_it_over(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = told(monkeypatch, {0.01: 0.5, 0.02: 0.7, 0.03: 0.7})
    lists = {"learning_rate": (0.03, 0.01, 0.02), "adapt_learning_rate": (0.5, 0.05)}
    settings, data, _ = tiny(colour_folder, **lists)
    first = stage1.train_or_load(settings, data)
    assert first.choices.learning_rate == 0.02
    tried = [(each["learning_rate"], each["val_top1"]) for each in first.tried["stage1"]]
    assert tried == [(0.01, 0.5), (0.02, 0.7), (0.03, 0.7)]
    assert (first.seconds["train"], first.seconds["tuning"] > 4) == (2.0, True)
    trained.clear()
    later = settings.model_copy(update={"seed": 5, "tuned_by": 0})
    second = stage1.train_or_load(later, data)
    assert trained == [0.02]
    assert second.choices.learning_rate == first.choices.learning_rate
    # stage 2 is chosen by each seed: two rates, three factors, two modes
    assert len(first.tried["stage2"]) == len(second.tried["stage2"]) == 2 * 3 * 2
    with pytest.raises(InputError, match="cannot be read"):
        stage1.train_or_load(later.model_copy(update={"tuned_by": 7, "seed": 8}), data)


def test_frozen_batch_norms_keep_their_statistics_and_learn_their_weights(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(monkeypatch, MemoryError(), most=3)
    settings, data, _ = tiny(colour_folder, batch_norm="frozen", head_start="probe", epochs=2)
    trained = stage1.train_or_load(settings, data)
    after = state_of(trained.model)
    before = state_of(create("efficientnet_lite0", 3))
    changed = {key.rpartition(".")[2] for key in after if not torch.equal(before[key], after[key])}
    assert changed == {"weight", "bias"}
    assert trained.memory["note"] is None


def test_random_weights_are_those_of_the_seed_and_not_the_pretrained_ones(
    colour_folder: Path,
) -> None:
    first, again, other, pretrained = (
        state_of(begun(tiny(colour_folder, pretrained=own, seed=seed)).model)
        for own, seed in [(False, 0), (False, 0), (False, 1), (True, 0)]
    )
    assert same(first, again)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    for state in (other, pretrained):
        assert not torch.equal(first["conv_stem.weight"], state["conv_stem.weight"])


def test_stage_1_starts_from_the_probe_unless_from_a_random_head(colour_folder: Path) -> None:
    random = tiny(colour_folder, epochs=1)
    probed = tiny(colour_folder, epochs=1, head_start="probe")
    assert linear_probe.head_started(*random) == (None, [])
    start, tried = linear_probe.head_started(*probed)
    assert start is not None
    assert len(tried) == len(linear_probe.PENALTIES)
    assert same(state_of(begun(probed, start=start).model), state_of(start))
    heads = [
        stage1.train_or_load(settings, data).model.get_parameter("classifier.weight")
        for settings, data, _ in (random, probed)
    ]
    assert (heads[0] - heads[1]).abs().max() > 0.01

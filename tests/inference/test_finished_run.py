"""Finished runs: what is read back answers as the run did."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_run
import timm
from conftest import COLOURS, save_image

from fixres_poc.analysis.cells import Cell
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import report_folder
from fixres_poc.config.settings import ADAPTED, CONTROL, EQUAL_FLOPS, View
from fixres_poc.data.dataset import class_folders
from fixres_poc.inference import export, finished_run
from fixres_poc.model import checkpoint

VIEWS: tuple[View, ...] = ("five_crop", "center")


@pytest.fixture
def pair() -> Path:
    return small_run.make()


def answered(folder: Path) -> dict[tuple[str, float], list[float]]:
    """Probabilities of a run's first guesses on test, held against what it has stored."""
    run, stored = finished_run.load(folder), pd.read_parquet(folder / "predictions.parquet")
    probabilities: dict[tuple[str, float], list[float]] = {}
    own: Any = stored[stored["split"] == "test"].astype({"adaptation": str, "crop_pct": float})
    for (name, crop_pct), rows in own.groupby(["adaptation", "crop_pct"]):
        files = [Path(run.settings.dataset) / image for image in rows["image"]]
        answers = run.framed(crop_pct).classify(files, name)
        firsts = [next(iter(answer["classes"].items())) for answer in answers]
        labels, best = zip(*firsts, strict=True)
        assert [run.classes.index(label) for label in labels] == rows["top1"].tolist()
        np.testing.assert_allclose(best, rows["probability"], atol=1e-4)
        probabilities[name, crop_pct] = list(best)
    return probabilities


def test_accuracies_are_those_that_the_run_stored_on_its_own_images_and_sizes(pair: Path) -> None:
    run = finished_run.load(pair)
    stored = {each["adaptation"]: each for each in run.metrics["accuracies"]}
    keys = "top1", "top1_low", "top1_high", "top5", "macro_accuracy"
    data = run.data()
    for row in run.accuracies(data, "test").to_dict("records"):
        own = stored[row["adaptation"]]
        assert [row[key] for key in keys] == pytest.approx([own[key] for key in keys])
        assert row["images"] == own["n_test"]
    run.model = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    with pytest.raises(InputError, match="64 px"):
        run.accuracies(data, "test", size=64)
    for digest in ("f" * 16, None):
        run.metrics["used"]["data"] = digest
        with pytest.raises(InputError, match="the images have changed since train48_test64_seed0"):
            run.data()


def test_a_training_is_a_run_at_its_own_size(pair: Path) -> None:
    run = finished_run.load(pair.parent / "train48_seed0")
    assert list(run.tails) == ["none", *ADAPTED]  # adapted at its own size
    assert run.settings.test_size == 48
    assert run.best() == (run, "none")


def test_a_pair_of_equal_flops_answers_to_the_plain_names(pair: Path, tmp_path: Path) -> None:
    metrics = json.loads((pair / "metrics.json").read_text())
    for row in metrics["accuracies"]:
        row["adaptation"] = EQUAL_FLOPS + row["adaptation"]
    (pair / "metrics.json").write_text(json.dumps(metrics))
    stored = pd.read_parquet(pair / "predictions.parquet").astype({"adaptation": str})
    stored["adaptation"] = EQUAL_FLOPS + stored["adaptation"]
    stored.to_parquet(pair / "predictions.parquet")
    run, name = finished_run.load(pair).best()
    assert name in run.tails
    assert export.export(run, name, tmp_path / "net.onnx").images > 1


def test_a_run_from_before_a_setting_was_added_is_read(pair: Path) -> None:
    for folder in (pair, pair.parent / "train48_seed0"):
        metrics = json.loads((folder / "metrics.json").read_text())
        del metrics["settings"]["adapt_label_smoothing"]
        (folder / "metrics.json").write_text(json.dumps(metrics))
    file = pair.parent / "train48_seed0/checkpoint.safetensors"
    tensors, record = checkpoint.load(file, {})
    del record["settings"]["adapt_label_smoothing"]
    checkpoint.save(file, tensors, record)
    assert finished_run.load(pair).settings.adapt_label_smoothing == 0


def test_what_has_no_image_in_it_is_told(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answers = finished_run.load(pair).classify([tmp_path / "empty", tmp_path / "none.png"], "none")
    assert len(answers) == 2
    assert all(answer["error"].startswith(f"{answer['image']}: ") for answer in answers)
    assert "a folder without images" in answers[0]["error"]


def test_one_folder_that_cannot_be_listed_stops_no_other_image(pair: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "good.png", (200, 40, 30), seed=1)
    (tmp_path / "bad").mkdir()
    (tmp_path / os.fsdecode(b"bad/\xff.png")).touch()
    bad, good = finished_run.load(pair).classify([tmp_path / "bad", tmp_path / "good.png"], "none")
    assert "not UTF-8" in bad["error"]
    assert good["classes"]


def test_a_missing_file_of_a_run_is_told_with_what_to_do(pair: Path) -> None:
    for file in [*pair.glob("adapted_*"), *pair.parent.glob("*/checkpoint.safetensors")]:
        file.unlink()
        message = f"{file.name}: missing; delete {file.parent}, and start"
        with pytest.raises(InputError, match=message):
            finished_run.load(pair)


def test_the_arm_that_the_report_recommends_is_used(pair: Path) -> None:
    newer = pair.parents[1] / "newer_without_report"
    shutil.copytree(pair.parent, newer, copy_function=shutil.copyfile)
    file = report_folder("tiny") / "answers.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    settings = finished_run.load(pair).settings
    for adaptation, sweep in (("head", "tiny"), ("none", "sweeps/tiny.yml"), ("head", None)):
        use = Cell(settings.train_size, settings.test_size, adaptation)._asdict()
        content["answers"][4]["use"] = use
        file.write_text(json.dumps(content), encoding="utf-8")
        run, used, view = finished_run.load_best(None, sweep)
        assert (run.folder, used, view) == (pair, adaptation, "center")
    shutil.rmtree(file.parent)
    for sweep, message in ((None, r"no sweep in .* has a report"), ("none", "no results in")):
        with pytest.raises(InputError, match=message):
            finished_run.load_best(None, sweep)


def test_other_folders_classes_are_matched_by_name(pair: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name, colour in (COLOURS | {"a_grey": (90, 90, 90)}).items():
        save_image(other / name / "x.png", colour, seed=7)
    shutil.rmtree(other / "green")
    run = finished_run.load(pair)
    data, unknown = class_folders(str(other), run.classes)
    assert unknown == ["a_grey"]
    assert [run.classes[label] for label in data.table["label"]] == ["blue", "red"]
    assert data.table["image"].tolist() == ["blue/x.png", "red/x.png"]
    assert set(run.accuracies(data, "test")["images"]) == {2}
    for name in ("red", "blue"):
        shutil.rmtree(other / name)
    with pytest.raises(InputError, match=r"\(a_grey\) are none of the classes, such as blue"):
        class_folders(str(other), run.classes)


def test_tails_of_another_training_are_refused(pair: Path) -> None:
    file = pair.parent / "train48_seed0" / "checkpoint.safetensors"
    tensors, record = checkpoint.load(file, {})
    name = next(name for name in tensors if name.startswith("model.") and name.endswith("weight"))
    checkpoint.save(file, tensors | {name: tensors[name] * 1.001}, record)
    with pytest.raises(InputError, match=r"adapted_0\.875\.safetensors: made with stage1 = "):
        finished_run.load(pair)


def test_what_does_not_belong_together_is_refused(pair: Path) -> None:
    metrics = json.loads((pair / "metrics.json").read_text())
    other: dict[str, dict[str, Any]] = {
        "made with classes = ": {"classes": ["blue", "green", "pink"]},
        "no finished .*metrics.json is damaged": {"settings": []},
        "made with images = ": {"used": {"data": "f" * 16}},
    }
    for named, values in other.items():
        (pair / "metrics.json").write_text(json.dumps(metrics | values))
        with pytest.raises(InputError, match=named):
            finished_run.load(pair)
    for folder in (pair.parent, pair / "none"):
        with pytest.raises(InputError, match="no finished training or pair there"):
            finished_run.load(folder)


def test_every_adaptation_answers_as_the_run_did_in_each_framing() -> None:
    pair = small_run.make(framed=True)
    run, probabilities = finished_run.load(pair), answered(pair)
    assert run.settings.crop_pct == 0.875
    names = ["none", "equalised", *ADAPTED, *(CONTROL + name for name in ADAPTED)]
    assert list(run.tails) == names
    assert set(probabilities) == {(name, value) for name in names for value in (0.875, 1.0)}
    usual, whole = (probabilities["head_bn", crop_pct] for crop_pct in (0.875, 1.0))
    assert not np.allclose(usual, whole, atol=1e-3)
    image = Path(run.settings.dataset) / "red" / "00.png"
    several, one = (run.classify([image], "none", view)[0]["classes"] for view in VIEWS)
    assert sum(several.values()) == pytest.approx(1, abs=1e-5)
    assert several != pytest.approx(one, abs=1e-4)


def test_what_is_used_is_framed_as_validation_prefers() -> None:
    run = finished_run.load(small_run.make(framed=True))
    tops = {("none", 0.875): 0.6, ("none", 1.0): 0.6, ("head", 0.875): 0.6, ("head", 1.0): 0.8}
    tops |= {("head_bn", 1.0): 0.8, ("control_head", 1.0): 0.9}  # the simplest of equals; a control
    run.metrics["accuracies"] = [
        {"adaptation": name, "view": view, "crop_pct": value, "val_top1": top1 + more}
        for (name, value), top1 in tops.items()
        for view, more in (("center", 0), ("five_crop", 0.3 * (name == "none")))
    ]
    framed, best = run.best()
    assert (framed.settings.crop_pct, best) == (1.0, "head")
    assert run.best("none") == (run, "none")  # of equals the usual one
    assert run.best("control_head")[0].settings.crop_pct == 1.0  # as what it controls
    assert set(framed.accuracies(run.data(), "test")["crop_pct"]) == {1.0}
    with pytest.raises(InputError, match="adaptation = 'full'"):
        run.best("full")


def test_of_a_sweep_the_chosen_framing_is_used() -> None:
    pair = small_run.make(framed=True)
    file = report_folder("tiny") / "results.csv"
    table = pd.read_csv(file)
    chosen = table["adaptation"].eq("head") == table["crop_pct"].eq(1.0)  # head: 1.0, others: 0.875
    table = table.assign(crop_pct_chosen=chosen, val_top1=table["adaptation"].eq("none") * 1.0)
    table.to_csv(file, index=False)
    for wanted, value in (("head", 1.0), ("none", 0.875), (None, 0.875)):
        run, adaptation, _ = finished_run.load_best(None, "tiny", wanted)
        assert (run.folder, adaptation) == (pair, wanted or "none")
        assert run.settings.crop_pct == value
    with pytest.raises(InputError, match="adaptation = 'hed'"):
        finished_run.load_best(None, "tiny", "hed")

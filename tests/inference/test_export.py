"""Exported networks answer as the run did, and say what they are."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import small_run
import timm
import torch
from PIL import Image

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY
from fixres_poc.inference import export, finished_run


def prepared(image: Path, described: dict[str, str]) -> np.ndarray:
    """An image (1, 3, K, K), prepared by nothing but the file's own words, with Pillow."""
    how = json.loads(described["preprocessing"])
    side, (height, width) = how["resize"]["short side"], how["crop"]["center"]
    assert how["resize"]["interpolation"] == "bilinear"
    with Image.open(image) as file:
        scale = side / min(file.size)
        small = file.convert("RGB").resize(
            [int(each * scale) for each in file.size], Image.Resampling.BILINEAR
        )
    left, top = round((small.width - width) / 2), round((small.height - height) / 2)
    values = np.asarray(small.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
    return values.transpose(2, 0, 1)[None]


@pytest.mark.parametrize(("crop_pct", "size"), [(0.875, 64), (1.0, 48)])
def test_onnx_from_its_own_words(tmp_path: Path, crop_pct: float, size: int) -> None:
    run = finished_run.load(small_run.make(framed=crop_pct == 1)).framed(crop_pct)
    done = export.export(run, "head_bn", tmp_path / "net.onnx")
    assert done.from_network < 1e-5
    assert done.from_run < 2e-4
    for path in (REPOSITORY, Path(torch.__file__).parents[1], Path.home(), tempfile.gettempdir()):
        assert f"{path}/".encode() not in done.file.read_bytes(), "of this machine"
    session = onnxruntime.InferenceSession(done.file)
    assert session.get_inputs()[0].shape == ["batch", 3, size, size]
    described = session.get_modelmeta().custom_metadata_map
    assert json.loads(described["classes"]) == ["blue", "green", "red"]
    assert json.loads(described["provenance"])["run"] == f"tiny/{run.folder.name}"
    assert json.loads(described["accuracy"])["crop_pct"] == crop_pct
    assert described["leakage"] == "not checked"
    table = pd.read_parquet(run.folder / "predictions.parquet")
    own = (table["adaptation"] == "head_bn") & (table["crop_pct"] == crop_pct)
    rows = table[(table["split"] == "test") & own]
    files = [Path(run.settings.dataset) / name for name in rows["image"]]
    images = np.concatenate([prepared(file, described) for file in files])
    answers = session.run(None, {"images": images})[0]
    assert answers.argmax(axis=1).tolist() == rows["top1"].tolist()
    # Pillow rounds a little else
    np.testing.assert_allclose(answers.max(axis=1), rows["probability"], atol=0.02)
    assert {file.name for file in tmp_path.iterdir()} - {"home"} == {"net.onnx"}


def test_another_network_with_an_adaptation_of_another_form_and_a_file_that_answers_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fixres_poc.model.backbones._timm", lambda name, _: timm.create_model(name))
    run, file = finished_run.load(small_run.make("timm:test_resnet")), tmp_path / "net.onnx"
    assert export.export(run, "equalised", file).from_network < 1e-5
    session = onnxruntime.InferenceSession(file)
    assert session.run(None, {"images": np.zeros((5, 3, 64, 64), np.float32)})[0].shape == (5, 3)
    file.unlink()
    stored = pd.read_parquet(run.folder / "predictions.parquet")
    changed = stored.assign(top1=((stored["top1"] + 1) % 3).astype("int16"))
    changed.to_parquet(run.folder / "predictions.parquet")
    with pytest.raises(RuntimeError, match="the exported network differs from the run's by"):
        export.export(run, "head", file)
    assert not list(tmp_path.glob("*net*"))


def test_wrong_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run.load(small_run.make())
    training = finished_run.load(run.folder.parent / "train48_seed0")
    lacking = "adaptation = 'full': train48_test64_seed0 holds none, equalised, "
    for other, name, file, message in [
        (run, "head", "net.pt", "ends in .onnx"),
        (run, "full", "net.onnx", lacking),
        (training, "none", "net.onnx", "a training has no predictions to check with"),
    ]:
        with pytest.raises(InputError, match=message):
            export.export(other, name, tmp_path / file)
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs onnx; install fixres_poc\[export\]"):
        export.export(run, "head", tmp_path / "net.onnx")

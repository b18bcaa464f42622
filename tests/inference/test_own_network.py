"""A network from a plain torch loop outside the project, adapted here, and used by timm alone."""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import save_colours
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from fixres_poc import cli
from fixres_poc.analysis.record import summarise
from fixres_poc.cli.runs import read_classes
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.settings import PairSettings, TrainSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.inference import own_network
from fixres_poc.inference.own_network import adapt
from fixres_poc.method import stage1
from fixres_poc.method.adaptations import adapt_pair, predict_pair
from fixres_poc.model import checkpoint
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.weights import USED, class_names

NAMES = ("blue", "green", "red")
ORDER = ("red", "blue", "green")
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def colour_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, so that each network is trained once."""
    return save_colours(tmp_path_factory.mktemp("own") / "colours")


def pixels(file: Path, size: int) -> torch.Tensor:
    with Image.open(file) as image:
        small = image.convert("RGB").resize((size, size))
    return torch.from_numpy(np.array(small, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


@functools.cache
def trained(folder: Path, architecture: str, order: tuple[str, ...] = NAMES) -> nn.Module:
    """Somebody's network: images of 48 px, mean and std of a half, its own order of classes."""
    torch.manual_seed(0)
    model: Any = timm.create_model(architecture, num_classes=3)
    files = sorted(folder.rglob("*.png"))
    images = torch.stack([pixels(file, 48) for file in files])
    labels = torch.tensor([order.index(file.parent.name) for file in files])
    optimizer = torch.optim.AdamW(model.parameters(), 0.003)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model(images)
    return model.eval()  # type: ignore[no-any-return]


def adapted_by(given: nn.Module, folder: Path, **more: Any) -> own_network.Adapted:
    return adapt(given, folder, 48, 64, mean_std=HALVES, batch_size=6, **more)


@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_resnet"])
def test_what_comes_back_is_a_plain_timm_network(
    colour_folder: Path, architecture: str, tmp_path: Path
) -> None:
    given = trained(colour_folder, architecture, ORDER)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    adapted = adapted_by(given, colour_folder, classes=ORDER)
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    top1 = adapted.accuracies.set_index("adaptation")["top1"]
    assert list(top1.index) == ["none", "head_bn", "control_head_bn"]
    for row in adapted.gains.to_dict("records"):
        assert row["gain"] == pytest.approx(top1[row["adaptation"]] - top1[row["against"]])
    assert adapted.classes == ORDER
    assert "its own resolution" in adapted.summary
    assert "near chance" not in adapted.summary
    file = tmp_path / "adapted.safetensors"
    adapted.save(file)
    plain: Any = timm.create_model(architecture, num_classes=3).eval()
    plain.load_state_dict(load_file(file))
    with torch.inference_mode(), Image.open(colour_folder / "red" / "00.png") as image:
        framed = adapted.transform(image)[None]
        assert framed.shape == (1, 3, 64, 64)
        assert torch.equal(plain(framed), adapted.model(framed))
        assert int(plain(framed).argmax()) == ORDER.index("red")
    assert class_names(file) == list(ORDER)
    with pytest.raises(InputError, match=r"adapted\.pt.*\.safetensors"):
        adapted.save(tmp_path / "adapted.pt")


def test_it_is_the_pair_of_a_sweep_with_trained(colour_folder: Path, tmp_path: Path) -> None:
    """The same settings through notebook 03's and 04's calls give the same predictions."""
    given, file = trained(colour_folder, "test_resnet", ORDER), tmp_path / "own.pt"
    torch.save(given.state_dict(), file)
    adapted = adapted_by(given, colour_folder, classes=ORDER)
    values = adapted.settings.model_dump() | {"weights": str(file)}
    pair, accelerator = PairSettings(**values), accelerator_for("fp32")
    data = load_dataset(pair)
    start = stage1.train_or_load(pair.train_settings(), data, accelerator)
    done = adapt_pair(start, data, pair, accelerator)
    table = predict_pair(start.model, done, data, pair, accelerator).table
    pd.testing.assert_frame_equal(summarise(table), adapted.accuracies)


def test_without_a_last_batch_norm_the_head_is_adapted(
    colour_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = timm.create_model("test_convnext", num_classes=3)
    found = adapted_by(given, colour_folder, adapt_epochs=1).accuracies
    assert found["adaptation"].tolist() == ["none", "head", "control_head"]
    assert "timm:test_convnext: no last batch norm is known, so head is adapted" in caplog.text


def test_classes_in_another_order_are_near_chance(colour_folder: Path) -> None:
    given = trained(colour_folder, "test_resnet", ORDER)
    assert "near chance" in adapted_by(given, colour_folder, adapt_epochs=1).summary


def test_what_cannot_be_adapted_is_one_line(colour_folder: Path) -> None:
    two, three = (timm.create_model("test_resnet", num_classes=count) for count in (2, 3))
    fixed = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    changed = timm.create_model("test_resnet", num_classes=3, act_layer=nn.SiLU)
    cases: list[tuple[nn.Module, dict[str, Any], str]] = [
        (two, {}, r"network.* 2 classes, the dataset has 3"),
        (three, {"classes": ["blue", "green", "violet"]}, "class 'violet' is in its list"),
        (three, {"classes": ["blue", "green", "red", "red"]}, "each value may stand once"),
        (three, {"speed": 1}, "unknown key 'speed'"),
        (nn.Linear(1, 3), {}, "Linear: not made by timm"),
        (fixed, {}, "48, 64 px"),
        (changed, {}, "its layers were changed"),
    ]
    for network, more, message in cases:
        with pytest.raises(InputError, match=message):
            adapt(network, colour_folder, 48, 64, **more)


SIZES = ["--train-size", "48", "--test-size", "64"]


def test_the_command_says_what_it_gains_and_leaves_the_network(
    colour_folder: Path, tmp_path: Path
) -> None:
    weights, names, output = (tmp_path / name for name in ("own.pt", "names.txt", "o.safetensors"))
    given = trained(colour_folder, "test_efficientnet", ORDER)
    torch.save({"state_dict": given.state_dict()}, weights)
    names.write_text("\n".join(ORDER) + "\n")
    mean, std = ([name, "0.5", "0.5", "0.5"] for name in ("--mean", "--std"))

    def told(architecture: str, *options: str) -> tuple[int, str]:
        arguments = ["adapt", str(weights), architecture, str(colour_folder), *SIZES, *options]
        done = CliRunner().invoke(cli.app, arguments)
        return done.exit_code, done.output

    files = ["--classes", str(names), "--output", str(output)]
    code, said = told("test_efficientnet", *mean, *std, *files)
    assert (code, "Validation prefers" in said, "near chance" in said) == (0, True, False), said
    given.load_state_dict(load_file(output))
    code, said = told("test_resnet", *mean, *std)
    assert (code, "not of this backbone" in said) == (2, True)
    code, said = told("test_efficientnet", *mean)
    assert (code, "give both, or neither" in said) == (2, True)


WRONG = {  # an option, and what the error names
    "suffix": (["--output", "{}/out.pt"], r"out\.pt.*\.safetensors"),
    "classes": (["--classes", "{}/names.txt"], r"own\.pt, class_order: .*'violet'"),
    "no file of classes": (["--classes", "{}/none.txt"], r"classes = .*none\.txt"),
    "no key": (["--weights-key", "model_emma"], r"own\.pt.*'model_emma'.*model_ema"),
}


@pytest.mark.parametrize(("option", "named"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_told_apart(
    colour_folder: Path, tmp_path: Path, option: list[str], named: str
) -> None:
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save({"model": state, "model_ema": dict(state)}, tmp_path / "own.pt")
    (tmp_path / "names.txt").write_text("violet\nred\ngreen")
    arguments = ["adapt", f"{tmp_path}/own.pt", "test_resnet", str(colour_folder), *SIZES]
    done = CliRunner().invoke(cli.app, [*arguments, *(each.format(tmp_path) for each in option)])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert re.search(named, done.output)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_class_file_of_any_editor_is_read(tmp_path: Path, codec: str) -> None:
    (tmp_path / "names.txt").write_bytes("Ñandú \r\n\r\nkiwi\r\n".encode(codec))
    assert read_classes(tmp_path / "names.txt") == ["Ñandú", "kiwi"]


def read_as_stage_1(folder: Path, weights: Path, **more: Any) -> stage1.Trained:
    USED.clear()  # as if it ran in a kernel of its own
    settings = TrainSettings(
        sweep="own",
        dataset=str(folder),
        weights=str(weights),
        head_start="file",
        train_size=48,
        backbone="timm:test_resnet",
        mean_std=HALVES,
        batch_size=6,
        **more,
    )
    return stage1.train_or_load(settings, load_dataset(settings), accelerator_for("fp32"))


def test_stage_1_is_read_in_whatever_order_its_classes_are(
    colour_folder: Path, tmp_path: Path
) -> None:
    state, file = trained(colour_folder, "test_resnet", ORDER).state_dict(), tmp_path / "own.pt"
    torch.save(state, file)
    read = read_as_stage_1(colour_folder, file, class_order=ORDER)
    assert read.val_top1 > 0.8
    assert read.history["epoch"].tolist() == [0]
    assert set(read.controls) == {"head_bn"}
    expected = state | {key: state[key][[1, 2, 0]] for key in ("fc.weight", "fc.bias")}
    torch.testing.assert_close(dict(read.model.state_dict()), dict(expected), rtol=0, atol=0)
    indices = {name: ORDER.index(name) for name in NAMES}
    torch.save({"model": state, "class_to_idx": indices}, file)
    assert read_as_stage_1(colour_folder, file).val_top1 > 0.8, "the file says so itself"


def test_the_page_shows_what_works(
    colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(
        "```python\n(.*?)```", (REPOSITORY / "docs" / "own_network.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    torch.save(trained(colour_folder, "test_resnet").state_dict(), "birds.pt")
    for shown, here in {
        "resnet50": "test_resnet",
        "200": "3",
        "/my/birds": str(colour_folder),
    }.items():
        code = code.replace(shown, here)
    code = code.replace("train_size=224, test_size=288", "train_size=48, test_size=64")
    with Image.open(next(colour_folder.rglob("*.png"))) as image:
        names: dict[str, Any] = {"image": image}
        exec(code, names)
    assert names["probabilities"].sum().item() == pytest.approx(1, abs=1e-4)
    assert names["probabilities"].shape == (1, 3)


def test_validation_chooses_its_framing(colour_folder: Path, tmp_path: Path) -> None:
    given = trained(colour_folder, "test_resnet", ORDER)
    more: dict[str, Any] = {"classes": ORDER, "mean_std": HALVES, "batch_size": 6}
    adapted = adapt(given, colour_folder, 32, 48, crop_pct=[0.875, 1.0], **more)
    assert set(adapted.accuracies["crop_pct"]) == {0.875, 1.0}
    own = adapted.settings.crop_pct
    rows = adapted.accuracies.query("adaptation == @adapted.adaptation and crop_pct == @own")
    assert rows["val_top1"].item() == adapted.accuracies["val_top1"].max()
    assert f"Framed with crop_pct {own:g}, of 0.875, 1" in adapted.summary
    adapted.save(tmp_path / "o.safetensors")
    assert checkpoint.load(tmp_path / "o.safetensors", {})[1]["crop_pct"] == own

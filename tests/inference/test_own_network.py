"""A network that a plain torch loop has trained outside the project, adapted here, and used by timm alone."""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import save_colours
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from fixres_poc import cli
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.settings import TrainSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.inference import own_network
from fixres_poc.inference.own_network import adapt
from fixres_poc.method import stage1
from fixres_poc.model.device import accelerator_for
from fixres_poc.model.weights import USED

NAMES = ("blue", "green", "red")
ORDER = ("red", "blue", "green")
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def colour_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, so that each network is trained once."""
    return save_colours(tmp_path_factory.mktemp("own") / "colours")


@pytest.fixture(params=["test_efficientnet", "test_resnet"])
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pixels(file: Path, size: int) -> torch.Tensor:
    with Image.open(file) as image:
        small = image.convert("RGB").resize((size, size))
    return torch.from_numpy(np.array(small, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


@functools.cache
def trained(folder: Path, architecture: str, order: tuple[str, ...] = NAMES) -> nn.Module:
    """What somebody else has: images of 48 px, mean and std of a half, classes in their own order."""
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


def test_what_comes_back_is_a_plain_timm_network(
    colour_folder: Path, architecture: str, tmp_path: Path
) -> None:
    given = trained(colour_folder, architecture, ORDER)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    adapted = adapt(given, colour_folder, 48, 64, classes=ORDER, mean_std=HALVES, batch_size=6)
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    rows = adapted.accuracies.to_dict("records")
    top1 = {(row["test_size"], row["adaptation"]): row["top1"] for row in rows}
    assert top1.pop((48, "none")) > 0.8
    assert {name for _, name in top1} == {"none", "bn_stats", "head", "head_bn_stats", "head_bn"}
    assert adapted.gain.estimate == pytest.approx(top1[64, adapted.adaptation] - top1[64, "none"])
    assert adapted.classes == ORDER
    assert not adapted.near_chance()
    adapted.save(tmp_path / "adapted.safetensors")
    plain: Any = timm.create_model(architecture, num_classes=3).eval()
    plain.load_state_dict(load_file(tmp_path / "adapted.safetensors"))
    with torch.inference_mode(), Image.open(next(colour_folder.rglob("*.png"))) as image:
        framed = adapted.transform(image)[None]
        assert framed.shape == (1, 3, 64, 64)
        assert torch.equal(plain(framed), adapted.model(framed))
    assert own_network.read(tmp_path / "adapted.safetensors", architecture)[1] == list(ORDER)
    with pytest.raises(InputError, match=r"adapted\.pt.*\.safetensors"):
        adapted.save(tmp_path / "adapted.pt")


def test_classes_in_another_order_are_near_chance(colour_folder: Path) -> None:
    given = trained(colour_folder, "test_resnet", ORDER)
    adapted = adapt(given, colour_folder, 48, 64, mean_std=HALVES, batch_size=6, adapt_epochs=1)
    assert "near chance" in adapted.near_chance()


def test_what_cannot_be_adapted_is_one_line(colour_folder: Path) -> None:
    two: Any = timm.create_model("test_resnet", num_classes=2)
    with pytest.raises(InputError, match=r"the network.* 2 classes, .*colours has 3"):
        adapt(two, colour_folder, 48, 64)
    three: Any = timm.create_model("test_resnet", num_classes=3)
    with pytest.raises(InputError, match="class 'violet' is in its list"):
        adapt(three, colour_folder, 48, 64, classes=["blue", "green", "violet"])
    with pytest.raises(InputError, match="different names"):
        adapt(three, colour_folder, 48, 64, classes=["blue", "green", "red", "red"])
    with pytest.raises(InputError, match="one value each"):
        adapt(three, colour_folder, 48, 64, adapt_epochs=[1, 2])
    with pytest.raises(InputError, match="unknown key 'speed'"):
        adapt(three, colour_folder, 48, 64, speed=1)
    with pytest.raises(InputError, match="Linear: not made by timm"):
        adapt(nn.Linear(1, 3), colour_folder, 48, 64)
    with pytest.raises(InputError, match="64 px"):
        adapt(timm.create_model("vit_tiny_patch16_224", num_classes=3), colour_folder, 224, 64)


def test_the_command_says_what_it_gains_and_leaves_the_network(
    colour_folder: Path, tmp_path: Path
) -> None:
    weights, names, output = (
        tmp_path / "own.pt",
        tmp_path / "names.txt",
        tmp_path / "out.safetensors",
    )
    torch.save(
        {"state_dict": trained(colour_folder, "test_efficientnet", ORDER).state_dict()}, weights
    )
    names.write_text("\n".join(ORDER) + "\n")
    sizes = [
        "--train-size",
        "48",
        "--test-size",
        "64",
        "--mean",
        "0.5",
        "0.5",
        "0.5",
        "--std",
        "0.5",
        "0.5",
        "0.5",
    ]
    arguments = ["adapt", str(weights), "test_efficientnet", str(colour_folder), *sizes]
    done = CliRunner().invoke(
        cli.app, [*arguments, "--classes", str(names), "--output", str(output)]
    )
    assert done.exit_code == 0, done.output
    assert "validation prefers" in done.stdout
    assert "near chance" not in done.stdout
    timm.create_model("test_efficientnet", num_classes=3).load_state_dict(load_file(output))
    wrong = CliRunner().invoke(cli.app, [*arguments[:2], "test_resnet", *arguments[3:]])
    assert (wrong.exit_code, "not of this backbone" in wrong.output) == (2, True)
    half = CliRunner().invoke(cli.app, arguments[:-4])
    assert (half.exit_code, "give both, or neither" in half.output) == (2, True)


WRONG = {  # an option, and what the error names
    "suffix": (["--output", "{}/out.pt"], r"out\.pt.*\.safetensors"),
    "no folder": (["--output", "{}/none/out.safetensors"], r"none/out\.safetensors.*not there"),
    "classes": (["--classes", "{}/names.txt"], r"own\.pt, classes = .*names\.txt.*'violet'"),
    "no classes": (["--classes", "{}/none.txt"], r"classes = .*none\.txt"),
    "no key": (["--weights-key", "model_emma"], r"own\.pt.*'model_emma'.*model_ema"),
}


@pytest.mark.parametrize(("option", "named"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_told_apart(
    colour_folder: Path, tmp_path: Path, option: list[str], named: str
) -> None:
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save({"model": state, "model_ema": dict(state)}, tmp_path / "own.pt")
    (tmp_path / "names.txt").write_text("violet\nred\ngreen")
    arguments = [
        "adapt",
        f"{tmp_path}/own.pt",
        "test_resnet",
        str(colour_folder),
        "--train-size",
        "48",
        "--test-size",
        "64",
    ]
    done = CliRunner().invoke(cli.app, [*arguments, *(each.format(tmp_path) for each in option)])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert re.search(named, done.output)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_class_file_of_any_editor_is_read(tmp_path: Path, codec: str) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "own.pt")
    (tmp_path / "names.txt").write_bytes("Ñandú \r\n\r\nkiwi\r\n".encode(codec))
    assert own_network.read(tmp_path / "own.pt", "test_resnet", tmp_path / "names.txt")[1] == [
        "Ñandú",
        "kiwi",
    ]


def read_as_stage_1(folder: Path, weights: Path, **more: Any) -> stage1.Trained:
    USED.clear()  # as if it ran in a kernel of its own
    values: dict[str, Any] = {
        "dataset": str(folder),
        "weights": str(weights),
        "head_start": "file",
        "train_size": 48,
    }
    values |= {
        "backbone": "timm:test_resnet",
        "learning_rate": 0.0,
        "mean_std": HALVES,
        "batch_size": 6,
        **more,
    }
    settings = TrainSettings(sweep="own", **values)
    return stage1.train_or_load(settings, load_dataset(settings), accelerator_for("fp32"))


def test_stage_1_is_read_in_whatever_order_its_classes_are(
    colour_folder: Path, tmp_path: Path
) -> None:
    model, weights = trained(colour_folder, "test_resnet", ORDER), tmp_path / "own.pt"
    torch.save(model.state_dict(), weights)
    read = read_as_stage_1(colour_folder, weights, class_order=ORDER)
    assert read.val_top1 > 0.8
    assert read.history["epoch"].tolist() == [0]
    assert set(read.controls) == {"bn_stats", "head", "head_bn_stats", "head_bn"}
    places = [ORDER.index(name) for name in NAMES]
    assert torch.equal(
        read.model.state_dict()["fc.weight"], model.state_dict()["fc.weight"][places]
    )
    assert torch.equal(
        read.model.state_dict()["conv1.0.weight"], model.state_dict()["conv1.0.weight"]
    )
    torch.save(
        {"model": model.state_dict(), "class_to_idx": {name: ORDER.index(name) for name in NAMES}},
        weights,
    )
    # the file says so itself, and is another one
    assert read_as_stage_1(colour_folder, weights).val_top1 > 0.8
    torch.save(model.state_dict(), weights)
    assert read_as_stage_1(colour_folder, weights).val_top1 < 0.5


def test_a_file_of_other_classes_is_refused(colour_folder: Path, tmp_path: Path) -> None:
    weights, model = tmp_path / "own.pt", timm.create_model("test_resnet", num_classes=4)
    torch.save(model.state_dict(), weights)
    with pytest.raises(
        InputError, match=r"own.pt: its classifier has 4 classes, the dataset has 3"
    ):
        read_as_stage_1(colour_folder, weights)
    three: Any = timm.create_model("test_resnet", num_classes=3)
    torch.save(three.state_dict(), weights)
    with pytest.raises(InputError, match=r"own.pt, class_order: class 'violet' is in its list"):
        read_as_stage_1(colour_folder, weights, class_order=("blue", "red", "violet"))


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

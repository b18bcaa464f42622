"""A network from a plain torch loop outside the project, adapted here, and used by timm alone."""

import functools
import os
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from fixres_poc import cli
from fixres_poc.analysis.record import summarise
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY, read_lines
from fixres_poc.config.settings import TrainSettings
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


def adapted_by(
    given: nn.Module, folder: Path, train: int = 48, test: int = 64, **more: Any
) -> own_network.Adapted:
    return adapt(given, folder, train, test, mean_std=HALVES, batch_size=6, **more)


@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_resnet"])
def test_what_comes_back_is_a_plain_timm_network(
    colours: Path, architecture: str, tmp_path: Path
) -> None:
    given = trained(colours, architecture, ORDER)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    adapted = adapted_by(given, colours, classes=ORDER)
    torch.testing.assert_close(dict(given.state_dict()), before, rtol=0, atol=0)
    top1 = adapted.accuracies.set_index("adaptation")["top1"]
    assert list(top1.index) == ["none", "head_bn", "control_head_bn"]
    for row in adapted.gains.to_dict("records"):
        assert row["gain"] == pytest.approx(top1[row["adaptation"]] - top1[row["against"]])
    assert "its own resolution" in adapted.summary
    assert "near chance" not in adapted.summary
    file = tmp_path / "adapted.safetensors"
    adapted.save(file)
    assert class_names(file) == list(adapted.classes) == list(ORDER)
    plain: Any = timm.create_model(architecture, num_classes=3).eval()
    plain.load_state_dict(load_file(file))
    with torch.inference_mode(), Image.open(colours / "red" / "00.png") as image:
        framed = adapted.transform(image)[None]
        answers = plain(framed)
        assert framed.shape == (1, 3, 64, 64)
        assert torch.equal(answers, adapted.model(framed))
        assert int(answers.argmax()) == ORDER.index("red")
    with pytest.raises(InputError, match=r"adapted\.pt.*\.safetensors"):
        adapted.save(tmp_path / "adapted.pt")


def test_it_is_the_pair_of_a_sweep_with_trained(colours: Path, tmp_path: Path) -> None:
    """The same settings through notebook 03's and 04's calls give the same predictions."""
    given, file = trained(colours, "test_resnet", ORDER), tmp_path / "own.pt"
    torch.save(given.state_dict(), file)
    adapted = adapted_by(given, colours, classes=ORDER)
    pair = adapted.settings.model_copy(update={"weights": str(file)})
    accelerator = accelerator_for("fp32")
    data = load_dataset(pair)
    start = stage1.train_or_load(pair.train_settings(), data, accelerator)
    done = adapt_pair(start, data, pair, accelerator)
    table = predict_pair(start.model, done, data, pair, accelerator).table
    pd.testing.assert_frame_equal(summarise(table), adapted.accuracies)


def test_without_a_last_batch_norm_the_head_is_adapted(
    colours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = timm.create_model("test_convnext", num_classes=3)
    found = adapted_by(given, colours, adapt_epochs=1).accuracies
    assert found["adaptation"].tolist() == ["none", "head", "control_head"]
    assert "timm:test_convnext: no last batch norm is known, so head is adapted" in caplog.text


def test_classes_in_another_order_are_near_chance(colours: Path) -> None:
    given = trained(colours, "test_resnet", ORDER)
    assert "near chance" in adapted_by(given, colours, adapt_epochs=1).summary


def test_what_cannot_be_adapted_is_one_line(colours: Path) -> None:
    two, three = (timm.create_model("test_resnet", num_classes=count) for count in (2, 3))
    fixed = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    changed = timm.create_model("test_resnet", num_classes=3, act_layer=nn.SiLU)
    cases: list[tuple[nn.Module, dict[str, Any], str]] = [
        (two, {}, r"network.* 2 classes, the dataset has 3"),
        (three, {"classes": ["blue", "green", "violet"]}, "class 'violet' is in its list"),
        (three, {"classes": ["blue", "green", "red", "red"]}, "each value may stand once"),
        (nn.Linear(1, 3), {}, "Linear: not made by timm"),
        (fixed, {}, "48, 64 px"),
        (changed, {}, "its layers were changed"),
    ]
    for network, more, message in cases:
        with pytest.raises(InputError, match=message):
            adapt(network, colours, 48, 64, **more)


def test_an_unreadable_image_is_told_before_any_training(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(colours, tmp_path / "colours"))
    next(folder.rglob("*.png")).write_bytes(b"no image")
    monkeypatch.setattr(own_network, "_checked", Mock(side_effect=AssertionError("too late")))
    with pytest.raises(InputError, match=r"cannot be read|unreadable"):
        adapted_by(trained(colours, "test_resnet"), folder)
    with pytest.raises(AssertionError, match="too late"):
        adapted_by(trained(colours, "test_resnet"), folder, skip_unreadable=True)


def command(*given: object) -> tuple[int, str]:
    """What `fixres-poc adapt` returns and says."""
    arguments = ["adapt", *map(str, given), "--train-size", "48", "--test-size", "64"]
    done = CliRunner().invoke(cli.app, arguments)
    return done.exit_code, done.output


def test_the_command_says_what_it_gains_and_leaves_the_network(
    colours: Path, tmp_path: Path
) -> None:
    weights, names, output = (tmp_path / name for name in ("own.pt", "names.txt", "o.safetensors"))
    given = trained(colours, "test_efficientnet", ORDER)
    torch.save({"state_dict": given.state_dict()}, weights)
    names.write_text("\n".join(ORDER) + "\n")
    mean, std = ([name, "0.5", "0.5", "0.5"] for name in ("--mean", "--std"))
    files = ["--classes", names, "--output", output]
    code, said = command(weights, "test_efficientnet", colours, *mean, *std, *files)
    assert (code, "Validation prefers" in said, "near chance" in said) == (0, True, False), said
    given.load_state_dict(load_file(output))
    code, said = command(weights, "test_efficientnet", colours, *mean)
    assert (code, "give both, or neither" in said) == (2, True)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("output", "out.pt", r"out\.pt.*\.safetensors"),
        ("classes", "names.txt", r"own\.pt, class_order: .*'violet'"),
        ("classes", "none.txt", r"classes = .*none\.txt"),
        ("weights-key", "model_emma", r"own\.pt.*'model_emma'.*model_ema"),
    ],
)
def test_wrong_options_are_told_apart(
    colours: Path, tmp_path: Path, option: str, value: str, named: str
) -> None:
    file, state = tmp_path / "own.pt", timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save({"model": state, "model_ema": dict(state)}, file)
    (tmp_path / "names.txt").write_text("violet\nred\ngreen")
    given = tmp_path / value if "." in value else value
    code, said = command(file, "test_resnet", colours, f"--{option}", given)
    assert (code, said.count("\n")) == (2, 1)
    assert re.search(named, said)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_class_file_of_any_editor_is_read(tmp_path: Path, codec: str) -> None:
    (tmp_path / "names.txt").write_bytes("Ñandú \r\n\r\nkiwi\r\n".encode(codec))
    assert read_lines(tmp_path / "names.txt", "classes") == ["Ñandú", "kiwi"]


def test_a_list_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "names.txt")  # reading it would wait for a writer
    with pytest.raises(InputError, match=r"classes = .*names\.txt': cannot be read .* no regular"):
        read_lines(tmp_path / "names.txt", "classes")


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


def test_stage_1_is_read_in_whatever_order_its_classes_are(colours: Path, tmp_path: Path) -> None:
    state, file = trained(colours, "test_resnet", ORDER).state_dict(), tmp_path / "own.pt"
    torch.save(state, file)
    expected = state | {key: state[key][[1, 2, 0]] for key in ("fc.weight", "fc.bias")}
    for _ in ("from the file", "from the checkpoint"):
        read = read_as_stage_1(colours, file, class_order=ORDER)
        assert read.val_top1 > 0.8
        assert (read.history["epoch"].tolist(), read.steps) == ([0], 0)
        assert (read.choices.learning_rate, read.memory["note"]) == (0, "nothing was trained")
        assert set(read.controls) == {"head_bn"}
        torch.testing.assert_close(dict(read.model.state_dict()), dict(expected), rtol=0, atol=0)
    indices = {name: ORDER.index(name) for name in NAMES}
    torch.save({"model": state, "class_to_idx": indices}, file)
    assert read_as_stage_1(colours, file).val_top1 > 0.8, "the file says so itself"


def test_the_page_shows_what_works(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(
        "```python\n(.*?)```", (REPOSITORY / "docs" / "own_network.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    torch.save(trained(colours, "test_resnet").state_dict(), "birds.pt")
    here = {"resnet50": "test_resnet", "200": "3", "/my/birds": str(colours)}
    here |= {"train_size=224, test_size=288": "train_size=48, test_size=64"}
    for shown, own in here.items():
        code = code.replace(shown, own)
    with Image.open(next(colours.rglob("*.png"))) as image:
        names: dict[str, Any] = {"image": image}
        exec(code, names)
    assert names["probabilities"].sum().item() == pytest.approx(1, abs=1e-4)
    assert names["probabilities"].shape == (1, 3)


@pytest.mark.parametrize("train", [32, 48], ids=["near the matched size", "far from it"])
def test_validation_chooses_its_framing(colours: Path, tmp_path: Path, train: int) -> None:
    given = trained(colours, "test_resnet", ORDER)
    adapted = adapted_by(given, colours, train, 48, classes=ORDER, crop_pct=[0.875, 1.0])
    assert set(adapted.accuracies["crop_pct"]) == {0.875, 1.0}
    own = adapted.settings.crop_pct
    rows = adapted.accuracies.query("adaptation == @adapted.adaptation and crop_pct == @own")
    assert rows["val_top1"].item() == adapted.accuracies["val_top1"].max()
    assert f"Framed with crop_pct {own:g}, of 0.875, 1" in adapted.summary
    adapted.save(tmp_path / "o.safetensors")
    assert checkpoint.load(tmp_path / "o.safetensors", {})[1]["crop_pct"] == own


def test_a_network_with_all_layers_trained_is_measured_and_not_returned(colours: Path) -> None:
    given = timm.create_model("test_resnet", num_classes=3)
    longer: Any = {"adapt_epochs": 8, "adapt_learning_rate": 0.05}
    adapted = adapted_by(given, colours, adaptations=["none", "full"], **longer)
    accuracy = adapted.accuracies.set_index("adaptation")["val_top1"]
    assert accuracy["full"] > accuracy["none"]
    assert adapted.adaptation == "none"


def test_what_is_not_timms_network_is_never_returned(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = trained(colours, "test_resnet", ORDER)

    def prefers_equalised(predictions: pd.DataFrame) -> pd.DataFrame:
        table = summarise(predictions)
        return table.assign(val_top1=(table["adaptation"] == "equalised") * 1.0)

    monkeypatch.setattr(own_network, "summarise", prefers_equalised)
    adapted = adapted_by(given, colours, classes=ORDER, adaptations=["none", "equalised"])
    assert adapted.adaptation == "none"
    with pytest.raises(InputError, match=r"adaptations = \['full'\]: allowed is a list with none"):
        adapted_by(given, colours, classes=ORDER, adaptations=["full"])

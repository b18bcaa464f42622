"""ResNeXt-101 WSL and weights files, with networks of the same names, only smaller."""

import hashlib
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import CHECKPOINT, home
from fixres_poc.config.settings import WSL_BACKBONES
from fixres_poc.method import stage1
from fixres_poc.method.epochs import Saved
from fixres_poc.model import backbones, checkpoint, weights
from fixres_poc.model.trunk import Tail, Trunk, last_batch_norm

NAME = "resnext101_32x8d_wsl"
State = dict[str, torch.Tensor]


def small() -> nn.Module:
    """torchvision's network, of fewer and narrower layers."""
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 2], groups=32, width_per_group=4)  # type: ignore[no-any-return]


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> State:
    """A state dict of the small network, which now is what `NAME` means."""
    network = small()
    monkeypatch.setattr(backbones, "WSL_LAYERS", (1, 1, 1, 2))
    monkeypatch.setitem(backbones.WSL, NAME, (4, sum(each.numel() for each in network.parameters()), "0" * 8))
    return dict(network.state_dict())


def save(folder: Path, content: object, name: str = "weights.pth") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


def same(model: nn.Module, state: State, *, but: str = "none") -> bool:
    own = model.state_dict()
    return all(torch.equal(own[name], value) for name, value in state.items() if not name.startswith(but))


def error(file: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        backbones.create(NAME, weights=str(file))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", WSL_BACKBONES)
def test_names_and_shapes_are_torchvisions_and_the_count_is_asserted(name: str) -> None:
    with torch.device("meta"):
        ours = backbones.create(name, pretrained=False)
        width = backbones.WSL[name][0]
        block = torchvision.models.resnet.Bottleneck
        theirs = torchvision.models.ResNet(block, [3, 4, 23, 3], groups=32, width_per_group=width)
    shapes = [[(key, value.shape) for key, value in each.state_dict().items()] for each in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert f"{width}d" in name


def test_logits_are_torchvisions_and_tail_of_trunk_is_the_whole_network(state: State, tmp_path: Path) -> None:
    model = backbones.create(NAME, weights=save(tmp_path, state)).eval()
    theirs = small().eval()
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(images), theirs(images), atol=1e-5)
        assert torch.equal(Tail(model)(*Trunk(model)(images)), model(images))
    assert last_batch_norm(model) is model.get_submodule("layer4.1.bn3")


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_layout_is_read(state: State, tmp_path: Path, key: str | None, prefix: str) -> None:
    named = {prefix + name: value for name, value in state.items()}
    content = named if key is None else {key: named, "epoch": 3}
    assert same(backbones.create(NAME, weights=save(tmp_path, content)), state)


def test_old_pickles_without_counters_and_safetensors_are_read(state: State, tmp_path: Path) -> None:
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "new.safetensors")
    for name in ("old.pth", "new.safetensors"):
        assert same(backbones.create(NAME, weights=str(tmp_path / name)), state)


def test_a_classifier_of_other_classes_is_new_and_the_rest_is_loaded(state: State, tmp_path: Path) -> None:
    state |= {"fc.weight": torch.ones(120, 2048), "fc.bias": torch.ones(120)}
    file = save(tmp_path, state)
    for classes in (1000, 120, 7):
        model = backbones.create(NAME, classes, weights=file)
        assert same(model, state, but="fc.")
        assert model.get_parameter("fc.weight").shape == (classes, 2048)
        assert model.get_parameter("fc.weight").std() > 0


def test_what_does_not_fit_is_named(state: State, tmp_path: Path) -> None:
    start = "weights weights.pth: not of this backbone: "
    missing = {name: value for name, value in state.items() if name != "bn1.weight"}
    assert error(save(tmp_path, missing)) == start + "bn1.weight is missing"
    assert error(save(tmp_path, state | {"extra": torch.ones(1)})) == start + "extra is unexpected"
    wrong = state | {"bn1.weight": torch.ones(3), "fc.weight": torch.ones(1000, 5)}
    expected = "bn1.weight is [3] instead of [64], fc.weight is [1000, 5] instead of [1000, 2048]"
    assert error(save(tmp_path, wrong)) == start + expected
    named = "conv1.weight is missing, bn1.weight is missing, bn1.bias is missing, and "
    assert error(save(tmp_path, {"a": torch.ones(1)})).startswith(start + named)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new", [True, False])
def test_a_file_that_would_execute_code_is_refused_and_does_nothing(state: State, tmp_path: Path, new: bool) -> None:
    content = {"model": state, "args": Malicious(tmp_path / "executed")}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=new)
    assert error(tmp_path / "bad.pth").startswith("weights bad.pth: damaged, or more than tensors in it (Unpickling")
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "executed").exists()  # so the file was a dangerous one


@pytest.mark.parametrize("name", [CHECKPOINT, stage1.STATE.format("0.01")])
def test_a_planted_pickle_in_place_of_what_a_training_left_does_nothing(tmp_path: Path, name: str) -> None:
    torch.save({"record": "{}", "model": Malicious(tmp_path / "executed")}, tmp_path / name)
    if name != CHECKPOINT:
        Saved(tmp_path / name, {}).resume(None, None)  # type: ignore[arg-type]  # as if it were not there
    else:
        with pytest.raises(InputError, match=r"checkpoint\.safetensors: cannot be read"):
            checkpoint.load(tmp_path / name, {})
        assert "damaged, or more than tensors" in error(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    torch.load((tmp_path / name).rename(tmp_path / "x"), weights_only=False)
    assert (tmp_path / "executed").exists()


def test_damaged_files_and_those_without_a_state_dict_are_one_line(state: State, tmp_path: Path) -> None:
    for name in ("noise.pth", "noise.safetensors"):
        (tmp_path / name).write_bytes(b"noise")
        assert "damaged" in error(tmp_path / name)
    assert "no state dict" in error(save(tmp_path, [torch.ones(1)]))
    assert "no state dict" in error(save(tmp_path, {"model": {"epoch": 3}}))
    assert error(tmp_path / "none.pth") == f"weights = '{tmp_path}/none.pth': no such file"


def test_other_backbones_take_a_file_as_well(tmp_path: Path) -> None:
    for name in ("efficientnet_lite0", "timm:resnet18"):
        state = dict(backbones.create(name, pretrained=False).state_dict())
        assert same(backbones.create(name, weights=save(tmp_path, state)), state)


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert weights.fingerprint(str(tmp_path / "a")) == hashlib.sha256(b"x").hexdigest()
    assert weights.fingerprint(None) is None


def test_relative_paths_are_the_repositorys_and_terms_are_said() -> None:
    assert weights.find("pyproject.toml").is_absolute()
    assert backbones.licence("timm:resnet18") is None
    for terms in (backbones.licence(NAME), backbones.licence("timm:resnet50", "a.pth")):
        assert "CC BY-NC 4.0" in str(terms)


def test_the_authors_file_is_fetched(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = Mock(return_value=Path(save(tmp_path, state)))
    monkeypatch.setattr(backbones, "fetch", fetch)
    assert same(backbones.create(NAME), state)
    url = "https://download.pytorch.org/models/ig_resnext101_32x4-00000000.pth"
    terms = "CC BY-NC 4.0: non-commercial use only"
    fetch.assert_called_once_with(url, home() / "data" / "weights", "00000000", terms)

"""ResNeXt-101 WSL and weights files, with networks of the same names, only smaller."""

import hashlib
import os
import re
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import CHECKPOINT, REPOSITORY, home
from fixres_poc.config.settings import WSL_BACKBONES
from fixres_poc.method import stage1
from fixres_poc.method.epochs import Saved
from fixres_poc.model import backbones, checkpoint, weights
from fixres_poc.model.trunk import Tail, Trunk, last_batch_norm

NAME = "resnext101_32x8d_wsl"
State = dict[str, torch.Tensor]


def small() -> nn.Module:
    """torchvision's network, of fewer and narrower layers."""
    bottleneck = torchvision.models.resnet.Bottleneck
    network: nn.Module = torchvision.models.ResNet(
        bottleneck, [1, 1, 1, 2], groups=32, width_per_group=4
    )
    return network


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> State:
    """A state dict of the small network, which now is what `NAME` means."""
    network = small()
    monkeypatch.setattr(backbones, "WSL_LAYERS", (1, 1, 1, 2))
    monkeypatch.setitem(backbones.WSL, NAME, (4, "0" * 8))
    return dict(network.state_dict())


def save(folder: Path, content: object, name: str = "weights.pth") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


def same(model: nn.Module, state: State, *, but: str = "none") -> bool:
    own = model.state_dict()
    return all(
        torch.equal(own[name], value) for name, value in state.items() if not name.startswith(but)
    )


def error(file: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        backbones.create(NAME, weights=str(file))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", WSL_BACKBONES)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours = backbones.create(name, pretrained=False)
        width = backbones.WSL[name][0]
        block = torchvision.models.resnet.Bottleneck
        theirs = torchvision.models.ResNet(block, [3, 4, 23, 3], groups=32, width_per_group=width)
    shapes = [
        [(key, value.shape) for key, value in each.state_dict().items()] for each in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]
    assert f"{width}d" in name


def test_logits_are_torchvisions_and_tail_of_trunk_is_the_whole_network(
    state: State, tmp_path: Path
) -> None:
    model = backbones.create(NAME, weights=save(tmp_path, state)).eval()
    theirs = small().eval()
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(images), theirs(images), atol=1e-5)
        assert torch.equal(Tail(model)(*Trunk(model)(images)), model(images))
    assert last_batch_norm(model) is model.get_submodule("layer4.1.bn3")


def named(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: torch.full_like(value, 7) for name, value in state.items()}


BESIDE = {
    "epoch": 3,
    "args": Namespace(lr=0.1, out=Path("x")),
    "best": np.float64(0.9),
    "rng": np.random.get_state(),
}
BESIDE |= {
    "optimizer": {"state": {0: {"momentum": torch.ones(3)}}},
    "at": datetime.now(UTC),
    "log": defaultdict(list),
}
SAVED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "DDP": lambda state: named("module.", state),
    "timm": lambda state: {"state_dict": OrderedDict(state), "arch": "resnet", **BESIDE},
    "torchvision": lambda state: {
        "model": state,
        "model_ema": {**named("module.", other(state)), "n_averaged": torch.ones(1)},
    },
    "Lightning": lambda state: {
        "state_dict": {**named("net._orig_mod.", state), "loss.weight": torch.ones(3)},
        **BESIDE,
    },
    "compiled DDP": lambda state: {"model_state_dict": named("model._orig_mod.module.", state)},
    "EMA in one dictionary": lambda state: {**state, **named("ema_model.", other(state))},
    "averaged alone": lambda state: {"ema": {"module": named("module.", state)}},
    "DINO": lambda state: {
        who: named("module.backbone.", each)
        for who, each in (("teacher", other(state)), ("student", state))
    },
    "Parameters": lambda state: {
        "net": defaultdict(
            dict, {name: nn.Parameter(value, False) for name, value in state.items()}
        )
    },
}


@pytest.mark.parametrize("saved", SAVED.values(), ids=SAVED.keys())
def test_every_layout_is_read(state: State, tmp_path: Path, saved: Callable[[State], Any]) -> None:
    assert same(backbones.create(NAME, weights=save(tmp_path, saved(state))), state)


def test_the_key_chooses_between_sets_and_a_warning_names_them(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = save(tmp_path, {"state_dict": state, "state_dict_ema": named("module.", other(state))})
    assert same(backbones.create(NAME, weights=file), state)
    assert "state_dict_ema" in caplog.text
    for key in ("state_dict_ema", "state_dict_ema.module"):
        assert same(backbones.create(NAME, weights=file, weights_key=key), other(state))
    with pytest.raises(InputError, match=r"'ema'.* state_dict_ema.*, state_dict"):
        backbones.create(NAME, weights=file, weights_key="ema")
    assert "weights_key: a, b" in error(save(tmp_path, {"a": state, "b": other(state)}))


def test_a_network_whose_names_all_begin_alike_is_read(state: State, tmp_path: Path) -> None:
    wrapped = nn.ModuleDict({"model": small()})
    for saved in (named("model.", state), named("module.model.", state)):
        assert (
            weights.read(Path(save(tmp_path, saved)), model=wrapped).keys()
            == wrapped.state_dict().keys()
        )


def test_old_pickles_without_counters_and_safetensors_are_read(
    state: State, tmp_path: Path
) -> None:
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "new.safetensors")
    for name in ("old.pth", "new.safetensors"):
        assert same(backbones.create(NAME, weights=str(tmp_path / name)), state)


def test_a_classifier_of_other_classes_is_new_and_the_rest_is_loaded(
    state: State, tmp_path: Path
) -> None:
    state |= {"fc.weight": torch.ones(120, 2048), "fc.bias": torch.ones(120)}
    file = save(tmp_path, state)
    for classes in (1000, 120, 7):
        model = backbones.create(NAME, classes, weights=file)
        assert same(model, state, but="fc.")
        assert model.get_parameter("fc.weight").shape == (classes, 2048)
        assert model.get_parameter("fc.weight").std() > 0
    headless = save(
        tmp_path, {name: value for name, value in state.items() if not name.startswith("fc.")}
    )
    assert same(backbones.create(NAME, 7, weights=headless), state, but="fc.")


def test_what_does_not_fit_is_named(state: State, tmp_path: Path) -> None:
    missing = {name: value for name, value in state.items() if name != "bn1.weight"}
    assert re.search("Missing.*bn1.weight", error(save(tmp_path, missing)))
    assert re.search("Unexpected.*extra", error(save(tmp_path, state | {"extra": torch.ones(1)})))
    assert re.search(
        r"bn1.weight.*\[3\].*\[64\]", error(save(tmp_path, state | {"bn1.weight": torch.ones(3)}))
    )
    strange = error(save(tmp_path, named("blocks.", dict.fromkeys("abcde", torch.ones(1)))))
    assert re.search("conv1.weight.*blocks.a", strange)
    assert len(strange) < 600


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new", [True, False])
def test_a_file_that_would_execute_code_is_refused_and_does_nothing(
    state: State, tmp_path: Path, new: bool
) -> None:
    content = {"model": state, "args": Malicious(tmp_path / "executed")}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=new)
    assert re.search("bad.pth: holds more than tensors.*mkdir", error(tmp_path / "bad.pth"))
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "executed").exists()  # so the file was a dangerous one


@pytest.mark.parametrize("name", [CHECKPOINT, stage1.STATE.format("0.01")])
def test_a_planted_pickle_in_place_of_what_a_training_left_does_nothing(
    tmp_path: Path, name: str
) -> None:
    torch.save({"record": "{}", "model": Malicious(tmp_path / "executed")}, tmp_path / name)
    if name != CHECKPOINT:
        Saved(tmp_path / name, {}).resume(None, None)  # type: ignore[arg-type]  # as if it were not there
    else:
        with pytest.raises(InputError, match=r"checkpoint\.safetensors: cannot be read"):
            checkpoint.load(tmp_path / name, {})
        assert "more than tensors" in error(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    torch.load((tmp_path / name).rename(tmp_path / "x"), weights_only=False)
    assert (tmp_path / "executed").exists()


@pytest.mark.usefixtures("state")
def test_files_without_a_state_dict_are_one_line(tmp_path: Path) -> None:
    for content in (
        [torch.ones(1)],
        {"model": {"epoch": 3}},
        {"optimizer": {"state": torch.ones(1)}},
    ):
        assert "weights.pth: no state dict" in error(save(tmp_path, content))
    assert error(tmp_path / "none.pth") == f"weights = '{tmp_path}/none.pth': no such file"
    assert f"{REPOSITORY}/none.pth" in error("none.pth")


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    assert "larger than the file" in error(
        save(tmp_path, {"fc.weight": torch.ones(1, 1).expand(10**9, 2048)})
    )
    sparse = torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**9,))
    assert "larger than the file" in error(save(tmp_path, {"fc.bias": sparse}))


def test_dictionaries_that_refer_to_each_other_are_read_once(state: State, tmp_path: Path) -> None:
    inner: dict[str, Any] = {"model": state}
    for _ in range(15):
        inner = {str(key): inner for key in range(1000)}
    inner["itself"] = inner
    assert same(backbones.create(NAME, weights=save(tmp_path, inner)), state)


# what a file says, and how it is read; None: it is refused
CLASSES: dict[str, tuple[Any, list[str] | None]] = {
    "a list": (["b", "a"], ["b", "a"]),
    "numbers": ((10, 2), ["10", "2"]),
    "an array": (np.array(["b", "a"]), ["b", "a"]),
    "name to index": ({"a": 1, "b": np.int64(0)}, ["b", "a"]),
    "index to name": ({1: "a", 0: "b"}, ["b", "a"]),
    "index to name in JSON": ({"1": "a", "0": "b"}, ["b", "a"]),
    "text in JSON": ('["b", "a"]', ["b", "a"]),
    "text between commas": ("b, a", ["b", "a"]),
    "lines of text": ("b\na\n", ["b", "a"]),
    "a set": ({"a", "b"}, None),
    "an index that is text": ({"a": 0, "b": "x"}, None),
    "no number": ({"a": float("nan"), "b": 0}, None),
    "an index twice": ({"a": 0, "b": 0}, None),
    "a gap": ({"a": 0, "b": 2}, None),
    "below 0": ({"a": 0, "b": -1}, None),
    "twice": (["a", "a"], None),
    "within lists": ([["a"], ["b"]], None),
    "bytes": ([b"a", b"b"], None),
    "their number": (2, None),
    "damaged JSON": ('["a", ', None),
    "deep": ("[" * 100_000, None),
    "nothing": ([], None),
}


@pytest.mark.parametrize("entry", weights.CLASS_ENTRIES)
@pytest.mark.parametrize(("given", "expected"), CLASSES.values(), ids=CLASSES.keys())
def test_what_a_file_says_of_its_classes(
    tmp_path: Path, entry: str, given: Any, expected: list[str] | None
) -> None:
    file = Path(save(tmp_path, {entry: given, "model": {"a": torch.ones(1)}}))
    if expected is None:
        with pytest.raises(InputError, match=f"weights.pth.*{entry}"):
            weights.told(file)
    else:
        assert weights.told(file) == expected


def test_metadata_of_safetensors_says_the_classes(tmp_path: Path) -> None:
    save_file(
        {"a": torch.ones(1)},
        tmp_path / "a.pt",
        metadata={"class_to_idx": '{"a": 1, "b": 0}', "classes": "b,a"},
    )
    assert weights.told(tmp_path / "a.pt") == ["b", "a"]


def test_other_backbones_take_a_file_as_well(tmp_path: Path) -> None:
    for name in ("efficientnet_lite0", "timm:resnet18"):
        state = dict(backbones.create(name, pretrained=False).state_dict())
        assert same(backbones.create(name, weights=save(tmp_path, state)), state)


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert weights.fingerprint(str(tmp_path / "a")) == hashlib.sha256(b"x").hexdigest()
    assert weights.fingerprint(None) is None


def test_a_file_that_changes_while_it_is_used_is_refused(state: State, tmp_path: Path) -> None:
    file = save(tmp_path, state)
    before = weights.fingerprint(file)
    assert same(backbones.create(NAME, weights=file), state)
    save(tmp_path, state | {next(iter(state)): torch.zeros_like(next(iter(state.values())))})
    assert weights.fingerprint(file) == before, "what was used, not what is there now"
    with pytest.raises(InputError, match=r"weights\.pth: changed"):
        backbones.create(NAME, weights=file)


def test_relative_paths_are_the_repositorys_and_terms_are_said() -> None:
    assert weights.find_weights("pyproject.toml").is_absolute()
    assert backbones.licence("timm:resnet18") is None
    for terms in (backbones.licence(NAME), backbones.licence("timm:resnet50", "a.pth")):
        assert "CC BY-NC 4.0" in str(terms)


def test_the_authors_file_is_fetched(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Mock(return_value=Path(save(tmp_path, state)))
    monkeypatch.setattr(backbones, "fetch", fetch)
    assert same(backbones.create(NAME), state)
    url = "https://download.pytorch.org/models/ig_resnext101_32x4-00000000.pth"
    terms = "CC BY-NC 4.0: non-commercial use only"
    fetch.assert_called_once_with(url, home() / "data" / "weights", "00000000", terms)

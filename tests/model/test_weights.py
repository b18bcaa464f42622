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
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import CHECKPOINT, REPOSITORY, home
from fixres_poc.method import stage1
from fixres_poc.method.epochs import Saved
from fixres_poc.model import backbones, checkpoint, weights

NAME = "resnext101_32x8d_wsl"
State = dict[str, torch.Tensor]


def small() -> nn.Module:
    """torchvision's network, of fewer and narrower layers."""
    network: nn.Module = ResNet(Bottleneck, [1, 1, 1, 2], groups=32, width_per_group=4)
    return network


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> State:
    """A state dict of the small network, which now is what `NAME` means."""
    monkeypatch.setattr(backbones, "WSL_LAYERS", (1, 1, 1, 2))
    monkeypatch.setitem(backbones.WSL, NAME, (4, "0" * 8))
    return dict(small().state_dict())


def save(folder: Path, content: object) -> str:
    file = folder / "weights.pth"
    torch.save(content, file)
    return str(file)


def read(file: str, name: str = NAME, **how: Any) -> State:
    return dict(backbones.create(name, weights=file, **how).state_dict())


def same(found: State, state: State, *, but: str = "num_batches_tracked") -> bool:
    kept = [name for name in state if but not in name]
    return all(torch.equal(found[name], state[name]) for name in kept)


def error(file: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        read(str(file))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "spoilt", "message"),
    [
        ("conv1.weight", lambda tensor: tensor * float("nan"), "holds NaN or infinite values"),
        ("bn1.running_var", lambda tensor: -tensor, "holds negative variances"),
        ("conv1.weight", torch.Tensor.char, "is of type torch.int8, not real"),
    ],
)
def test_impossible_values_are_refused(
    state: State,
    tmp_path: Path,
    name: str,
    spoilt: Callable[[torch.Tensor], torch.Tensor],
    message: str,
) -> None:
    file = save(tmp_path, state | {name: spoilt(state[name])})
    assert f"{name} {message}" in error(file)


@pytest.mark.parametrize("width", [8, 16, 32, 48])
def test_names_and_shapes_are_torchvisions(width: int) -> None:
    with torch.device("meta"):
        ours = backbones.create(f"resnext101_32x{width}d_wsl", pretrained=False)
        theirs = ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=width)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes


def named(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: torch.full_like(value, 7) for name, value in state.items()}


BESIDE = {
    "epoch": 3,
    "args": Namespace(lr=0.1, out=Path("x")),
    "best": np.float64(0.9),
    "rng": np.random.get_state(),
    "optimizer": {"state": {0: {"momentum": torch.ones(3)}}},
    "at": datetime.now(UTC),
    "log": defaultdict(list),
}


def entangled(state: State) -> dict[str, Any]:
    inner: dict[str, Any] = {"model": state}
    for _ in range(15):
        inner = {str(key): inner for key in range(1000)}
    return inner | {"itself": inner}


def layouts(state: State) -> dict[str, Any]:
    """One state dict as it is saved by many programs, beside others."""
    averaged = {**named("module.", other(state)), "n_averaged": torch.ones(1)}
    compiled = named("net._orig_mod.", state)
    parameters = {name: nn.Parameter(value, False) for name, value in state.items()}
    return {
        "plain": state,
        "timm": {"state_dict": OrderedDict(state), "arch": "resnet", **BESIDE},
        "torchvision": {"model": state, "model_ema": averaged},
        "Lightning": {"state_dict": {**compiled, "loss.weight": torch.ones(3)}, **BESIDE},
        "EMA in one dictionary": {**state, **named("ema_model.", other(state))},
        "averaged alone": {"ema": {"module": named("module.", state)}},
        "Parameters": {"net": defaultdict(dict, parameters)},
        "without counters": {name: value for name, value in state.items() if "num_b" not in name},
        "dictionaries that refer to each other": entangled(state),
    }


def test_every_layout_is_read(state: State, tmp_path: Path) -> None:
    for name, content in layouts(state).items():
        assert same(read(save(tmp_path, content)), state), name


def test_the_key_chooses_between_sets_and_a_warning_names_them(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = save(tmp_path, {"state_dict": state, "state_dict_ema": named("module.", other(state))})
    assert same(read(file), state)
    assert "state_dict_ema" in caplog.text
    for key in ("state_dict_ema", "state_dict_ema.module"):
        assert same(read(file, weights_key=key), other(state))
    with pytest.raises(InputError, match=r"'ema'.* state_dict_ema.*, state_dict"):
        read(file, weights_key="ema")
    assert "weights_key: a, b" in error(save(tmp_path, {"a": state, "b": other(state)}))


def test_a_network_whose_names_all_begin_alike_is_read(state: State, tmp_path: Path) -> None:
    wrapped = nn.ModuleDict({"model": small()})
    for prefix in ("model.", "module.model."):
        found = weights.read(Path(save(tmp_path, named(prefix, state))), model=wrapped)
        assert found.keys() == wrapped.state_dict().keys()


def test_a_classifier_of_other_classes_is_new_and_the_rest_is_loaded(
    state: State, tmp_path: Path
) -> None:
    state |= {"fc.weight": torch.ones(120, 2048), "fc.bias": torch.ones(120)}
    file = save(tmp_path, state)
    for classes in (1000, 120, 7):
        found = read(file, classes=classes)
        assert same(found, state, but="fc.")
        assert found["fc.weight"].shape == (classes, 2048)
        assert found["fc.weight"].std() > 0
    del state["fc.weight"], state["fc.bias"]
    assert same(read(save(tmp_path, state), classes=7), state)


def test_what_does_not_fit_is_named(state: State, tmp_path: Path) -> None:
    wrong = {
        "Missing.*bn1.weight": {name: state[name] for name in state if name != "bn1.weight"},
        "Unexpected.*extra": state | {"extra": torch.ones(1)},
        "conv1.weight.*blocks.a": named("blocks.", dict.fromkeys("abcde", torch.ones(1))),
    }
    for message, content in wrong.items():
        found = error(save(tmp_path, content))
        assert re.search(message, found)
        assert len(found) < 600


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


def test_a_planted_pickle_in_place_of_what_a_training_left_does_nothing(tmp_path: Path) -> None:
    for name in (CHECKPOINT, stage1.STATE.format("0.01")):
        torch.save({"record": "{}", "model": Malicious(tmp_path / "executed")}, tmp_path / name)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: cannot be read"):
        checkpoint.load(tmp_path / CHECKPOINT, {})
    # as if it were not there
    Saved(tmp_path / stage1.STATE.format("0.01"), {}).resume(None, None)  # type: ignore[arg-type]
    assert not (tmp_path / "executed").exists()


@pytest.mark.usefixtures("state")
def test_files_without_a_state_dict_or_with_a_tensor_larger_than_they_are_refused(
    tmp_path: Path,
) -> None:
    none, large = "weights.pth: no state dict", "larger than the file"
    expanded = torch.ones(1, 1).expand(10**9, 2048)
    sparse = torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**9,))
    for content, message in (
        ([torch.ones(1)], none),
        ({"model": {"epoch": 3}}, none),
        ({"optimizer": {"state": torch.ones(1)}}, none),
        ({"fc.weight": expanded}, large),
        ({"fc.bias": sparse}, large),
    ):
        assert message in error(save(tmp_path, content))
    assert f"weights = 'none.pth': no such file, looked for at {REPOSITORY}" in error("none.pth")


# what a file says, and how it is read; None: it is refused
CLASSES: dict[str, tuple[Any, list[str] | None]] = {
    "a list": (["b", "a"], ["b", "a"]),
    "numbers": ((10, 2), ["10", "2"]),
    "an array": (np.array(["b", "a"]), ["b", "a"]),
    "name to index": ({"a": 1, "b": np.int64(0)}, ["b", "a"]),
    "index to name in JSON": ({"1": "a", "0": "b"}, ["b", "a"]),
    "text in JSON": ('["b", "a"]', ["b", "a"]),
    "text between commas": ("b, a", ["b", "a"]),
    "a set": ({"a", "b"}, None),
    "an index that is text": ({"a": 0, "b": "x"}, None),
    "no number": ({"a": float("nan"), "b": 0}, None),
    "a gap": ({"a": 0, "b": 2}, None),
    "twice": (["a", "a"], None),
    "deep": ("[" * 100_000, None),
    "nothing": ([], None),
}


@pytest.mark.parametrize(("given", "expected"), CLASSES.values(), ids=CLASSES.keys())
def test_what_a_file_says_of_its_classes(
    tmp_path: Path, given: Any, expected: list[str] | None
) -> None:
    file = Path(save(tmp_path, {"class_to_idx": given, "model": {"a": torch.ones(1)}}))
    if expected is None:
        with pytest.raises(InputError, match=r"weights\.pth.*class_to_idx"):
            weights.class_names(file)
    else:
        assert weights.class_names(file) == expected


def test_a_file_that_changes_while_it_is_used_is_refused(state: State, tmp_path: Path) -> None:
    file = save(tmp_path, state)
    before = weights.fingerprint(file)
    assert before == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    assert same(read(file), state)
    save(tmp_path, other(state))
    assert weights.fingerprint(file) == before, "what was used, not what is there now"
    assert "weights.pth: changed" in error(file)


def test_the_authors_file_is_fetched(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Mock(return_value=Path(save(tmp_path, state)))
    monkeypatch.setattr(backbones, "fetch", fetch)
    assert same(dict(backbones.create(NAME).state_dict()), state)
    url = "https://download.pytorch.org/models/ig_resnext101_32x4-00000000.pth"
    terms = "CC BY-NC 4.0: non-commercial use only"
    fetch.assert_called_once_with(url, home() / "data" / "weights", "00000000", terms)

"""Files that are given as weights and are something else, damaged, or larger than they seem."""

import io
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.model.checkpoint import contents

STATE = {"weight": torch.ones(1, 1), "bias": torch.ones(1)}
LINEAR = nn.Linear(1, 1)


def written(write: Callable[[Any, io.BytesIO], object], content: Any) -> bytes:
    buffer = io.BytesIO()
    write(content, buffer)
    return buffer.getvalue()


def saved(content: Any, **how: Any) -> bytes:
    return written(partial(torch.save, **how), content)


def saved_of_old(content: Any) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def program() -> bytes:
    exported = torch.export.export(LINEAR, (torch.ones(1, 1),))
    return written(torch.export.save, exported)


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w.pt", content)
    return buffer.getvalue()


# what is given as weights, and a word of the error
WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"noise", "no weights file"),
    "a web page": (lambda: b"\n<!DOCTYPE html>", "web page"),
    "Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "zip": (lambda: zipped(saved(STATE)), "unpack"),
    "TorchScript": (lambda: written(torch.jit.save, torch.jit.script(LINEAR)), "torch.jit.load"),
    "torch.export": (program, "torch.export.load"),
    "a network": (lambda: saved(LINEAR), "whole network.*Linear.*state_dict"),
    "a plain pickle": (lambda: pickle.dumps({"a": 1}), "plain pickle"),
    "cut short": (lambda: saved(STATE)[:-100], "damaged"),
    "safetensors cut short": (lambda: save(STATE)[:-1], "damaged"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_weights_file_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    content, word = WRONG[name]
    file = tmp_path / "given.safetensors"
    file.write_bytes(content())
    with pytest.raises(InputError, match=f"given.safetensors: .*{word}"):
        contents(file)


@pytest.mark.parametrize("content", [saved(STATE), saved_of_old(STATE), save(STATE)])
def test_content_counts_and_not_the_suffix(tmp_path: Path, content: bytes) -> None:
    for name in ("a.pt", "a.safetensors", "a"):
        (tmp_path / name).write_bytes(content)
        assert contents(tmp_path / name) == STATE


def test_an_archive_much_smaller_than_its_tensors_is_refused(tmp_path: Path) -> None:
    old = zipfile.ZipFile(io.BytesIO(saved(STATE)))
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(2**20) if name.endswith("data/0") else old.read(name))
    with pytest.raises(InputError, match=r"a\.pt: 1048.* bytes unpacked"):
        contents(tmp_path / "a.pt")

"""Files that are given as weights and are something else, damaged, or larger than they seem."""

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.model.checkpoint import contents

STATE = {"weight": torch.ones(1, 1), "bias": torch.ones(1)}


def saved(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def zipped(*names: str, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


def program() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(1, 1), (torch.ones(1, 1),)), buffer)
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(1))
    return buffer.getvalue()


# what is given as weights, and a word of the error
WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"noise", "no weights file"),
    "a web page": (lambda: b"\n<!DOCTYPE html>", "web page"),
    "Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "gzip": (lambda: gzip.compress(saved(STATE)), "unpack"),
    "zip": (lambda: zipped("w.pt", content=saved(STATE)), "unpack"),
    "npz": (arrays, "NumPy"),
    "TorchScript": (script, "torch.jit.load"),
    "torch.export": (program, "torch.export.load"),
    "a network": (lambda: saved(nn.Linear(1, 1)), "whole network.*Linear.*state_dict"),
    "a network of old": (
        lambda: saved(nn.Linear(1, 1), _use_new_zipfile_serialization=False),
        "whole network.*Linear",
    ),
    "an object": (
        lambda: saved({"model": STATE, "path": zipfile.Path}),
        "more than tensors.*zipfile",
    ),
    "protocol 4": (lambda: saved(STATE, pickle_protocol=4), "more than tensors"),
    "a plain pickle": (lambda: pickle.dumps({"a": 1}), "plain pickle"),
    "cut short": (lambda: saved(STATE)[:-100], "damaged"),
    "old and cut short": (
        lambda: saved(STATE, _use_new_zipfile_serialization=False)[:-5],
        "damaged",
    ),
    "safetensors cut short": (lambda: save(STATE)[:-1], "damaged"),
}


@pytest.mark.parametrize(("content", "word"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_weights_file_is_said_in_one_line(
    tmp_path: Path, content: Callable[[], bytes], word: str
) -> None:
    file = tmp_path / "given.safetensors"
    file.write_bytes(content())
    with pytest.raises(InputError, match=f"given.safetensors: .*{word}"):
        contents(file)


@pytest.mark.parametrize(
    "content", [saved(STATE), saved(STATE, _use_new_zipfile_serialization=False), save(STATE)]
)
def test_content_counts_and_not_the_suffix(tmp_path: Path, content: bytes) -> None:
    for name in ("a.pt", "a.safetensors", "a"):
        (tmp_path / name).write_bytes(content)
        assert contents(tmp_path / name) == STATE


def test_an_archive_much_smaller_than_its_tensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    with (
        zipfile.ZipFile(io.BytesIO(saved(STATE))) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(
                entry.filename,
                bytes(2**20) if entry.filename.endswith("data/0") else old.read(entry),
            )
    with pytest.raises(InputError, match=r"a\.pt: 1048.* bytes unpacked"):
        contents(file)


def test_a_file_that_names_more_numbers_than_it_holds_is_damaged(tmp_path: Path) -> None:
    content = saved({"a": torch.ones(52_501)}, _use_new_zipfile_serialization=False)
    size, many = (number.to_bytes(4, "little") for number in (52_501, 2**30))
    assert content.count(b"M" + size[:2]) == 2  # of the storage and of the tensor
    (tmp_path / "a.pt").write_bytes(content.replace(b"M" + size[:2], b"J" + many))
    with pytest.raises(InputError, match=r"a\.pt: damaged"):
        contents(tmp_path / "a.pt")

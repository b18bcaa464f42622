"""Checkpoints of this project, and weights files from elsewhere, read without running their code.

A checkpoint is a safetensors file whose metadata hold a digest and a record, such as settings.
"""

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import replacing

SAVE = "torch.save(network.state_dict(), 'weights.pt')"
MOST_UNPACKED = 2  # times the file's size; torch.save stores tensors uncompressed
# Pattern of the first bytes, or of "PK" and the names in an archive, to why the file is refused.
# The reason is empty for files of torch.save.
KINDS = {
    rb"^PK.*constants\.pkl": (
        f"TorchScript; convert it: {SAVE}, with network = torch.jit.load(file)"
    ),
    rb"^PK.*(archive_format|exported_program\.json)": (
        "a program of torch.export; "
        "convert it: torch.save(torch.export.load(file).state_dict, 'weights.pt')"
    ),
    # since and before torch 1.6
    rb"^PK.*/data\.pkl|^\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.": "",
    rb"^PK.*\.npy|^\x80|^\x89HDF": (
        f"NumPy's, a plain pickle or HDF5; load it where it was made, and use {SAVE}"
    ),
    rb"^PK|^\x1f\x8b|^BZh|^\xfd7zXZ|^\x28\xb5\x2f\xfd": "an archive, or compressed; unpack it",
    rb"^\s*<": "a web page, as of a failed download; download the file again",
    rb"^version https://git-lfs": "a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    rb"": "no weights file, or an empty one; allowed: safetensors, and files of torch.save",
}
BESIDE_TENSORS = """
argparse.Namespace types.SimpleNamespace uuid.UUID
datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone
builtins.bool builtins.dict builtins.float builtins.frozenset builtins.int builtins.list
builtins.range builtins.slice builtins.str builtins.tuple
numpy.float32 numpy.float64 numpy.int64
pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath
pathlib._local.PosixPath pathlib._local.WindowsPath
pathlib._local.PurePosixPath pathlib._local.PureWindowsPath
"""


class _Inert:
    """Replaces an object beside the tensors; it holds no data and runs no code."""

    def __init__(self, *_: Any) -> None:
        pass

    __setstate__ = __init__


HARMLESS: list[Any] = [
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["All"]},
    (lambda *_: {}, "collections.defaultdict"),
    (lambda *_: [], "collections.deque"),
    *((_Inert, name) for name in BESIDE_TENSORS.split()),
]
for value in (np.ones(1), np.float64()):
    function: Any = value.__reduce__()[0]
    for core in ("core", "_core"):  # of NumPy 1 and 2
        HARMLESS.append((function, f"numpy.{core}.multiarray.{function.__name__}"))


def contents(path: Path) -> dict[str, Any]:
    """Entries of a weights file by name: tensors on the CPU, metadata of safetensors as text.

    Raises:
        InputError: the file is of another kind, damaged, or much larger when unpacked, or it holds
            objects that only code can restore.
    """
    try:
        with path.open("rb") as file:
            head = file.read(99)
        header_bytes = int.from_bytes(head[:8], "little")
        if head[8:9] == b"{" and header_bytes < path.stat().st_size:
            metadata, tensors = _safetensors(path)
            return {**metadata, **tensors}
        content = _unpickled(path, head)
        return content if isinstance(content, dict) else {}
    except InputError as error:
        raise InputError(f"weights {path.name}: {error}") from None
    except Exception as error:  # damaged files raise errors of many kinds
        reason = f"damaged, or cannot be read ({type(error).__name__}); copy or save it again"
        raise InputError(f"weights {path.name}: {reason}") from None


def _safetensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata of a safetensors file, and its tensors on the CPU."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        return file.metadata() or {}, tensors


def _unpickled(path: Path, head: bytes) -> Any:
    """Content of a file of torch.save that begins with `head`.

    Raises:
        InputError: the file is of another kind, compressed, or holds more than tensors.
    """
    unpacked_bytes = 0
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            head = " ".join(["PK", *archive.namelist()]).encode()
            unpacked_bytes = sum(member.file_size for member in archive.infolist())
    if reason := next(reason for pattern, reason in KINDS.items() if re.search(pattern, head)):
        raise InputError(reason)
    if unpacked_bytes > MOST_UNPACKED * path.stat().st_size:
        raise InputError(
            f"{unpacked_bytes} bytes unpacked; allowed: uncompressed archives of torch.save"
        )
    try:
        # an open file, because torch judges a path by its suffix
        with torch.serialization.safe_globals(HARMLESS), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"(?:GLOBAL|operand|class) \S+", str(error))
        name = match[0] if match else "unknown"
        raise InputError(
            f"holds more than tensors, as a whole network does ({name}), and no code in it is "
            f"run; save tensors only, where it was made: {SAVE}"
        ) from None


def save(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: tensors, their digest, and a record as JSON."""
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    entries = {"digest": digest(stored), **record}
    metadata = {key: json.dumps(value) for key, value in entries.items()}
    with replacing(path) as file:
        save_file(stored, file.name, metadata=metadata)


def load(path: Path, record: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint whose record has all entries of `record`.

    Returns:
        The tensors on the CPU, and the whole stored record.

    Raises:
        InputError: the file is missing or damaged, or an entry differs; the message names the key
            and both values.
    """
    try:
        metadata, tensors = _safetensors(path)
        stored = {key: json.loads(text) for key, text in metadata.items()}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError(
            f"checkpoint {path.name}: cannot be read ({str(error).splitlines()[0]})"
        ) from None
    for key, value in record.items():
        wanted = json.loads(json.dumps(value))
        if stored.get(key) != wanted:
            difference = _difference(key, stored.get(key), wanted)
            raise InputError(f"checkpoint {path.name}: made with {difference}")
    if stored.pop("digest", None) != digest(tensors):
        raise InputError(f"checkpoint {path.name}: damaged, its tensors have changed")
    return tensors, stored


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the tensors' names, types, shapes and bits; safetensors itself stores none."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _difference(key: str, stored: Any, wanted: Any) -> str:
    """Describe a difference; of two dictionaries, the entries that differ."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return "; ".join(
            _difference(f"{key}.{name}", stored.get(name), wanted.get(name))
            for name in sorted({*stored, *wanted})
            if stored.get(name) != wanted.get(name)
        )
    return f"{key} = {stored!r}, this run has {wanted!r}"

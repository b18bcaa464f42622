"""Checkpoints, and the files that others give as weights; damaged or dangerous ones are refused.

A checkpoint is a safetensors file with a record, such as settings, and a digest inside.
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
# by the first bytes, or by "PK" and the names in an archive; empty for what torch.save writes
KINDS = {
    rb"^PK.*constants\.pkl": (
        f"TorchScript; convert it: {SAVE}, with network = torch.jit.load(file)"
    ),
    rb"^PK.*(archive_format|exported_program\.json)": (
        "a program of torch.export; "
        "convert it: torch.save(torch.export.load(file).state_dict, 'weights.pt')"
    ),
    # of now, and before torch 1.6
    rb"^PK.*/data\.pkl|^\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.": "",
    rb"^PK.*\.npy|^\x80|^\x89HDF": (
        f"NumPy's, a plain pickle or HDF5; load it where it was made, and use {SAVE}"
    ),
    rb"^PK|^\x1f\x8b|^BZh|^\xfd7zXZ|^\x28\xb5\x2f\xfd": "an archive, or compressed; unpack it",
    rb"^\s*<": "a web page, as of a failed download; download the file again",
    rb"^version https://git-lfs": "a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    rb"": "no weights file, or an empty one; allowed: safetensors, and what torch.save writes",
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
    """Stands for an object beside the tensors; keeps nothing of it, and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    __setstate__ = __init__


HARMLESS: list[Any] = [(_Inert, name) for name in BESIDE_TENSORS.split()]
HARMLESS += [
    (lambda *_: {}, "collections.defaultdict"),
    (lambda *_: [], "collections.deque"),
    np.ndarray,
    np.dtype,
]
HARMLESS += {type(np.dtype(code)) for code in np.typecodes["All"]}
for each in (np.ones(1), np.float64()):  # arrays and scalars of NumPy 1 and 2
    function: Any = each.__reduce__()[0]
    HARMLESS += [
        (function, f"numpy.{core}.multiarray.{function.__name__}") for core in ("core", "_core")
    ]


def contents(path: Path) -> dict[str, Any]:
    """What a weights file holds by name: tensors on the CPU, metadata of safetensors as text.

    Raises:
        InputError: of another kind, damaged, much larger than it seems, or with objects that only
            code can read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(99)
        is_safetensors = (
            head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
        )
        if is_safetensors:
            texts, tensors = _safetensors(path)
            return {**texts, **tensors}
        content = _pickled(path, head)
    except InputError as error:
        raise InputError(f"weights {path.name}: {error}") from None
    except Exception as error:  # damaged files raise errors of many kinds
        what = f"damaged, or cannot be read ({type(error).__name__}); copy or save it again"
        raise InputError(f"weights {path.name}: {what}") from None
    return content if isinstance(content, dict) else {}


def _safetensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata of a safetensors file, and its tensors on the CPU."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        return file.metadata() or {}, tensors


def _pickled(path: Path, head: bytes) -> Any:
    unpacked = 0
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            head = " ".join(["PK", *archive.namelist()]).encode()
            unpacked = sum(each.file_size for each in archive.infolist())
    if kind := next(kind for pattern, kind in KINDS.items() if re.search(pattern, head)):
        raise InputError(kind)
    if unpacked > MOST_UNPACKED * path.stat().st_size:
        raise InputError(
            f"{unpacked} bytes unpacked; allowed: archives as torch.save writes them, uncompressed"
        )
    try:
        # of a path torch looks at the suffix
        with torch.serialization.safe_globals(HARMLESS), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|operand|class) \S+", str(error))
        named = found[0] if found else "unknown"
        raise InputError(
            f"holds more than tensors, as a whole network does ({named}), and no code in it is "
            f"run; save tensors only, where it was made: {SAVE}"
        ) from None


def save(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, with a record as JSON; `load` checks both."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    stored = {"digest": digest(plain), **record}
    metadata = {key: json.dumps(value) for key, value in stored.items()}
    with replacing(path) as file:
        save_file(plain, file.name, metadata=metadata)


def load(path: Path, record: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint whose record agrees with `record` on all of its keys.

    Returns:
        The tensors on the CPU, and the whole stored record.

    Raises:
        InputError: missing, truncated or damaged file, or a record that differs, the key and both
            values named.
    """
    try:
        texts, tensors = _safetensors(path)
        stored = {key: json.loads(value) for key, value in texts.items()}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError(
            f"checkpoint {path.name}: cannot be read ({str(error).splitlines()[0]})"
        ) from None
    for key, value in record.items():
        wanted = json.loads(json.dumps(value))
        if stored.get(key) != wanted:
            raise InputError(
                f"checkpoint {path.name}: made with {_difference(key, stored.get(key), wanted)}"
            )
    if stored.pop("digest", None) != digest(tensors):
        raise InputError(
            f"checkpoint {path.name}: damaged, its tensors are not those that were written"
        )
    return tensors, stored


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of names, types, shapes and bits; safetensors itself has none."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _difference(key: str, stored: Any, wanted: Any) -> str:
    """What differs, in words; of two dictionaries the entries that do."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        names = sorted(name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name))
        return "; ".join(
            _difference(f"{key}.{name}", stored.get(name), wanted.get(name)) for name in names
        )
    return f"{key} = {stored!r}, this run has {wanted!r}"

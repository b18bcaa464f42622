"""The content of weights files from anywhere: safetensors, or what torch.save writes. Nothing in a file is executed.

A file is known by its content, not by its name. One of another kind is refused with a line that says how to convert it.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from fixres_poc.config.errors import InputError

SAVE = "torch.save(network.state_dict(), 'weights.pt')"
MOST_UNPACKED = 2  # times the file's size; torch.save stores tensors uncompressed
MOST_PICKLED = 2**24  # bytes of an archive's data.pkl; as Python objects it takes many times as much
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
MAGIC = {  # by the first bytes
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    b"<": "a web page, as of a failed download; download the file again",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"\x89HDF": f"HDF5, as Keras writes it; load it there and use {SAVE}",
    b"\x80": f"a pickle, but not of torch.save; use {SAVE}",
    b"": "no weights file, or an empty one; allowed: safetensors, and what torch.save writes",
}
EXPORTED = "a program of torch.export; convert it: torch.save(torch.export.load(file).state_dict, 'weights.pt')"
ARCHIVES = {  # by what the name of an entry in a zip ends in
    "constants.pkl": "TorchScript; convert it: torch.save(torch.jit.load(file).state_dict(), 'weights.pt')",
    "archive_format": EXPORTED,
    "exported_program.json": EXPORTED,
    ".npy": f"NumPy arrays; use {SAVE}",
}
BESIDE_TENSORS = (
    "argparse.Namespace types.SimpleNamespace uuid.UUID datetime.date datetime.datetime datetime.time "
    "datetime.timedelta datetime.timezone builtins.bool builtins.dict builtins.float builtins.frozenset builtins.int "
    "builtins.list builtins.range builtins.slice builtins.str builtins.tuple numpy.float32 numpy.float64 numpy.int64 "
    "pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath pathlib._local.PosixPath "
    "pathlib._local.WindowsPath pathlib._local.PurePosixPath pathlib._local.PureWindowsPath"
)


class _Inert:
    """Stands for an object beside the tensors: takes whatever the file says of it, and keeps and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    __setstate__ = __init__


HARMLESS: list[Any] = [(_Inert, name) for name in BESIDE_TENSORS.split()]
HARMLESS += [(lambda *_: {}, "collections.defaultdict"), (lambda *_: [], "collections.deque"), np.ndarray, np.dtype]
HARMLESS += {type(np.dtype(code)) for code in np.typecodes["All"]}
for each in (np.ones(1), np.float64()):  # arrays and scalars of NumPy 1 and 2
    function: Any = each.__reduce__()[0]
    HARMLESS += [(function, f"numpy.{core}.multiarray.{function.__name__}") for core in ("core", "_core")]


def contents(path: Path) -> dict[str, Any]:
    """What a weights file holds by name, tensors on the CPU; of safetensors the metadata as well, as text.

    Raises:
        InputError: of another kind, damaged, much larger than it seems, or with objects that only code can read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(MOST_PICKLED)
        is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
        content = _safetensors(path) if is_safetensors else _pickled(path, head)
    except InputError as error:
        raise InputError(f"weights {path.name}: {error}") from None
    except Exception as error:  # damaged files raise errors of many kinds
        what = f"damaged, or cannot be read ({type(error).__name__}); copy or save it again"
        raise InputError(f"weights {path.name}: {what}") from None
    return content if isinstance(content, dict) else {}


def _safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return {**(file.metadata() or {}), **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118


def _pickled(path: Path, head: bytes) -> Any:
    if head.startswith(b"PK\x03\x04"):
        head = _index(path)
    elif not head.startswith(LEGACY):
        raise InputError(next(kind for magic, kind in MAGIC.items() if head.lstrip().startswith(magic)))
    try:
        with torch.serialization.safe_globals(HARMLESS), path.open("rb") as file:  # of a path torch looks at the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|operand|class) \S+", str(error))
        what = "a whole network, or layers of one," if b"torch.nn.modules." in head else "more than tensors,"
        what = f"holds {what} pickled ({found[0] if found else 'unknown'}), and no code that a file names is run"
        raise InputError(f"{what}; save tensors only, where it was made: {SAVE}") from None


def _index(path: Path) -> bytes:
    """The pickle in an archive of torch.save, whose directory is checked."""
    with zipfile.ZipFile(path) as archive:
        entries = {each.filename: each for each in archive.infolist()}
        for ending, kind in ARCHIVES.items():
            if any(name.endswith(ending) for name in entries):
                raise InputError(kind)
        index = next((entry for name, entry in entries.items() if name.endswith("/data.pkl")), None)
        if index is None:
            raise InputError(f"an archive of {', '.join([*entries][:3])}; unpack it")
        unpacked = sum(each.file_size for each in archive.infolist())
        if unpacked > MOST_UNPACKED * path.stat().st_size or index.file_size > MOST_PICKLED:
            what = f"{unpacked} bytes unpacked, {index.file_size} of them pickled objects"
            raise InputError(f"{what}; allowed: archives as torch.save writes them, uncompressed")
        return archive.read(index)

"""Checkpoints: safetensors with the settings and a digest inside; those of others, or damaged ones, are refused."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import replacing


def save(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, with a record, stored as JSON, that must be equal for it to be used again."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    stored = {"digest": digest(plain), **record}
    with replacing(path) as file:
        save_file(plain, file.name, metadata={key: json.dumps(value) for key, value in stored.items()})


def load(path: Path, record: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint whose record agrees with `record` on all of its keys.

    Returns:
        The tensors on the CPU, and the whole stored record.

    Raises:
        InputError: missing, truncated or damaged file, or a record that differs, the key and both values named.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"checkpoint {path.name}: cannot be read ({str(error).splitlines()[0]})") from None
    for key, value in record.items():
        wanted = json.loads(json.dumps(value))
        if stored.get(key) != wanted:
            raise InputError(f"checkpoint {path.name}: made with {_difference(key, stored.get(key), wanted)}")
    if stored.pop("digest", None) != digest(tensors):
        raise InputError(f"checkpoint {path.name}: damaged, its tensors are not those that were written")
    return tensors, stored


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, types, shapes and bits; safetensors itself has none, and reads a flipped bit as another weight."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _difference(key: str, stored: Any, wanted: Any) -> str:
    """What differs, in words; of two dictionaries the entries that do."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        names = sorted(name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name))
        return "; ".join(_difference(f"{key}.{name}", stored.get(name), wanted.get(name)) for name in names)
    return f"{key} = {stored!r}, this run has {wanted!r}"

"""Weights files: safetensors, or a pickle that holds tensors only, loaded strictly. Nothing in a file is ever executed.

Known layouts: a plain state dict; one under the key "model" or "state_dict"; names that begin with "module.", as in the
FixRes authors' checkpoints.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import resolve
from fixres_poc.data.download import digest

NAMED = 3  # misfits that an error names


def find(path: str) -> Path:
    """The file of the setting `weights`; a relative path is relative to the repository.

    Raises:
        InputError: no such file.
    """
    file = resolve(path)
    if not file.is_file():
        raise InputError(f"weights = {path!r}: no such file")
    return file


def fingerprint(path: str | None) -> str | None:
    """SHA-256 of the file of the setting `weights`, None without one.

    Raises:
        InputError: no such file.
    """
    return None if path is None else digest(find(path))


def load(model: nn.Module, path: Path, head: nn.Module) -> None:
    """Load a file into a network, strictly but for its classifier `head` of another number of classes: that stays new.

    Raises:
        InputError: not a file of tensors only, or names or shapes that do not fit; the first few are named.
    """
    own, given = model.state_dict(), read(path)
    prefix = next(name for name, module in model.named_modules() if module is head)
    for name in (f"{prefix}.{part}" for part in head.state_dict()):
        if name in given and given[name].shape[1:] == own[name].shape[1:] and len(given[name]) != len(own[name]):
            given[name] = own[name]
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # files from before 2018 have none
    wrong = [f"{name} is missing" for name in own if name not in given.keys() | counters]
    wrong += [f"{name} is unexpected" for name in given if name not in own]
    both = [(name, list(given[name].shape), list(own[name].shape)) for name in own if name in given]
    wrong += [f"{name} is {found} instead of {expected}" for name, found, expected in both if found != expected]
    if wrong:
        more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise InputError(f"weights {path.name}: not of this backbone: {', '.join(wrong[:NAMED])}{more}")
    model.load_state_dict(given)


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, on the CPU, without "module." before the names.

    Raises:
        InputError: damaged, or it holds anything but tensors.
    """
    try:
        plain = path.suffix == ".safetensors"
        content: Any = load_file(path) if plain else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many kinds
        reason = f"damaged, or more than tensors in it ({type(error).__name__})"
        raise InputError(f"weights {path.name}: {reason}; allowed: safetensors, a pickled state dict") from None
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(each, torch.Tensor) for each in content.values()):
        raise InputError(f"weights {path.name}: no state dict in it, neither plain nor under 'model' or 'state_dict'")
    return {str(name).removeprefix("module."): value for name, value in content.items()}

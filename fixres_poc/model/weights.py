"""Weights files: safetensors, or a pickle that holds tensors only, loaded strictly. Nothing in a file is ever executed.

Known layouts: a plain state dict; one under the key "model" or "state_dict"; names that begin with "module.", as in the
FixRes authors' checkpoints.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import resolve
from fixres_poc.data.download import digest

NAMED = 3  # misfits that an error names
TOLD = ("classes", "class_to_idx")
USED: dict[Path, str] = {}
"""SHA-256 of the files that this process trains from, by file: a run records what it has loaded."""


def find(path: str) -> Path:
    """The file of the setting `weights`; a relative path is relative to the repository.

    Raises:
        InputError: no such file.
    """
    file = resolve(path)
    if not file.is_file():
        where = "" if path == str(file) else f", looked for at {file}"
        raise InputError(f"weights = {path!r}: no such file{where}")
    return file


def fingerprint(path: str | None) -> str | None:
    """SHA-256 of the file of the setting `weights`, None without one; for this process it may not change any more.

    Raises:
        InputError: no such file.
    """
    if path is None:
        return None
    if (file := find(path)) not in USED:
        USED[file] = digest(file)
    return USED[file]


def _refuse_change(file: Path) -> None:
    if USED.get(file) not in (None, digest(file)):
        raise InputError(f"weights {file}: changed since this run began; run it again, in a new kernel")


def load(model: nn.Module, path: Path, head: nn.Module) -> None:
    """Load a file into a network, strictly but for its classifier `head` of another number of classes: that stays new.

    Raises:
        InputError: not a file of tensors only, or names or shapes that do not fit; the first few are named.
    """
    own, given = model.state_dict(), read(path)
    for name in names_of(model, head):
        if name in given and given[name].shape[1:] == own[name].shape[1:] and len(given[name]) != len(own[name]):
            given[name] = own[name]
    fit(model, given, path.name)
    _refuse_change(path)


def load_trained(
    model: nn.Module, path: Path, head: nn.Module, classes: Sequence[str], order: Sequence[str] | None = None
) -> None:
    """Load a network that was trained elsewhere, with its classifier `head`, whose rows are put into our order.

    Args:
        classes: of the dataset, in its order.
        order: the classes in the file's order; None for what the file itself says under `classes` or `class_to_idx`,
            and where it says nothing for sorted names.

    Raises:
        InputError: as `load`; another number of classes, or other ones.
    """
    given, names = read(path), order or told(path) or classes
    for key in [key for key in names_of(model, head) if key in given]:
        if len(given[key]) != len(classes):
            what = f"its classifier has {len(given[key])} classes, the dataset has {len(classes)}"
            raise InputError(f"weights {path.name}: {what}")
        if other := sorted(set(classes) ^ set(names)):
            where = "the dataset" if other[0] in classes else "the weights file's order"
            raise InputError(f"weights {path.name}: class {other[0]!r} is in {where} alone; both must name the same")
        given[key] = given[key][[list(names).index(name) for name in classes]]
    fit(model, given, path.name)
    _refuse_change(path)


def names_of(model: nn.Module, part: nn.Module) -> list[str]:
    """Names of a part's tensors in the network's state dict."""
    prefix = next(name for name, module in model.named_modules() if module is part)
    return [f"{prefix}.{name}" for name in part.state_dict()]


def fit(model: nn.Module, given: dict[str, torch.Tensor], name: str) -> None:
    """Load tensors into a network, strictly.

    Args:
        name: where they come from, for errors.

    Raises:
        InputError: names or shapes that do not fit; the first few are named.
    """
    own = model.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # files from before 2018 have none
    wrong = [f"{key} is missing" for key in own if key not in given.keys() | counters]
    wrong += [f"{key} is unexpected" for key in given if key not in own]
    both = [(key, list(given[key].shape), list(own[key].shape)) for key in own if key in given]
    wrong += [f"{key} is {found} instead of {expected}" for key, found, expected in both if found != expected]
    if wrong:
        more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise InputError(f"weights {name}: not of this backbone: {', '.join(wrong[:NAMED])}{more}")
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


def told(file: Path) -> list[str] | None:
    """What a file says of its classes: `classes`, a list, or `class_to_idx`, as torchvision's ImageFolder has it."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            content: Any = {key: json.loads(value) for key, value in (opened.metadata() or {}).items() if key in TOLD}
    else:
        content = torch.load(file, map_location="cpu", weights_only=True)
    found = content.get(TOLD[0]) if isinstance(content, dict) else None
    if found is None and isinstance(content, dict) and isinstance(places := content.get(TOLD[1]), dict):
        found = sorted(places, key=places.__getitem__)
    return [str(name) for name in found] if isinstance(found, list | tuple) else None

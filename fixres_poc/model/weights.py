"""Weights of a network from a file, loaded strictly; `checkpoint.contents` opens the file.

A file may hold several sets of weights, such as plain and averaged ones, or a teacher and a
student. Wrappers add prefixes to names: "module.", "_orig_mod.", "model.". The names of the
network's tensors identify a set.
"""

import json
import logging
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import file_digest, resolve
from fixres_poc.model.checkpoint import contents
from fixres_poc.model.trunk import classifier

log = logging.getLogger(__name__)
State = dict[str, torch.Tensor]
USED: dict[Path, str] = {}
"""SHA-256 of the weights files that this process loads; a run records it."""
NAMED = 3  # names or lines in an error
LONGEST = 200  # characters of each line in an error
CLASS_ENTRIES = ("classes", "class_to_idx")
AVERAGED = re.compile(
    r"(?<![a-z])(ema|swa|avg|averaged?|teacher|momentum|target|shadow)(?![a-z])", re.IGNORECASE
)
DEEPEST = 20  # most dots in the name of a dictionary with weights


def find_weights(path: str) -> Path:
    """Resolve the setting `weights`; a relative path starts at the repository.

    Raises:
        InputError: no such file.
    """
    file = resolve(path)
    if not file.is_file():
        raise InputError(f"weights = {path!r}: no such file, looked for at {file}")
    return file


def fingerprint(path: str | None) -> str | None:
    """SHA-256 of the file of the setting `weights`; None without one.

    From then on `read` refuses the file in this process if its content has changed.

    Raises:
        InputError: no such file.
    """
    if path is None:
        return None
    if (file := find_weights(path)) not in USED:
        USED[file] = str(file_digest(file))
    return USED[file]


def load_weights(model: nn.Module, path: Path, key: str | None = None) -> None:
    """Load a file into a network, strictly except for the classifier.

    The network keeps its new classifier if the file has none or one of another shape.

    Raises:
        InputError: as `read` and `load_strictly`.
    """
    new = model.state_dict()
    state = read(path, key, model)
    for name in classifier_names(model):
        if name not in state or state[name].shape != new[name].shape:
            state[name] = new[name]
    load_strictly(model, state, path.name)


def classifier_names(model: nn.Module) -> list[str]:
    """Names of the classifier's tensors in the network's state dict."""
    head = classifier(model)
    prefixes = [f"{name}." for name, module in model.named_modules() if module is head]
    return [name for prefix in prefixes for name in head.state_dict(prefix=prefix)]


def load_strictly(model: nn.Module, state: State, source: str) -> None:
    """Load tensors into a network, strictly; counters of batch norms may be missing.

    Args:
        source: name of the file, for errors.

    Raises:
        InputError: names or shapes do not fit; the message lists the first few.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [textwrap.shorten(line, LONGEST) for line in str(error).split("\n\t")[1:]]
        raise InputError(f"weights {source}: not of this backbone: {_first(lines)}") from None
    for name, tensor in model.state_dict().items():
        loaded = state.get(name, tensor)
        if tensor.is_floating_point() and not loaded.is_floating_point():
            raise InputError(f"weights {source}: {name} is of type {loaded.dtype}, not real")


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def read(path: Path, key: str | None = None, model: nn.Module | None = None) -> State:
    """One set of weights of a file, on the CPU, by name without the prefixes of wrappers.

    Plain weights take precedence over averaged ones unless `key` chooses; a warning names the
    others.

    Args:
        key: dotted name of the set in the file, or its first parts.
        model: network whose tensor names identify the set; None keeps all names of the file.

    Raises:
        InputError: as `contents`; the file changed since `fingerprint` read it; it has no tensors,
            no set of that name, or several such sets; a tensor has impossible values.
    """
    source = f"weights {path.name}"
    tensors = _flat(contents(path))
    if path in USED and USED[path] != file_digest(path):
        raise InputError(f"{source}: changed since this run began; run it again, in a new kernel")
    if not tensors:
        raise InputError(f"{source}: no state dict in it")
    sets = _sets(tensors, model.state_dict() if model else ())
    keys = [name for name in sets if key is None or f"{name}.".startswith(f"{key}.")]
    if not keys:
        allowed = ", ".join(sets)
        raise InputError(f"{source}: weights_key = {key!r}: no such weights; allowed: {allowed}")
    plain = [name for name in keys if not AVERAGED.search(name)] or keys
    if len(plain) > 1:
        choice = ", ".join(plain)
        raise InputError(f"{source}: several sets of weights; choose one by weights_key: {choice}")
    if others := ", ".join(name for name in keys if name not in plain):
        log.warning("%s: %s loaded; others, by weights_key: %s", source, plain[0], others)
    state = sets[plain[0]]
    for name, tensor in state.items():
        if tensor.numel() * tensor.element_size() > path.stat().st_size:
            raise InputError(f"{source}: {name} {list(tensor.shape)} is larger than the file")
        if not tensor.isfinite().all():
            raise InputError(f"{source}: {name} holds NaN or infinite values")
        if name.endswith("running_var") and tensor.min() < 0:
            raise InputError(f"{source}: {name} holds negative variances")
    return state


def _flat(content: dict[Any, Any], place: str = "") -> State:
    """All tensors in nested dictionaries by dotted name, except those of optimizers.

    The function empties the dictionaries: many may refer to the same one, which is read once.
    """
    tensors = State()
    for key in [*content]:
        value = content.pop(key, None)
        if not isinstance(key, str) or key.startswith("optim") or place.count(".") > DEEPEST:
            continue
        if isinstance(value, torch.Tensor):
            tensors[place + key] = value
        elif isinstance(value, dict):
            tensors |= _flat(value, f"{place}{key}.")
    return tensors


def _sets(tensors: State, network_names: Iterable[str]) -> dict[str, State]:
    """Sets of tensors by the prefix of their names.

    A set has more than half of the network's names; without such a set, the most names.
    """
    known = {name for name in network_names if not name.endswith("num_batches_tracked")}
    hits: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        suffixes = (".".join(parts[start:]) for start in range(len(parts)))
        hits.update(name.removesuffix(suffix) for suffix in suffixes if suffix in known)
    prefixes = [prefix for prefix, count in hits.items() if 2 * count > len(known)]
    prefixes = prefixes or [prefix for prefix, _ in hits.most_common(1)] or [""]
    sets: dict[str, State] = {}
    for prefix in sorted(prefixes, key=len, reverse=True):  # a set may contain another one
        names = [name for name in tensors if name.startswith(prefix)]
        state = {name.removeprefix(prefix): tensors.pop(name) for name in names}
        sets[prefix.removesuffix(".")] = state
    return sets


def class_names(file: Path) -> list[str] | None:
    """Names in a file's entry `classes` or torchvision's `class_to_idx`, in the order of outputs.

    The entry is a list, an array, a dictionary from names to indices or from indices to names, or
    text: JSON, or names between commas.

    Returns:
        The names; None if the file has no such entry.

    Raises:
        InputError: as `contents`; the order is unclear, a name is neither text nor a number, or two
            names are equal.
    """
    content = contents(file)
    for entry in CLASS_ENTRIES:
        if content.get(entry) is not None:
            try:
                return _names(content[entry])
            except (LookupError, TypeError, ValueError, RecursionError):
                raise InputError(
                    f"weights {file.name}, its entry {entry!r}: no list of different names in "
                    "order; give the classes (in a sweep file's trained, or by --classes)"
                ) from None
    return None


def _names(value: Any) -> list[str]:
    """Names in order; LookupError, TypeError or ValueError if the value is no such list."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value[:1] in "[{":
        value = json.loads(value)
    if isinstance(value, str):
        value = re.split(r"\s*[,\n]\s*", value.strip())
    if isinstance(value, Mapping):
        value = _in_order(value)
    if not isinstance(value, list | tuple):
        raise TypeError
    names = [str(name) for name in value if isinstance(name, str | int)]
    if not value or len(set(names)) < len(value):
        raise ValueError
    return names


def _in_order(classes: Mapping[Any, Any]) -> list[Any]:
    """Names in the order of their indices; KeyError if these are not 0, 1 and so on."""
    by_index = {index: name for name, index in classes.items()}
    if all(isinstance(name, str) for name in classes.values()):
        by_index = {int(index): name for index, name in classes.items()}
    return [by_index[index] for index in range(len(classes))]


def outputs_of(
    classes: Sequence[str], names: Sequence[str] | None, outputs: int, source: str
) -> list[int]:
    """Index of the network's output for each class of a dataset.

    Args:
        names: of the network's outputs, in order; None if they are `classes`.
        outputs: number of the network's outputs.
        source: origin of the network and of `names`, for errors.

    Raises:
        InputError: the number or the names of the classes differ.
    """
    if outputs != len(classes):
        raise InputError(
            f"{source}: its classifier has {outputs} classes, the dataset has {len(classes)}"
        )
    indices = {name: index for index, name in enumerate(names or classes)}
    if unshared := sorted(indices.keys() - classes) or sorted(set(classes) - indices.keys()):
        where = "the dataset" if unshared[0] in classes else "its list of classes"
        raise InputError(
            f"{source}: class {unshared[0]!r} is in {where} alone; "
            f"the dataset has {_first(classes)}"
        )
    return [indices[name] for name in classes]

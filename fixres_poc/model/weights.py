"""Weights of a network from a file, loaded strictly. `weight_files` opens the file.

A file may hold several sets of weights: averaged ones beside the plain ones, a teacher beside a
student. Names may begin with those of wrappers: "module.", "_orig_mod.", "model.". A set is found
by the names of the network's tensors.
"""

import json
import logging
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
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
"""SHA-256 of the files that this process trains from, by file: a run records what it has loaded."""
NAMED, LONGEST = 3, 200  # names or lines in an error, and characters in each line
CLASS_ENTRIES = ("classes", "class_to_idx")
AVERAGED = re.compile(
    r"(?<![a-z])(ema|swa|avg|averaged?|teacher|momentum|target|shadow)(?![a-z])", re.IGNORECASE
)
DEEPEST = 20  # dots in the name of a dictionary with weights


def find_weights(path: str) -> Path:
    """The file of the setting `weights`; a relative path is relative to the repository.

    Raises:
        InputError: no such file.
    """
    file = resolve(path)
    if not file.is_file():
        raise InputError(f"weights = {path!r}: no such file, looked for at {file}")
    return file


def fingerprint(path: str | None) -> str | None:
    """SHA-256 of the file of the setting `weights`, None without one.

    For this process the file may not change any more.

    Raises:
        InputError: no such file.
    """
    if path is None:
        return None
    if (file := find_weights(path)) not in USED:
        USED[file] = str(file_digest(file))
    return USED[file]


def load_weights(model: nn.Module, path: Path, key: str | None = None) -> None:
    """Load a file into a network, strictly but for its classifier.

    The classifier stays new where the file has none, or one of another shape.

    Raises:
        InputError: as `read` and `load_strictly`.
    """
    own = model.state_dict()
    given = read(path, key, model)
    for name in classifier_names(model):
        if name not in given or given[name].shape != own[name].shape:
            given[name] = own[name]
    load_strictly(model, given, path.name)


def classifier_names(model: nn.Module) -> list[str]:
    """Names of the classifier's tensors in the network's state dict."""
    head = classifier(model)
    return [
        f"{place}.{name}"
        for place, part in model.named_modules()
        if part is head
        for name in head.state_dict()
    ]


def load_strictly(model: nn.Module, given: State, name: str) -> None:
    """Load tensors into a network, strictly; counters of batch norms may be missing.

    Args:
        name: where they come from, for errors.

    Raises:
        InputError: names or shapes that do not fit; the first few of the network and of the file
            are named.
    """
    try:
        model.load_state_dict(given)
    except RuntimeError as error:
        wrong = [textwrap.shorten(each, LONGEST) for each in str(error).split("\n\t")[1:]]
        raise InputError(f"weights {name}: not of this backbone: {_first(wrong)}") from None


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def read(path: Path, key: str | None = None, model: nn.Module | None = None) -> State:
    """One set of weights of a file by name, on the CPU, without the names of wrappers.

    Of averaged and plain weights the plain ones are taken, unless `key` says otherwise, and a
    warning names the others.

    Args:
        key: dotted name of the set in the file, or what it begins with.
        model: whose names to look for; None for all names of the file.

    Raises:
        InputError: as `contents`; the file was changed since `fingerprint` read it; no tensors, no
            set of that name, or several from which to choose.
    """
    name = f"weights {path.name}"
    flat = _flat(contents(path))
    if path in USED and USED[path] != file_digest(path):
        raise InputError(f"{name}: changed since this run began; run it again, in a new kernel")
    if not flat:
        raise InputError(f"{name}: no state dict in it")
    found = _sets(flat, model.state_dict() if model else ())
    under = [each for each in found if key is None or f"{each}.".startswith(f"{key}.")]
    if not under:
        allowed = ", ".join(found)
        raise InputError(f"{name}: weights_key = {key!r}: no such weights; allowed: {allowed}")
    chosen, *more = [each for each in under if not AVERAGED.search(each)] or under
    if more:
        choice = ", ".join([chosen, *more])
        raise InputError(f"{name}: several sets of weights; choose one by weights_key: {choice}")
    if others := [each for each in under if each != chosen]:
        log.warning("%s: %s taken; others, by weights_key: %s", name, chosen, ", ".join(others))
    for each, tensor in found[chosen].items():
        if tensor.numel() * tensor.element_size() > path.stat().st_size:
            raise InputError(f"{name}: {each} {list(tensor.shape)} is larger than the file")
    return found[chosen]


def _flat(content: dict[Any, Any], place: str = "") -> State:
    """All tensors in nested dictionaries by dotted name, except those of optimizers.

    The dictionaries are emptied, so that each one is read once, however often others refer to it.
    """
    found = State()
    for key in [*content]:
        value = content.pop(key, None)
        if not isinstance(key, str) or key.startswith("optim") or place.count(".") > DEEPEST:
            continue
        if isinstance(value, torch.Tensor):
            found[place + key] = value
        elif isinstance(value, dict):
            found |= _flat(value, f"{place}{key}.")
    return found


def _sets(flat: State, own: Iterable[str]) -> dict[str, State]:
    """Sets of tensors by the prefix of their names.

    Those with most of a network's names, or else the best one.
    """
    known = {name for name in own if not name.endswith("num_batches_tracked")}
    hits: Counter[str] = Counter()
    for name in flat:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        hits.update(name.removesuffix(end) for end in ends if end in known)
    good = [start for start, count in hits.items() if 2 * count > len(known)]
    good = good or [start for start, _ in hits.most_common(1)] or [""]
    found: dict[str, State] = {}
    for start in sorted(good, key=len, reverse=True):  # one may lie within another
        names = [name for name in flat if name.startswith(start)]
        found[start.removesuffix(".")] = {
            name.removeprefix(start): flat.pop(name) for name in names
        }
    return found


def told(file: Path) -> list[str] | None:
    """What a file says of its classes, in its entry `classes` or torchvision's `class_to_idx`.

    That is a list, an array, a dictionary between names and indices, either way round, or text:
    JSON, or names between commas.

    Raises:
        InputError: as `contents`; the order is not clear, a name is no text or number, or stands
            twice.
    """
    content = contents(file)
    for entry in CLASS_ENTRIES:
        if content.get(entry) is not None:
            names: list[str] = []
            with suppress(TypeError, ValueError, RecursionError):
                names = _names(content[entry])
            if not names or len(set(names)) < len(names):
                raise InputError(
                    f"weights {file.name}, its entry {entry!r}: no list of different names in "
                    "order; give the classes (in a sweep file's trained, or by --classes)"
                )
            return names
    return None


def _names(value: Any) -> list[str]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value[:1] in "[{":
        value = json.loads(value)
    if isinstance(value, str):
        value = re.split(r"\s*[,\n]\s*", value.strip())
    if isinstance(value, Mapping):
        value = _in_order(value)
    known = isinstance(value, list | tuple) and all(isinstance(each, str | int) for each in value)
    return [str(each) for each in value] if known else []


def _in_order(names: Mapping[Any, Any]) -> list[Any] | None:
    """Names in the order of their indices, None where these are not 0, 1 and so on."""
    if all(isinstance(value, str) for value in names.values()):
        names = {name: int(index) for index, name in names.items()}
    ordered = sorted(names, key=names.__getitem__)
    return ordered if [names[name] for name in ordered] == list(range(len(ordered))) else None


def outputs_of(
    classes: Sequence[str], names: Sequence[str] | None, outputs: int, source: str
) -> list[int]:
    """The network's output for each class of a dataset.

    Args:
        names: of the network's outputs, in order; None where they are `classes`.
        outputs: how many it has.
        source: where the network and `names` come from, for errors.

    Raises:
        InputError: another number of classes, or other ones.
    """
    if outputs != len(classes):
        raise InputError(
            f"{source}: its classifier has {outputs} classes, the dataset has {len(classes)}"
        )
    places = {name: place for place, name in enumerate(names or classes)}
    if other := sorted(places.keys() - set(classes)) or sorted(set(classes) - places.keys()):
        where = "the dataset" if other[0] in classes else "its list of classes"
        raise InputError(
            f"{source}: class {other[0]!r} is in {where} alone; the dataset has {_first(classes)}"
        )
    return [places[name] for name in classes]

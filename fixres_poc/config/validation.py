"""Settings read from sweep files, settings files and parameters cells, with one-line errors."""

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import read_record, resolve
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.settings import Settings
from fixres_poc.config.sweep_settings import Run, SweepSettings

S = TypeVar("S", bound=Settings)
LONGEST_VALUE = 300
NAMED = ("dataset", "backbone", "weights")
NESTED = ("extra_test", "trained")


class _Loader(yaml.SafeLoader):
    """Refuses repeated keys, and aliases, which can multiply a few lines without end."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            names.add(str(key.value))
        return super().construct_mapping(node, deep)


def validate(model: type[S], values: Mapping[str, Any], source: str) -> S:
    """Build settings from plain values.

    Args:
        values: keys and values; lists become tuples.
        source: their origin, which the error names.

    Raises:
        InputError: unknown key, missing key or impossible value; the line names it and what is
            allowed.
    """
    try:
        return model.model_validate(_as_tuple(dict(values)))
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(error, model)}") from None


def _as_tuple(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_tuple(item) for key, item in value.items()}
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def _explain(error: ValidationError, model: type[Settings]) -> str:
    """One line about the first of pydantic's errors."""
    detail, *others = error.errors()
    # pydantic first tries a single value where a list is allowed as well
    if isinstance(detail["input"], tuple) and isinstance(detail["loc"][-1], str) and others:
        detail = others[0]
    place, kind, value = detail["loc"], detail["type"], detail["input"]
    depth = 2 if place and place[0] in NESTED else 1
    key = ".".join(map(str, place[:depth]))
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(key, model.model_fields, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        allowed = ", ".join(sorted({*model.model_fields} - {"name"}))
        return f"unknown key {key!r}; {hint}allowed: {allowed}"
    if kind == "missing" and isinstance(place[-1], str):
        return f"key {key!r} is missing"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message.replace("tuple", "list").replace("Tuple", "the list")
    message = message.replace("Field required", "a value is missing in it")
    if kind == "float_type" and isinstance(value, str):
        message += "; YAML wants a point in it, such as 1.0e-3"
    return f"{key} = {repr(value)[:LONGEST_VALUE]}: {message}" if key else message


def load_sweep(path: str | Path, overrides: Mapping[str, Any] | None = None) -> SweepSettings:
    """Read a sweep file.

    The sweep's name is the file's stem, and <stem>-<name> with another dataset, backbone or weights
    file.

    Args:
        overrides: keys that replace those of the file; None values are ignored.

    Raises:
        InputError: no such file, not YAML, not a table of keys, a wrong key or value, or a name
            that is not allowed.
    """
    file = resolve(path)
    content = _content(file)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(
            f"{file}: a sweep file holds 'key: value' lines, dataset and sizes at least"
        )
    if "name" in content:
        raise InputError(
            f"{file}: unknown key 'name'; a sweep's name is its file's stem, here {file.stem!r}"
        )
    overrides = {key: value for key, value in (overrides or {}).items() if value is not None}
    name = file.stem
    for key in NAMED:
        if key in overrides:
            name += _suffix(key, overrides[key], content.get(key))
    return validate(SweepSettings, {**content, **overrides, "name": name}, str(file))


def _suffix(key: str, value: str, replaced: Any) -> str:
    """The suffix that another dataset, network or weights file adds to a sweep's name."""
    if key == "backbone":
        same = value == replaced
        name = value.removeprefix("timm:")
    else:
        path = resolve(value)
        same = isinstance(replaced, str) and resolve(replaced) == path
        name = path.name
    return "" if same else "-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def _content(file: Path) -> Any:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        return yaml.load(file.read_bytes(), _Loader)
    except Exception as error:  # PyYAML's constructors raise errors of many kinds
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        problem = problem or f"{type(error).__name__}: {error}"
        raise InputError(f"{file}{where}: not valid YAML ({problem})") from None


def read_run(file: Path) -> Run:
    """Read the settings file of a run: runs/<sweep>/<run>/settings.json.

    Raises:
        InputError: it cannot be read, or its notebook or parameters are unknown; papermill would
            turn the keys into code.
    """
    record = read_record(file, notebook=str, parameters=dict)
    if not record:
        raise InputError(f"{file.absolute()}: cannot be read as a settings file")
    notebook, parameters = record["notebook"], record["parameters"]
    if notebook not in NOTEBOOKS:
        raise InputError(f"{file}: notebook = {notebook!r}: allowed: {', '.join(NOTEBOOKS)}")
    validate(NOTEBOOKS[notebook].settings, parameters, str(file))
    return Run(file.resolve().parent.name, notebook, parameters)


def read_parameters(model: type[S], namespace: Mapping[str, Any]) -> S:
    """Validate a notebook's parameters: the fields of `model` among the notebook's globals.

    For a misspelt parameter papermill only warns. So the names are checked as well that the cells
    of literals right before this one assign: the parameters cell and papermill's.

    Args:
        namespace: the notebook's `globals()`.

    Raises:
        InputError: as `validate`.
    """
    names = _assigned_before(namespace.get("In", ())) | set(model.model_fields)
    values = {name: namespace[name] for name in names if name in namespace}
    return validate(model, values, "parameters")


def _assigned_before(history: Iterable[str]) -> set[str]:
    names: set[str] = set()
    for source in reversed(list(history)[1:-1]):
        assigned = set()
        try:
            for statement in ast.parse(source).body:
                ast.literal_eval(statement.value)  # type: ignore[attr-defined]
                assigned |= {target.id for target in statement.targets}  # type: ignore[attr-defined]
        except (SyntaxError, ValueError, AttributeError):  # no cell of literals
            break
        if not assigned:
            break
        names |= assigned
    return names

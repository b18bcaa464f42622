"""Settings from sweep files, settings files and parameters cells: strict, with one-line errors."""

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
    """Refuses a key that is given twice, and aliases, which a few lines nest without end."""

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
        values: keys and values; lists are taken for tuples.
        source: where they come from, named in the error.

    Raises:
        InputError: unknown key, missing key or impossible value, in one line that names it and what
            is allowed.
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
    first, *others = error.errors()
    # a list where a value or a list is allowed is judged as a value first
    if isinstance(first["input"], tuple) and isinstance(first["loc"][-1], str) and others:
        first = others[0]
    place, kind, value = first["loc"], first["type"], first["input"]
    key = ".".join(map(str, place[: 2 if place[:1] in [(name,) for name in NESTED] else 1]))
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(key, model.model_fields, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        allowed = ", ".join(sorted({*model.model_fields} - {"name"}))
        return f"unknown key {key!r}; {hint}allowed: {allowed}"
    if kind == "missing" and isinstance(place[-1], str):
        return f"key {key!r} is missing"
    own = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = own.replace("tuple", "list").replace("Tuple", "the list")
    message = message.replace("Field required", "a value is missing in it")
    if kind == "float_type" and isinstance(value, str):
        message += "; YAML wants a point in it, such as 1.0e-3"
    return f"{key} = {repr(value)[:LONGEST_VALUE]}: {message}" if key else message


def load_sweep(path: str | Path, overrides: Mapping[str, Any] | None = None) -> SweepSettings:
    """Read a sweep file.

    Its name is the stem, and <stem>-<name> with another dataset, backbone or weights file.

    Args:
        overrides: keys that replace those of the file (None values are passed over).

    Raises:
        InputError: no such file, not YAML, not a table of keys, a wrong key or value, or a name
            that is not allowed.
    """
    file = resolve(path)
    content = _content(path, file)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(
            f"{path}: a sweep file holds 'key: value' lines, dataset and sizes at least"
        )
    if "name" in content:
        raise InputError(
            f"{path}: unknown key 'name'; a sweep's name is its file's stem, here {file.stem!r}"
        )
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    other = [
        key
        for key in NAMED
        if key in given and _place(key, given[key]) != _place(key, content.get(key))
    ]
    name = "-".join([file.stem, *(_short(key, given[key]) for key in other)])
    return validate(SweepSettings, content | given | {"name": name}, str(path))


def _place(key: str, value: Any) -> Any:
    """The value, of a path the absolute one."""
    return resolve(value) if key != "backbone" and isinstance(value, str) else value


def _short(key: str, value: str) -> str:
    """What another dataset, network or weights file adds to a sweep's name."""
    name = value.removeprefix("timm:") if key == "backbone" else resolve(value).name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def _content(path: str | Path, file: Path) -> Any:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        return yaml.load(file.read_bytes(), _Loader)
    except Exception as error:  # PyYAML's makers of values raise errors of many kinds
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or getattr(error, "reason", None)
        problem = said or f"{type(error).__name__}: {error}"
        raise InputError(f"{path}{where}: not valid YAML ({problem})") from None


def read_run(file: Path) -> Run:
    """The run of a settings file that a sweep has written: runs/<sweep>/<run>/settings.json.

    Raises:
        InputError: it cannot be read, or names another notebook or other parameters than the
            project has; papermill would turn their keys into code.
    """
    given = read_record(file, notebook=str, parameters=dict)
    if not given:
        raise InputError(f"{file.absolute()}: cannot be read as a settings file")
    stem, parameters = given["notebook"], given["parameters"]
    if stem not in NOTEBOOKS:
        raise InputError(f"{file}: notebook = {stem!r}: allowed: {', '.join(NOTEBOOKS)}")
    validate(NOTEBOOKS[stem].settings, parameters, str(file))
    return Run(file.resolve().parent.name, stem, parameters)


def read_parameters(model: type[S], namespace: Mapping[str, Any]) -> S:
    """Validate a notebook's parameters: the fields of `model` among the notebook's globals.

    papermill puts a misspelt parameter into a cell of its own and only warns. So the names assigned
    in the cells of literals that ran right before this one (the parameters cell and papermill's)
    are checked as well.

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
        except (SyntaxError, ValueError, AttributeError):  # not a cell of literals
            break
        if not assigned:
            break
        names |= assigned
    return names

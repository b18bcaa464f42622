import ast
import re
import sys
import tomllib
from importlib import metadata
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fixres_poc
from fixres_poc.config import REPOSITORY

PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# conda-forge splits these packages or names them otherwise.
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(each.name): each for each in parsed}


RUNTIME = requirements(PROJECT["dependencies"])
OPTIONAL = requirements(PROJECT["optional-dependencies"]["export"])
DECLARED = RUNTIME | OPTIONAL
EVERY = RUNTIME | requirements(PROJECT["optional-dependencies"]["dev"])


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in split}


def test_conda_environment_is_in_step_with_pyproject() -> None:
    content = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    plain = [line for line in content if isinstance(line, str) and line != "pip"]
    conda = {CONDA_NAMES.get(name, name): each for name, each in requirements(plain).items()}
    assert str(conda.pop("python").specifier) == PROJECT["requires-python"]
    conda |= requirements(next(each["pip"] for each in content if isinstance(each, dict)))
    assert {name: str(each.specifier) for name, each in conda.items()} == {
        name: str(each.specifier) for name, each in EVERY.items()
    }


@pytest.mark.parametrize("name", sorted(EVERY))
def test_constraints_pin_a_version_that_is_allowed(name: str) -> None:
    assert EVERY[name].specifier.contains(pins()[name])


def test_constraints_hold_exact_versions_from_the_registry_only() -> None:
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!]+", line) for line in lines)
    assert not [line for line in lines if line.startswith(("nvidia-", "cuda-", "triton"))]


def test_ranges_admit_newer_versions() -> None:
    assert {operator.operator for each in EVERY.values() for operator in each.specifier} == {">="}


def test_version_is_the_packages() -> None:
    assert PROJECT["version"] == fixres_poc.__version__


def test_every_import_is_declared() -> None:
    names: set[str] = set()
    for file in (REPOSITORY / "fixres_poc").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    owners = metadata.packages_distributions()
    third_party = names - set(sys.stdlib_module_names) - {"fixres_poc"}
    undeclared = {
        n for n in third_party if not {canonicalize_name(each) for each in owners.get(n, [])} & DECLARED.keys()
    }
    assert not undeclared


def test_what_is_optional_is_there_for_the_tests() -> None:
    assert {name: EVERY[name].specifier for name in OPTIONAL} == {n: each.specifier for n, each in OPTIONAL.items()}

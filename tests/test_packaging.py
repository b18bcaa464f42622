"""pyproject.toml, environment.yml, constraints.txt, CITATION.cff and the code are in step."""

import ast
import contextlib
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
from fixres_poc.config.files import REPOSITORY

PYPROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
CITATION: dict[str, Any] = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
OF_TORCH = ("nvidia-", "cuda-", "triton")


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(each.name): each for each in parsed}


def extra(name: str) -> list[str]:
    """Requirements of an extra, with those of the extras that it is built from."""
    lines: list[str] = []
    for line in PROJECT["optional-dependencies"][name]:
        requirement = Requirement(line)
        own = canonicalize_name(requirement.name) == canonicalize_name(PROJECT["name"])
        lines += [each for other in requirement.extras for each in extra(other)] if own else [line]
    return lines


RUNTIME = requirements(PROJECT["dependencies"])
OPTIONAL = requirements(extra("export"))
EVERY = RUNTIME | requirements(extra("dev"))
UPPER = {"torch": "<3"}  # newer versions of all others may be tried
PINS = [
    line
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
]
PINNED: dict[str, str] = {
    canonicalize_name(name): version
    for name, version in (line.split("==") for line in PINS if line)
}


def add_needed(lines: list[str], extras: tuple[str, ...], found: set[str]) -> None:
    """Add the names of all installed packages that requirements bring here, directly or not."""
    for requirement in map(Requirement, lines):
        marker, key = requirement.marker, canonicalize_name(requirement.name)
        applies = marker is None or any(
            marker.evaluate({"extra": extra}) for extra in (*extras, "")
        )
        if applies and key not in found:
            # an optional part that is not installed
            with contextlib.suppress(metadata.PackageNotFoundError):
                lines = metadata.requires(key) or []
                found.add(key)
                add_needed(lines, tuple(requirement.extras), found)


def test_conda_environment_is_in_step_with_pyproject() -> None:
    *conda, pip = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    ranges = {name: str(own.specifier) for name, own in requirements(conda).items()}
    wanted = {name: str(EVERY[name].specifier) for name in ("torch", "torchvision")}
    wanted["pytorch"] = wanted.pop("torch")
    wanted["python"] = PROJECT["requires-python"]
    assert {name: own for name, own in ranges.items() if own} == wanted
    assert pip == {"pip": ["-e .[dev]"]}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_constraints_pin_a_version_that_is_allowed(name: str) -> None:
    assert EVERY[name].specifier.contains(PINNED[name])
    lower, *upper = sorted(map(str, EVERY[name].specifier), reverse=True)
    assert lower.startswith(">=")
    assert upper == ([UPPER[name]] if name in UPPER else [])


def test_constraints_hold_exact_versions_from_the_registry_only() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!]+", line) for line in PINS)
    assert not [line for line in PINS if line.startswith(OF_TORCH)]


def test_constraints_cover_all_that_is_installed_for_the_project() -> None:
    found: set[str] = set()
    add_needed(PROJECT["dependencies"] + extra("dev"), (), found)
    assert not {
        name for name in found - PINNED.keys() if not name.startswith(OF_TORCH) and name != "pip"
    }
    assert len(found) > 100


def test_every_import_is_declared() -> None:
    modules = set[str]()
    for file in (REPOSITORY / "fixres_poc").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module))
    names = {module.split(".")[0] for module in modules}
    owners, declared = metadata.packages_distributions(), (RUNTIME | OPTIONAL).keys()
    third_party = names - set(sys.stdlib_module_names) - {"fixres_poc"}
    assert not {
        name
        for name in third_party
        if declared.isdisjoint(map(canonicalize_name, owners.get(name, [])))
    }


def test_whatever_is_no_code_is_packed_too() -> None:
    package = REPOSITORY / "fixres_poc"
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["fixres_poc"]
    others = {file for file in package.rglob("*.*") if file.suffix not in (".py", ".pyc")}
    assert {file.suffix for file in others} >= {".csv", ".js", ".mplstyle"}
    assert others <= {file for pattern in patterns for file in package.glob(pattern)}


def test_the_tests_have_every_extra() -> None:
    assert set(PROJECT["optional-dependencies"]) > {"dev"}
    for name in PROJECT["optional-dependencies"]:
        assert set(extra(name)) <= set(extra("dev")), name


def test_citation_has_the_projects_version_licence_and_authors() -> None:
    assert str(CITATION["version"]) == PROJECT["version"] == fixres_poc.__version__
    assert CITATION["license"] == PROJECT["license"]
    (file,) = PROJECT["license-files"]
    assert (REPOSITORY / file).read_text(encoding="utf-8").startswith(f"{PROJECT['license']} ")
    assert CITATION["authors"] == PROJECT["authors"]

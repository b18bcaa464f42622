"""The house: its packages and modules, that imports run one way, and how large anything may be."""

import ast
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from fixres_poc.config import provenance
from fixres_poc.config.files import REPOSITORY

PACKAGE = REPOSITORY / "fixres_poc"
HOUSE = {  # bottom first; a module imports only what stands before it
    "config": "errors files geometry settings notebooks sweep_settings validation provenance "
    "run_state",
    "data": "decoding image_folder named_datasets drawing synthetic dataset transforms loading "
    "leakage",
    "model": "device trunk checkpoint weights backbones memory_plan",
    "method": "apparent_size evaluation linear_probe zero_shot equalise stage2 epochs stage1 "
    "adaptations",
    "analysis": "statistics cells record collection results comparisons questions recommendation "
    "answers",
    "report": "published phrases sentences text run_text tables plots.style plots.datasets "
    "plots.networks plots.results plots.answers explorer pages overview",
    "sweep": "kernel_state kernel notebook_run progress snakemake reporting plan execution",
    "inference": "finished_run export own_network",
    "cli": "application runs sweeps",
}
ORDER = [f"{package}.{module}" for package, modules in HOUSE.items() for module in modules.split()]
MODULES, LINES, FUNCTION_LINES = 9, 350, 45


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def file_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


def imported(code: ast.AST) -> set[str]:
    """Modules of the library that a piece of code imports, wherever in it, such as data.loading."""
    names = set[str]()
    for node in ast.walk(code):
        if not isinstance(node, ast.ImportFrom):
            continue
        assert not node.level, "relative import"
        top, _, within = str(node.module).partition(".")
        if top == "fixres_poc" and within:
            both = {f"{within}.{alias.name}" for alias in node.names}
            names |= {name for name in both if file_of(name).exists()} or {within}
    return names


def test_the_house_lists_every_module_once() -> None:
    files = [file.relative_to(PACKAGE).with_suffix("") for file in PACKAGE.rglob("*/*.py")]
    modules = [".".join(file.parts) for file in files if file.name != "__init__"]
    assert sorted(modules) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module: str) -> None:
    below = ORDER[: ORDER.index(module)]
    assert imported(tree(file_of(module))) <= set(below)


@pytest.mark.parametrize("package", sorted({module.rpartition(".")[0] for module in ORDER}))
def test_a_package_is_small(package: str) -> None:
    assert len([module for module in ORDER if module.rpartition(".")[0] == package]) <= MODULES


@pytest.mark.parametrize("module", ORDER)
def test_modules_and_functions_are_short(module: str) -> None:
    file = file_of(module)
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LINES
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, node.name


HEAVY = ("torch", "pandas")
NUMBERS = ("scipy.stats", "sklearn", "matplotlib")
LIGHT = {  # in the order in which they are imported, and what they do not bring in
    "config": HEAVY,
    "data": HEAVY,
    "method": HEAVY,
    "analysis": HEAVY,
    "sweep.notebook_run": (*HEAVY, "numpy", "matplotlib", "papermill"),
    "sweep.execution": HEAVY,
    "cli": (*HEAVY, "snakemake", "papermill"),
    "inference.finished_run": (*NUMBERS, "IPython", "papermill"),
    "method.adaptations": NUMBERS,
    "analysis.questions": NUMBERS,
    "report.text": NUMBERS,
}
IMPORT = """
import importlib, sys
for module, heavy in {}.items():
    importlib.import_module("fixres_poc." + module)
    assert not set(heavy) & set(sys.modules), (module, set(heavy) & set(sys.modules))
"""


def test_what_a_command_does_not_need_is_not_imported() -> None:
    subprocess.run([sys.executable, "-c", IMPORT.format(LIGHT)], cwd=REPOSITORY, check=True)


MADE = ("method.stage1", "data.loading", "model.trunk", "method.apparent_size")
SHOWN = ("report.text", "sweep.execution", "analysis.results", "config.run_state")


def test_runs_are_outdated_by_what_makes_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PACKAGE, tmp_path / "fixres_poc", ignore=shutil.ignore_patterns("__pycache__"))
    copy = tmp_path / "fixres_poc" / "config" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(copy))
    for module in (*SHOWN, *MADE):
        before, everything = provenance.library_hash(), provenance.library_hash(everything=True)
        with open(tmp_path / file_of(module).relative_to(REPOSITORY), "a") as file:
            file.write("# changed\n")
        assert (provenance.library_hash() != before) == (module in MADE)
        assert provenance.library_hash(everything=True) != everything

"""The house: which packages and modules there are, that imports run one way, and how large anything may be."""

import ast
import json
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
    "config": "errors files settings sweep_settings validation provenance run_state",
    "data": "decoding sources.image_folder download sources.stanford_dogs sources.named "
    "synthetic.painting synthetic.dogs synthetic.generator dataset transforms loading leakage",
    "model": "device trunk checkpoint weights backbones memory_plan",
    "method": "apparent_size evaluation linear_probe zero_shot stage2 epochs stage1 adaptations",
    "analysis": "statistics cells record collection results cost questions",
    "report": "published text run_text tables plots.style plots.datasets plots.networks plots.results explorer pages "
    "overview",
    "sweep": "kernel_state kernel notebook_run snakemake reporting execution plan",
    "inference": "finished_run export own_network",
    "cli": "surroundings application runs sweeps",
}
ORDER = [f"{package}.{module}" for package, modules in HOUSE.items() for module in modules.split()]
MODULES, LINES, FUNCTION_LINES, NOTEBOOK_MODULES = 9, 360, 60, 40


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def file_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


def imported(code: ast.AST) -> set[str]:
    """Modules of the library that a piece of code imports, wherever in it, such as data.loading."""
    names: set[str] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fixres_poc."):
            within = str(node.module).removeprefix("fixres_poc.")
            both = {f"{within}.{alias.name}" for alias in node.names}
            names |= {each for each in both if file_of(each).exists()} or {within}
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"
    return names


def upward(module: str, imports: set[str]) -> set[str]:
    """What a module may not import: itself, and what stands after it in `ORDER`."""
    return {each for each in imports if ORDER.index(each) >= ORDER.index(module)}


def test_the_house_lists_every_module_once() -> None:
    files = [
        file
        for file in PACKAGE.rglob("*.py")
        if file.name != "__init__.py" and file.parent != PACKAGE
    ]
    found = [".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in files]
    assert sorted(found) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module: str) -> None:
    assert not upward(module, imported(tree(file_of(module))))


@pytest.mark.parametrize("module", ORDER[1:])
def test_a_reversed_import_is_noticed(module: str) -> None:
    for lower in imported(tree(file_of(module))):
        package, _, name = module.rpartition(".")
        reversed_import = ast.parse(f"from fixres_poc.{package} import {name}")
        assert upward(lower, imported(reversed_import)) == {module}


@pytest.mark.parametrize("package", sorted({module.rpartition(".")[0] for module in ORDER}))
def test_a_package_is_small(package: str) -> None:
    assert len([module for module in ORDER if module.rpartition(".")[0] == package]) <= MODULES
    assert ast.get_docstring(tree(PACKAGE / package.replace(".", "/") / "__init__.py"))


@pytest.mark.parametrize("module", ORDER)
def test_modules_and_functions_are_short(module: str) -> None:
    file = file_of(module)
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LINES
    functions = [node for node in ast.walk(tree(file)) if isinstance(node, ast.FunctionDef)]
    assert not [
        each.name for each in functions if (each.end_lineno or 0) - each.lineno + 1 > FUNCTION_LINES
    ]


def test_notebooks_meet_a_small_library() -> None:
    met: set[str] = set()
    for notebook in (REPOSITORY / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
            met |= imported(ast.parse(source))
    assert len(met) <= NOTEBOOK_MODULES
    assert {"data", "model", "method"} <= {module.split(".")[0] for module in met}


@pytest.mark.parametrize(
    "package", ["config", "data", "method", "analysis", "sweep.execution", "cli"]
)
def test_a_package_alone_brings_in_neither_torch_nor_pandas(package: str) -> None:
    code = f"import sys, fixres_poc.{package}; sys.exit(bool({{'torch', 'pandas'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        (
            "inference.finished_run",
            ["scipy.stats", "sklearn", "matplotlib", "IPython", "papermill"],
        ),
        ("method.adaptations", ["scipy.stats", "sklearn", "matplotlib"]),
        ("analysis.questions", ["scipy.stats", "sklearn", "matplotlib"]),
        ("sweep.notebook_run", ["numpy", "torch", "pandas", "matplotlib", "papermill"]),
        ("report.text", ["scipy.stats", "sklearn", "matplotlib"]),
    ],
)
def test_what_a_command_does_not_need_is_not_imported(module: str, heavy: list[str]) -> None:
    code = (
        f"import sys, fixres_poc.{module}; sys.exit(' '.join(set({heavy}) & set(sys.modules)) or 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert not found.returncode, found.stderr


@pytest.mark.parametrize(
    "module", ["method.stage1", "data.loading", "model.trunk", "method.apparent_size"]
)
@pytest.mark.parametrize(
    "shown", ["report.text", "sweep.execution", "analysis.results", "config.run_state"]
)
def test_runs_are_outdated_by_what_makes_results_alone(
    module: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PACKAGE, tmp_path / "fixres_poc", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "fixres_poc" / "config" / "provenance.py")
    )
    before, everything = provenance.library_hash(), provenance.library_hash(everything=True)
    with open(tmp_path / file_of(shown).relative_to(REPOSITORY), "a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert provenance.library_hash() == before
    assert provenance.library_hash(everything=True) != everything
    with open(tmp_path / file_of(module).relative_to(REPOSITORY), "a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert provenance.library_hash() != before

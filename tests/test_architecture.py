import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fixres_poc.config import REPOSITORY

PACKAGE = REPOSITORY / "fixres_poc"
LEVELS = (
    [
        "config",
        "reading",
        "geometry",
        "statistics",
        "progress",
        "files",
        "download",
        "published",
        "records",
        "results",
        "machine",
        "slurm",
    ],
    [
        "folding",
        "memory",
        "transforms",
        "weights",
        "backbones",
        "datasets",
        "checkpoint",
        "plots",
        "network_plots",
        "discussion",
        "tables",
        "comparison",
        "tracking",
    ],
    [
        "evaluation",
        "audit",
        "preflight",
        "activations",
        "apparent_size",
        "size_prediction",
        "zero_shot",
        "duplicates",
        "frontier",
        "explorer",
    ],
    ["fine_tuning", "training", "adaptation", "pairs"],
    ["plan", "report", "runner", "monitor", "engine", "finished", "export", "cli"],
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py", PACKAGE / "__main__.py"})
LONGEST_MODULE = 350


def part(file: Path) -> str:
    """The first name under fixres_poc that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """Full names of what a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def label(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", MODULES, ids=label)
def test_module_has_a_level_and_imports_nothing_higher(file: Path) -> None:
    own = part(file)
    assert own in LEVEL, f"{own}: give it a level in {Path(__file__).name}"
    parts = {name.split(".")[1] for name in imported(file) if name.startswith("fixres_poc.")}
    higher = {name for name in parts & LEVEL.keys() if LEVEL[name] > LEVEL[own]}
    assert not higher


@pytest.mark.parametrize("file", MODULES, ids=label)
def test_nothing_imports_notebooks_or_tests(file: Path) -> None:
    assert not {name.split(".")[0] for name in imported(file)} & {
        "notebooks",
        "tests",
        "conftest",
        "throwaway",
        "pytest",
    }


def test_lowest_level_works_without_torch() -> None:
    names = [name for name in LEVELS[0] if name in {part(file) for file in MODULES}]
    assert {"config", "reading", "geometry", "statistics", "progress", "results"} <= set(names)
    imports = ", ".join(f"fixres_poc.{name}" for name in names)
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize("file", MODULES, ids=label)
def test_module_is_not_too_long(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE

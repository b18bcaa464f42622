"""Commands, files and names of the library that the pages mention exist.

Nothing is run: `make -n` and typer only parse.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fixres_poc.cli import app
from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.sweep_settings import SweepSettings

DOCS = REPOSITORY / "docs"
PAGES = {
    page.relative_to(REPOSITORY): page.read_text(encoding="utf-8")
    for page in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
}
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LIBRARY = re.compile(
    r"(?:fixres-poc|\S*python3? -m fixres_poc|accelerate launch -m fixres_poc) (.+)"
)
FILE = re.compile(r"(?<![\w/.<>-])(?:docs|sweeps|tests|profiles|fixres_poc|notebooks)/[\w./-]*\w")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
YOURS = {"sweeps/mine.yml", "sweeps/x.yml"}  # the reader's to write
DESIGN = {page.name: page.read_text(encoding="utf-8") for page in (DOCS / "design").glob("*.md")}
PACKAGE = REPOSITORY / "fixres_poc"
FILE_SUFFIXES = {"csv", "json", "parquet"}  # results.csv is no name in the module results


def commands(text: str) -> list[str]:
    """Every line of a page's bash blocks and every code span, without comments."""
    lines = [*"".join(BLOCK.findall(text)).splitlines(), *SPAN.findall(text)]
    plain = [re.split(r"(?:^|\s)#", line)[0] for line in lines]
    return [part.strip() for line in plain for part in line.split(" && ")]


EVERY = sorted({command for text in PAGES.values() for command in commands(text)})
MAKE = [command for command in EVERY if command.startswith("make ")]
CALLS = sorted({match[1] for command in EVERY if (match := LIBRARY.match(command))})
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_command_is_shown() -> None:
    assert {"make sweep", "make test", "make test-cluster"} <= set(MAKE)
    assert "train sweeps/stanford_dogs.yml" in CALLS
    page = (DOCS / "command_line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^fixres-poc (\w+)", page, re.MULTILINE)) | {"train"} == set(COMMANDS)


def test_every_setting_is_described_with_its_default() -> None:
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    described = {
        name: default for names, default, *_ in rows for name in re.findall(r"`(\w+)`", names)
    }
    fields = {name: field.default for name, field in SweepSettings.model_fields.items()}
    assert set(described) == set(fields) - {"name"}
    for name, text in described.items():
        if isinstance(fields[name], str | int | float):
            assert text == str(fields[name]).lower(), name


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_target_and_its_overrides(command: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    words = shlex.split(command)[1:]
    overrides = {word.split("=")[0] for word in words if "=" in word}
    assert overrides <= {*re.findall(r"^([A-Z0-9]+) \?=", makefile, re.MULTILINE)}
    targets = [word for word in words if "=" not in word]
    dry = ["make", "--dry-run", f"VENV={sys.prefix}", *targets]
    done = subprocess.run(dry, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("call", CALLS)
def test_the_command_line_takes_it(call: str) -> None:
    name, *given = shlex.split(call)
    if given:  # a name alone is a mention
        COMMANDS[name].make_context(name, given)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = {REPOSITORY / name for name in set(FILE.findall(PAGES[page])) - YOURS}
    named |= {REPOSITORY / page.parent / link for link in LINK.findall(PAGES[page])}
    assert not [file for file in named if not file.exists()]


@pytest.mark.parametrize("page", DESIGN)
def test_modules_and_functions_that_a_design_page_names_exist(page: str) -> None:
    packages = "|".join(folder.name for folder in PACKAGE.iterdir() if folder.is_dir())
    for place in re.findall(rf"`((?:{packages})/[\w/]*)(?:\.py)?`", DESIGN[page]):
        assert (PACKAGE / place).is_dir() or (PACKAGE / f"{place}.py").is_file(), place
    for module, name in re.findall(r"`(\w+)\.(\w+)`", DESIGN[page]):
        code = "\n".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob(f"{module}.py"))
        if code and name not in FILE_SUFFIXES:
            assert re.search(rf"^(?:def |class )?{name}\b", code, re.MULTILINE), f"{module}.{name}"

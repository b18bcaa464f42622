"""What is given to make reaches the program word for word; the audit says what it knows."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fixres_poc.config.files import REPOSITORY

HOSTILE = [
    "$(shell touch {})",
    "`touch {}`",
    "$(touch {})",
    "'; touch {}; '",
    '"; touch {}; "',
    "a$(x)b",
    "${{HOME}}",
    "50% #comment",
    "mes photos é/größer 'Hund' \"x\" $y",
]
OPTIONS = ("DATASET", "BACKBONE", "WEIGHTS", "PROFILE")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment whose python writes down its arguments, one a line, in `said`."""
    python = tmp_path / "own environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\n[ "$1" = -c ] || printf "%s\\n" "$@" > "{tmp_path}/said"\n')
    python.chmod(0o755)
    return tmp_path / "own environment"


def make(*arguments: str, folder: Path = REPOSITORY, **variables: str) -> None:
    """Run make with variables in its environment."""
    command, every = ["make", "-s", *arguments], os.environ | variables
    subprocess.run(command, cwd=folder, env=every, check=True, capture_output=True)


@pytest.mark.parametrize("given", HOSTILE)
@pytest.mark.parametrize("in_environment", [False, True])
def test_hostile_values_are_passed_on_and_not_run(
    given: str, in_environment: bool, environment: Path, tmp_path: Path
) -> None:
    value = given.format(tmp_path / "touched")
    values = dict.fromkeys(("SWEEP", *OPTIONS), value)
    if in_environment:
        make("sweep", f"VENV={environment}", **values)
    else:
        make("sweep", f"VENV={environment}", *(f"{name}={value}" for name in values))
    options = [f"--{name.lower()}={value}" for name in OPTIONS]
    said = (tmp_path / "said").read_text().splitlines()
    assert said == ["-m", "fixres_poc", "sweep", value, *options]
    assert not (tmp_path / "touched").exists()


def test_a_data_set_alone_takes_the_sweep_file_for_folders(
    environment: Path, tmp_path: Path
) -> None:
    make("data", f"VENV={environment}", "DATASET=/my/birds")
    said = (tmp_path / "said").read_text().splitlines()
    assert said == ["-m", "fixres_poc", "data", "sweeps/images.yml", "--dataset=/my/birds"]


@pytest.mark.parametrize(
    "name", ["$(touch x)", "`touch x`", "a;touch x", "$$HOME #%", "'\"", "two\nlines "]
)
def test_a_clone_lies_in_a_folder_of_any_name(name: str, environment: Path, tmp_path: Path) -> None:
    clone = tmp_path / name
    (clone / "notebooks").mkdir(parents=True)
    (clone / f"notebooks/{name}.ipynb").touch()
    shutil.copy(REPOSITORY / "Makefile", clone)
    make("help", folder=clone)
    for target, said in {
        "lab": f"--ServerApp.root_dir={clone}\n",
        "notebooks": f"notebooks/{name}.ipynb\n",
    }.items():
        make(target, f"VENV={environment}", folder=clone)
        assert said in (tmp_path / "said").read_text()
    assert not list(tmp_path.rglob("x"))


def test_a_folder_that_python_cannot_search_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    shutil.copy(REPOSITORY / "Makefile", tmp_path / "a:b")
    refused = subprocess.run(["make", "lab"], cwd=tmp_path / "a:b", capture_output=True, text=True)
    assert refused.returncode == 2
    assert "colon" in refused.stderr


AUDITED = {"name": "torch", "version": "2", "vulns": []}
VULNERABLE = AUDITED | {"vulns": [{"id": "CVE-1", "fix_versions": []}]}
SKIPPED = {"name": "torch", "skip_reason": "not found"}
NOT_AUDITED = "not audited: no database of vulnerabilities can be reached"


@pytest.mark.parametrize(
    ("found", "status", "expected", "code"),
    [
        (None, 1, NOT_AUDITED, 0),  # no network
        ([SKIPPED], 0, NOT_AUDITED, 0),
        ([AUDITED, SKIPPED], 0, "no known vulnerabilities", 0),
        ([AUDITED, VULNERABLE], 1, "CVE-1", 2),
    ],
)
def test_audit_says_what_it_knows(
    tmp_path: Path, found: object, status: int, expected: str, code: int
) -> None:
    """The target runs pip-audit with an interpreter that answers in its place."""
    answer = "" if found is None else json.dumps({"dependencies": found, "fixes": []})
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\ntest \"$1\" = -c && exit 0\necho '{answer}'\nexit {status}\n")
    stand_in.chmod(0o755)
    command = ["make", "audit-deps", f"VENV={tmp_path}"]
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert expected in made.stdout
    assert made.returncode == code

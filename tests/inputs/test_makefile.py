"""What is given to make reaches the program word for word; the audit of dependencies."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fixres_poc.config.files import REPOSITORY

HOSTILE = [
    "$(shell touch {})",
    "`touch {}`",
    "'; touch {}; '",
    '"; touch {}; "',
    "${{HOME}} a$(x)b",
    "50% #comment",
    "mes photos é/größer 'Hund' \"x\" $y",
]
NAMES = ("SWEEP", "DATASET", "BACKBONE", "WEIGHTS", "PROFILE")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment whose python writes down its arguments and what it is given, one a line."""
    python = tmp_path / "own environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    given = " ".join(f'"$FIXRES_{name}"' for name in NAMES)
    lines = f'printf "%s\\n" "$@" > "{tmp_path}/said"; printf "%s\\n" {given} > "{tmp_path}/given"'
    python.write_text(f'#!/bin/bash\n[ "$1" = -c ] || {{ {lines}; }}\n')
    python.chmod(0o755)
    return tmp_path / "own environment"


@pytest.mark.parametrize("given", HOSTILE)
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_hostile_values_are_passed_on_and_not_run(
    given: str, way: str, environment: Path, tmp_path: Path
) -> None:
    value = given.format(tmp_path / "touched")
    values = dict.fromkeys(NAMES, value)
    arguments = [f"{name}={value}" for name in NAMES] if way == "argument" else []
    variables = os.environ | (values if way == "environment" else {})
    command = ["make", "-s", "sweep", f"VENV={environment}", *arguments]
    subprocess.run(command, cwd=REPOSITORY, env=variables, check=True, capture_output=True)
    assert (tmp_path / "said").read_text().splitlines() == ["-m", "fixres_poc", "sweep"]
    assert (tmp_path / "given").read_text().splitlines() == [value] * len(NAMES)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "words", [["plan", "sweeps/demo.yml"], ["sweep", "SWEEPS=sweeps/demo.yml"]]
)
def test_a_sweep_file_that_is_not_given_by_its_name_stops(words: list[str]) -> None:
    made = subprocess.run(["make", "-n", *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert made.returncode == 2
    assert "name a sweep file by SWEEP=" in made.stderr


@pytest.mark.parametrize(
    ("target", "expected"), [("data", ["sweeps/images.yml", "/my/birds"]), ("unit", ["", ""])]
)
def test_a_data_set_alone_takes_the_sweep_file_for_folders_and_reaches_no_test(
    target: str, expected: list[str], environment: Path, tmp_path: Path
) -> None:
    command = ["make", "-s", target, f"VENV={environment}", "DATASET=/my/birds"]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert (tmp_path / "given").read_text().splitlines()[:2] == expected


@pytest.mark.parametrize(
    "name", ["$(touch x)", "`touch x`;touch x", "$$HOME #%", "'\"", "two\nlines "]
)
def test_a_clone_lies_in_a_folder_of_any_name(name: str, environment: Path, tmp_path: Path) -> None:
    clone = tmp_path / name
    (clone / "notebooks").mkdir(parents=True)
    (clone / f"notebooks/{name}.ipynb").touch()
    shutil.copy(REPOSITORY / "Makefile", clone)
    for target, expected in {
        "help": "",
        "lab": f"--ServerApp.root_dir={clone}\n",
        "notebooks": f"notebooks/{name}.ipynb\n",
    }.items():
        command = ["make", target, f"VENV={environment}"]
        subprocess.run(command, cwd=clone, check=True, capture_output=True)
        assert not expected or expected in (tmp_path / "said").read_text()
    assert not list(tmp_path.rglob("x"))


def test_a_folder_that_python_cannot_search_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    shutil.copy(REPOSITORY / "Makefile", tmp_path / "a:b")
    refused = subprocess.run(["make", "lab"], cwd=tmp_path / "a:b", capture_output=True, text=True)
    assert (refused.returncode, "colon" in refused.stderr) == (2, True)


AUDITED = '{"name": "torch", "version": "2", "vulns": []}'
VULNERABLE = AUDITED.replace("[]", '[{"id": "CVE-1", "fix_versions": []}]')
SKIPPED = '{"name": "torch", "skip_reason": "not found"}'
NOT_AUDITED = "not audited: no database of vulnerabilities can be reached"


@pytest.mark.parametrize(
    ("found", "status", "expected", "code"),
    [
        ("", 1, NOT_AUDITED, 0),  # no network
        (SKIPPED, 0, NOT_AUDITED, 0),
        (f"{AUDITED}, {SKIPPED}", 0, "no known vulnerabilities", 0),
        (f"{AUDITED}, {VULNERABLE}", 1, "CVE-1", 2),
    ],
)
def test_audit_says_what_it_knows(
    tmp_path: Path, found: str, status: int, expected: str, code: int
) -> None:
    """The target runs pip-audit with an interpreter that answers in its place."""
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\ntest \"$1\" = -c && exit 0\necho '[{found}]'\nexit {status}\n")
    stand_in.chmod(0o755)
    made = subprocess.run(
        ["make", "audit-deps", f"VENV={tmp_path}"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert expected in made.stdout
    assert made.returncode == code

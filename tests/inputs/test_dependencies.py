"""Every package that the project brings is pinned, and the audit of the pins never says more than it knows."""

import contextlib
import json
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fixres_poc.config import REPOSITORY

OF_TORCH = ("nvidia-", "cuda-", "triton")


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in split}


def add_needed(lines: list[str], extras: tuple[str, ...], found: set[str]) -> None:
    """Add the names of all installed packages that requirements bring here, directly or not."""
    for requirement in map(Requirement, lines):
        marker, key = requirement.marker, canonicalize_name(requirement.name)
        applies = marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, ""))
        if applies and key not in found:
            with contextlib.suppress(metadata.PackageNotFoundError):  # an optional part that is not installed
                lines = metadata.requires(key) or []
                found.add(key)
                add_needed(lines, tuple(requirement.extras), found)


def test_constraints_cover_all_that_is_installed_for_the_project() -> None:
    found: set[str] = set()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    add_needed(project["dependencies"] + project["optional-dependencies"]["dev"], (), found)
    unpinned = {name for name in found - pins().keys() if not name.startswith(OF_TORCH) and name != "pip"}
    assert not unpinned
    assert len(found) > 100


AUDITED = {"name": "torch", "version": "2", "vulns": []}
VULNERABLE = AUDITED | {"vulns": [{"id": "CVE-1", "fix_versions": []}]}
SKIPPED = {"name": "torch", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "status", "expected", "code"),
    [
        (None, 1, "not audited: no database of vulnerabilities can be reached", 0),
        ([SKIPPED], 0, "not audited: no database of vulnerabilities can be reached", 0),
        ([AUDITED, SKIPPED], 0, "no known vulnerabilities", 0),
        ([AUDITED, VULNERABLE], 1, "CVE-1", 2),
    ],
    ids=["no network", "nothing known", "clean", "vulnerable"],
)
def test_audit_says_what_it_knows(
    tmp_path: Path, found: list[dict[str, object]] | None, status: int, expected: str, code: int
) -> None:
    """The target runs pip-audit with an interpreter that answers in its place."""
    answer = "" if found is None else json.dumps({"dependencies": found, "fixes": []})
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\ntest \"$1\" = -c && exit 0\necho '{answer}'\nexit {status}\n")
    stand_in.chmod(0o755)
    made = ["make", "audit-deps", f"VENV={tmp_path}"]
    result = subprocess.run(made, cwd=REPOSITORY, capture_output=True, text=True)
    assert expected in result.stdout
    assert result.returncode == code

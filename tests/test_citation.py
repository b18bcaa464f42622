"""CITATION.cff holds what the Citation File Format 1.2.0 requires, and agrees with pyproject.toml and the licence."""

import tomllib
from typing import Any

import yaml

from fixres_poc.config import REPOSITORY

CITATION: dict[str, Any] = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
KEYS = {"cff-version", "message", "type", "title", "version", "license", "authors", "references"}


def test_required_keys_are_there_and_no_others() -> None:
    assert set(CITATION) == KEYS
    assert (CITATION["cff-version"], CITATION["type"], CITATION["title"]) == ("1.2.0", "software", "FixRes PoC")
    assert CITATION["authors"] == [{"name": "The FixRes PoC developers"}]


def test_version_and_licence_are_the_projects() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert str(CITATION["version"]) == project["version"]
    assert (REPOSITORY / project["license"]["file"]).read_text(encoding="utf-8").startswith(f"{CITATION['license']} ")


def test_the_paper_is_named() -> None:
    (paper,) = CITATION["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert [author["family-names"] for author in paper["authors"]] == ["Touvron", "Vedaldi", "Douze", "Jégou"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:1906.06423"}]

"""Sweep files that are wrong in any way: read as settings, or refused in one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import load_sweep, validate

GOOD = "dataset: synthetic\npairs: [[64, 96]]\n"
SWEEPS = [file.read_text() for file in sorted((REPOSITORY / "sweeps").glob("*.yml"))]
LONGEST_LINE = 1200


def outcome(file: Path) -> str:
    """The error's line without the file's name; nothing for settings that survive sweep.json."""
    try:
        sweep = load_sweep(file)
    except InputError as error:
        message = str(error)
        assert message.isprintable()
        assert message.startswith(str(file))
        assert len(message) < LONGEST_LINE
        return message.removeprefix(str(file))
    assert validate(SweepSettings, json.loads(sweep.model_dump_json()), "sweep.json") == sweep
    return ""


@pytest.mark.parametrize(
    ("stem", "dataset"),
    [("my sweep", None), (".", None), ("ä", None), ("a\n", None), ("a", "x" * 200)],
)
def test_a_name_that_no_sweep_may_have_is_told(
    tmp_path: Path, stem: str, dataset: str | None
) -> None:
    (tmp_path / f"{stem}.yml").write_text(GOOD)
    with pytest.raises(InputError, match="name = "):
        load_sweep(tmp_path / f"{stem}.yml", {"dataset": dataset})


LAUGHS = "a0: &a0 [1, 1]\n"  # a list that doubles at every line
for level in range(1, 60):
    LAUGHS += f"a{level}: &a{level} [*a{level - 1}, *a{level - 1}]\n"
RUNS = "weights: !!python/object/apply:os.system ['touch executed']"
TWICE = "line 4: not valid YAML (key 'epochs' is given twice)"
BAD = {  # a line of a sweep file, and a part of the error
    "a tag that runs a program": (RUNS, "constructor"),
    "a tag that imports": ("weights: !!python/name:os.system", "constructor"),
    "billion laughs": (LAUGHS, "aliases"),
    "a list in itself": ("seeds: &a [*a]", "aliases"),
    "nested a thousand times": ("seeds: " + "[" * 9000 + "]" * 9000, "RecursionError"),
    "a key twice": ("epochs: 1\nepochs: 2", TWICE),
    "5000 digits": ("epochs: " + "9" * 5000, "4300 digits"),
    "no such date": ("weights: 2024-99-99", "month"),
    "no timestamp": ("weights: !!timestamp soon", "AttributeError"),
    "a value of 10 kB": ("backbone: " + "x" * 10_000, "xxx: unknown backbone"),
    "line ends in a key": ('"a\\nb": 1', r"unknown key 'a\nb'"),
    "half a character": ('weights: "\\ud800"', "weights = "),
    "two documents": ("---\ndataset: x", "another document"),
    "a set": ("seeds: !!set {1, 2}", "seeds = {1, 2}: should be a valid list"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sweep_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file, (text, expected) = tmp_path / "x.yml", BAD[case]
    file.write_text(GOOD + text + "\n")
    assert expected in outcome(file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "path", ["~nobody-of-this-name/x.yml", "x" * 5000, "/dev/zero", "/", "missing.yml"]
)
def test_path_that_is_no_sweep_file_is_refused(path: str) -> None:
    with pytest.raises(InputError) as caught:
        load_sweep(path)
    assert str(caught.value).isprintable()


@settings(max_examples=150)
@given(st.sampled_from(SWEEPS), st.data())
def test_damaged_sweep_file(tmp_path: Path, text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        new = data.draw(st.text("[]{}:,-#&*!|>'\"%@`?\n\t é0.x", max_size=4))
        text = text[:start] + new + text[end:]
    (tmp_path / "x.yml").write_text(text)
    outcome(tmp_path / "x.yml")

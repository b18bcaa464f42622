"""Folders and names of every odd kind: listed rightly and quickly, or refused in one line."""

import json
import os
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import save_picture
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fixres_poc import datasets
from fixres_poc.config import DatasetSettings, DataSettings, InputError
from fixres_poc.datasets import image_folder

NAMES = [
    "<script>alert(1)</script>"[:24].replace("/", "\u2215"),
    "\"quoted\" 'twice'",
    "two\nlines\r",
    "a..b",
    "lone\rreturn",
    "\N{DOG FACE}",
]
NAMES += [
    "x" * 200,
    "$x^2$",
    "\\n",
    "-rf",
    "%s {0} $HOME",
    "a,b;c",
    " ",
    "NA",
    "nan",
    "1",
    "\u202egnp.elif",
    "\x1b[31mred",
]


def load(folder: Path) -> datasets.Pictures:
    return datasets.load(DataSettings(dataset=str(folder)))


def refused(folder: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        datasets.load(DataSettings(dataset=str(folder)))
    assert str(caught.value).isprintable()
    return str(caught.value)


def check_names(folder: Path, names: list[str]) -> None:
    """Class folders and pictures of these names come back from the tables of a sweep as they are."""
    for index, name in enumerate(names):
        for number in range(3):
            save_picture(folder / name / f"{name[:40]}{number}.png", (9, 99, 200), seed=3 * index + number, size=(4, 4))
    run = folder.parent / "run"
    chosen = DatasetSettings(dataset=str(folder), sweep="x")
    datasets.prepare(chosen, run)
    pictures = datasets.load(chosen)
    assert pictures.classes == tuple(sorted(names)) == tuple(json.loads((run / "pictures.json").read_text())["classes"])
    table = pd.read_csv(run / "pictures.csv")
    assert table[["picture", "label", "split"]].equals(pictures.table)
    assert all((folder / name).is_file() for name in table["picture"])


def test_odd_names_come_through(tmp_path: Path) -> None:
    check_names(tmp_path / "data", NAMES)


FILE_NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40)


@settings(max_examples=40)
@given(st.lists(FILE_NAMES.filter(lambda name: name[0] != "."), min_size=2, max_size=4, unique_by=str.casefold))
@example(["train", "b"])
@example(["a", "A"])
def test_any_name_comes_through(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    check_names(tmp_path_factory.mktemp("names") / "data", names)


@pytest.mark.parametrize(
    "name", ["a\0b", "~nobody-of-this-name/x", "x" * 5000, "x/" * 3000, "\n", "/dev/null", "/dev/zero", "..\x1b"]
)
def test_path_that_is_no_folder_is_refused(name: str) -> None:
    message = refused(name)
    assert "path " in message or "no such folder" in message


def test_names_that_are_not_utf_8_are_refused(colour_folder: Path) -> None:
    os.rename(colour_folder / "red" / "00.png", os.fsencode(colour_folder / "red") + b"/\xff.png")
    assert refused(colour_folder).endswith(r"red/\udcff.png: its name is not UTF-8; rename it")


def test_hidden_files_are_passed_over_at_every_level(colour_folder: Path, tmp_path: Path) -> None:
    before = load(colour_folder).table
    red = colour_folder / "red"
    for name in (".DS_Store", "._00.png", ".ipynb_checkpoints/00.png", "deep/.cache/01.png", "../.hidden/02.png"):
        (red / name).parent.mkdir(parents=True, exist_ok=True)
        (red / name).write_bytes(b"hidden")
    assert load(colour_folder).table.equals(before)


def test_what_is_passed_over_is_counted(colour_folder: Path) -> None:
    (colour_folder / "red" / "Thumbs.db").touch()
    (colour_folder / "red" / "gone.png").symlink_to("nowhere.png")
    (colour_folder / "unmounted").symlink_to(colour_folder / "nowhere")
    (colour_folder / "empty").mkdir()
    os.mkfifo(colour_folder / "red" / "pipe.png")
    assert image_folder.passed_over(colour_folder) == {".db": 1, "broken link or no file": 3, "empty folder": 1}
    assert load(colour_folder).classes == ("blue", "green", "red")


def test_nested_folders_belong_to_their_class(colour_folder: Path) -> None:
    (colour_folder / "red" / "a" / "b").mkdir(parents=True)
    (colour_folder / "red" / "00.png").rename(colour_folder / "red" / "a" / "b" / "00.png")
    table = load(colour_folder).table.set_index("picture")["label"]
    assert (len(table), table["red/a/b/00.png"]) == (36, 2)


def test_links_in_a_circle_end(colour_folder: Path) -> None:
    before = load(colour_folder).table
    (colour_folder / "red" / "up").symlink_to(colour_folder)
    (colour_folder / "one").symlink_to(colour_folder / "two")
    (colour_folder / "two").symlink_to(colour_folder / "one")
    (colour_folder / "red" / "self.png").symlink_to("self.png")
    assert load(colour_folder).table.equals(before)
    (colour_folder / "circle").symlink_to(colour_folder)
    assert refused(colour_folder).endswith("circle: a link to a folder that it lies in; remove it")
    (colour_folder.parent / "loop").symlink_to(colour_folder.parent / "loop")
    assert "Symlink loop" in refused(colour_folder.parent / "loop")


def test_a_class_folder_may_be_a_link_to_elsewhere(colour_folder: Path, tmp_path: Path) -> None:
    (colour_folder / "red").rename(tmp_path / "elsewhere")
    (colour_folder / "red").symlink_to(tmp_path / "elsewhere")
    assert len(load(colour_folder).split("test")) == 12


def test_5000_classes_are_listed_in_seconds(tmp_path: Path) -> None:
    for label in range(5000):
        folder = tmp_path / "many" / f"{label:04d}"
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.png").write_bytes(b"%d %d" % (label, number))
    begun = time.monotonic()
    pictures = load(tmp_path / "many")
    assert time.monotonic() - begun < 20
    assert (len(pictures.classes), pictures.counts()) == (5000, {"train": 5000, "val": 5000, "test": 5000})


def test_a_folder_that_may_not_be_listed_is_named(colour_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def forbidden(path: str) -> object:
        if str(path).endswith("red"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert refused(colour_folder).endswith("red: cannot be listed (Permission denied)")

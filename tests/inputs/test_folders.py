"""Folders and names of every odd kind: listed rightly, or refused in one line."""

import json
import os
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
from conftest import load, save_image
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DatasetSettings, DataSettings
from fixres_poc.data.dataset import load_dataset, prepare_dataset

NAMES = (
    "<script>alert(1)<\u2215scri|\"quoted\" 'twice'|two\nlines\r|a..b|lone\rreturn|\N{DOG FACE}"
    "|$x^2$|\\n|-rf|%s {0} $HOME|a,b;c| |NA|nan|1|\u202egnp.elif|\x1b[31mred|" + "x" * 200
).split("|")
FILE_NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40
).filter(lambda name: name[0] != ".")


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(folder)
    assert str(caught.value).isprintable()
    return str(caught.value)


@settings(max_examples=30)
@given(st.lists(FILE_NAMES, min_size=2, max_size=4, unique_by=str.casefold))
@example(NAMES)
@example(["train", "b"])
@example(["a", "A"])
def test_names_come_back_from_a_sweeps_tables_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("names") / "data"
    for index, name in enumerate(names):
        for number in range(3):
            file = folder / name / f"{name[:40]}{number}.png"
            save_image(file, (9, 99, 200), seed=3 * index + number, size=(4, 4))
    run = folder.parent / "run"
    chosen = DatasetSettings(dataset=str(folder), sweep="x")
    prepare_dataset(chosen, run)
    data, classes = load_dataset(chosen), tuple(sorted(names))
    assert data.classes == classes
    assert tuple(json.loads((run / "images.json").read_text())["classes"]) == classes
    table = pd.read_csv(run / "images.csv")
    assert table[["image", "label", "split"]].equals(data.table.drop(columns="digest"))
    assert all((folder / name).is_file() for name in table["image"])


@pytest.mark.parametrize(
    "name", ["a\0b", "~nobody-of-this-name/x", "x" * 5000, "x/" * 3000, "/dev/null", "..\x1b"]
)
def test_path_that_is_no_folder_is_refused(name: str) -> None:
    message = refused(Path(name))
    assert "path " in message or "no such folder" in message


def test_names_that_are_not_utf_8_are_refused(colour_folder: Path) -> None:
    os.rename(colour_folder / "red" / "00.png", os.fsencode(colour_folder / "red") + b"/\xff.png")
    assert refused(colour_folder).endswith(r"red/\udcff.png: its name is not UTF-8; rename it")


def test_hidden_files_and_links_in_a_circle_are_passed_over_at_every_level(
    colour_folder: Path,
) -> None:
    before = load(colour_folder).table
    hidden = (".DS_Store", "red/._00.png", "red/.ipynb_checkpoints/00.png", ".hidden/02.png")
    for name in (*hidden, "red/deep/.cache/01.png"):
        (colour_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (colour_folder / name).write_bytes(b"hidden")
    links = {"red/up": "..", "one": "two", "two": "one", "red/self.png": "self.png"}
    for name, target in links.items():
        (colour_folder / name).symlink_to(target)
    assert load(colour_folder).table.equals(before)
    assert "one" in refused(colour_folder / "one")


def test_what_is_passed_over_is_told(
    colour_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_image(colour_folder / "red" / "12.TIF", (200, 40, 30), seed=1)
    for name in ("a.txt", "b.TXT", "c", "d.HEIC", ".hidden", "Thumbs.db"):
        (colour_folder / "red" / name).touch()
    (colour_folder / "red" / "gone.png").symlink_to("nowhere.png")
    (colour_folder / "unmounted").symlink_to(colour_folder / "nowhere")
    (colour_folder / "empty").mkdir()
    os.mkfifo(colour_folder / "red" / "pipe.png")
    prepare_dataset(DataSettings(dataset=str(colour_folder)), tmp_path / "run")
    (note,) = caplog.messages
    start, _, reasons = note.partition(" files and folders: ")
    assert start == f"{colour_folder}: skipped 10"
    assert sorted(reasons.split(", ")) == [
        "1 .heic (not read: convert to JPEG)",
        *("1 empty folders", "1 hidden", "1 left by other systems", "1 no regular files"),
        *("1 without suffix (no image)", "2 .txt (no image)", "2 broken links"),
    ]


LEFT = ("__MACOSX", "@eaDir", "#recycle", "$Recycle.Bin", "System Volume Information", "lost+found")


@pytest.mark.parametrize("name", [*LEFT, "._a"])
def test_what_other_systems_leave_is_skipped_and_not_opened(
    colour_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(colour_folder).table
    for place in (colour_folder, colour_folder / "red"):
        save_image(place / name / "x.png", (1, 2, 3), seed=1)
    monkeypatch.setattr(os, "scandir", scandir := Mock(side_effect=os.scandir))
    data = load(colour_folder)
    assert data.table.equals(before)
    assert "skipped 2 " in data.notes[0]
    assert scandir.called
    assert not any(str(call.args[0]).endswith(name) for call in scandir.call_args_list)


def test_links_to_folders_are_followed_once(colour_folder: Path, tmp_path: Path) -> None:
    for index in range(3):
        save_image(tmp_path / "real" / "deep" / f"{index}.png", (200, 9, 200), seed=700 + index)
    links = {"pink": "real", "pink_2": "real", "also_red": "colours/red", "red/out": "colours"}
    for name, target in links.items():
        (colour_folder / name).symlink_to(tmp_path / target)
    data = load(colour_folder)
    assert data.classes == ("blue", "green", "pink", "red")
    pink = [name for name in data.table["image"] if "pink" in name]
    assert pink == [f"pink/deep/{index}.png" for index in range(3)]
    assert "3 links to folders that are read already" in data.notes[0]


def test_errors_do_not_name_what_a_link_leads_to(colour_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "given").symlink_to(colour_folder)
    (colour_folder / "red" / "00.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"given/red/00\.png"):
        prepare_dataset(DataSettings(dataset=str(tmp_path / "given")), tmp_path / "run")


def test_a_folder_that_may_not_be_listed_is_named(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def forbidden(path: str) -> object:
        if str(path).endswith("red"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert refused(colour_folder).endswith("red: cannot be listed (Permission denied)")

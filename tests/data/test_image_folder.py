"""Folders of images: their layouts, their split, what is skipped, and what is refused."""

import shutil
from itertools import product
from pathlib import Path

import pytest
from conftest import load, save_image

from fixres_poc.config.errors import InputError
from fixres_poc.data import image_folder


def save_split(folder: Path, parts: list[str], images: int) -> None:
    """A folder that is split already, into two classes of so many different images in each part."""
    for seed, (part, label, index) in enumerate(product(parts, "ab", range(images))):
        save_image(folder / part / label / f"{index}.png", (90, 90, 90), seed)


LAYOUTS = [
    (["Training", "valid", "Testing"], (10, 10, 10)),
    (["train"], (6, 2, 2)),
    (["train", "test"], (8, 2, 10)),
    (["train", "dev"], (8, 2, 10)),
    (["training_set/training_set", "test_set/test_set"], (8, 2, 10)),
]


@pytest.mark.parametrize(("parts", "counts"), LAYOUTS)
def test_a_split_folder_keeps_its_parts_and_the_others_are_cut_from_train(
    tmp_path: Path, parts: list[str], counts: tuple[int, ...]
) -> None:
    save_split(tmp_path / "data", parts, images=5)
    (tmp_path / "data" / "empty").mkdir()
    data = load(tmp_path / "data")
    assert data.classes == ("a", "b")
    assert tuple(data.counts().values()) == counts
    if len(parts) == 2:
        tested = data.split("test")["image"]
        assert tested.str.startswith(parts[1].split("/")[0]).all()
    cut = [True] * (len(parts) < 3)
    assert [" cut from " in note for note in data.notes] == [*cut, False]  # of the empty folder


NAMES = {
    "train": ["TRAIN", "Training Set", "images-train"],
    "val": ["valid", "validation_set", "dev", "Eval"],
    "test": ["testing", "hold_out", "split=test"],
    None: ["trains", "train station", "test tube", "contest", "extra"],
}


@pytest.mark.parametrize(
    ("name", "meant"), [(name, meant) for meant, names in NAMES.items() for name in names]
)
def test_usual_names_of_parts_are_known(name: str, meant: str | None) -> None:
    assert image_folder.part(name) == meant


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (["train", "training", "test"], ["train/", "training/"]),
        (["foo", "bar"], ["foo/", "bar/"]),
        (["fold1/fold1", "fold2/fold2"], ["fold1/", "fold2/"]),
        (["train", "foo"], ["train/", "foo/"]),
        (["val", "test"], ["train"]),
        (["foo/train", "foo/test", "bar/train", "bar/test"], ["foo/", "bar/"]),
    ],
)
def test_a_folder_that_can_be_read_in_two_ways_is_refused(
    tmp_path: Path, parts: list[str], named: list[str]
) -> None:
    save_split(tmp_path, parts, images=3)
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert all(name in str(caught.value) for name in named)


def test_folders_that_cannot_be_used_are_named(tmp_path: Path, colour_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images found, none in a class folder"):
        load(tmp_path / "empty")
    save_image(colour_folder / "lone" / "0.png", (1, 2, 3), seed=1)
    with pytest.raises(InputError, match=r"class 'lone' .* to be split: 1 that .*, at least 3"):
        load(colour_folder)
    save_split(tmp_path / "parts", ["train"], images=3)
    save_image(tmp_path / "parts" / "test" / "0.png", (1, 2, 3), seed=99)
    with pytest.raises(InputError, match="test/"):
        load(tmp_path / "parts")


def test_class_folders_may_lie_one_level_down_hold_folders_and_be_named_as_parts(
    tmp_path: Path,
) -> None:
    names = product(("cat", "train", "dog/x", "dog/y"), "123")
    for seed, (label, index) in enumerate(names):
        save_image(tmp_path / "outer" / label / f"{index}.png", (9, 9, 9), seed)
    assert load(tmp_path).classes == ("cat", "dog", "train")


def test_what_is_beside_the_parts_is_told(tmp_path: Path) -> None:
    save_split(tmp_path, ["train", "test", "extra"], images=4)
    save_image(tmp_path / "train" / "preview.png", (1, 2, 3), seed=99)
    data = load(tmp_path)
    assert not any(name.startswith("extra") for name in data.table["image"])
    notes = "\n".join(data.notes)
    assert all(told in notes for told in ("8 in extra/", "1 outside", "val cut from train/"))


def test_the_split_depends_on_its_seed_and_not_on_other_classes(colour_folder: Path) -> None:
    before = load(colour_folder).table.set_index("image")["split"]
    assert not before.equals(load(colour_folder, split_seed=1).table.set_index("image")["split"])
    for index in range(3):
        save_image(colour_folder / "violet" / f"{index}.png", (150, 30, 160), seed=900 + index)
    after = load(colour_folder).table.set_index("image")["split"]
    assert after[before.index].equals(before)


def test_images_with_equal_bytes_stay_on_one_side_also_in_two_classes(colour_folder: Path) -> None:
    names = [f"{index:02d}.png" for index in range(12)]
    for name in names:
        shutil.copy(colour_folder / "blue" / name, colour_folder / "red" / f"copy{name}")
    split = load(colour_folder).table.set_index("image")["split"]
    assert all(split[f"blue/{name}"] == split[f"red/copy{name}"] for name in names)


def test_a_class_needs_images_of_its_own_in_each_part(colour_folder: Path) -> None:
    for index in range(4):
        shutil.copy(colour_folder / f"blue/0{index}.png", colour_folder / "red")
    shutil.copytree(colour_folder / "blue", colour_folder / "blueish")
    with pytest.raises(InputError, match=r"class 'blueish' .* too few different images .* 0 that"):
        load(colour_folder)


def test_an_accented_letter_may_be_one_character_or_two(tmp_path: Path) -> None:
    one, two = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    for seed, (part, label) in enumerate(product(("train", "test"), ("coffee", "tea"))):
        written = {"train": one, "test": two}[part] if label == "coffee" else label
        for index in range(4):
            save_image(tmp_path / part / written / f"{index}.png", (90, 30, 20), 9 * seed + index)
    assert load(tmp_path).classes == (one, "tea")


def test_image_limit_keeps_the_shares(colour_folder: Path) -> None:
    limited = load(colour_folder, image_limit=30)
    assert 20 <= len(limited.table) <= 30
    assert limited.table.groupby("label").size().nunique() == 1

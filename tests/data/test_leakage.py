"""The leakage check, on folders whose leaks and near duplicates are known."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import load, save_image
from PIL import Image, ImageEnhance

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import ExtraTest
from fixres_poc.data import image_folder, leakage
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.leakage import NearDuplicates


def found(folder: Path, imagenet_list: Path | None = None) -> leakage.Leakage:
    data = load(folder)
    return leakage.check_leakage(data, None if imagenet_list is None else str(imagenet_list))


def test_a_clean_folder_has_no_sign_of_leakage_and_drawn_images_were_never_seen(
    colour_folder: Path, tmp_path: Path
) -> None:
    parts = ("val", "test")
    clean = leakage.Leakage(dict.fromkeys(parts, 0.0), flagged=dict.fromkeys(parts))
    assert found(colour_folder) == clean
    assert "No sign" in clean.verdict()
    more = ExtraTest(name="photos", folder=str(shutil.copytree(colour_folder, tmp_path / "more")))
    data = load(colour_folder, extra_test=more)
    flagged = leakage.check_leakage(data, drawn=True).flagged
    assert flagged == {"val": False, "test": False, "photos": None}


@pytest.fixture
def imagenet_folder(colour_folder: Path) -> Path:
    """The colours, red images named as ImageNet's training images are."""
    for index, file in enumerate(sorted((colour_folder / "red").iterdir())):
        file.rename(file.with_name(f"n02088364_{index}.png"))
    return colour_folder


def test_imagenet_training_names_are_counted_on_the_test_part(imagenet_folder: Path) -> None:
    leakage = found(imagenet_folder)
    assert leakage.in_imagenet == {"val": 2 / 6, "test": 4 / 12}
    assert leakage.record()["flagged"] == {"val": True, "test": True}
    words = "33.3% of the val images and 33.3% of the test images are named like ImageNet"
    assert re.search(f"{words}.*All choices are made on such images.", leakage.verdict(), re.DOTALL)


LISTS = {
    "paths": "train/n02088364/{0}.JPEG 0\ntrain/n02088364/n01440764_1.JPEG 0\n",
    "windows": "\ufeffn02088364\\{0}.JPEG\r\n",
    "kaggle": "ImageId,PredictionString\n{0},n02088364 1 2 n02088364 5 6\n",
}


@pytest.mark.parametrize("form", LISTS)
def test_a_given_list_decides_instead_of_the_form_of_the_names(
    imagenet_folder: Path, form: str
) -> None:
    test = load(imagenet_folder).split("test")["image"]
    name = Path(next(name for name in test if "red" in name)).stem
    file = imagenet_folder.parent / "imagenet.txt"
    file.write_text(LISTS[form].format(name), encoding="utf-8")
    leakage = found(imagenet_folder, file)
    assert leakage.in_imagenet == {"val": 0, "test": 1 / 9}
    assert leakage.flagged == {"val": False, "test": True}
    assert "11.1% of the test images are, by name, in the given list" in leakage.verdict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 1_000_000, "no name like n02088364_1234"),
        (b"\xff\xfe", r"list.txt': cannot be read \(.*codec"),
        (None, r"list.txt': cannot be read \(no such file, or no regular one"),
    ],
)
def test_a_list_without_names_of_imagenet_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "list.txt"
    if content:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        leakage.training_images(str(file))


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """Two classes of three different images in each of train, val and test."""
    parts = [f"{part}/{label}" for part in ("train", "val", "test") for label in "ab"]
    for seed, (part, index) in enumerate(product(parts, range(3))):
        save_image(tmp_path / "d" / part / f"{index}.png", (90, 90, 90), seed)
    return tmp_path / "d"


def test_equal_images_across_a_split_and_across_classes_are_listed(split_folder: Path) -> None:
    for copy in ("test/a/again.png", "train/b/again.png"):
        shutil.copy(split_folder / "train" / "a" / "0.png", split_folder / copy)
    shutil.copy(split_folder / "train" / "a" / "1.png", split_folder / "val" / "a" / "0.png")
    leakage = found(split_folder)
    assert leakage.across_split == (
        ("test/a/again.png", "train/a/0.png", "train/b/again.png"),
        ("train/a/1.png", "val/a/0.png"),
    )
    assert len(leakage.across_classes) == 1
    assert leakage.twins == 1 / 7
    assert "..." not in str(leakage.summary())
    assert "Warning: leakage" in leakage.verdict()
    assert "Doubtful labels.** The same images occur in two classes: 1 byte" in leakage.verdict()
    assert json.loads(json.dumps(leakage.record()))["across_split"][0][0] == "test/a/again.png"


def drawn(seed: int, size: int = 320) -> Image.Image:
    """An image of soft blobs."""
    coarse = np.random.default_rng(seed).integers(0, 200, (9, 12, 3), dtype="uint8")
    return Image.fromarray(coarse).resize((size * 4 // 3, size), Image.Resampling.BICUBIC)


def folder(root: Path, content: dict[str, Image.Image], quality: int = 92) -> ImageDataset:
    """Images named <split>/<class>/<name>, in this order."""
    for name, image in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, quality=quality)
    splits, labels, _ = zip(*(name.split("/") for name in content), strict=True)
    digests = image_folder.digests(root / name for name in content)
    columns = {"image": [*content], "label": labels, "split": splits, "digest": digests}
    return ImageDataset(root, ("a", "b"), pd.DataFrame(columns))


def near(data: ImageDataset) -> tuple[NearDuplicates, set[str]]:
    return leakage.near_duplicates(data, leakage.difference_hashes(data))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "other compression": lambda image: image,
    "nine times the size": lambda image: image.resize((image.width * 3, image.height * 3)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_on_the_other_side_of_the_split(
    tmp_path: Path, change: str
) -> None:
    content = {"train/a/one.png": drawn(1), "test/a/other.png": drawn(2)}
    copy = {"test/a/copy.jpg": CHANGES[change](drawn(1))}
    found, outside = near(folder(tmp_path, content | copy, quality=60))
    assert (found.pairs, found.across_split, found.across_classes, found.plain) == (1, 1, 0, 0)
    assert found.listed[0][:2] == ("train/a/one.png", "test/a/copy.jpg")
    assert outside == {"test/a/copy.jpg"}


def test_classes_and_sides_are_counted_apart_and_equal_bytes_left_out(tmp_path: Path) -> None:
    names = ("train/a/0.png", "train/a/same.png", "train/a/near.png", "train/b/near.png")
    images = (drawn(1), drawn(1), drawn(1, 200), drawn(1, 240))
    extra = {"test/b/0.png": drawn(7)}
    found, outside = near(folder(tmp_path, dict(zip(names, images, strict=True)) | extra))
    assert (found.pairs, found.across_split, found.across_classes) == (5, 0, 3)
    assert {second for _, second, _ in found.listed} == {"train/b/near.png"}
    assert outside == set()


def test_copies_in_an_extra_test_part_are_leaks_from_train_and_not_from_test(
    tmp_path: Path,
) -> None:
    content = {f"{part}/a/0.png": drawn(seed) for seed, part in enumerate(("train", "test"), 1)}
    content |= {f"unseen/a/{seed}.png": drawn(seed, 200) for seed in (1, 2)}  # nearly equal
    content |= {f"unseen/b/{seed}.png": drawn(seed) for seed in (1, 2)}  # equal bytes
    data = folder(tmp_path, content)
    found = leakage.check_leakage(replace(data, extra=("unseen", tmp_path / "unseen")))
    assert found.across_split == (("train/a/0.png", "unseen/b/1.png"),)
    assert found.near.across_split == 1
    assert found.twins == 2 / 5


def test_images_of_one_colour_or_of_hardly_anything_are_not_compared(tmp_path: Path) -> None:
    flat = {
        f"{side}/a/{grey}.png": Image.new("L", (64, 48), grey)
        for side, grey in product(("train", "test"), (9, 200))
    }
    dot = Image.new("L", (64, 48), 255)
    dot.putpixel((30, 20), 0)
    found, _ = near(folder(tmp_path, flat | {"test/a/dot.png": dot}))
    assert found == NearDuplicates(plain=5)


def test_more_images_than_a_block_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "MOST_LISTED", 2)
    monkeypatch.setattr(leakage, "BLOCK", 7)
    hashes = np.random.default_rng(0).random((50, 256)) < 0.5
    for copy, bits in ((20, 0), (30, 10), (40, 11)):
        hashes[copy] = hashes[3]
        hashes[copy, :bits] ^= True
    names = [f"{index}.png" for index in range(50)]
    table = pd.DataFrame({"image": names, "label": 0, "split": ["train"] * 25 + ["test"] * 25})
    data = ImageDataset(Path(), ("a",), table.assign(digest=names))
    found, outside = leakage.near_duplicates(data, hashes)  # 3-20, 3-30, 20-30 and 30-40
    assert (found.pairs, found.across_split) == (4, 2)
    assert found.listed == (("3.png", "30.png", 10), ("20.png", "30.png", 10))
    assert found.groups == (("30.png", "40.png"),)  # of test images alone
    assert outside == {"30.png"}

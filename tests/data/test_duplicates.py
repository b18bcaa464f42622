"""Near duplicates, made by hand from synthetic images."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from fixres_poc.config.errors import InputError
from fixres_poc.data import leakage
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.leakage import NearDuplicates, Pair


def drawn(seed: int, size: int = 320) -> Image.Image:
    """An image of soft blobs."""
    coarse = np.random.default_rng(seed).integers(0, 200, (9, 12, 3), dtype="uint8")
    return Image.fromarray(coarse).resize((size * 4 // 3, size), Image.Resampling.BICUBIC)


def folder(root: Path, content: dict[str, Image.Image], quality: int = 92) -> ImageDataset:
    """Images named <split>/<class>/<name>, in this order."""
    for name, image in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, quality=quality)
    parts = [name.split("/") for name in content]
    table = pd.DataFrame(
        {"image": list(content), "label": [p[1] for p in parts], "split": [p[0] for p in parts]}
    )
    return ImageDataset(root, ("a", "b"), table)


def near(data: ImageDataset) -> tuple[NearDuplicates, set[str]]:
    return leakage.near_duplicates(data, *leakage.fingerprints(data))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "other compression": lambda image: image,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "nine times the size": lambda image: image.resize((image.width * 3, image.height * 3)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_on_the_other_side_of_the_split(
    tmp_path: Path, change: str
) -> None:
    copy = CHANGES[change](drawn(1))
    names = ("train/a/one.png", "test/a/other.png", "test/a/copy.jpg")
    found, outside = near(
        folder(tmp_path, dict(zip(names, (drawn(1), drawn(2), copy), strict=True)), quality=60)
    )
    assert (found.pairs, found.across_split, found.across_classes, found.plain) == (1, 1, 0, 0)
    assert [pair[:2] for pair in found.listed] == [("train/a/one.png", "test/a/copy.jpg")]
    assert outside == {"test/a/copy.jpg"}


def test_an_orientation_tag_is_honoured(tmp_path: Path) -> None:
    data = folder(
        tmp_path, {"train/a/0.jpg": drawn(1), "test/a/0.jpg": drawn(1).rotate(90, expand=True)}
    )
    assert near(data)[0].pairs == 0
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    drawn(1).rotate(90, expand=True).save(tmp_path / "test/a/0.jpg", exif=exif)
    assert near(data)[0].across_split == 1


def test_classes_and_sides_are_counted_apart_and_equal_bytes_left_out(tmp_path: Path) -> None:
    copy = drawn(1, 200)
    names = ("train/a/0.png", "train/a/same.png", "train/a/near.png", "train/b/near.png")
    data = folder(
        tmp_path, dict(zip(names, (drawn(1), drawn(1), copy, drawn(1, 240)), strict=True))
    )
    found, outside = near(data)
    assert (found.pairs, found.across_split, found.across_classes) == (5, 0, 3)
    assert {pair.second for pair in found.listed} == {"train/b/near.png"}
    assert outside == set()
    verdict = leakage.check_leakage(data).verdict()
    assert verdict.startswith("**No sign of leakage**")
    assert "The same images occur in two classes: 3 nearly equal." in verdict


def test_copies_in_an_extra_test_part_are_leaks_from_train_and_not_from_test(
    tmp_path: Path,
) -> None:
    names = ("train/a/0.png", "test/a/0.png", "unseen/a/0.png", "unseen/a/1.png")
    images = (drawn(1), drawn(2), drawn(1, 200), drawn(2, 200))
    data = folder(tmp_path, dict(zip(names, images, strict=True)))
    found, outside = near(replace(data, extra_root=tmp_path / "unseen"))
    assert (found.pairs, found.across_split) == (2, 1)
    assert outside == {"unseen/a/0.png"}


def test_images_of_one_colour_or_of_hardly_anything_are_not_compared(tmp_path: Path) -> None:
    flat = {
        f"{side}/a/{grey}.png": Image.new("L", (64, 48), grey)
        for side in ("train", "test")
        for grey in (9, 200)
    }
    dot = Image.new("L", (64, 48), 255)
    dot.putpixel((30, 20), 0)
    found, _ = near(folder(tmp_path, flat | {"test/a/dot.png": dot}))
    assert found == NearDuplicates(plain=5)


def test_more_images_than_a_block_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "MOST_LISTED", 2)
    monkeypatch.setattr(leakage, "BLOCK", 7)
    generator = np.random.default_rng(0)
    hashes = generator.random((50, 256)) < 0.5
    for copy, bits in ((20, 0), (30, 10), (40, 11)):
        hashes[copy] = hashes[3]
        hashes[copy, :bits] ^= True
    names = [f"{index}.png" for index in range(50)]
    table = pd.DataFrame({"image": names, "label": 0, "split": ["train"] * 25 + ["test"] * 25})
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    found, outside = leakage.near_duplicates(ImageDataset(Path(), ("a",), table), digests, hashes)
    expected = [
        (i, j) for i in range(50) for j in range(i + 1, 50) if (hashes[i] != hashes[j]).sum() <= 10
    ]
    assert expected == [(3, 20), (3, 30), (20, 30), (30, 40)]
    assert (found.pairs, found.across_split) == (4, 2)
    assert found.listed == (Pair("3.png", "30.png", 10), Pair("20.png", "30.png", 10))
    assert outside == {"30.png"}


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    data = folder(tmp_path, {"train/a/0.jpg": drawn(1)})
    (tmp_path / "train/a/0.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"0\.jpg: not a readable image"):
        leakage.fingerprints(data)

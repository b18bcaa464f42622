"""The leakage check, on folders whose leaks are known."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
from conftest import save_image

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DataSettings, ExtraTest
from fixres_poc.data import leakage
from fixres_poc.data.dataset import load_dataset


def found(folder: Path, imagenet_list: Path | None = None) -> leakage.Leakage:
    data = load_dataset(DataSettings(dataset=str(folder)))
    return leakage.check_leakage(data, None if imagenet_list is None else str(imagenet_list))


def test_a_clean_folder_has_no_sign_of_leakage(colour_folder: Path) -> None:
    assert found(colour_folder) == leakage.Leakage(0.0, (), ())
    assert "No sign" in found(colour_folder).verdict()


def test_imagenet_training_names_are_counted_on_the_test_part(colour_folder: Path) -> None:
    for index, file in enumerate(sorted((colour_folder / "red").iterdir())):
        file.rename(file.with_name(f"n02088364_{index}.png"))
    leakage = found(colour_folder)
    assert leakage.named_like_imagenet == 4 / 12
    assert "33% of the test images are named like ImageNet" in leakage.verdict()
    assert "pre-trained on ImageNet (and no other)" in leakage.verdict()


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """Two classes of three different images in each of train, val and test."""
    parts = [f"{part}/{label}" for part in ("train", "val", "test") for label in "ab"]
    for seed, (part, index) in enumerate(product(parts, range(3))):
        save_image(tmp_path / "d" / part / f"{index}.png", (90, 90, 90), seed)
    return tmp_path / "d"


def test_equal_images_across_a_given_split_and_across_classes_are_listed(
    split_folder: Path,
) -> None:
    for copy in ("test/a/again.png", "train/b/again.png"):
        shutil.copy(split_folder / "train" / "a" / "0.png", split_folder / copy)
    leakage = found(split_folder)
    assert leakage.across_split == (("test/a/again.png", "train/a/0.png", "train/b/again.png"),)
    assert len(leakage.across_classes) == 1
    assert leakage.twins == 1 / 7
    assert "..." not in str(leakage.summary())
    assert "Warning: leakage" in leakage.verdict()
    assert "Doubtful labels.** The same images occur in two classes: 1 byte" in leakage.verdict()
    assert json.loads(json.dumps(leakage.record()))["across_split"][0][0] == "test/a/again.png"


def test_equal_images_in_train_and_val_are_listed_too(split_folder: Path) -> None:
    shutil.copy(split_folder / "train" / "a" / "0.png", split_folder / "val" / "a" / "0.png")
    assert found(split_folder).across_split == (("train/a/0.png", "val/a/0.png"),)


def test_equal_images_in_an_extra_test_part_are_leaks_from_train_and_not_from_test(
    split_folder: Path,
) -> None:
    more = split_folder.with_name("more")
    (more / "a").mkdir(parents=True)
    for name in ("train/a/0.png", "test/a/1.png"):
        shutil.copy(split_folder / name, more / "a" / name.replace("/", "_"))
    extra = ExtraTest(name="unseen", folder=str(more))
    checked = leakage.check_leakage(
        load_dataset(DataSettings(dataset=str(split_folder), extra_test=extra))
    )
    assert checked.across_split == (("train/a/0.png", "unseen/a/train_a_0.png"),)
    assert checked.twins == 1 / 8


LISTS = {
    "names": "{0}\n{1}\n",
    "paths": "train/n02088364/{0}.JPEG 0\ntrain/n02088364/{1}.JPEG 0\n",
    "windows": "\ufeffn02088364\\{0}.JPEG\r\nn02088364\\{1}.JPEG\r\n",
    "kaggle": "ImageId,PredictionString\n{0},n02088364 1 2 3 4\n{1},n02088364 1 2 3 4 n02088364 5 6 7 8\n",
}


@pytest.mark.parametrize("form", LISTS)
def test_a_given_list_decides_instead_of_the_form_of_the_names(
    colour_folder: Path, form: str
) -> None:
    for index, file in enumerate(sorted((colour_folder / "red").iterdir())):
        file.rename(file.with_name(f"n02088364_{index}.png"))
    test = [
        n
        for n in load_dataset(DataSettings(dataset=str(colour_folder))).split("test")["image"]
        if "red" in n
    ]
    file = colour_folder.parent / "imagenet.txt"
    file.write_text(LISTS[form].format(Path(test[0]).stem, "n01440764_1"), encoding="utf-8")
    leakage = found(colour_folder, file)
    assert leakage.listed_in_imagenet == 1 / 12
    assert "8.3% of the test images are, by name, in the given list" in leakage.verdict()
    file.write_text("n01440764_1\n")
    assert "No sign" in found(colour_folder, file).verdict()


def test_a_list_without_names_of_imagenet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("00.png\n")
    with pytest.raises(InputError, match="no name like n02088364_1234"):
        leakage.share_listed(["a/00.png"], str(tmp_path / "x.txt"))
    with pytest.raises(InputError, match=r"nowhere.txt': cannot be read \(no such file"):
        leakage.share_listed(["a/00.png"], str(tmp_path / "nowhere.txt"))
    (tmp_path / "endless.txt").write_text("x" * 1_000_000)
    with pytest.raises(InputError, match="no name like"):
        leakage.share_listed(["a/00.png"], str(tmp_path / "endless.txt"))
    with pytest.raises(InputError, match="no regular one"):
        leakage.share_listed(["a/00.png"], "/dev/zero")

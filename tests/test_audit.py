"""The leakage check, on folders whose leaks are known."""

import json
from pathlib import Path

import pytest
from conftest import save_picture

from fixres_poc import audit, datasets
from fixres_poc.config import DataSettings, InputError


def found(folder: Path, imagenet_list: Path | None = None) -> audit.Leakage:
    pictures = datasets.load(DataSettings(dataset=str(folder)))
    return audit.leakage(pictures, None if imagenet_list is None else str(imagenet_list))


def test_a_clean_folder_has_no_sign_of_leakage(colour_folder: Path) -> None:
    assert found(colour_folder) == audit.Leakage(0.0, (), ())
    assert "No sign" in found(colour_folder).verdict()


def test_imagenet_training_names_are_counted_on_the_test_part(colour_folder: Path) -> None:
    for index, file in enumerate(sorted((colour_folder / "red").iterdir())):
        file.rename(file.with_name(f"n02088364_{index}.png"))
    leakage = found(colour_folder)
    assert leakage.named_like_imagenet == 4 / 12
    assert "33% of the test pictures are named like ImageNet" in leakage.verdict()
    assert "pre-trained on ImageNet, and only such a one" in leakage.verdict()


def test_equal_pictures_across_a_given_split_and_across_classes_are_listed(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for number, label in enumerate("ab"):
            for index in range(3):
                save_picture(
                    tmp_path / "d" / part / label / f"{index}.png", (90, 90, 90), seed=hash_of(part, number, index)
                )
    copy = (tmp_path / "d" / "train" / "a" / "0.png").read_bytes()
    (tmp_path / "d" / "test" / "a" / "again.png").write_bytes(copy)
    (tmp_path / "d" / "train" / "b" / "again.png").write_bytes(copy)
    leakage = found(tmp_path / "d")
    assert leakage.across_split == (("test/a/again.png", "train/a/0.png", "train/b/again.png"),)
    assert len(leakage.across_classes) == 1
    assert leakage.twins == 1 / 7
    assert "..." not in str(leakage.summary())
    assert "Warning: leakage" in leakage.verdict()
    assert "Doubtful labels.** In two classes stand the same pictures: 1 byte" in leakage.verdict()
    assert json.loads(json.dumps(leakage.record()))["across_split"][0][0] == "test/a/again.png"


def hash_of(part: str, label: int, index: int) -> int:
    return len(part) * 100 + (part == "val") * 50 + label * 10 + index


def test_equal_pictures_in_train_and_val_are_listed_too(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "val", "test")):
        for label in "ab":
            save_picture(tmp_path / "d" / part / label / "0.png", (90, 90, 90), seed=number * 10 + (label == "b"))
    copy = (tmp_path / "d" / "train" / "a" / "0.png").read_bytes()
    (tmp_path / "d" / "val" / "a" / "0.png").write_bytes(copy)
    assert found(tmp_path / "d").across_split == (("train/a/0.png", "val/a/0.png"),)


LISTS = {
    "names": "{0}\n{1}\n",
    "paths": "train/n02088364/{0}.JPEG 0\ntrain/n02088364/{1}.JPEG 0\n",
    "windows": "\ufeffn02088364\\{0}.JPEG\r\nn02088364\\{1}.JPEG\r\n",
    "kaggle": "ImageId,PredictionString\n{0},n02088364 1 2 3 4\n{1},n02088364 1 2 3 4 n02088364 5 6 7 8\n",
}


@pytest.mark.parametrize("form", LISTS)
def test_a_given_list_decides_instead_of_the_form_of_the_names(colour_folder: Path, form: str) -> None:
    for index, file in enumerate(sorted((colour_folder / "red").iterdir())):
        file.rename(file.with_name(f"n02088364_{index}.png"))
    test = [n for n in datasets.load(DataSettings(dataset=str(colour_folder))).split("test")["picture"] if "red" in n]
    file = colour_folder.parent / "imagenet.txt"
    file.write_text(LISTS[form].format(Path(test[0]).stem, "n01440764_1"), encoding="utf-8")
    leakage = found(colour_folder, file)
    assert leakage.listed_in_imagenet == 1 / 12
    assert "8.3% of the test pictures are, by name, in the given list" in leakage.verdict()
    file.write_text("n01440764_1\n")
    assert "No sign" in found(colour_folder, file).verdict()


def test_a_list_without_names_of_imagenet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("00.png\n")
    with pytest.raises(InputError, match="no name like n02088364_1234"):
        audit.share_listed(["a/00.png"], str(tmp_path / "x.txt"))
    with pytest.raises(InputError, match=r"nowhere.txt': cannot be read \(No such file"):
        audit.share_listed(["a/00.png"], str(tmp_path / "nowhere.txt"))

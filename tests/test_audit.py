"""The leakage check, on folders whose leaks are known."""

from pathlib import Path

from conftest import save_picture

from fixres_poc import audit, datasets
from fixres_poc.config import DataSettings


def found(folder: Path) -> audit.Leakage:
    return audit.leakage(datasets.load(DataSettings(dataset=str(folder))))


def test_a_clean_folder_has_no_sign_of_leakage(colour_folder: Path) -> None:
    assert found(colour_folder) == audit.Leakage(0.0, (), ())
    assert "No sign" in found(colour_folder).verdict()


def test_imagenet_training_names_are_counted_on_the_test_part(colour_folder: Path) -> None:
    for index, file in enumerate(sorted((colour_folder / "red").iterdir())):
        file.rename(file.with_name(f"n02088364_{index}.png"))
    share = found(colour_folder).named_like_imagenet
    assert share == 4 / 12
    assert "33% of the test pictures are named like ImageNet" in found(colour_folder).verdict()


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
    assert "Warning: leakage" in leakage.verdict()


def hash_of(part: str, label: int, index: int) -> int:
    return len(part) * 100 + (part == "val") * 50 + label * 10 + index


def test_equal_pictures_in_train_and_val_are_listed_too(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "val", "test")):
        for label in "ab":
            save_picture(tmp_path / "d" / part / label / "0.png", (90, 90, 90), seed=number * 10 + (label == "b"))
    copy = (tmp_path / "d" / "train" / "a" / "0.png").read_bytes()
    (tmp_path / "d" / "val" / "a" / "0.png").write_bytes(copy)
    assert found(tmp_path / "d").across_split == (("train/a/0.png", "val/a/0.png"),)

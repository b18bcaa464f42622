"""Stanford Dogs, from archives of the same layout, only smaller."""

import gzip
import io
import tarfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import load, save_image
from scipy.io import savemat

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DataSettings
from fixres_poc.data import named_datasets
from fixres_poc.data.dataset import load_dataset, object_boxes

BREEDS = ("n02085620-Chihuahua", "n02085936-Maltese_dog", "n02090379-redbone")
TRAIN, TEST = 6, 3
LISTS = ["train_list.mat", "test_list.mat", "file_list.mat"]
OFFICIAL = DataSettings(dataset="stanford_dogs")
XML = """<annotation><size><width>72</width><height>56</height></size><object><bndbox>
<xmin>4</xmin><ymin>5</ymin><xmax>60</xmax><ymax>50</ymax></bndbox></object>{}</annotation>"""
SECOND = (
    "<object><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"
)


def image_name(breed: str, index: int) -> str:
    return f"{breed}/{breed.split('-')[0]}_{index}.jpg"


def names_of(indices: range) -> list[str]:
    return [image_name(breed, index) for breed in BREEDS for index in indices]


def save_list(path: Path, indices: range) -> None:
    """A list as the official ones are: columns of cells, each of them one string."""
    names = names_of(indices)
    labels = [[float(label)] for label in range(1, len(BREEDS) + 1) for _ in indices]
    savemat(path, {"file_list": np.array(names, dtype=object)[:, None], "labels": labels})


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """The dataset on disk: the first six images of each breed are train, three are test."""
    folder = tmp_path / "unpacked"
    for number, breed in enumerate(BREEDS):
        (folder / "Annotation" / breed).mkdir(parents=True)
        for index in range(TRAIN + TEST):
            name = image_name(breed, index)
            save_image(folder / "Images" / name, (60 * number, 90, 120), seed=100 * number + index)
            (folder / "Annotation" / name).with_suffix("").write_text(
                XML.format(SECOND if index == 1 else "")
            )
    every = range(TRAIN + TEST)
    for name, indices in zip(LISTS, (every[:TRAIN], every[TRAIN:], every), strict=True):
        save_list(folder / name, indices)
    return folder


@pytest.fixture
def asked(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked for; archives of the small dataset are taken from archives/."""
    found, archives = list[str](), unpacked.with_name("archives")
    archives.mkdir()
    for name, parts in {"images": ["Images"], "annotation": ["Annotation"], "lists": LISTS}.items():
        with tarfile.open(archives / f"{name}.tar", "w") as tar:
            for part in parts:
                tar.add(unpacked / part, part)

    def fetch(url: str, _: Path, sha256: str, __: str) -> Path:
        found.append(url)
        assert sha256 == named_datasets.SOURCES["stanford_dogs"].files[url]
        return archives / url.rsplit("/", 1)[-1]

    monkeypatch.setattr(named_datasets, "fetch", fetch)
    return found


def test_download_gives_the_official_split_and_two_at_once_ask_once(asked: list[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        data, other = pool.map(lambda _: load_dataset(OFFICIAL), range(2))
    assert data.classes == BREEDS
    assert data.root == named_datasets.folder("stanford_dogs") / "Images"
    assert data.counts() == {"train": 15, "val": 3, "test": 9}
    assert sorted(data.split("test")["image"]) == names_of(range(TRAIN, TRAIN + TEST))
    assert data.split("val")["label"].tolist() == [0, 1, 2]
    assert other.table.equals(data.table)
    start = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
    assert asked == [f"{start}{name}" for name in ("images.tar", "annotation.tar", "lists.tar")]


def adding(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[bytes], bytes]:
    """How an archive is changed: by a member that would write where it should not."""

    def add(archive: bytes) -> bytes:
        member, buffer = tarfile.TarInfo(name), io.BytesIO(archive)
        member.type, member.linkname = kind, link
        with tarfile.open(fileobj=buffer, mode="a") as tar:
            tar.addfile(member)
        return buffer.getvalue()

    return add


BAD: dict[str, Callable[[bytes], bytes]] = {
    "outside": adding("Annotation/../../evil"),
    "link outside": adding("Annotation/evil", tarfile.SYMTYPE, "../../../evil"),
    "device": adding("Annotation/evil", tarfile.BLKTYPE),
    "compressed, so of any size": gzip.compress,
    "cut": lambda archive: archive[:5000],
}


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("how", BAD)
def test_a_bad_archive_is_refused_and_leaves_nothing(tmp_path: Path, how: str) -> None:
    archive = tmp_path / "archives" / "annotation.tar"
    archive.write_bytes(BAD[how](archive.read_bytes()))
    with pytest.raises(InputError, match=r"annotation\.tar: cannot be unpacked") as caught:
        load_dataset(OFFICIAL)
    assert "\n" not in str(caught.value)
    assert not named_datasets.folder("stanford_dogs").exists()
    assert not list(named_datasets.folder("stanford_dogs").parents[1].rglob("evil*"))
    archives = named_datasets.folder("stanford_dogs").with_name("stanford_dogs_archives")
    assert {each.name for each in archives.iterdir()} <= {"lock"}


def test_a_folder_of_that_name_without_lists_is_left_alone(asked: list[str]) -> None:
    save_image(named_datasets.folder("stanford_dogs") / "Images" / "a" / "0.jpg", (1, 2, 3), seed=0)
    with pytest.raises(InputError, match="stanford_dogs: incomplete"):
        load_dataset(OFFICIAL)
    assert not asked


def test_the_lists_of_a_users_folder_count(unpacked: Path) -> None:
    (unpacked / "lists").mkdir()
    for path in unpacked.glob("*.mat"):
        path.rename(unpacked / "lists" / path.name)
    data = load(unpacked)
    assert data.counts() == {"train": 15, "val": 3, "test": 9}
    (unpacked / "Images" / BREEDS[0]).rename(unpacked / "elsewhere")
    assert load(unpacked).classes == BREEDS[1:]
    (unpacked / "Images" / image_name(BREEDS[1], 0)).unlink()
    with pytest.raises(InputError, match=r"n02085936_0\.jpg: missing"):
        load(unpacked)
    for wrong in ("n1-a/../../../secret/private.png", "x.jpg"):
        savemat(
            unpacked / "lists" / "train_list.mat", {"file_list": np.array([[wrong]], dtype=object)}
        )
        with pytest.raises(InputError, match=r"is not an entry <breed>/<file>"):
            load(unpacked)


@pytest.mark.parametrize("damaged", [b"", b"\x89HDF\r\n\x1a\n"])
def test_a_damaged_list_is_one_line(tmp_path: Path, damaged: bytes) -> None:
    file = tmp_path / "train_list.mat"
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"train_list\.mat: not readable as a list"):
        named_datasets.entries(file)


def test_kaggles_layout_is_a_folder_of_class_folders(unpacked: Path, tmp_path: Path) -> None:
    for name, inner in {"images": "Images", "annotations": "Annotation"}.items():
        (tmp_path / "kaggle" / name).mkdir(parents=True)
        (unpacked / inner).rename(tmp_path / "kaggle" / name / inner)
    settings = DataSettings(dataset=str(tmp_path / "kaggle"))
    data = load_dataset(settings)
    assert data.classes == BREEDS
    assert data.counts() == {"train": 12, "val": 6, "test": 9}  # 28 % and 22 % of nine
    found = object_boxes(settings, data)
    assert found is not None
    dogs = Counter(found.itertuples(index=False, name=None))
    box, other = (4, 5, 60, 50, 72, 56), (1, 2, 3, 4, 72, 56)
    second = {(image_name(breed, 1), *other) for breed in BREEDS}
    assert dogs == Counter([(name, *box) for name in data.table["image"]]) + Counter(second)


@pytest.mark.parametrize(
    "text", [None, "<annotation/>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>']
)
def test_an_annotation_that_cannot_be_read_is_named(unpacked: Path, text: str | None) -> None:
    file = unpacked / "Annotation" / BREEDS[0] / "n02085620_0"
    file.write_text(text) if text else file.unlink()
    with pytest.raises(InputError, match="n02085620_0: not a readable annotation"):
        named_datasets.boxes(unpacked / "Annotation", [image_name(BREEDS[0], 0)])

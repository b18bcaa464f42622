"""Stanford Dogs from a server on this machine that holds archives of the same layout, only smaller."""

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import save_picture
from scipy.io import savemat
from serving import Server, serve

from fixres_poc import datasets, download
from fixres_poc.config import DataSettings, InputError, SweepSettings
from fixres_poc.datasets import stanford_dogs
from fixres_poc.datasets.loading import shown

BREEDS = ("n02085620-Chihuahua", "n02085936-Maltese_dog", "n02090379-redbone")
TRAIN, TEST = 6, 3
OFFICIAL = DataSettings(dataset="stanford_dogs")
XML = """<annotation><folder>{folder}</folder><filename>%s</filename><size><width>72</width><height>56</height>
<depth>3</depth></size><object><name>{name}</name><bndbox><xmin>4</xmin><ymin>5</ymin><xmax>60</xmax><ymax>50</ymax>
</bndbox></object>{more}</annotation>"""
SECOND = "<object><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"


def picture(breed: str, index: int) -> str:
    return f"{breed}/{breed.split('-')[0]}_{index}.jpg"


def save_list(path: Path, indices: range) -> None:
    """A list as the official ones are: columns of cells, each of them one string."""
    names = [picture(breed, index) for breed in BREEDS for index in indices]
    labels = [[float(label)] for label in range(1, len(BREEDS) + 1) for _ in indices]
    cells = np.array(names, dtype=object)[:, None]
    stems = np.array([name.removesuffix(".jpg") for name in names], dtype=object)[:, None]
    savemat(path, {"file_list": cells, "annotation_list": stems, "labels": labels})


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """The data set as it lies on disk: the first six pictures of each breed are train, three are test."""
    folder = tmp_path / "unpacked"
    for number, breed in enumerate(BREEDS):
        (folder / "Annotation" / breed).mkdir(parents=True)
        for index in range(TRAIN + TEST):
            name = picture(breed, index)
            save_picture(folder / "Images" / name, (60 * number, 90, 120), seed=100 * number + index)
            text = XML.format(folder=breed, name=breed, more=SECOND if index == 1 else "")
            (folder / "Annotation" / name).with_suffix("").write_text(text)
    for name, indices in {"train": range(TRAIN), "test": range(TRAIN, TRAIN + TEST), "file": range(9)}.items():
        save_list(folder / f"{name}_list.mat", indices)
    return folder


def pack(members: dict[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, path in members.items():
            tar.add(path, name)
    return buffer.getvalue()


def trust(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in server.files.items()}
    monkeypatch.setattr(stanford_dogs, "SHA256", sums)


@pytest.fixture
def server(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serve(monkeypatch) as server:
        server.files = {
            "images.tar": pack({"Images": unpacked / "Images"}),
            "annotation.tar": pack({"Annotation": unpacked / "Annotation"}),
            "lists.tar": pack({path.name: path for path in unpacked.glob("*.mat")}),
        }
        trust(server, monkeypatch)
        monkeypatch.setattr(stanford_dogs, "URL", server.url)
        yield server


def failure(message: str) -> None:
    """Loading fails with one line, and no data set is there."""
    with pytest.raises(InputError, match=message) as caught:
        datasets.load(OFFICIAL)
    assert "\n" not in str(caught.value)
    assert not stanford_dogs.folder().exists()
    assert not (archives() / "unpacked").exists()


def archives() -> Path:
    return stanford_dogs.folder().with_name("stanford_dogs_archives")


def test_download_gives_the_official_split_and_asks_once(server: Server) -> None:
    pictures = datasets.load(OFFICIAL)
    assert pictures.classes == BREEDS
    assert pictures.root == stanford_dogs.folder() / "Images"
    assert pictures.counts() == {"train": 15, "val": 3, "test": 9}
    official = {picture(breed, index) for breed in BREEDS for index in range(TRAIN, TRAIN + TEST)}
    assert set(pictures.split("test")["picture"]) == official
    assert pictures.split("val")["label"].tolist() == [0, 1, 2]
    breeds = pictures.table["picture"].str.split("/").str[0]
    assert breeds.tolist() == [BREEDS[label] for label in pictures.table["label"]]
    assert [name for name, _, _ in server.asked] == ["images.tar", "annotation.tar", "lists.tar"]
    assert datasets.load(OFFICIAL).table.equals(pictures.table)
    assert len(server.asked) == 3
    assert not list(archives().glob("*.part"))
    assert not list(archives().glob("tmp*"))


def test_the_validation_part_depends_on_the_split_seed_and_the_test_part_does_not(unpacked: Path) -> None:
    first, second = (datasets.load(DataSettings(dataset=str(unpacked), split_seed=seed)) for seed in (0, 1))
    assert first.split("test").equals(second.split("test"))
    assert not first.split("val").equals(second.split("val"))


def test_a_broken_download_goes_on_where_it_stopped(server: Server) -> None:
    server.cut_bytes = 4500
    failure(r"images\.tar: no answer, or the connection broke; run again to go on .* put images\.tar into")
    kept = (archives() / "images.tar.part").stat().st_size
    assert kept == 4000
    server.cut_bytes = None
    server.asked.clear()
    datasets.load(OFFICIAL)
    assert server.asked[0] == ("images.tar", f"bytes={kept}-", len(server.files["images.tar"]) - kept)


def test_a_broken_download_is_retried_in_the_same_call(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRIES", 1)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: setattr(server, "cut_bytes", None))
    server.cut_bytes = 4500
    datasets.load(OFFICIAL)
    assert [wanted for _, wanted, _ in server.asked] == [None, "bytes=4000-", None, None]


def test_a_server_without_ranges_sends_all_again(server: Server) -> None:
    archives().mkdir(parents=True)
    (archives() / "images.tar.part").write_bytes(server.files["images.tar"][:4000])
    server.knows_range = False
    assert len(datasets.load(OFFICIAL).table) == 27
    assert server.asked[0] == ("images.tar", "bytes=4000-", len(server.files["images.tar"]))


@pytest.mark.parametrize("kept", [4000, 10_000_000])
def test_a_part_of_another_file_is_thrown_away(server: Server, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(download, "RETRIES", 1)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    archives().mkdir(parents=True)
    (archives() / "images.tar.part").write_bytes(b"x" * kept)
    datasets.load(OFFICIAL)
    assert [wanted for _, wanted, _ in server.asked] == [f"bytes={kept}-", None, None, None]


def test_a_part_that_is_complete_is_not_sent_again(server: Server) -> None:
    archives().mkdir(parents=True)
    (archives() / "images.tar.part").write_bytes(server.files["images.tar"])
    datasets.load(OFFICIAL)
    assert server.asked[0][2] == 0


def test_a_wrong_checksum_is_refused(server: Server) -> None:
    server.files["annotation.tar"] = server.files["annotation.tar"][:-1] + b"x"
    failure(r"annotation\.tar: wrong checksum; or put annotation\.tar into .* non-commercial research only")
    assert not (archives() / "annotation.tar").exists()


def test_a_server_error_is_named(server: Server) -> None:
    server.status = 500
    failure(r"500 Server Error.*images\.tar; or put images\.tar into .*stanford_dogs_archives by hand")


def test_without_network_the_message_says_what_to_do(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stanford_dogs, "URL", "http://127.0.0.1:9/")  # nothing listens on the discard port
    failure(r"images\.tar: no answer.* put images\.tar into .*stanford_dogs_archives by hand")


def test_archives_put_there_by_hand_need_no_server(server: Server) -> None:
    archives().mkdir(parents=True)
    for name, content in server.files.items():
        (archives() / name).write_bytes(content)
    assert len(datasets.load(OFFICIAL).table) == 27
    assert not server.asked


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("Images/../../evil.jpg"),
        member("/evil.jpg"),
        member("Images/evil.jpg", tarfile.SYMTYPE, "n1.jpg"),
        member("Images/evil.jpg", tarfile.LNKTYPE, "Images/n1.jpg"),
        member("Images/evil.jpg", tarfile.SYMTYPE, "../../../evil"),
        member("Images/evil.jpg", tarfile.LNKTYPE, "../../evil"),
        member("Images/evil.jpg", tarfile.FIFOTYPE),
        member("Images/evil.jpg", tarfile.CHRTYPE),
        member("Images/evil.jpg", tarfile.BLKTYPE),
        member("Images/evil.jpg", tarfile.GNUTYPE_SPARSE),
    ],
    ids=[
        "outside",
        "absolute",
        "symlink",
        "hardlink",
        "symlink outside",
        "hardlink outside",
        "pipe",
        "character device",
        "block device",
        "holes",
    ],
)
def test_an_archive_that_would_write_elsewhere_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, bad: tarfile.TarInfo
) -> None:
    buffer = io.BytesIO(server.files["images.tar"])
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        tar.addfile(bad)
    server.files["images.tar"] = buffer.getvalue()
    trust(server, monkeypatch)
    failure(rf"images\.tar: cannot be unpacked \('{bad.name}'")
    assert not list(stanford_dogs.folder().parents[1].rglob("evil*"))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_archive_is_refused_since_it_may_hold_any_size(
    server: Server, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    server.files["images.tar"] = pack(server.files["images.tar"])
    trust(server, monkeypatch)
    failure(r"images\.tar: cannot be unpacked")


def test_a_member_that_claims_more_than_the_archive_holds_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = member("Images/evil.jpg")
    claim.size = 2**40
    server.files["images.tar"] = claim.tobuf() + server.files["images.tar"]
    trust(server, monkeypatch)
    failure(r"images\.tar: cannot be unpacked")


def test_a_download_without_end_is_stopped(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LARGEST_BYTES", 5000)
    failure(r"images\.tar: more than .* GiB, so not the file wanted")
    assert (archives() / "images.tar.part").stat().st_size <= 6000


def test_two_at_once_download_once(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: datasets.load(OFFICIAL), range(2))
    assert first.table.equals(second.table)
    assert len(server.asked) == 3


def test_a_folder_of_that_name_without_lists_is_left_alone(server: Server) -> None:
    save_picture(stanford_dogs.folder() / "Images" / "a" / "0.jpg", (1, 2, 3), seed=0)
    with pytest.raises(InputError, match=r"stanford_dogs: there, but without train_list\.mat and test_list\.mat"):
        datasets.load(OFFICIAL)
    assert not server.asked


def test_the_lists_of_a_users_folder_count(unpacked: Path) -> None:
    (unpacked / "lists").mkdir()
    for path in unpacked.glob("*.mat"):
        path.rename(unpacked / "lists" / path.name)
    settings = DataSettings(dataset=str(unpacked))
    pictures = datasets.load(settings)
    assert pictures.counts() == {"train": 15, "val": 3, "test": 9}
    assert len(shown(settings, pictures.table["picture"][:2])) == 2
    (unpacked / "Images" / BREEDS[0]).rename(unpacked / "elsewhere")
    assert datasets.load(settings).classes == BREEDS[1:]
    (unpacked / "Images" / picture(BREEDS[1], 0)).unlink()
    with pytest.raises(InputError, match=r"n02085936_0\.jpg: missing"):
        datasets.load(settings)


def test_what_is_no_list_is_named(unpacked: Path) -> None:
    (unpacked / "train_list.mat").write_bytes(b"no list")
    with pytest.raises(InputError, match=r"train_list\.mat: not readable as a list"):
        datasets.load(DataSettings(dataset=str(unpacked)))


def test_kaggles_layout_is_a_folder_of_class_folders(unpacked: Path, tmp_path: Path) -> None:
    for name, inner in {"images": "Images", "annotations": "Annotation"}.items():
        (tmp_path / "kaggle" / name).mkdir(parents=True)
        (unpacked / inner).rename(tmp_path / "kaggle" / name / inner)
    settings = DataSettings(dataset=str(tmp_path / "kaggle"))
    pictures = datasets.load(settings)
    assert pictures.classes == BREEDS
    assert pictures.counts() == {"train": 15, "val": 3, "test": 9}  # 30 % and 15 % of nine
    assert len(shown(settings, pictures.table["picture"][:2])) == 2
    assert len(stanford_dogs.boxes(pictures.root, list(pictures.table["picture"]))) == 30
    found = datasets.boxes(settings, pictures)
    assert found is not None
    assert len(found) == 30


def test_boxes_are_one_row_a_dog(unpacked: Path) -> None:
    table = stanford_dogs.boxes(unpacked / "Images", [picture(BREEDS[0], index) for index in (0, 1)])
    assert list(table.columns) == ["picture", "left", "top", "right", "bottom", "width", "height"]
    assert table.drop(columns="picture").to_numpy().tolist() == [
        [4, 5, 60, 50, 72, 56],
        [4, 5, 60, 50, 72, 56],
        [1, 2, 3, 4, 72, 56],
    ]
    assert table["picture"].tolist() == [picture(BREEDS[0], index) for index in (0, 1, 1)]
    assert stanford_dogs.boxes(unpacked / "Images", []).empty


@pytest.mark.parametrize(
    "text", [None, "<annotation>", "<annotation/>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>']
)
def test_an_annotation_that_cannot_be_read_is_named(unpacked: Path, text: str | None) -> None:
    file = unpacked / "Annotation" / BREEDS[0] / "n02085620_0"
    file.write_text(text) if text else file.unlink()
    with pytest.raises(InputError, match="n02085620_0: not a readable annotation"):
        stanford_dogs.boxes(unpacked / "Images", [picture(BREEDS[0], 0)])


def test_pictures_of_imagenet_are_never_shown() -> None:
    assert not OFFICIAL.show_pictures
    assert shown(DataSettings(dataset="stanford_dogs", show_pictures=True), [picture(BREEDS[0], 0)]) == []
    sweep = SweepSettings(name="x", dataset="stanford_dogs", pairs=((64, 96),), show_pictures=True)
    assert not any(run.parameters.get("show_pictures", False) for run in sweep.runs())
    assert DataSettings(dataset="elsewhere").show_pictures

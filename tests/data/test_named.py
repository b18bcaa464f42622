"""Datasets by name: archives of the published layouts, made here, fetched from a folder, and laid out."""

import hashlib
import io
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import file_digest
from fixres_poc.config.settings import NAMED_DATASETS, DataSettings
from fixres_poc.data import download
from fixres_poc.data.dataset import load_dataset
from fixres_poc.data.loading import images_to_show
from fixres_poc.data.sources import named

WIDTH, HEIGHT = 60, 50
PETS = {"Abyssinian": 1, "american_bulldog": 2}


def jpeg(seed: int) -> bytes:
    """Noise above a white banner of 20 px."""
    pixels = np.random.default_rng(seed).integers(0, 120, (HEIGHT, WIDTH, 3)).astype("uint8")
    pixels[-20:] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def pets() -> dict[str, dict[str, bytes]]:
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    images = {}
    for breed, label in PETS.items():
        for number in range(1, 17):
            images[f"images/{breed}_{number}.jpg"] = jpeg(100 * label + number)
            lists["trainval" if number <= 10 else "test"].append(f"{breed}_{number} {label} 1 1")
    notes = {f"annotations/{name}.txt": "\n".join(lines).encode() for name, lines in lists.items()}
    return {"images.tar.gz": images, "annotations.tar.gz": notes}


def flowers() -> dict[str, dict[str, bytes]]:
    return {
        "102flowers.tgz": {f"jpg/image_{number:05}.jpg": jpeg(number) for number in range(1, 13)}
    }


def aircraft() -> dict[str, dict[str, bytes]]:
    names = ["707-320", "F/A-18"]
    files = {"data/variants.txt": "\n".join(names).encode()}
    for place, split in enumerate(("train", "val", "test")):
        lines = []
        for number in range(12):
            key = f"{place}{number:03}"
            files[f"data/images/{key}.jpg"] = jpeg(1000 * place + number)
            lines.append(f"{key} {names[number % 2]}")
        files[f"data/images_variant_{split}.txt"] = "\n".join(lines).encode()
    inside = {f"fgvc-aircraft-2013b/{name}": content for name, content in files.items()}
    return {"fgvc-aircraft-2013b.tar.gz": inside}


def packed(folder: Path, archives: Mapping[str, Mapping[str, bytes]]) -> None:
    for name, files in archives.items():
        with tarfile.open(folder / name, "w:gz") as tar:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of the server; checksums are those of its files."""
    folder = tmp_path / "server"
    folder.mkdir()
    for make in (pets, flowers, aircraft):
        packed(folder, make())
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2] * 6])})
    savemat(
        folder / "setid.mat",
        {"trnid": [[1, 2, 3, 4]], "valid": [[5, 6]], "tstid": [list(range(7, 13))]},
    )
    known = dict(torchvision.datasets.Flowers102._file_dict)
    for key in ("label", "setid"):
        file = known[key][0]
        known[key] = (file, hashlib.md5((folder / file).read_bytes()).hexdigest())
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", known)

    def fetch(url: str, place: Path, checksum: str, terms: str) -> Path:
        name = url.rsplit("/", 1)[-1]
        assert url.startswith("https://www.robots.ox.ac.uk/~vgg/data/")
        assert terms
        return Path(shutil.copy(folder / name, place / name))

    monkeypatch.setattr(download, "fetch", fetch)
    return folder


@pytest.mark.parametrize(
    ("name", "classes", "counts"),
    [
        ("oxford_pets", ("Abyssinian", "American_Bulldog"), {"train": 16, "val": 4, "test": 12}),
        (
            "flowers102",
            ("hard-leaved_pocket_orchid", "pink_primrose"),
            {"train": 4, "val": 2, "test": 6},
        ),
        ("fgvc_aircraft", ("707-320", "F-A-18"), {"train": 12, "val": 12, "test": 12}),
    ],
)
def test_official_splits_and_labels_are_kept(
    name: str,
    classes: tuple[str, ...],
    counts: dict[str, int],
    server: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = DataSettings(dataset=name)
    data = load_dataset(settings)
    assert data.classes == classes
    assert data.counts() == counts
    shown = images_to_show(settings, data.table["image"][:2])
    assert len(shown) == (2 if NAMED_DATASETS[name] else 0)
    with Image.open(data.paths[0]) as image:
        cut = 20 if name == "fgvc_aircraft" else 0
        assert image.size == (WIDTH, HEIGHT - cut)
        assert (np.asarray(image)[-1].mean() < 200) == bool(cut), "the banner alone is cut off"
    monkeypatch.setattr(download, "fetch", None)
    assert load_dataset(settings).fingerprint() == data.fingerprint(), "nothing is fetched twice"
    assert not (named.folder(name).with_name(f"{name}_archives") / "unpacked").exists()


def test_an_archive_that_would_write_elsewhere_is_refused(server: Path, tmp_path: Path) -> None:
    packed(server, {"images.tar.gz": {"../../../../escaped.jpg": jpeg(0)}})
    with pytest.raises(InputError, match=r"images\.tar\.gz: cannot be unpacked"):
        load_dataset(DataSettings(dataset="oxford_pets"))
    assert not list(tmp_path.rglob("escaped.jpg"))
    assert not named.folder("oxford_pets").exists()


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_cut_archive_is_named_and_nothing_half_unpacked_stays(
    server: Path, monkeypatch: pytest.MonkeyPatch, kept: float
) -> None:
    archive = server / "fgvc-aircraft-2013b.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * kept)])
    for _ in range(2):
        with pytest.raises(InputError, match=r"2013b\.tar\.gz: .*delete it"):
            load_dataset(DataSettings(dataset="fgvc_aircraft"))
    assert not named.folder("fgvc_aircraft").exists()
    archives = named.folder("fgvc_aircraft").with_name("fgvc_aircraft_archives")
    (archives / archive.name).unlink()
    archive.write_bytes(whole)
    assert sum(load_dataset(DataSettings(dataset="fgvc_aircraft")).counts().values()) == 36


def test_without_network_the_folder_to_fill_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    away = {"https://127.0.0.1:1/images.tar.gz": "md5:0"}
    monkeypatch.setitem(
        named.SOURCES, "oxford_pets", replace(named.SOURCES["oxford_pets"], files=away)
    )
    with pytest.raises(
        InputError, match=r"put images.tar.gz into .*oxford_pets_archives by hand .*CC BY-SA 4.0"
    ):
        load_dataset(DataSettings(dataset="oxford_pets"))


def test_terms_and_checksums_are_known(tmp_path: Path) -> None:
    assert set(named.SOURCES) | {"stanford_dogs"} == set(NAMED_DATASETS)
    assert "overlap is not excluded" in named.about("oxford_pets")
    assert named.about("/my/birds") == ""
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert file_digest(file, "md5") == "900150983cd24fb0d6963f7d28e17f72"
    with pytest.raises(ValueError, match="do not allow it"):
        DataSettings(dataset="flowers102", show_images=True)

"""Downloads from a server on this machine; named datasets from archives as published."""

import hashlib
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DataSettings
from fixres_poc.data import named_datasets
from fixres_poc.data.dataset import load_dataset

CONTENT = bytes(range(256)) * 40  # in pieces of 1,000 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """What it sends, what goes wrong, and how many requests it got."""

    content = CONTENT
    asked = 0
    cut_bytes: int | None = None
    status = 200


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.cut_bytes])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """At work, and downloads are in small pieces and without retries."""
    with Server(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(named_datasets, "RETRIES", 0)
        monkeypatch.setattr(named_datasets, "CHUNK_BYTES", 1000)
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        yield server
        server.shutdown()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the file goes."""
    return tmp_path / "archives" / "x.tar"


def fetch(server: Server, file: Path, checksum: str = SHA256) -> bytes:
    url = f"http://127.0.0.1:{server.server_port}/files/x.tar"
    return named_datasets.fetch(url, file.parent, checksum, "for research only").read_bytes()


def test_a_file_is_asked_for_once_stays_where_it_is_wrong_and_nothing_else_is_left(
    server: Server, file: Path
) -> None:
    assert fetch(server, file) == fetch(server, file) == CONTENT
    for known in (SHA256[:8], f"md5:{hashlib.md5(CONTENT).hexdigest()}", ""):
        assert fetch(server, file, known) == CONTENT
    assert server.asked == 1
    file.write_bytes(b"another")
    message = r"x\.tar: wrong checksum.* delete .* by hand \(for research only\)"
    with pytest.raises(InputError, match=message):
        fetch(server, file)
    assert file.read_bytes() == b"another"
    assert {each.name for each in file.parent.iterdir()} == {"x.tar", ".x.tar.lock"}


@pytest.mark.parametrize(
    ("fault", "value", "message"),
    [
        ("content", b"another", r"x\.tar: wrong checksum"),
        ("status", 500, r"500 Server Error.*x\.tar"),
        ("cut_bytes", 4500, r"x\.tar: no answer, or the connection broke; run again"),
        ("content", CONTENT * 9, r"x\.tar: more than .* bytes, so another file"),
    ],
)
def test_what_a_server_does_wrong_is_named_and_leaves_nothing(
    server: Server,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    value: Any,
    message: str,
) -> None:
    monkeypatch.setattr(named_datasets, "LARGEST_BYTES", 2 * len(CONTENT))
    setattr(server, fault, value)
    with pytest.raises(
        InputError, match=f"{message}.* put x.tar into .*archives by hand"
    ) as caught:
        fetch(server, file)
    assert "\n" not in str(caught.value)
    assert [each.name for each in file.parent.iterdir()] == [".x.tar.lock"]


WIDTH, HEIGHT = 60, 50
PETS = ("Abyssinian", "american_bulldog")


def jpeg(seed: int) -> bytes:
    """Noise above a white banner of 20 px."""
    pixels = np.random.default_rng(seed).integers(0, 120, (HEIGHT, WIDTH, 3)).astype("uint8")
    pixels[-20:] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def pets() -> dict[str, dict[str, bytes]]:
    names = [f"{breed}_{number}" for breed in PETS for number in range(1, 17)]
    images = {f"images/{name}.jpg": jpeg(seed) for seed, name in enumerate(names)}
    notes = {}
    for part, numbers in {"trainval": range(10), "test": range(10, 16)}.items():
        lines = [f"{names[16 * label + i]} {1 + label} 1 1" for label in (0, 1) for i in numbers]
        notes[f"annotations/{part}.txt"] = "\n".join(lines).encode()
    return {"images.tar.gz": images, "annotations.tar.gz": notes}


def flowers() -> dict[str, dict[str, bytes]]:
    return {
        "102flowers.tgz": {f"jpg/image_{number:05}.jpg": jpeg(number) for number in range(1, 13)}
    }


def aircraft() -> dict[str, dict[str, bytes]]:
    names, data = ["707-320", "F/A-18"], "fgvc-aircraft-2013b/data"
    files = {f"{data}/variants.txt": "\n".join(names).encode()}
    for split in ("train", "val", "test"):
        keys = [f"{split}{number}" for number in range(12)]
        files |= {f"{data}/images/{key}.jpg": jpeg(seed) for seed, key in enumerate(keys)}
        lines = [f"{key} {names[number % 2]}" for number, key in enumerate(keys)]
        files[f"{data}/images_variant_{split}.txt"] = "\n".join(lines).encode()
    return {"fgvc-aircraft-2013b.tar.gz": files}


def packed(folder: Path, archives: Mapping[str, Mapping[str, bytes]]) -> None:
    for name, files in archives.items():
        with tarfile.open(folder / name, "w:gz") as tar:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
    known = dict(torchvision.datasets.Flowers102._file_dict)  # noqa: SLF001
    for key in ("label", "setid"):
        file = known[key][0]
        known[key] = (file, hashlib.md5((folder / file).read_bytes()).hexdigest())
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", known)

    def fetch(url: str, place: Path, _: str, terms: str) -> Path:
        name = url.rsplit("/", 1)[-1]
        assert url.startswith("https://www.robots.ox.ac.uk/~vgg/data/")
        assert terms
        return Path(shutil.copy(folder / name, place / name))

    monkeypatch.setattr(named_datasets, "fetch", fetch)
    return folder


@pytest.mark.usefixtures("archives")
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
    name: str, classes: tuple[str, ...], counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DataSettings(dataset=name)
    data = load_dataset(settings)
    assert data.classes == classes
    assert data.counts() == counts
    with Image.open(data.paths[0]) as image:
        cut = 20 if name == "fgvc_aircraft" else 0
        assert image.size == (WIDTH, HEIGHT - cut)
        assert (np.asarray(image)[-1].mean() < 200) == bool(cut), "the banner alone is cut off"
    monkeypatch.setattr(named_datasets, "fetch", None)
    assert load_dataset(settings).fingerprint() == data.fingerprint(), "nothing is fetched twice"
    assert not (named_datasets.folder(name).with_name(f"{name}_archives") / "unpacked").exists()


def test_a_cut_archive_is_named_and_nothing_half_unpacked_stays(archives: Path) -> None:
    archive = archives / "fgvc-aircraft-2013b.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * 0.95)])
    for _ in range(2):
        with pytest.raises(InputError, match=r"2013b\.tar\.gz: .*delete it"):
            load_dataset(DataSettings(dataset="fgvc_aircraft"))
    assert not named_datasets.folder("fgvc_aircraft").exists()
    fetched = named_datasets.folder("fgvc_aircraft").with_name("fgvc_aircraft_archives")
    (fetched / archive.name).unlink()
    archive.write_bytes(whole)
    assert sum(load_dataset(DataSettings(dataset="fgvc_aircraft")).counts().values()) == 36

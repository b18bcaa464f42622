"""What is downloaded: files with their checksums, and datasets by name. No torch in here.

A dataset's archives go to data/<name>_archives/, which may be removed later, and its images to
data/<name>/. Of Stanford Dogs that is what the archives hold (see `stanford_dogs`). For the others
torchvision says where the archives are, which images belong to which official split, and their
labels. It would extract without a filter, so that is done here, and the images are laid out as
<split>/<class>/.
"""

import lzma
import math
import os
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pooch
import requests
from filelock import FileLock
from PIL import Image

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import file_digest, home, resolve
from fixres_poc.config.run_state import bar
from fixres_poc.data.sources import stanford_dogs

RETRIES = 3
CHUNK_BYTES = 2**20
LARGEST_BYTES = 2**33
OVERLAP = (
    "It was not cut from ImageNet; overlap is not excluded,"
    " and the audit looks for near duplicates and names."
)
STANFORD = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
VGG = "https://www.robots.ox.ac.uk/~vgg/data/"


class Source(NamedTuple):
    """A dataset that is downloaded by name.

    Attributes:
        files: URL to checksum, as for `fetch`; torchvision publishes MD5.
        terms: who made it, and on which terms it may be used.
        loader: name of the class in `torchvision.datasets`; "" where the archives are used as they
            are.
        base: the folder below its root in which that class looks for what is unpacked.
        splits: our name of a split to the loader's.
        banner: rows of text at the bottom of each image, px, that are cut off.
    """

    files: Mapping[str, str]
    terms: str
    loader: str = ""
    base: str = "."
    splits: tuple[tuple[str, str], ...] = (("train", "train"), ("val", "val"), ("test", "test"))
    banner: int = 0


SOURCES = {
    "stanford_dogs": Source(
        {
            f"{STANFORD}images.tar": (
                "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58"
            ),
            f"{STANFORD}annotation.tar": (
                "662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd"
            ),
            f"{STANFORD}lists.tar": (
                "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c"
            ),
        },
        "ImageNet's terms: non-commercial research only",
    ),
    "oxford_pets": Source(
        {
            f"{VGG}pets/data/images.tar.gz": "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
            f"{VGG}pets/data/annotations.tar.gz": "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
        },
        "Oxford-IIIT Pet (Parkhi et al. 2012), CC BY-SA 4.0:"
        " images may be shown with this attribution.",
        "OxfordIIITPet",
        "oxford-iiit-pet",
        (("train", "trainval"), ("test", "test")),
    ),
    "flowers102": Source(
        {
            f"{VGG}flowers/102/102flowers.tgz": "md5:52808999861908f626f3c1f4e79d11fa",
            f"{VGG}flowers/102/imagelabels.mat": "md5:e0620be6f572b9609742df49c70aed4d",
            f"{VGG}flowers/102/setid.mat": "md5:a5357ecc9cb78c4bef273ce3793fc85c",
        },
        "Oxford 102 Flowers (Nilsback and Zisserman 2008):"
        " no licence is stated, so images are not shown.",
        "Flowers102",
        "flowers-102",
    ),
    "fgvc_aircraft": Source(
        {f"{VGG}fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz": ""},
        "FGVC-Aircraft (Maji et al. 2013):"
        " for non-commercial research only, so images are not shown.",
        "FGVCAircraft",
        banner=20,
    ),
}


def about(dataset: str) -> str:
    """Terms of one of torchvision's datasets, and what is known about ImageNet in it."""
    source = SOURCES.get(dataset)
    return f"{source.terms} {OVERLAP}" if source and source.loader else ""


def folder(dataset: str) -> Path:
    """Where a named dataset lies, or the user's own."""
    return home() / "data" / dataset if dataset in SOURCES else resolve(dataset)


def fetch(url: str, folder: Path, checksum: str, terms: str) -> Path:
    """The file of a URL, downloaded unless it lies in the folder already.

    Several processes may ask at once: one works.

    Args:
        url: ends in the file's name.
        checksum: what the file's SHA-256 begins with, all of its 64 hex digits or fewer; "md5:"
            before an MD5; "" where its maker publishes none.
        terms: those of the file, for whoever has to fetch it by hand.

    Raises:
        InputError: no answer, a wrong checksum, a full disk; it says which file to put where by
            hand.
    """
    name = url.rsplit("/", 1)[-1]
    pooch.get_logger().setLevel("WARNING")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            if (folder / name).exists():
                _check(folder / name, checksum, f"{folder / name}")
            for torn in folder.glob("tmp*"):  # pooch's, of a download that was killed
                torn.unlink()
            store = pooch.create(
                folder, url.removesuffix(name), registry={name: None}, retry_if_failed=RETRIES
            )
            return Path(store.fetch(name, downloader=partial(_download, checksum=checksum)))
    except (OSError, ValueError) as error:
        unanswered = isinstance(error, requests.RequestException) and error.response is None
        reason = f"{url}: no answer, or the connection broke" if unanswered else str(error)
    raise InputError(f"{reason}; run again, or put {name} into {folder} by hand ({terms})")


def _check(file: Path, checksum: str, source: str) -> None:
    algorithm, _, digits = checksum.rpartition(":")
    if not str(file_digest(file, algorithm or "sha256")).startswith(digits):
        raise ValueError(f"{source}: wrong checksum, so cut or damaged; delete {file}")


def _download(url: str, output_file: str, _: pooch.Pooch, checksum: str) -> None:
    """Downloader for pooch, which itself takes no part of a hash and knows no limit."""
    with requests.get(url, stream=True, timeout=30) as answer:  # seconds
        answer.raise_for_status()
        total = math.ceil(int(answer.headers.get("Content-Length", 0)) / CHUNK_BYTES) or None
        chunks = answer.iter_content(CHUNK_BYTES)
        with open(output_file, "wb") as file:
            for chunk in bar(chunks, f"downloading {url.rsplit('/', 1)[-1]}, MiB", total):
                file.write(chunk)
                if file.tell() > LARGEST_BYTES:
                    most = f"{LARGEST_BYTES // 2**30} GiB"
                    raise ValueError(f"{url}: more than {most}, so not the file wanted")
    _check(Path(output_file), checksum, url)


def prepare(dataset: str) -> Path:
    """Download, unpack and lay out a named dataset that is not there yet.

    It is there completely or not at all. The user's own is left alone.

    Several processes may call this at once: one works, the others wait.

    Returns:
        The dataset's folder.

    Raises:
        InputError: as `fetch`; an archive that cannot be used; something else lies in the folder;
            it cannot be written.
    """
    source, target = SOURCES.get(dataset), folder(dataset)
    if source is None:
        return target
    archives = target.with_name(f"{dataset}_archives")
    if not target.exists():
        archives.mkdir(parents=True, exist_ok=True)
        with FileLock(archives / "lock"):
            if not target.exists():
                _install(source, archives, target)
    if not (target.is_dir() if source.loader else stanford_dogs.lists(target)):
        raise InputError(f"{target}: there, but not whole; add what is missing or remove it")
    return target


def _install(source: Source, archives: Path, target: Path) -> None:
    files = [fetch(url, archives, checksum, source.terms) for url, checksum in source.files.items()]
    work = archives / "unpacked"
    shutil.rmtree(work, ignore_errors=True)
    try:
        base = work / source.base
        base.mkdir(parents=True)
        for file in files:
            if file.suffix == ".mat":
                shutil.copy(file, base)
            else:
                _unpack(file, base)
        os.replace(_laid_out(source, work) if source.loader else work, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive into a folder; nothing is written elsewhere."""
    mode: Literal["r:", "r"] = "r:" if archive.suffix == ".tar" else "r"
    try:
        with tarfile.open(archive, mode) as tar:
            tar.extractall(folder, members=bar(tar, f"unpacking {archive.name}"), filter="data")
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise InputError(
            f"{archive}: cannot be unpacked ({error}); if it is damaged, delete it and run again"
        ) from None


def _laid_out(source: Source, work: Path) -> Path:
    """Sort the unpacked images by split and class."""
    import torchvision.datasets

    fresh = work / "laid_out"
    try:
        for own, theirs in source.splits:
            loaded: Any = getattr(torchvision.datasets, source.loader)(work, split=theirs)
            images = getattr(loaded, "_images", None) or loaded._image_files  # noqa: SLF001
            for image, label in zip(images, loaded._labels, strict=True):  # noqa: SLF001
                place = fresh / own / loaded.classes[label].replace("/", "-").replace(" ", "_")
                place.mkdir(parents=True, exist_ok=True)
                _put(Path(image), place / Path(image).name, source.banner)
    except Exception as error:  # damaged lists raise errors of many kinds
        raise InputError(
            f"{work.parent}: cannot be used as {source.loader} ({error});"
            " delete the archives there and run again to download them"
        ) from None
    return fresh


def _put(image: Path, place: Path, banner: int) -> None:
    if not banner:
        os.replace(image, place)
        return
    with Image.open(image, formats=["JPEG"]) as whole:
        whole.crop((0, 0, whole.width, whole.height - banner)).save(place, "JPEG", quality=95)

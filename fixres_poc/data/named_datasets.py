"""Datasets by name: what is downloaded, with its checksums, and how it is laid out. No torch here.

A dataset's archives go to data/<name>_archives/, which may be removed later, and its images to
data/<name>/. Of Stanford Dogs that is what the archives hold: Images/<wnid>-<breed>/<id>.jpg,
Annotation/<wnid>-<breed>/<id> and the official lists; a folder of the user's may have the same
layout, or Kaggle's. For the others torchvision says where the archives are, which images belong to
which official split, and their labels. It would extract without a filter, so that is done here,
and the images are laid out as <split>/<class>/.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import ParseError

import pooch
import requests
from defusedxml import ElementTree
from filelock import FileLock
from PIL import Image

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import file_digest, home, resolve
from fixres_poc.config.run_state import bar
from fixres_poc.data import image_folder

RETRIES = 3
CHUNK_BYTES = 2**20
LARGEST_BYTES = 2**33
OVERLAP = (
    "It was not cut from ImageNet; overlap is not excluded,"
    " and the audit looks for near duplicates and names."
)
STANFORD = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
VGG = "https://www.robots.ox.ac.uk/~vgg/data/"
ENTRY = re.compile(r"[^/\\\0.][^/\\\0]*/[^/\\\0.][^/\\\0]*")
READ_LIST = """import json, sys
from scipy.io import loadmat
print(json.dumps([str(cell.item()) for cell in loadmat(sys.argv[1])["file_list"].ravel()]))"""
READ_LIMIT_S = 60
LISTS = {"train": "train_list.mat", "test": "test_list.mat"}


class Source(NamedTuple):
    """A dataset that is downloaded by name."""

    files: Mapping[str, str]  # URL to checksum, as for `fetch`; torchvision publishes MD5
    terms: str  # who made it, and on which terms it may be used
    loader: str = ""  # its class in `torchvision.datasets`; "": the archives are used as they are
    base: str = "."  # folder below its root in which that class looks for what is unpacked
    splits: tuple[tuple[str, str], ...] = (("train", "train"), ("val", "val"), ("test", "test"))
    banner: int = 0  # rows of text at the bottom of each image, px, that are cut off


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
    """The file of a URL, downloaded unless it lies there; of several processes one works.

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
                    raise ValueError(f"{url}: more than {LARGEST_BYTES} bytes, so another file")
    _check(Path(output_file), checksum, url)


def prepare(dataset: str) -> Path:
    """The folder of a named dataset, downloaded, unpacked and laid out first, or the user's own.

    It is there completely or not at all. Several processes may ask at once: one works.

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
    if not (target.is_dir() if source.loader else lists(target)):
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
    """Unpack a tar archive; nothing is written outside of the folder."""
    mode: Literal["r:", "r"] = "r:" if archive.suffix == ".tar" else "r"
    try:
        with tarfile.open(archive, mode) as tar:
            tar.extractall(folder, members=bar(tar, f"unpacking {archive.name}"), filter="data")
    except Exception as error:  # damaged archives raise errors of many kinds
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
                if source.banner:
                    _cut_banner(Path(image), source.banner)
                os.replace(image, place / Path(image).name)
    except Exception as error:  # damaged lists raise errors of many kinds
        raise InputError(
            f"{work.parent}: cannot be used as {source.loader} ({error});"
            " delete the archives there and run again to download them"
        ) from None
    return fresh


def _cut_banner(file: Path, rows: int) -> None:
    with Image.open(file, formats=["JPEG"]) as image:
        cut = image.crop((0, 0, image.width, image.height - rows))
    cut.save(file, "JPEG", quality=95)


def images(folder: Path) -> Path:
    """The folder of class folders in an official or Kaggle's layout; without one the folder."""
    return _first(folder / "images" / "Images", folder / "Images") or folder


def _first(*places: Path) -> Path | None:
    return next((place for place in places if place.is_dir()), None)


def lists(folder: Path) -> Path | None:
    """The folder with the official lists: the given one or its lists/; None where none are."""
    places = (folder, folder / "lists")
    whole = (each for each in places if all((each / name).is_file() for name in LISTS.values()))
    return next(whole, None)


def find(folder: Path) -> image_folder.Listing:
    """As `image_folder.find`, with the official train and test part where the lists are there.

    A validation part is then cut from train; the folder may hold some of the breeds only.

    Raises:
        InputError: as `image_folder.find`; an unreadable list; a listed image that is missing.
    """
    root, place = images(folder), lists(folder)
    if place is None:
        return image_folder.find(root)
    found, skipped = image_folder.walk(root)
    names = {*found}
    present = {name.split("/")[0] for name in names}
    listed = [(name, split) for split, file in LISTS.items() for name in entries(place / file)]
    rows = [
        (name, breed, split) for name, split in listed if (breed := name.split("/")[0]) in present
    ]
    if missing := [root / name for name, *_ in rows if name not in names]:
        others = f"{len(missing) - 1} more images of the official lists"
        raise InputError(f"{missing[0]}: missing, as are {others}")
    if len({breed for _, breed, split in rows if split == "train"}) < 2:
        needed = f"two class folders of the official lists in {root}"
        raise InputError(f"dataset {str(folder)!r}: needs at least {needed}")
    skipped["not in the official lists"] = len(names - {name for name, *_ in rows})
    return image_folder.Listing(root, rows, ["val"], image_folder.told(root, skipped))


def entries(file: Path) -> list[str]:
    """Images of an official list as <breed>/<file>; its labels only number the class folders.

    Raises:
        InputError: not such a list, or an entry that is anything else, which could name any file of
            the machine.
    """
    # damaged files can crash the process that reads them
    command = [sys.executable, "-I", "-c", READ_LIST, str(file)]
    try:
        names: list[str] = json.loads(
            subprocess.run(command, capture_output=True, check=True, timeout=READ_LIMIT_S).stdout
        )
    except (subprocess.SubprocessError, ValueError):
        raise InputError(f"{file}: not readable as a list of Stanford Dogs") from None
    if wrong := [name for name in names if not ENTRY.fullmatch(name)]:
        raise InputError(f"{file}: {wrong[0]!r} is not an entry <breed>/<file>")
    return names


def annotations(root: Path) -> Path | None:
    """The folder of annotations beside a folder of class folders; None where there is none."""
    return _first(root.parent / "Annotation", root.parents[1] / "annotations" / "Annotation")


def boxes(folder: Path, names: Sequence[str]) -> list[tuple[str | int, ...]]:
    """The annotated dogs of images, from the folder of annotations.

    Returns:
        For each dog its image, left, top, right, bottom (the box), width and height (of the
        annotated image), in px.

    Raises:
        InputError: a missing or unreadable annotation, named.
    """
    rows: list[tuple[str | int, ...]] = []
    for name in names:
        file = (folder / name).with_suffix("")
        try:
            tree = ElementTree.parse(file)
            size = [int(tree.findtext(f"size/{key}")) for key in ("width", "height")]
            for box in tree.iterfind("object/bndbox"):
                sides = [int(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")]
                rows.append((name, *sides, *size))
        except (OSError, ParseError, TypeError, ValueError) as error:
            reason = type(error).__name__
            raise InputError(f"{file}: not a readable annotation ({reason})") from None
    return rows

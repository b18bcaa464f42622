"""Datasets by name: downloads, checksums and layouts. Importing this module does not import torch.

Archives go to data/<name>_archives/, which may be removed later, and images to data/<name>/.
Stanford Dogs keeps the layout of its archives: Images/<wnid>-<breed>/<id>.jpg,
Annotation/<wnid>-<breed>/<id> and the official lists; a user's folder may have this layout or that
of Kaggle. For the other datasets torchvision provides the official splits and labels. It extracts
archives without a filter, so this module extracts them, and arranges the images as
<split>/<class>/.
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
    terms: str  # authors and terms of use
    loader: str = ""  # class in `torchvision.datasets`; "": keep the layout of the archives
    base: str = "."  # folder below the root in which that class expects the unpacked files
    # names of the splits, here and in torchvision
    splits: tuple[tuple[str, str], ...] = (("train", "train"), ("val", "val"), ("test", "test"))
    banner: int = 0  # rows of text to cut off at the bottom of each image, px


STANFORD_FILES = {
    f"{STANFORD}images.tar": "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
    f"{STANFORD}annotation.tar": "662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd",
    f"{STANFORD}lists.tar": "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
}
SOURCES = {
    "stanford_dogs": Source(STANFORD_FILES, "ImageNet's terms: non-commercial research only"),
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
    """Terms of one of torchvision's datasets and its overlap with ImageNet; "" for others."""
    source = SOURCES.get(dataset)
    return f"{source.terms} {OVERLAP}" if source and source.loader else ""


def folder(dataset: str) -> Path:
    """Folder of a named dataset, or the user's folder of that path."""
    return home() / "data" / dataset if dataset in SOURCES else resolve(dataset)


def fetch(url: str, folder: Path, checksum: str, terms: str) -> Path:
    """Download a file unless the folder has it; of several processes only one downloads.

    Args:
        url: ends with the file's name.
        checksum: first digits of the file's SHA-256, at most 64; with the prefix "md5:", of its
            MD5; "" if the publisher gives none.
        terms: of use, for a user who downloads the file by hand.

    Raises:
        InputError: there is no answer, the checksum is wrong, or the disk is full; the message
            explains how to add the file by hand.
    """
    name = url.rsplit("/", 1)[-1]
    file = folder / name
    pooch.get_logger().setLevel("WARNING")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            if file.exists():
                _check(file, checksum, str(file))
            for partial_file in folder.glob("tmp*"):  # of pooch, from a killed download
                partial_file.unlink()
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
        raise ValueError(f"{source}: wrong checksum, so truncated or damaged; delete {file}")


def _download(url: str, output_file: str, _: pooch.Pooch, checksum: str) -> None:
    """Downloader for pooch, whose own accepts only whole hashes and sets no size limit."""
    with requests.get(url, stream=True, timeout=30) as response:  # seconds
        response.raise_for_status()
        total = math.ceil(int(response.headers.get("Content-Length", 0)) / CHUNK_BYTES) or None
        chunks = response.iter_content(CHUNK_BYTES)
        with open(output_file, "wb") as file:
            for chunk in bar(chunks, f"downloading {url.rsplit('/', 1)[-1]}, MiB", total):
                file.write(chunk)
                if file.tell() > LARGEST_BYTES:
                    raise ValueError(f"{url}: more than {LARGEST_BYTES} bytes, so another file")
    _check(Path(output_file), checksum, url)


def prepare(dataset: str) -> Path:
    """Install a named dataset unless it is present, and return its folder, or the user's folder.

    The folder appears only when it is complete. Of several processes one installs.

    Raises:
        InputError: as `fetch`; an archive is unusable; the folder exists but is incomplete, or
            cannot be written.
    """
    source = SOURCES.get(dataset)
    target = folder(dataset)
    if source is None:
        return target
    archives = target.with_name(f"{dataset}_archives")
    if not target.exists():
        archives.mkdir(parents=True, exist_ok=True)
        with FileLock(archives / "lock"):
            if not target.exists():
                _install(source, archives, target)
    if not (target.is_dir() if source.loader else lists(target)):
        raise InputError(f"{target}: incomplete; add the missing files or remove the folder")
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
        os.replace(_arranged(source, work) if source.loader else work, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, without writing outside the folder."""
    mode: Literal["r:", "r"] = "r:" if archive.suffix == ".tar" else "r"
    try:
        with tarfile.open(archive, mode) as tar:
            tar.extractall(folder, members=bar(tar, f"unpacking {archive.name}"), filter="data")
    except Exception as error:  # damaged archives raise errors of many kinds
        raise InputError(
            f"{archive}: cannot be unpacked ({error}); if it is damaged, delete it and run again"
        ) from None


def _arranged(source: Source, work: Path) -> Path:
    """Move the unpacked images to <split>/<class>/ in a new folder."""
    import torchvision.datasets

    arranged = work / "arranged"
    try:
        for split, official in source.splits:
            dataset: Any = getattr(torchvision.datasets, source.loader)(work, split=official)
            files = getattr(dataset, "_images", None) or dataset._image_files  # noqa: SLF001
            for image, label in zip(files, dataset._labels, strict=True):  # noqa: SLF001
                name = dataset.classes[label].replace("/", "-").replace(" ", "_")
                class_folder = arranged / split / name
                class_folder.mkdir(parents=True, exist_ok=True)
                if source.banner:
                    _cut_banner(Path(image), source.banner)
                os.replace(image, class_folder / Path(image).name)
    except Exception as error:  # damaged lists raise errors of many kinds
        raise InputError(
            f"{work.parent}: cannot be used as {source.loader} ({error});"
            " delete the archives there and run again to download them"
        ) from None
    return arranged


def _cut_banner(file: Path, rows: int) -> None:
    with Image.open(file, formats=["JPEG"]) as image:
        cut = image.crop((0, 0, image.width, image.height - rows))
    cut.save(file, "JPEG", quality=95)


def images(folder: Path) -> Path:
    """Folder of class folders in the official or Kaggle's layout, otherwise the folder itself."""
    return _existing(folder / "images" / "Images", folder / "Images") or folder


def _existing(*folders: Path) -> Path | None:
    return next((folder for folder in folders if folder.is_dir()), None)


def lists(folder: Path) -> Path | None:
    """Folder of the official lists, `folder` or its lists/; None without them."""
    for candidate in (folder, folder / "lists"):
        if all((candidate / name).is_file() for name in LISTS.values()):
            return candidate
    return None


def find(folder: Path) -> image_folder.Listing:
    """List the images of a folder as `image_folder.find`, with the official split if it has lists.

    The lists have no validation part. The folder may hold a subset of the breeds.

    Raises:
        InputError: as `image_folder.find`; a list is unreadable, or a listed image is missing.
    """
    root = images(folder)
    lists_folder = lists(folder)
    if lists_folder is None:
        return image_folder.find(root)
    files, skipped = image_folder.walk(root)
    present = set(files)
    breeds = {file.split("/")[0] for file in files}
    rows = []
    for split, list_name in LISTS.items():
        for image in entries(lists_folder / list_name):
            breed = image.split("/")[0]
            if breed in breeds:
                rows.append((image, breed, split))
    listed = [image for image, *_ in rows]
    if missing := [image for image in listed if image not in present]:
        others = f"{len(missing) - 1} more images of the official lists"
        raise InputError(f"{root / missing[0]}: missing, as are {others}")
    if len({breed for _, breed, split in rows if split == "train"}) < 2:
        needed = f"two class folders of the official lists in {root}"
        raise InputError(f"dataset {str(folder)!r}: needs at least {needed}")
    skipped["not in the official lists"] = len(present.difference(listed))
    return image_folder.Listing(root, rows, ["val"], image_folder.skip_notes(root, skipped))


def entries(file: Path) -> list[str]:
    """Read the images of an official list as <breed>/<file>; its labels only number the folders.

    Raises:
        InputError: the file is no such list, or an entry has another form, which could point to any
            file of the machine.
    """
    # in a process of its own, because damaged files can crash it
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
    """Folder of annotations beside a folder of class folders; None without one."""
    return _existing(root.parent / "Annotation", root.parents[1] / "annotations" / "Annotation")


def boxes(folder: Path, names: Sequence[str]) -> list[tuple[str | int, ...]]:
    """Read the boxes of the dogs in images from the folder of annotations.

    Returns:
        One tuple per dog: image, left, top, right and bottom of its box, width and height of the
        image, in px.

    Raises:
        InputError: an annotation is missing or unreadable.
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

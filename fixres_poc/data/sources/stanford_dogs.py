"""Stanford Dogs: download, the official split, and the dogs' boxes. No torch in here.

The images are ImageNet's: for non-commercial research and not to be passed on, so they are never
shown. Archives go to data/stanford_dogs_archives/, which may be removed later, and what is in them
to data/stanford_dogs/: Images/<wnid>-<breed>/<id>.jpg, Annotation/<wnid>-<breed>/<id> and the
official lists. A folder of the user's may have the same layout, or Kaggle's.
"""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import ParseError

import pandas as pd
from defusedxml import ElementTree

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import home
from fixres_poc.data.sources import image_folder

URL = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
SHA256 = {
    "images.tar": "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
    "annotation.tar": "662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd",
    "lists.tar": "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
}
TERMS = "ImageNet's terms: non-commercial research only"
ENTRY = re.compile(r"[^/\\\0.][^/\\\0]*/[^/\\\0.][^/\\\0]*")
READ_LIST = """import json, sys
from scipy.io import loadmat
print(json.dumps([str(cell.item()) for cell in loadmat(sys.argv[1])["file_list"].ravel()]))"""
READ_LIMIT_S = 60
LISTS = {"train": "train_list.mat", "test": "test_list.mat"}


def folder() -> Path:
    """Where the unpacked dataset lies."""
    return home() / "data" / "stanford_dogs"


def prepare() -> Path:
    """Download and unpack what is not there yet; a broken download goes on where it stopped.

    Raises:
        InputError: no answer from the server, a wrong checksum, an archive that would write
            elsewhere, a full disk.
    """
    from fixres_poc.data.download import install

    files = {URL + name: checksum for name, checksum in SHA256.items()}
    return install(folder(), lambda: lists(folder()), files, TERMS, _unpack)


def _unpack(archives: Sequence[Path], work: Path) -> Path:
    from fixres_poc.data.download import unpack

    for archive in archives:
        unpack(archive, work, "r:")
    return work


def images(folder: Path) -> Path:
    """The folder of class folders in an official layout or Kaggle's; the given folder where it has neither."""
    return next(
        (each for each in (folder / "images" / "Images", folder / "Images") if each.is_dir()),
        folder,
    )


def lists(folder: Path) -> Path | None:
    """The folder with the official lists: the given one or its lists/; None where there are none."""
    places = (folder, folder / "lists")
    return next(
        (each for each in places if all((each / name).is_file() for name in LISTS.values())), None
    )


def find(folder: Path, split_seed: int) -> tuple[Path, list[image_folder.Row], list[str]]:
    """As `image_folder.find`, but with the official train and test part where the folder holds the official lists.

    A validation part is then cut from train; the folder may hold some of the breeds only.

    Raises:
        InputError: as `image_folder.find`; an unreadable list; a listed image that is missing.
    """
    root, place = images(folder), lists(folder)
    if place is None:
        return image_folder.find(root, split_seed)
    listed, skipped = image_folder.walk(root)
    present = {name.split("/")[0] for name in listed}
    train, test = (
        [name for name in entries(place / file) if _breed(name) in present]
        for file in LISTS.values()
    )
    if missing := [name for name in train + test if not (root / name).is_file()]:
        raise InputError(
            f"{root / missing[0]}: missing, as are {len(missing) - 1} more images of the official lists"
        )
    classes = {breed: list(names) for breed, names in itertools.groupby(sorted(train), _breed)}
    if len(classes) < 2:
        raise InputError(
            f"dataset {str(folder)!r}: needs at least two class folders of the official lists in {root}"
        )
    rows = image_folder.stratify(classes, root, split_seed, test=False)
    skipped["not in the official lists"] = len(set(listed) - set(train) - set(test))
    return (
        root,
        sorted(rows + [(name, _breed(name), "test") for name in test]),
        image_folder.told(root, skipped),
    )


def _breed(name: str) -> str:
    return name.split("/")[0]


def entries(file: Path) -> list[str]:
    """Images of an official list as <breed>/<file>; its labels, from 1, only number the class folders in order.

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
    """The folder of annotations beside a folder of class folders, in the official layout or Kaggle's; None if none."""
    places = (root.parent / "Annotation", root.parent.parent / "annotations" / "Annotation")
    return next((each for each in places if each.is_dir()), None)


def boxes(root: Path, names: Sequence[str]) -> pd.DataFrame:
    """The annotated dogs of images, one row a dog; names are relative to the folder of class folders.

    Returns:
        Columns image, left, top, right, bottom (the box), width, height (the annotated image), all
        in px.

    Raises:
        InputError: a missing or unreadable annotation, named.
    """
    annotation = annotations(root) or root.parent / "Annotation"
    rows: list[tuple[str | int, ...]] = []
    for name in names:
        file = (annotation / name).with_suffix("")
        try:
            tree = ElementTree.parse(file)
            size = [int(tree.findtext(f"size/{key}")) for key in ("width", "height")]
            for box in tree.iterfind("object/bndbox"):
                rows.append(
                    (
                        name,
                        *(int(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")),
                        *size,
                    )
                )
        except (OSError, ParseError, TypeError, ValueError) as error:
            raise InputError(
                f"{file}: not a readable annotation ({type(error).__name__})"
            ) from None
    return pd.DataFrame(
        rows, columns=["image", "left", "top", "right", "bottom", "width", "height"]
    )

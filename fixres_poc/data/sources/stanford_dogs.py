"""Stanford Dogs: the official split and the dogs' boxes. No torch in here.

The images are ImageNet's: for non-commercial research and not to be passed on, so they are never
shown. The archives hold Images/<wnid>-<breed>/<id>.jpg, Annotation/<wnid>-<breed>/<id> and the
official lists. A folder of the user's may have the same layout, or Kaggle's.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import ParseError

from defusedxml import ElementTree

from fixres_poc.config.errors import InputError
from fixres_poc.data.sources import image_folder

ENTRY = re.compile(r"[^/\\\0.][^/\\\0]*/[^/\\\0.][^/\\\0]*")
READ_LIST = """import json, sys
from scipy.io import loadmat
print(json.dumps([str(cell.item()) for cell in loadmat(sys.argv[1])["file_list"].ravel()]))"""
READ_LIMIT_S = 60
LISTS = {"train": "train_list.mat", "test": "test_list.mat"}


def images(folder: Path) -> Path:
    """The folder of class folders in an official or Kaggle's layout; without one the folder."""
    return _first(folder / "images" / "Images", folder / "Images") or folder


def _first(*places: Path) -> Path | None:
    return next((place for place in places if place.is_dir()), None)


def lists(folder: Path) -> Path | None:
    """The folder with the official lists: the given one or its lists/; None where none are."""
    for place in (folder, folder / "lists"):
        if all((place / name).is_file() for name in LISTS.values()):
            return place
    return None


def find(folder: Path) -> image_folder.Listing:
    """As `image_folder.find`, with the official train and test part where the lists are there.

    A validation part is then cut from train; the folder may hold some of the breeds only.

    Raises:
        InputError: as `image_folder.find`; an unreadable list; a listed image that is missing.
    """
    root, place = images(folder), lists(folder)
    if place is None:
        return image_folder.find(root)
    names, skipped = image_folder.walk(root)
    present = {name.split("/")[0] for name in names}
    rows = [
        (name, breed, split)
        for split, file in LISTS.items()
        for name, breed in ((name, name.split("/")[0]) for name in entries(place / file))
        if breed in present
    ]
    if missing := [name for name, *_ in rows if not (root / name).is_file()]:
        others = len(missing) - 1
        raise InputError(
            f"{root / missing[0]}: missing, as are {others} more images of the official lists"
        )
    if len({breed for _, breed, split in rows if split == "train"}) < 2:
        raise InputError(
            f"dataset {str(folder)!r}: needs at least two class folders of the official lists"
            f" in {root}"
        )
    skipped["not in the official lists"] = len({*names} - {name for name, *_ in rows})
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

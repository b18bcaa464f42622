"""A folder of class folders as a table of images, split into train, val and test. No torch in here.

Layouts: `<class>/<image>` (then split here), or `train|val|test/<class>/<image>`; either may lie one level down.
"""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import NAMED_DATASETS
from fixres_poc.data.sources.splitting import Row, stratify

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
ALLOWED = ", ".join(SUFFIXES)
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(["val", "valid", "validation"], "val")


def find(folder: Path, split_seed: int) -> tuple[Path, list[Row]]:
    """List and split the images of a folder; the seed decides the split where the folder has none.

    Returns:
        The folder that holds the classes (or train, val and test), and one row per image in order of path.

    Raises:
        InputError: no folder, no images, fewer than two classes, or a class too small to split.
    """
    if not folder.is_dir():
        raise InputError(
            f"dataset {str(folder)!r}: no such folder; allowed: synthetic, {', '.join(NAMED_DATASETS)}, a folder"
        )
    top = root(folder)
    splits = {SPLIT_NAMES[each.name.lower()]: each for each in _folders(top) if each.name.lower() in SPLIT_NAMES}
    is_split = "train" in splits and len(splits) > 1
    rows = _presplit(top, splits, split_seed) if is_split else stratify(images(top, top), top, split_seed)
    if len({label for _, label, _ in rows}) < 2:
        raise InputError(f"dataset {str(folder)!r}: needs at least two class folders with images ({ALLOWED})")
    return top, sorted(rows)


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder but folders; what is hidden is passed over, and links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror})")

    for place, inner, names in os.walk(folder, onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def root(folder: Path) -> Path:
    """The folder that holds the classes (or train, val and test): the given one, or the only one in it."""
    inner = _folders(folder)
    has_classes = len(inner) == 1 and any(_folders(inner[0])) and inner[0].name.lower() not in SPLIT_NAMES
    return inner[0] if has_classes else folder


def images(root: Path, folder: Path) -> dict[str, list[str]]:
    """Images of class folders: class name -> paths relative to root, sorted; hidden files are passed over.

    Raises:
        InputError: there are none.
    """
    found: dict[str, list[str]] = {}
    for each in _folders(folder):
        names = [file.relative_to(root).as_posix() for file in below(each)]
        for wrong in (name for name in names if name != name.encode(errors="ignore").decode()):
            raise InputError(f"{root}/{wrong}: its name is not UTF-8; rename it")
        if names:
            found[each.name] = names
    if not found:
        raise InputError(f"dataset {str(folder)!r}: no images found; it needs class folders with {ALLOWED} files")
    return found


def below(folder: Path) -> list[Path]:
    """Images in a folder by their suffix, however deep, sorted; hidden files are left out."""
    files = (file for file in _files(folder) if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(files, key=Path.as_posix)


def passed_over(root: Path) -> Counter[str]:
    """What class folders hold besides images, and how often: suffixes, links that lead nowhere, empty folders."""
    links = (each for each in root.iterdir() if each.is_symlink() and not each.exists())  # instead of class folders
    files = chain(links, *(_files(folder) for folder in _folders(root)))
    kinds = ((file.suffix.lower() or "no suffix") if file.is_file() else "broken link or no file" for file in files)
    found = Counter(kind for kind in kinds if kind not in SUFFIXES)
    found["empty folder"] = sum(not (i or names) for each in _folders(root) for _, i, names in os.walk(each))
    return +found


def _presplit(root: Path, splits: dict[str, Path], seed: int) -> list[Row]:
    """Rows of a folder that is split already; a part that is missing is cut: val from train, test is val's name."""
    parts = {split: images(root, folder) for split, folder in splits.items()}
    if "test" not in parts:
        parts["test"] = parts.pop("val")
    for split in ("val", "test"):
        if unknown := sorted(parts.get(split, {}).keys() - parts["train"].keys()):
            raise InputError(f"class {unknown[0]!r} of {str(splits.get(split, root))!r} has no images in train")
    cut = {} if "val" in parts else parts.pop("train")
    rows = [(name, label, split) for split, part in parts.items() for label, names in part.items() for name in names]
    return rows + stratify(cut, root, seed, test=False)

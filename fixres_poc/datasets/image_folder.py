"""A folder of class folders as a table of pictures, split into train, val and test. No torch in here.

Layouts: `<class>/<picture>` (then split here), or `train|val|test/<class>/<picture>`; either may lie one level down.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from fixres_poc.config import InputError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(["val", "valid", "validation"], "val")
TEST_SHARE, VAL_SHARE = 0.30, 0.15
MOST_ASPECT = 100
END_BYTES = 256 * 1024
UNCOMPRESSED = (".bmp", ".tif", ".tiff", ".ppm", ".pgm")
WHITES = {"F": (1, 255, 65535, 2**32 - 1), "I": (65535, 2**31 - 1)}

Row = tuple[str, str, str]
"""Picture (path relative to the folder, with /), class name, split."""
Size = tuple[int, int] | str
"""Width and height in px, or why the picture cannot be read."""


def find(folder: Path, split_seed: int) -> tuple[Path, list[Row]]:
    """List and split the pictures of a folder.

    Args:
        folder: the user's folder.
        split_seed: decides the split where the folder has none.

    Returns:
        The folder that holds the classes (or train, val and test), and one row per picture in order of path.

    Raises:
        InputError: no folder, no pictures, fewer than two classes, or a class too small to split.
    """
    if not folder.is_dir():
        raise InputError(f"dataset {str(folder)!r}: no such folder; allowed: synthetic, stanford_dogs, a folder")
    top = root(folder)
    splits = {SPLITS[each.name.lower()]: each for each in _folders(top) if each.name.lower() in SPLITS}
    if "train" in splits and len(splits) > 1:
        rows = _presplit(top, splits, split_seed)
    else:
        rows = stratify(pictures(top, top), top, split_seed)
    if len({label for _, label, _ in rows}) < 2:
        raise InputError(f"dataset {str(folder)!r}: needs at least two class folders with pictures ({_allowed()})")
    return top, sorted(rows)


def _allowed() -> str:
    return ", ".join(SUFFIXES)


def _folders(folder: Path) -> list[Path]:
    found = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    for each in found:
        if each.is_symlink() and folder.resolve().is_relative_to(each.resolve()):
            raise InputError(f"{each}: a link to a folder that it lies in; remove it")
    return found


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
    has_classes = len(inner) == 1 and any(_folders(inner[0])) and inner[0].name.lower() not in SPLITS
    return inner[0] if has_classes else folder


def pictures(root: Path, folder: Path) -> dict[str, list[str]]:
    """Pictures of class folders: class name -> paths relative to root, sorted; hidden files are passed over.

    Raises:
        InputError: there are none.
    """
    found: dict[str, list[str]] = {}
    for each in _folders(folder):
        names = [file.relative_to(root).as_posix() for file in below(each)]
        if wrong := next((name for name in names if not _is_utf8(name)), None):
            raise InputError(f"{root}/{wrong}: its name is not UTF-8; rename it")
        if names:
            found[each.name] = names
    if not found:
        raise InputError(f"dataset {str(folder)!r}: no pictures found; it needs class folders with {_allowed()} files")
    return found


def below(folder: Path) -> list[Path]:
    """Pictures in a folder by their suffix, however deep, sorted; hidden files are left out."""
    files = (file for file in _files(folder) if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(files, key=Path.as_posix)


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def passed_over(root: Path) -> Counter[str]:
    """What class folders hold besides pictures, and how often: suffixes, links that lead nowhere, empty folders.

    Links that lead nowhere also count where they stand in place of a class folder.
    """
    links = (each for each in root.iterdir() if each.is_symlink() and not each.exists())
    files = chain(links, *(_files(folder) for folder in _folders(root)))
    kinds = ((file.suffix.lower() or "no suffix") if file.is_file() else "broken link or no file" for file in files)
    found = Counter(kind for kind in kinds if kind not in SUFFIXES)
    found["empty folder"] = sum(not (i or names) for each in _folders(root) for _, i, names in os.walk(each))
    return +found


def orientation(picture: Image.Image) -> int:
    """A picture's EXIF orientation, 1 to 8, or the one in its XMP; 1 where there is none that can be read."""
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises errors of many kinds, and says nothing about the pixels
        return 1
    return found if found in range(1, 9) else 1


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture as it is read everywhere: upright by its EXIF orientation, RGB, 8 bits a channel.

    An orientation that cannot be read counts as none. Transparency is dropped, so that the colours under it show. Of
    an animation it is the first frame. Grey values deeper than 8 bits are scaled, where Pillow would clip them: white
    is 65535 for 16 bits, and for 32 bits and floats the smallest of `WHITES` that no value exceeds.
    """
    picture.load()
    upright = ImageOps.exif_transpose(picture) if orientation(picture) > 1 else picture
    if upright.mode == "RGB":
        return upright
    if upright.mode in WHITES or upright.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(upright, dtype=np.float64))
        whites = WHITES.get(upright.mode, (65535,))
        white = next((each for each in whites if values.max() <= each), whites[-1])
        upright = Image.fromarray((np.clip(values / white, 0, 1) * 255).round().astype(np.uint8))
    return upright.convert("RGB")


def stratify(classes: dict[str, list[str]], root: Path, seed: int, test: bool = True) -> list[Row]:
    """Stratified split; pictures with equal bytes stay on one side, and a new picture moves no other class.

    Args:
        classes: class name to paths relative to `root`.
        root: folder of the pictures.
        seed: decides the order in which pictures are handed out.
        test: also cut a test part; False cuts validation from train only.

    Raises:
        InputError: a class with too few different pictures.
    """
    digest_of = digests(root, [name for names in classes.values() for name in names])
    rows: list[Row] = []
    side_of: dict[str, str] = {}
    for label, names in sorted(classes.items()):
        groups: dict[str, list[str]] = defaultdict(list)
        for name in names:
            groups[digest_of[name]].append(name)
        fresh = sorted(groups.keys() - side_of.keys(), key=lambda digest: _rank(seed, digest))
        needed = 3 if test else 2
        if len(groups) < needed:
            what = f"{len(groups)} different picture{'s' if len(groups) > 1 else ''}"
            raise InputError(f"class {label!r} of {str(root)!r} has {what}; at least {needed} are needed to split it")
        n_test = max(1, round(TEST_SHARE * len(fresh))) if test else 0
        n_val = max(1, round(VAL_SHARE * len(fresh)))
        for index, digest in enumerate(fresh):
            side_of[digest] = "test" if index < n_test else "val" if index < n_test + n_val else "train"
        rows += [(name, label, side_of[digest]) for digest, members in groups.items() for name in members]
    return rows


def _rank(seed: int, digest: str) -> str:
    return hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()


def _presplit(root: Path, splits: dict[str, Path], seed: int) -> list[Row]:
    """Rows of a folder that is split already; a part that is missing is cut: val from train, test is val's name."""
    parts = {split: pictures(root, folder) for split, folder in splits.items()}
    if "test" not in parts:
        parts["test"] = parts.pop("val")
    for split in ("val", "test"):
        if unknown := sorted(parts.get(split, {}).keys() - parts["train"].keys()):
            raise InputError(f"class {unknown[0]!r} of {str(splits.get(split, root))!r} has no pictures in train")
    rows = [(name, label, "test") for label, names in parts["test"].items() for name in names]
    if "val" in parts:
        kept = {split: parts[split] for split in ("train", "val")}
        return rows + [(n, label, split) for split, part in kept.items() for label, ns in part.items() for n in ns]
    return rows + stratify(parts["train"], root, seed, test=False)


def digests(root: Path, names: Iterable[str], whole: bool = True) -> dict[str, str]:
    """SHA-256 of every picture's bytes, by its name.

    Args:
        root: folder of the pictures.
        names: paths relative to it.
        whole: False looks at size and both ends of a large compressed picture only: two of equal size differ there,
            and every run of a sweep asks for it, which for photographs of many megabytes would take minutes.
    """

    # Not cached by modification time, which copying tools preserve or renew.
    def digest(name: str) -> tuple[str, str]:
        with open(root / name, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if whole or size <= 2 * END_BYTES or Path(name).suffix.lower() in UNCOMPRESSED:
                return name, hashlib.file_digest(file, "sha256").hexdigest()
            content = hashlib.sha256(file.read(END_BYTES))
            file.seek(-END_BYTES, os.SEEK_END)
            content.update(file.read(END_BYTES))
        return name, f"{size} {content.hexdigest()}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(pool.map(digest, names))


def limit(rows: list[Row], most: int | None, seed: int) -> list[Row]:
    """At most about `most` rows, the same share of every class and split, at least one of each."""
    if most is None or len(rows) <= most:
        return rows
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[1:]].append(row)
    kept: list[Row] = []
    for members in groups.values():
        count = max(1, int(len(members) * most / len(rows)))
        kept += sorted(members, key=lambda row: _rank(seed, row[0]))[:count]
    return sorted(kept)


def measure(root: Path, names: Iterable[str], decode: bool = True) -> Iterator[Size]:
    """Decode every picture once, to find broken ones before hours are spent.

    Args:
        root: folder of the pictures.
        names: paths relative to it.
        decode: False looks at the headers alone.

    Yields:
        For every picture (width, height) in px as it is shown, EXIF orientation applied, or why it cannot be used.
    """

    def size(name: str) -> Size:
        try:
            with Image.open(root / name) as picture:
                width, height = (as_rgb(picture) if decode else picture).size
                if not decode and orientation(picture) > 4:  # on its side, which `as_rgb` has turned
                    width, height = height, width
        except Exception as error:  # damaged files raise errors of many kinds
            reason = str(error).replace(str(root / name), name)
            return f"not a readable picture ({reason or type(error).__name__})"
        if max(width, height) > MOST_ASPECT * min(width, height):
            return f"{width} x {height} px, so one side is more than {MOST_ASPECT} times the other"
        return width, height

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(size, names)

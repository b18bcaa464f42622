"""Images of a folder of class folders, their classes and splits. This module does not import torch.

Layouts: `<class>/<image>`, which is split here, or `<part>/<class>/<image>`; `part` lists the names
of parts. Both may be one level deeper.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import file_digest
from fixres_poc.config.provenance import cores
from fixres_poc.config.settings import NAMED_DATASETS, SPLITS
from fixres_poc.data import decoding

SHARES = {"test": 0.28, "val": 0.22}
"""Shares of plain class folders: of 1,000 images, validation gets the 200 that question 5 needs."""
VALIDATION = {"val": 0.15}
"""Share of the train part if the folder has a test part."""
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
ALLOWED = ", ".join(SUFFIXES)
OF_CAMERAS = (".heic", ".heif", ".avif", ".dng", ".cr2", ".cr3", ".nef", ".arw")
AFFIX = "(?:set|split|data|dataset|images?|imgs?)?"
PART = re.compile(
    f"{AFFIX}(?:(?P<train>train|training)"
    "|(?P<val>val|valid|validation|dev|devel|development|eval|evaluation)"
    f"|(?P<test>test|testing|holdout|heldout)){AFFIX}"
)
# Files of desktops, NAS servers, archives and notebooks; `_kind` also skips hidden files.
SYSTEM = re.compile(
    r"__MACOSX|__pycache__|@eaDir|@Recycle|@Recently-Snapshot|@tmp|#recycle|#snapshot|~snapshot"
    r"|\$RECYCLE\.BIN|System Volume Information|lost\+found|found\.\d+|Network Trash Folder"
    r"|Temporary Items|ehthumbs(_vista)?\.db|Thumbs\.db|desktop\.ini|Icon\r",
    re.IGNORECASE,
)
MOST_REASONS = 8
FOLDER, LINK, IMAGE = "folder", "link to a folder", "image"


class Listing(NamedTuple):
    """The images of a dataset before its split is complete."""

    root: Path
    rows: list[tuple[str, str, str]]  # image (path below the root), class name, split
    cut: Sequence[str]  # splits that are still to be cut from train
    notes: list[str]  # lines for the user about the layout and skipped files


def stratify(
    images: pd.DataFrame, shares: Mapping[str, float], rest: str, root: Path, seed: int
) -> pd.Series:
    """Cut splits from images: the same share of each class, and at least one image of it.

    Images with equal bytes get the same split. A new image changes the split of its class alone.

    Args:
        images: columns label (class name) and digest (of the image's bytes).
        shares: of the splits to cut.
        rest: split of the remaining images.
        root: folder of the images, for errors.

    Returns:
        The split of each row.

    Raises:
        InputError: a class has too few different images that no class before it has.
    """
    unique = images.sort_values("label", kind="stable").drop_duplicates("digest")
    counts = unique["label"].value_counts().reindex(sorted(set(images["label"])), fill_value=0)
    for label, count in counts[counts <= len(shares)].items():
        raise InputError(
            f"class {label!r} of {str(root)!r} has too few different images to be split:"
            f" {count} that no class before it has, at least {len(shares) + 1} are needed"
        )
    unique = unique.set_index("digest")
    unique["rank"] = [_rank(seed, digest) for digest in unique.index]
    ranks = unique.sort_values("rank").groupby("label")["rank"]
    position = ranks.cumcount()
    size = ranks.transform("size")
    splits = pd.Series(rest, index=position.index)
    start = 0 * size
    for split, share in shares.items():
        end = start + (share * size).round().clip(1, size - len(shares))
        splits[(position >= start) & (position < end)] = split
        start = end
    return images["digest"].map(splits)


def limit(table: pd.DataFrame, most: int | None, seed: int) -> pd.DataFrame:
    """About `most` rows at most: the same share of each class and split, and at least one row."""
    if most is None or len(table) <= most:
        return table
    ranked = table.assign(rank=[_rank(seed, image) for image in table["image"]])
    groups = ranked.sort_values("rank").groupby(["label", "split"])["rank"]
    wanted = (groups.transform("size") * most / len(table)).astype(int).clip(lower=1)
    chosen = groups.cumcount() < wanted
    return table[chosen.sort_index()]


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def digests(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of every file, or the size of a file that is too large for an image.

    There is no cache by modification time, because copying tools preserve or renew it.
    """

    def digest(path: Path) -> str:
        size = path.stat().st_size
        return str(file_digest(path) if size <= decoding.MOST_BYTES else size)

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(digest, paths))


def find(folder: Path) -> Listing:
    """List the images of a folder.

    Raises:
        InputError: as `outer_folders`; there are fewer than two classes, or the layout is
            ambiguous.
    """
    top, folders, skipped = outer_folders(folder)
    total = sum(map(len, folders.values()))
    classes = {name: _class_folders(name, images) for name, images in folders.items()}
    parts = [name for name in folders if part(name)]
    if len(parts) > 1 or any(len(classes[name]) > 1 for name in parts):
        listing = _presplit(top, classes)
        for name in folders.keys() - parts:
            skipped[f"in {name}/, which is no known part"] = len(folders[name])
            total -= len(folders[name])
    else:
        _refuse_unknown_parts(top, folders, classes)
        listing = Listing(top, _rows("train", folders), ("val", "test"), [])
    if len({label for _, label, _ in listing.rows}) < 2:
        raise InputError(
            f"dataset {str(folder)!r}: needs at least two class folders with images ({ALLOWED})"
        )
    skipped["outside class folders"] += total - len(listing.rows)
    return listing._replace(notes=listing.notes + skip_notes(top, skipped))


def _rows(split: str, classes: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    return [(image, label, split) for label, images in classes.items() for image in images]


def skip_notes(root: Path, skipped: Counter[str]) -> list[str]:
    """A line about skipped files, from counts by reason; empty if there are none."""
    reasons = [f"{count} {reason}" for reason, count in (+skipped).most_common(MOST_REASONS)]
    if not reasons:
        return []
    return [f"{root}: skipped {skipped.total()} files and folders: {', '.join(reasons)}"]


def part(name: str) -> str | None:
    """The split (train, val or test) that a name such as "Training Set" means; None for others."""
    match = PART.fullmatch(re.sub(r"[\W_]+", "", name.lower()))
    return match and match.lastgroup


def outer_folders(folder: Path) -> tuple[Path, dict[str, list[str]], Counter[str]]:
    """The images of a folder by class or part; the only folder in it may hold these.

    Returns:
        The folder of classes or parts, name of a class or part -> paths below it, and counts of
        skipped files by reason.

    Raises:
        InputError: there is no such folder, or no image in its folders.
    """
    if not folder.is_dir():
        names = ", ".join(["synthetic", *NAMED_DATASETS])
        raise InputError(
            f"dataset {str(folder)!r}: no such folder, nor one of the datasets {names}"
        )
    inner = _folders(folder)
    top = inner[0] if len(inner) == 1 and _folders(inner[0]) else folder
    images, skipped = walk(top)
    by_folder = _by_folder(images)
    if not by_folder:
        raise InputError(
            f"dataset {str(folder)!r}: {len(images) or 'no'} images found, none in a class folder; "
            f"it needs a folder for each class, with {ALLOWED} files"
        )
    skipped["outside class folders"] = len(images) - sum(map(len, by_folder.values()))
    return top, by_folder, skipped


def walk(top: Path) -> tuple[list[str], Counter[str]]:
    """List the images of a folder at any depth; all code lists folders of images with it.

    The function follows links to folders. It reads each folder once, even if links form a circle or
    give it two names.

    Returns:
        Files with a suffix of an image, as sorted paths below the folder, and counts of skipped
        files by reason.

    Raises:
        InputError: a folder cannot be listed, or the name of an image is not UTF-8.
    """
    images = list[str]()
    skipped = Counter[str]()
    queue = deque([""])
    visited = {os.path.realpath(parent) for parent in top.resolve().parents}
    while queue:
        prefix = queue.popleft()
        if (target := os.path.realpath(top / prefix)) in visited:
            skipped["links to folders that are read already"] += 1
            continue
        visited.add(target)
        entries = _entries(top / prefix)
        skipped["empty folders"] += not entries
        for entry in entries:
            name = prefix + entry.name
            kind = _kind(entry)
            if kind == IMAGE:
                images.append(name)
            elif kind == FOLDER:
                queue.appendleft(f"{name}/")
            elif kind == LINK:
                queue.append(f"{name}/")  # last, so that a folder keeps its own name
            else:
                skipped[kind] += 1
    for name in images:
        if name != name.encode(errors="ignore").decode():
            raise InputError(f"{top}/{name}: its name is not UTF-8; rename it")
    return sorted(images), skipped


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from None


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if _kind(entry) in (FOLDER, LINK)]


def _kind(entry: os.DirEntry[str]) -> str:
    """`FOLDER`, `LINK` (to a folder), `IMAGE`, or the reason to skip it."""
    if entry.name.startswith("."):
        return "hidden"
    if SYSTEM.fullmatch(entry.name):
        return "left by other systems"
    if os.path.isdir(entry):
        return LINK if entry.is_symlink() else FOLDER
    if not os.path.isfile(entry):  # this includes circular links and unreadable targets
        return "broken links" if entry.is_symlink() else "no regular files"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in OF_CAMERAS:
        return f"{suffix} (not read: convert to JPEG)"
    return IMAGE if suffix in SUFFIXES else f"{suffix or 'without suffix'} (no image)"


def _by_folder(names: Iterable[str], depth: int = 0) -> dict[str, list[str]]:
    """Images by the folder at a depth of their path, without those in higher folders.

    Names of folders are normalised: file systems write an accented letter as one character or two.
    """
    by_folder = defaultdict(list)
    for name in names:
        folders = name.split("/")[:-1]
        if len(folders) > depth:
            by_folder[unicodedata.normalize("NFC", folders[depth])].append(name)
    return dict(by_folder)


def _class_folders(name: str, names: list[str]) -> dict[str, list[str]]:
    """Class folders in a possible part; archives often contain training/training/<class>."""
    folders = _by_folder(names, 1)
    if len(folders) == 1 and part(*folders) == part(name):
        return _by_folder(names, 2)
    return folders


def _presplit(root: Path, classes: dict[str, dict[str, list[str]]]) -> Listing:
    """List a folder of parts; without a test part, the val part becomes the test part."""
    dataset = f"dataset {str(root)!r}"
    folders = dict[str, str]()  # split -> name of its folder
    for name, class_folders in classes.items():
        if split := part(name):
            if (previous := folders.setdefault(split, name)) != name:
                raise InputError(
                    f"{dataset}: {previous}/ and {name}/ both mean {split}; join them or remove one"
                )
            if not class_folders:
                raise InputError(
                    f"{dataset}: {name}/ is taken for its part {split}, but holds no class folders"
                )
    if "train" not in folders or len(folders) == 1 < len(classes):
        raise InputError(
            f"{dataset}: of {'/, '.join(classes)}/ some are parts of a split;"
            " name parts train, val, test"
        )
    if "test" not in folders and "val" in folders:
        folders["test"] = folders.pop("val")
    train = folders["train"]
    rows = []
    for split, name in folders.items():
        if unknown := sorted(classes[name].keys() - classes[train].keys()):
            raise InputError(f"class {unknown[0]!r} of {str(root / name)!r} has no images in train")
        rows += _rows(split, classes[name])
    cut = [split for split in SPLITS if split not in folders]
    test = f", test is {folders['test']}/" if "test" in folders else ""
    notes = [f"{root}: {' and '.join(cut)} cut from {train}/{test}"] if cut else []
    return Listing(root, rows, cut, notes)


def _refuse_unknown_parts(
    root: Path, folders: dict[str, list[str]], classes: dict[str, dict[str, list[str]]]
) -> None:
    """Refuse folders with equal inner folders: they may be parts with unknown names."""
    count = Counter(inner for inner_folders in classes.values() for inner in inner_folders)
    alike = []
    for name, inner_folders in classes.items():
        shared = [inner for inner in inner_folders if count[inner] > 1]
        if len(shared) > 1 and sum(map(len, inner_folders.values())) == len(folders[name]):
            alike.append(f"{name}/ ({', '.join(shared[:2])})")
    if len(alike) > 1 and 2 * len(alike) >= len(folders):
        raise InputError(
            f"dataset {str(root)!r}: {' and '.join(alike[:2])} hold the same folders:"
            " name parts train, val, test, or put all images of a class into one folder"
        )

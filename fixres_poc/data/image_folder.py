"""A folder of class folders: which images it holds, of which class and split. No torch in here.

Layouts: `<class>/<image>`, which is split here, or `<part>/<class>/<image>` with parts as `part`
knows them. Either may lie one level down.
"""

import hashlib
import os
import re
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
"""Of plain class folders: of 1,000 images validation gets the 200 that question 5 needs."""
VALIDATION = {"val": 0.15}
"""Of a train part that has a test part beside it."""
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
AFFIX = "(?:set|split|data|dataset|images?|imgs?)?"
PART = re.compile(
    f"{AFFIX}(?:(?P<train>train|training)"
    "|(?P<val>val|valid|validation|dev|devel|development|eval|evaluation)"
    f"|(?P<test>test|testing|holdout|heldout)){AFFIX}"
)
# What desktops, NAS servers, archives and notebooks leave beside a user's files; hidden are also
# names with a dot.
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
    # image (path relative to the root, with /), class name, split
    rows: list[tuple[str, str, str]]
    cut: Sequence[str]  # splits that are still to be cut from train
    notes: list[str]  # lines for the user: how the folder was read, and what was skipped


def stratify(
    images: pd.DataFrame, shares: Mapping[str, float], rest: str, root: Path, seed: int
) -> pd.Series:
    """Cut splits from images, the same share of each class, and at least one image.

    Images with equal bytes stay on one side, and a new image moves no other class.

    Args:
        images: columns label (class name) and digest (of the image's bytes).
        shares: of the splits to cut; the others are in split `rest`.

    Returns:
        The split of each row.

    Raises:
        InputError: a class with too few different images.
    """
    different = images.groupby("label")["digest"].nunique()
    for label, number in different[different <= len(shares)].items():
        raise InputError(
            f"class {label!r} of {str(root)!r} has too few different images to be split:"
            f" {number}, at least {len(shares) + 1} are needed"
        )
    fresh = images.sort_values("label", kind="stable").drop_duplicates("digest").set_index("digest")
    fresh["rank"] = [_rank(seed, digest) for digest in fresh.index]
    ranks = fresh.sort_values("rank").groupby("label")["rank"]
    place, size = ranks.cumcount(), ranks.transform("size")
    side, start = pd.Series(rest, index=place.index), 0 * size
    for split, share in shares.items():
        end = start + (share * size).round().clip(1, size - len(shares))
        side[(place >= start) & (place < end)] = split
        start = end
    return images["digest"].map(side)


def limit(table: pd.DataFrame, most: int | None, seed: int) -> pd.DataFrame:
    """At most about `most` rows, the same share of every class and split, at least one of each."""
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
    """SHA-256 of every file; of one that is too large for an image, such as a sparse one, its size.

    Not cached by modification time, which copying tools preserve or renew.
    """

    def digest(path: Path) -> str:
        size = path.stat().st_size
        return str(file_digest(path) if size <= decoding.MOST_BYTES else size)

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(digest, paths))


def find(folder: Path) -> Listing:
    """List the images of a folder.

    Raises:
        InputError: as `outer_folders`, fewer than two classes, or a layout that can be read in two
            ways.
    """
    top, held, skipped = outer_folders(folder)
    total = sum(map(len, held.values()))
    classes = {name: _class_folders(name, own) for name, own in held.items()}
    parts = [name for name in held if part(name)]
    if len(parts) > 1 or any(len(classes[name]) > 1 for name in parts):
        found = _presplit(top, classes)
        for name in held.keys() - parts:
            skipped[f"in {name}/, which is no known part"] = len(held[name])
            total -= len(held[name])
    else:
        _refuse_unknown_parts(top, held, classes)
        found = Listing(top, _rows("train", held), ("val", "test"), [])
    if len({label for _, label, _ in found.rows}) < 2:
        raise InputError(
            f"dataset {str(folder)!r}: needs at least two class folders with images ({ALLOWED})"
        )
    skipped["outside class folders"] += total - len(found.rows)
    return found._replace(notes=found.notes + told(top, skipped))


def _rows(split: str, classes: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    return [(image, label, split) for label, own in classes.items() for image in own]


def told(root: Path, skipped: Counter[str]) -> list[str]:
    """One line about what was skipped in a folder, from reasons to numbers, if anything was."""
    shown = [f"{count} {reason}" for reason, count in (+skipped).most_common(MOST_REASONS)]
    line = f"{root}: skipped {skipped.total()} files and folders: {', '.join(shown)}"
    return [line] if shown else []


def part(name: str) -> str | None:
    """The part (train, val or test) that a folder's name such as "Training Set" means, or None."""
    match = PART.fullmatch(re.sub(r"[\W_]+", "", name.lower()))
    return match and match.lastgroup


def outer_folders(folder: Path) -> tuple[Path, dict[str, list[str]], Counter[str]]:
    """The images of a folder by the classes or parts in it, or in the only folder in it.

    Returns:
        The folder of classes or parts, name of a class or part -> paths relative to it, and how
        much was skipped, by reason.

    Raises:
        InputError: no such folder, or no images in its folders.
    """
    if not folder.is_dir():
        names = ", ".join(["synthetic", *NAMED_DATASETS])
        raise InputError(
            f"dataset {str(folder)!r}: no such folder, nor one of the datasets {names}"
        )
    inner = _folders(folder)
    top = inner[0] if len(inner) == 1 and _folders(inner[0]) else folder
    images, skipped = walk(top)
    found = _by_folder(images)
    if not found:
        raise InputError(
            f"dataset {str(folder)!r}: no images found; it needs class folders with {ALLOWED} files"
        )
    skipped["outside class folders"] = len(images) - sum(map(len, found.values()))
    return top, found, skipped


def walk(top: Path) -> tuple[list[str], Counter[str]]:
    """List a folder, however deep: the one place where folders of images are listed.

    Links to folders are followed, but no folder is read twice: neither in a circle, nor under two
    names.

    Returns:
        Images by their suffix, as paths relative to the folder, sorted; and how much was skipped,
        by reason.

    Raises:
        InputError: a folder that cannot be listed, or an image whose name is not UTF-8.
    """
    found, skipped, waiting = list[str](), Counter[str](), deque([""])
    seen = {os.path.realpath(each) for each in top.resolve().parents}
    while waiting:
        place = waiting.popleft()
        if (target := os.path.realpath(top / place)) in seen:
            skipped["links to folders that are read already"] += 1
            continue
        seen.add(target)
        entries = _listing(top / place)
        skipped["empty folders"] += not entries
        for entry in entries:
            name, kind = f"{place}{entry.name}", _kind(entry)
            if kind == IMAGE:
                found.append(name)
            elif kind == FOLDER:
                waiting.appendleft(f"{name}/")
            elif kind == LINK:
                waiting.append(f"{name}/")  # links last: a folder keeps its own name
            else:
                skipped[kind] += 1
    for wrong in (name for name in found if name != name.encode(errors="ignore").decode()):
        raise InputError(f"{top}/{wrong}: its name is not UTF-8; rename it")
    return sorted(found), skipped


def _listing(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from None


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _listing(folder) if _kind(entry) in (FOLDER, LINK)]


def _kind(entry: os.DirEntry[str]) -> str:
    """`FOLDER`, `LINK` (to a folder), `IMAGE`, or the reason to skip it."""
    if entry.name.startswith("."):
        return "hidden"
    if SYSTEM.fullmatch(entry.name):
        return "left by other systems"
    if os.path.isdir(entry):
        return LINK if entry.is_symlink() else FOLDER
    if not os.path.isfile(entry):  # also a link in a circle, or to where nothing may be read
        return "broken links" if entry.is_symlink() else "no regular files"
    suffix = os.path.splitext(entry.name)[1].lower()
    return IMAGE if suffix in SUFFIXES else f"{suffix or 'without suffix'} (no image)"


def _by_folder(names: Iterable[str], depth: int = 0) -> dict[str, list[str]]:
    """Images by the folder at a depth of their path; those that lie higher are left out."""
    found = defaultdict(list)
    for name in names:
        if len(parts := name.split("/", depth + 1)) > depth + 1:
            found[parts[depth]].append(name)
    return dict(found)


def _class_folders(name: str, names: list[str]) -> dict[str, list[str]]:
    """Class folders in what may be a part; archives often hold training/training/<class>."""
    found = _by_folder(names, 1)
    return _by_folder(names, 2) if len(found) == 1 and part(*found) == part(name) else found


def _presplit(root: Path, classes: dict[str, dict[str, list[str]]]) -> Listing:
    """List a folder that is split already; val is the test part where no test is there."""
    where, folders = f"dataset {str(root)!r}", dict[str, str]()
    for name, found in classes.items():
        if meant := part(name):
            if (other := folders.setdefault(meant, name)) != name:
                raise InputError(
                    f"{where}: {other}/ and {name}/ both mean {meant}; join them or remove one"
                )
            if not found:
                raise InputError(
                    f"{where}: {name}/ is taken for its part {meant}, but holds no class folders"
                )
    if "train" not in folders or len(folders) == 1 < len(classes):
        raise InputError(
            f"{where}: of {'/, '.join(classes)}/ some are parts of a split;"
            " name parts train, val, test"
        )
    if "test" not in folders and "val" in folders:
        folders["test"] = folders.pop("val")
    train, cut = folders["train"], [split for split in SPLITS if split not in folders]
    rows = []
    for split, name in folders.items():
        if unknown := sorted(classes[name].keys() - classes[train].keys()):
            raise InputError(f"class {unknown[0]!r} of {str(root / name)!r} has no images in train")
        rows += _rows(split, classes[name])
    tested = f", test is {folders['test']}/" if "test" in folders else ""
    notes = [f"{root}: {' and '.join(cut)} cut from {train}/{tested}"] if cut else []
    return Listing(root, rows, cut, notes)


def _refuse_unknown_parts(
    root: Path, held: dict[str, list[str]], classes: dict[str, dict[str, list[str]]]
) -> None:
    """Refuse folders that hold the same folders: perhaps parts of unknown names, and no classes."""
    count = Counter(inner for found in classes.values() for inner in found)
    alike = []
    for name, found in classes.items():
        shared = [inner for inner in found if count[inner] > 1]
        if len(shared) > 1 and sum(map(len, found.values())) == len(held[name]):
            alike.append(f"{name}/ ({', '.join(shared[:2])})")
    if len(alike) > 1 and 2 * len(alike) >= len(held):
        raise InputError(
            f"dataset {str(root)!r}: {' and '.join(alike[:2])} hold the same folders:"
            " name parts train, val, test, or put all images of a class into one folder"
        )

"""A folder of class folders as a table of images, split into train, val and test. No torch in here.

Layouts: `<class>/<image>`, which is split here, or `<part>/<class>/<image>` with parts as `part` knows them. Either may
lie one level down.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import NAMED_DATASETS
from fixres_poc.data.sources.splitting import Row, stratify

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
ALLOWED = ", ".join(SUFFIXES)
AFFIX = "(?:set|split|data|dataset|images?|imgs?)?"
PART = re.compile(
    f"{AFFIX}(?:(?P<train>train|training)|(?P<val>val|valid|validation|dev|devel|development|eval|evaluation)"
    f"|(?P<test>test|testing|holdout|heldout)){AFFIX}"
)
# What desktops, NAS servers, archives and notebooks leave beside a user's files; hidden are also names with a dot.
SYSTEM = re.compile(
    r"__MACOSX|__pycache__|@eaDir|@Recycle|@Recently-Snapshot|@tmp|#recycle|#snapshot|~snapshot|\$RECYCLE\.BIN"
    r"|System Volume Information|lost\+found|found\.\d+|Network Trash Folder|Temporary Items|ehthumbs(_vista)?\.db"
    r"|Thumbs\.db|desktop\.ini|Icon\r",
    re.IGNORECASE,
)
MOST_REASONS = 8
FOLDER, LINK, IMAGE = "folder", "link to a folder", "image"


def find(folder: Path, split_seed: int) -> tuple[Path, list[Row], list[str]]:
    """List and split the images of a folder; the seed decides the split where the folder has none.

    Returns:
        The folder that holds the classes or the parts, one row per image in order of path, and lines for the user: how
        the folder was read, and what was skipped.

    Raises:
        InputError: no folder, no images, fewer than two classes, a class too small to split, or a layout that can be
            read in two ways.
    """
    if not folder.is_dir():
        raise InputError(
            f"dataset {str(folder)!r}: no such folder; allowed: synthetic, {', '.join(NAMED_DATASETS)}, a folder"
        )
    top = root(folder)
    names, skipped = walk(top)
    held = _by_folder(names)
    classes = {name: _class_folders(name, own) for name, own in held.items()}
    parts = {name: found for name, found in classes.items() if part(name)}
    notes: list[str] = []
    if len(parts) > 1 or any(len(found) > 1 for found in parts.values()):
        others = [name for name in held if name not in parts]
        rows, notes = _presplit(top, parts, others, split_seed)
        skipped.update({f"in {name}/, which is no known part": len(held[name]) for name in others})
        names = [name for name in names if name.split("/")[0] not in others]
    else:
        _refuse_unknown_parts(top, held, classes)
        rows = stratify(images(top, names), top, split_seed)
    if len({label for _, label, _ in rows}) < 2:
        raise InputError(f"dataset {str(folder)!r}: needs at least two class folders with images ({ALLOWED})")
    skipped["outside class folders"] = len(names) - len(rows)
    return top, sorted(rows), notes + told(top, skipped)


def told(root: Path, skipped: Counter[str]) -> list[str]:
    """One line about what was skipped in a folder, from reasons to numbers; none where nothing was."""
    reasons = (+skipped).most_common()
    shown = [f"{count} {reason}" for reason, count in reasons[:MOST_REASONS]]
    rest = sum(count for _, count in reasons[MOST_REASONS:])
    return [f"{root}: skipped {', '.join(shown + [f'{rest} for other reasons'] * bool(rest))}"] if reasons else []


def part(name: str) -> str | None:
    """The part of a split (train, val or test) that a folder's name means, as "Training Set" does; None for others."""
    match = PART.fullmatch(re.sub(r"[\W_]+", "", name.lower()))
    return match and match.lastgroup


def root(folder: Path) -> Path:
    """The folder that holds the classes or the parts: the given one, or the only one in it where that has folders."""
    inner = _folders(folder)
    return inner[0] if len(inner) == 1 and _folders(inner[0]) else folder


def images(root: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Images by class folder, from what `walk` found in a folder: class name -> paths relative to the folder, sorted.

    Raises:
        InputError: there are none.
    """
    if not (found := _by_folder(names)):
        raise InputError(f"dataset {str(root)!r}: no images found; it needs class folders with {ALLOWED} files")
    return found


def below(folder: Path) -> list[Path]:
    """Images in a folder by their suffix, however deep, sorted."""
    return [folder / name for name in walk(folder)[0]]


def walk(top: Path) -> tuple[list[str], Counter[str]]:
    """List a folder, however deep: the one place where folders of images are listed.

    Links to folders are followed, but no folder is read twice: neither in a circle, nor under two names.

    Returns:
        Images by their suffix, as paths relative to the folder, sorted; and how much was skipped, by reason.

    Raises:
        InputError: a folder that cannot be listed, or an image whose name is not UTF-8.
    """
    found, skipped, folders, links = list[str](), Counter[str](), [""], list[str]()
    seen = {(each.stat().st_dev, each.stat().st_ino) for each in top.resolve().parents}
    while folders or links:
        place = folders.pop() if folders else links.pop(0)  # links last: a folder keeps its own name
        identity, entries = _listing(top / place)
        if identity in seen:
            skipped["links to folders that are read already"] += 1
            continue
        seen.add(identity)
        skipped["empty folders"] += not entries
        for entry in entries:
            name, kind = f"{place}{entry.name}", _kind(entry)
            if kind in (FOLDER, LINK):
                (folders if kind == FOLDER else links).append(f"{name}/")
            elif kind == IMAGE:
                found.append(name)
            else:
                skipped[kind] += 1
    for wrong in (name for name in found if name != name.encode(errors="ignore").decode()):
        raise InputError(f"{top}/{wrong}: its name is not UTF-8; rename it")
    return sorted(found), skipped


def _listing(folder: Path) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """Device and inode of a folder, which tell it from others whatever its name, and what it holds."""
    try:
        status = folder.stat()
        return (status.st_dev, status.st_ino), sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from None


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _listing(folder)[1] if _kind(entry) in (FOLDER, LINK)]


def _kind(entry: os.DirEntry[str]) -> str:
    """`FOLDER`, `LINK` (to a folder), `IMAGE`, or the reason to skip it."""
    if entry.name.startswith("."):
        return "hidden"
    if SYSTEM.fullmatch(entry.name):
        return "left by other systems"
    try:
        if entry.is_dir():
            return LINK if entry.is_symlink() else FOLDER
        if not entry.is_file():
            return "broken links" if entry.is_symlink() else "no regular files"
    except OSError:  # a link in a circle, or to where nothing may be read
        return "broken links"
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
    """Class folders in a folder that may be a part; unpacked archives often hold training/training/<class>."""
    found = _by_folder(names, 1)
    return _by_folder(names, 2) if len(found) == 1 and part(*found) == part(name) else found


def _parts(root: Path, found: dict[str, dict[str, list[str]]], others: list[str]) -> dict[str, str]:
    """Which folder is which part of the split, from the class folders in each."""
    where, folders = f"dataset {str(root)!r}", dict[str, str]()
    for name, classes in found.items():
        if (other := folders.setdefault(str(part(name)), name)) != name:
            raise InputError(f"{where}: {other}/ and {name}/ both mean {part(name)}; join them or remove one")
        if not classes:
            raise InputError(f"{where}: {name}/ is taken for its part {part(name)}, but holds no class folders")
    if "train" not in folders or (others and len(folders) == 1):
        what = "there is no train" if "train" not in folders else f"{others[0]}/ is not"
        raise InputError(f"{where}: {name}/ is a part of a split, but {what}; name parts train, val, test")
    return folders


def _presplit(
    root: Path, found: dict[str, dict[str, list[str]]], others: list[str], seed: int
) -> tuple[list[Row], list[str]]:
    """Rows of a folder that is split already; a part that is missing is cut: val from train, test is val's name."""
    folders, notes = _parts(root, found, others), list[str]()
    parts = {split: found[name] for split, name in folders.items()}
    if len(parts) == 1:
        return stratify(parts["train"], root, seed), [f"{root}: only {folders['train']}/ holds images; it is split"]
    if "test" not in parts:
        notes = [f"{root}: no part for test; {folders['val']}/ is the test part, and val is cut from train"]
        folders["test"], parts["test"] = folders["val"], parts.pop("val")
    elif "val" not in parts:
        notes = [f"{root}: no part for val; it is cut from {folders['train']}/"]
    for split in parts:
        if unknown := sorted(parts[split].keys() - parts["train"].keys()):
            raise InputError(f"class {unknown[0]!r} of {str(root / folders[split])!r} has no images in train")
    cut = {} if "val" in parts else parts.pop("train")
    rows = [(name, label, split) for split, own in parts.items() for label, names in own.items() for name in names]
    return rows + stratify(cut, root, seed, test=False), notes


def _refuse_unknown_parts(root: Path, held: dict[str, list[str]], classes: dict[str, dict[str, list[str]]]) -> None:
    """Refuse folders that hold the same folders: they may be parts of unknown names, and would be taken for classes."""
    count = Counter(inner for found in classes.values() for inner in found)
    nested = [name for name, found in classes.items() if sum(map(len, found.values())) == len(held[name])]
    alike = [name for name in nested if sum(count[inner] > 1 for inner in classes[name]) > 1]
    if len(alike) > 1 and 2 * len(alike) >= len(held):
        inner = " and ".join(list(classes[alike[0]])[:2])
        raise InputError(
            f"dataset {str(root)!r}: {alike[0]}/ and {alike[1]}/ both hold {inner}: name parts train, val, test, or put"
            " all images of a class into one folder"
        )

"""Which images train, validate and test. No torch in here."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fixres_poc.config.errors import InputError
from fixres_poc.config.provenance import cores
from fixres_poc.data import decoding

TEST_SHARE, VAL_SHARE = 0.30, 0.15
END_BYTES = 256 * 1024
UNCOMPRESSED = (".bmp", ".tif", ".tiff", ".ppm", ".pgm")
Row = tuple[str, str, str]  # image (path relative to the folder, with /), class name, split


def stratify(classes: dict[str, list[str]], root: Path, seed: int, test: bool = True) -> list[Row]:
    """Stratified split; images with equal bytes stay on one side, and a new image moves no other class.

    Args:
        classes: class name to paths relative to `root`.
        test: False cuts validation from train only.

    Raises:
        InputError: a class with too few different images.
    """
    every = [name for names in classes.values() for name in names]
    digest_of = dict(zip(every, digests(root / name for name in every), strict=True))
    rows: list[Row] = []
    side_of: dict[str, str] = {}
    for label, names in sorted(classes.items()):
        own, needed = {digest_of[name] for name in names}, 3 if test else 2
        fresh = sorted(own - side_of.keys(), key=lambda digest: _rank(seed, digest))
        if len(own) < needed:
            what = f"{len(own)} different image{'s' if len(own) > 1 else ''}"
            raise InputError(f"class {label!r} of {str(root)!r} has {what}; at least {needed} are needed to split it")
        n_test = max(1, round(TEST_SHARE * len(fresh))) if test else 0
        n_val = max(1, round(VAL_SHARE * len(fresh)))
        for index, digest in enumerate(fresh):
            side_of[digest] = "test" if index < n_test else "val" if index < n_test + n_val else "train"
        rows += [(name, label, side_of[digest_of[name]]) for name in names]
    return rows


def _rank(seed: int, digest: str) -> str:
    return hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()


def digests(paths: Iterable[Path], whole: bool = True) -> list[str]:
    """SHA-256 of every image's bytes.

    `whole` False looks at size and both ends of a large compressed image only: two of equal size differ there, and
    every run of a sweep asks for it, which for photographs of many megabytes would take minutes. Of a file that is too
    large for an image, such as a sparse one, no more than that is ever read.
    """

    # Not cached by modification time, which copying tools preserve or renew.
    def digest(path: Path) -> str:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            every_byte = whole or path.suffix.lower() in UNCOMPRESSED
            if size <= (decoding.MOST_BYTES if every_byte else 2 * END_BYTES):
                return hashlib.file_digest(file, "sha256").hexdigest()
            content = hashlib.sha256(file.read(END_BYTES))
            file.seek(-END_BYTES, os.SEEK_END)
            content.update(file.read(END_BYTES))
        return f"{size} {content.hexdigest()}"

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(digest, paths))


def limit(rows: list[Row], most: int | None, seed: int) -> list[Row]:
    """At most about `most` rows, the same share of every class and split, at least one of each."""
    if most is None or len(rows) <= most:
        return rows
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: _rank(seed, row[0])):
        groups[row[1:]].append(row)
    return sorted(row for part in groups.values() for row in part[: max(1, int(len(part) * most / len(rows)))])

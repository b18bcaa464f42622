"""Leakage between the parts of a dataset and from ImageNet, by names, bytes and appearance.

A difference hash (dHash) of 256 bits finds nearly equal images: each bit tells whether the grey
image, shrunk to 17 x 16, gets brighter from one pixel to the next. The hash is stable under other
sizes, compression and brightness, but not under crops and mirror images.
"""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import imagehash
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import resolve
from fixres_poc.config.provenance import cores
from fixres_poc.config.run_state import bar
from fixres_poc.data import decoding
from fixres_poc.data.dataset import ImageDataset

HASH_SIDE = 16
BITS = HASH_SIDE**2
NEAR_BITS = 10
# px, 16 times 17 x 16; the hash of a JPEG decoded at this size or more differs in at most 5 bits
DRAFT = (272, 256)
PLAIN_BITS = 26  # with fewer bits of one kind an image has too little detail for a comparison
BLOCK = 512
MOST_LISTED = 1000
LONGEST_LINE = 10_000  # characters; longer lines are read in pieces
NAMED_ALIKE = 0.05  # share of images that may have names like ImageNet's by chance
TRAINING_NAME = re.compile(r"n\d{8}_\d+")


def difference_hashes(data: ImageDataset) -> np.ndarray:
    """The dHash of every image, booleans (N, 256).

    Raises:
        InputError: an image is unreadable.
    """
    with ThreadPoolExecutor(cores()) as pool:
        hashes = pool.map(_difference_hash, data.paths)
        rows = list(bar(hashes, "looking for duplicates", len(data.table)))
    return np.array(rows).reshape(-1, BITS)


def _difference_hash(path: Path) -> np.ndarray:
    with decoding.opened(path) as image:
        image.draft("L", DRAFT)
        return np.ravel(imagehash.dhash(decoding.as_rgb(image), hash_size=HASH_SIDE).hash)


@dataclass(frozen=True)
class NearDuplicates:
    """Counts of pairs of images with different bytes whose hashes differ in at most 10 bits."""

    pairs: int = 0
    across_split: int = 0  # pairs in two of train, val and test parts
    across_classes: int = 0  # pairs in two classes
    plain: int = 0  # images with too little detail for a comparison, such as those of one colour
    # pairs across the split or across classes, at most 1,000: two images and the differing bits
    listed: tuple[tuple[str, str, int], ...] = ()
    # images of test parts that chains of equal or nearly equal pairs connect
    groups: tuple[tuple[str, ...], ...] = ()


def near_duplicates(data: ImageDataset, hashes: np.ndarray) -> tuple[NearDuplicates, set[str]]:
    """Compare all images with each other; pairs with equal bytes do not count.

    Args:
        hashes: of the images, booleans (N, 256).

    Returns:
        The counts, and the images of test parts that have a near duplicate in train or val.
    """
    ones = hashes.sum(axis=1)
    detailed = np.minimum(ones, BITS - ones) >= PLAIN_BITS
    table = _with_tested(data)[detailed].reset_index(drop=True)
    counts = np.zeros(3, dtype=int)
    listed: list[tuple[str, str, int]] = []
    twins: set[str] = set()
    alike = coo_array((len(table), len(table)), dtype=bool)
    for pairs in _close_pairs(hashes[detailed]):
        pairs = pairs.join(table, on="first").join(table.add_suffix("_second"), on="second")
        both = pairs[pairs["tested"] & pairs["tested_second"]]
        indices = (both["first"], both["second"])
        alike += coo_array((np.ones(len(both), dtype=bool), indices), shape=alike.shape)
        pairs = pairs[pairs["digest"] != pairs["digest_second"]]
        tested = pairs["tested"] & pairs["tested_second"]
        across_split = (pairs["split"] != pairs["split_second"]) & ~tested
        across_classes = pairs["label"] != pairs["label_second"]
        counts += [len(pairs), across_split.sum(), across_classes.sum()]
        doubtful = pairs.loc[across_split | across_classes, ["image", "image_second", "bits"]]
        listed += doubtful.head(MOST_LISTED - len(listed)).itertuples(index=False, name=None)
        leaks = pairs[across_split]
        twins |= {*leaks["image"][leaks["tested"]], *leaks["image_second"][leaks["tested_second"]]}
    components = table["image"].groupby(connected_components(alike)[1])
    groups = tuple(tuple(images) for _, images in components if len(images) > 1)
    plain = int((~detailed).sum())
    duplicates = NearDuplicates(*counts.tolist())
    return replace(duplicates, plain=plain, listed=tuple(listed), groups=groups), twins


def _with_tested(data: ImageDataset) -> pd.DataFrame:
    """The table with a column that marks the images of test parts."""
    return data.table.assign(tested=~data.table["split"].isin(["train", "val"]))


def _close_pairs(hashes: np.ndarray) -> Iterator[pd.DataFrame]:
    """Row numbers of close pairs, first < second, and the number of differing bits."""
    # With signs for bits, a matrix product gives equal minus unequal bits, exactly in float32.
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    for start in range(0, max(1, len(signs)), BLOCK):
        differing = (BITS - signs[start : start + BLOCK] @ signs[start:].T) / 2
        first, second = np.nonzero(np.triu(differing <= NEAR_BITS, 1))
        bits = differing[first, second].astype(int)
        yield pd.DataFrame({"first": first + start, "second": second + start, "bits": bits})


@dataclass(frozen=True)
class Leakage:
    """Results of the audit; shares are in [0, 1]."""

    # by val and test part: share of images in the given list of ImageNet's training images or,
    # without a list, with names of their form, as in Stanford Dogs
    in_imagenet: Mapping[str, float]
    by_list: bool = False
    # by part: whether pre-training on ImageNet has seen images of it; None: unknown
    flagged: Mapping[str, bool | None] = field(default_factory=dict)
    # images with equal bytes in more than one of train, val and test
    across_split: tuple[tuple[str, ...], ...] = ()
    across_classes: tuple[tuple[str, ...], ...] = ()  # images with equal bytes in several classes
    near: NearDuplicates = NearDuplicates()
    # share of the images of all test parts that have an equal or nearly equal one in train or val
    twins: float = 0.0

    def summary(self) -> pd.DataFrame:
        """One row per check, with its result."""
        how = "in the list" if self.by_list else "names"
        rows = {  # pandas cuts what is longer than 50 characters
            f"{part}: {how} of ImageNet's training images": f"{share:.1%}"
            for part, share in self.in_imagenet.items()
        } | {
            "equal images in more than one split": f"{len(self.across_split)}",
            "equal images in two classes": f"{len(self.across_classes)}",
            f"nearly equal pairs (at most {NEAR_BITS} of {BITS} bits)": f"{self.near.pairs}",
            "nearly equal pairs in two splits": f"{self.near.across_split}",
            "nearly equal pairs in two classes": f"{self.near.across_classes}",
            "test images with such a twin in train or val": f"{self.twins:.1%}",
            "images too plain to be compared": f"{self.near.plain}",
        }
        return pd.DataFrame({"check": rows.keys(), "found": rows.values()})

    def verdict(self) -> str:
        """A few sentences for a reader."""
        where = "more than one of train, val and test"
        leaks = _same_images(len(self.across_split), self.near.across_split, where)
        if leaks:
            leaks += (
                f" That is {self.twins:.1%} of the test images,"
                " and accuracies can be too high by up to that."
            )
        warning = f"{self._seen()} {leaks}".strip()
        text = "**No sign of leakage** in names, bytes or near duplicates."
        if warning:
            text = f"**Warning: leakage.** {warning}"
        labels = _same_images(len(self.across_classes), self.near.across_classes, "two classes")
        if labels:
            text += f" **Doubtful labels.** {labels}"
        return text

    def _seen(self) -> str:
        parts = [part for part, seen in self.flagged.items() if seen]
        if not parts:
            return ""
        shares = " and ".join(
            f"{self.in_imagenet[part]:.1%} of the {part} images" for part in parts
        )
        how = "are, by name, in the given list of" if self.by_list else "are named like"
        chosen = " All choices are made on such images." if "val" in parts else ""
        return (
            f"{shares} {how} ImageNet *training* images."
            " A backbone pre-trained on ImageNet (and no other) has seen them with their labels:"
            f" accuracies are optimistic; compare rows with each other only.{chosen}"
        )

    def record(self) -> dict[str, Any]:
        """The results and the verdict as JSON values."""
        return asdict(self) | {"verdict": self.verdict()}


def _same_images(equal: int, near: int, where: str) -> str:
    counts = {"byte for byte equal": equal, "nearly equal": near}
    text = " and ".join(f"{count} {how}" for how, count in counts.items() if count)
    return f"The same images occur in {where}: {text}." if text else ""


def check_leakage(
    data: ImageDataset, imagenet_list: str | None = None, drawn: bool = False
) -> Leakage:
    """Check names, bytes and appearance of a dataset's images; this decodes every image once.

    Args:
        imagenet_list: text file of ImageNet's training images (see `training_images`).
        drawn: this project drew the dataset's own images, so no network has seen them.

    Raises:
        InputError: as `training_images`; an image is unreadable.
    """
    known = training_images(imagenet_list) if imagenet_list else None
    shares: dict[str, float] = {}
    flagged: dict[str, bool | None] = {}
    for part in ("val", *data.test_parts):
        rows = data.only(part)
        stems = rows.table["image"].map(_stem)
        seen = stems.isin(known) if known else stems.map(TRAINING_NAME.fullmatch).notna()
        shares[part] = float(seen.mean())
        checked = known is not None or (drawn and not rows.from_extra.any())
        flagged[part] = False if checked else None
        if shares[part] > (0 if known else NAMED_ALIKE):
            flagged[part] = True
    near, twins = near_duplicates(data, difference_hashes(data))
    table = _with_tested(data)
    equal = table[table.duplicated("digest", keep=False)].groupby("digest", sort=False)
    groups = [group for _, group in equal]
    apart = [
        group for group in groups if group["split"].nunique() > 1 and not group["tested"].all()
    ]
    mixed = [group for group in groups if group["label"].nunique() > 1]
    twins.update(*(group["image"][group["tested"]] for group in apart))
    return Leakage(
        in_imagenet=shares,
        by_list=known is not None,
        flagged=flagged,
        across_split=tuple(tuple(group["image"]) for group in apart),
        across_classes=tuple(tuple(group["image"]) for group in mixed),
        near=near,
        twins=len(twins) / int(table["tested"].sum()),
    )


def training_images(imagenet_list: str) -> set[str]:
    """Read names of ImageNet's training images, without folders and suffix, from a list.

    The list is a text file with one image a line, such as `n02088364_1234`, with or without folders
    and suffix. Text after a space or a comma is ignored, as in the lists of ImageNet and Kaggle.

    Raises:
        InputError: the file is missing or unreadable, or has no name of that form.
    """
    file = resolve(imagenet_list)
    try:
        if not file.is_file():
            raise OSError("no such file, or no regular one")
        with file.open(encoding="utf-8-sig") as text:
            lines = iter(lambda: text.readline(LONGEST_LINE), "")
            stems = (_stem(re.split(r"[\s,]", line.strip(), maxsplit=1)[0]) for line in lines)
            names = set(filter(TRAINING_NAME.fullmatch, stems))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"imagenet_list = {imagenet_list!r}: cannot be read ({error})") from None
    if not names:
        raise InputError(
            f"imagenet_list = {imagenet_list!r}: no name like n02088364_1234 in it,"
            " one a line is needed"
        )
    return names


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem

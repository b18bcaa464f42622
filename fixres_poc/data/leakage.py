"""Leakage between the parts of a dataset, and from ImageNet: by names, bytes and looks.

Nearly equal images are found by a difference hash (dHash): whether the grey image, shrunk to
17 x 16, gets brighter from each place to the next, 256 bits. It survives another size, compression
or brightness, but neither crop nor mirror.
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
# px, 16 times 17 x 16; JPEGs decoded no smaller have a hash at most 5 bits from the full one's
DRAFT = (272, 256)
# an image with fewer bits of one kind has too little in it to be told from others like it
PLAIN_BITS = 26
BLOCK = 512
MOST_LISTED = 1000
LONGEST_LINE = 10_000  # characters; a longer one is read in pieces
NAMED_ALIKE = 0.05  # share of images with names like ImageNet's that may be chance
TRAINING_NAME = re.compile(r"n\d{8}_\d+")


def difference_hashes(data: ImageDataset) -> np.ndarray:
    """The dHash of every image, booleans (N, 256).

    Raises:
        InputError: an image that cannot be decoded, named.
    """
    with ThreadPoolExecutor(cores()) as pool:
        found = pool.map(_difference_hash, data.paths)
        hashes = list(bar(found, "looking for duplicates", len(data.table)))
    return np.array(hashes).reshape(-1, BITS)


def _difference_hash(path: Path) -> np.ndarray:
    with decoding.opened(path) as image:
        image.draft("L", DRAFT)
        return np.ravel(imagehash.dhash(decoding.as_rgb(image), hash_size=HASH_SIDE).hash)


@dataclass(frozen=True)
class NearDuplicates:
    """Numbers of pairs of images with different bytes whose hashes differ in at most 10 bits."""

    pairs: int = 0
    across_split: int = 0  # pairs that stand in two of train, val and test parts
    across_classes: int = 0  # pairs that stand in two classes
    plain: int = 0  # images without enough in them to be compared, such as those of one colour
    # the pairs across the split or across classes, at most 1,000: two images and the number of bits
    listed: tuple[tuple[str, str, int], ...] = ()
    # images of test parts that are equal or nearly equal to one another, maybe through others
    groups: tuple[tuple[str, ...], ...] = ()


def near_duplicates(data: ImageDataset, hashes: np.ndarray) -> tuple[NearDuplicates, set[str]]:
    """Compare every image with every other; pairs with equal bytes are left out.

    Returns:
        What was found, and the images of test parts that have a near duplicate in train or val.
    """
    ones = hashes.sum(axis=1)
    rough = np.minimum(ones, BITS - ones) >= PLAIN_BITS
    table = _with_tested(data)[rough].reset_index(drop=True)
    numbers = np.zeros(3, dtype=int)
    listed: list[tuple[str, str, int]] = []
    twins: set[str] = set()
    alike = coo_array((len(table), len(table)), dtype=bool)
    for pairs in _close(hashes[rough]):
        pairs = pairs.join(table, on="first").join(table.add_suffix("_second"), on="second")
        both = pairs[pairs["tested"] & pairs["tested_second"]]
        places = (both["first"], both["second"])
        alike += coo_array((np.ones(len(both), dtype=bool), places), shape=alike.shape)
        pairs = pairs[pairs["digest"] != pairs["digest_second"]]
        tested = pairs["tested"] & pairs["tested_second"]
        across_split = (pairs["split"] != pairs["split_second"]) & ~tested
        across_classes = pairs["label"] != pairs["label_second"]
        numbers += [len(pairs), across_split.sum(), across_classes.sum()]
        shown = pairs.loc[across_split | across_classes, ["image", "image_second", "bits"]]
        listed += shown.head(MOST_LISTED - len(listed)).itertuples(index=False, name=None)
        leaks = pairs[across_split]
        twins |= {*leaks["image"][leaks["tested"]], *leaks["image_second"][leaks["tested_second"]]}
    names = table["image"].groupby(connected_components(alike)[1])
    groups = tuple(tuple(images) for _, images in names if len(images) > 1)
    counts = NearDuplicates(*numbers.tolist())
    plain = int((~rough).sum())
    return replace(counts, plain=plain, listed=tuple(listed), groups=groups), twins


def _with_tested(data: ImageDataset) -> pd.DataFrame:
    return data.table.assign(tested=~data.table["split"].isin(["train", "val"]))


def _close(hashes: np.ndarray) -> Iterator[pd.DataFrame]:
    """Row numbers of close pairs, the first below the second, and the bits in which they differ."""
    # Signs instead of bits make the comparison a matrix product: equal bits less unequal ones,
    # exact in float32.
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    for start in range(0, max(1, len(signs)), BLOCK):
        differing = (BITS - signs[start : start + BLOCK] @ signs[start:].T) / 2
        first, second = np.nonzero(np.triu(differing <= NEAR_BITS, 1))
        bits = differing[first, second].astype(int)
        yield pd.DataFrame({"first": first + start, "second": second + start, "bits": bits})


@dataclass(frozen=True)
class Leakage:
    """What the audit found; shares are in [0, 1]."""

    # by part (val and test parts): share of the images that are ImageNet's training images by the
    # given list, or whose names have the form of theirs, as Stanford Dogs' have
    in_imagenet: Mapping[str, float]
    by_list: bool = False
    # by part: were images seen in pre-training on ImageNet? None: not known
    flagged: Mapping[str, bool | None] = field(default_factory=dict)
    # images with equal bytes in more than one of train, val and test
    across_split: tuple[tuple[str, ...], ...] = ()
    across_classes: tuple[tuple[str, ...], ...] = ()  # images with equal bytes in several classes
    near: NearDuplicates = NearDuplicates()
    # share of the images of all test parts with an equal or nearly equal image in train or val
    twins: float = 0.0

    def summary(self) -> pd.DataFrame:
        """One row per check and what it found."""
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
        return f"{text} **Doubtful labels.** {labels}" if labels else text

    def _seen(self) -> str:
        known = [part for part, seen in self.flagged.items() if seen]
        if not known:
            return ""
        shares = " and ".join(
            f"{self.in_imagenet[part]:.1%} of the {part} images" for part in known
        )
        how = "are, by name, in the given list of" if self.by_list else "are named like"
        chosen = " All choices are made on such images." if "val" in known else ""
        return (
            f"{shares} {how} ImageNet *training* images."
            " A backbone pre-trained on ImageNet (and no other) has seen them with their labels:"
            f" accuracies are optimistic; compare rows with each other only.{chosen}"
        )

    def record(self) -> dict[str, Any]:
        """The findings as JSON values, with the verdict; images by path."""
        return asdict(self) | {"verdict": self.verdict()}


def _same_images(equal: int, near: int, where: str) -> str:
    counts = {"byte for byte equal": equal, "nearly equal": near}
    found = " and ".join(f"{number} {how}" for how, number in counts.items() if number)
    return f"The same images occur in {where}: {found}." if found else ""


def check_leakage(
    data: ImageDataset, imagenet_list: str | None = None, drawn: bool = False
) -> Leakage:
    """Check names, bytes and looks of a dataset; decodes every image once.

    Args:
        imagenet_list: a text file of ImageNet's training images (see `training_images`).
        drawn: the dataset's own images were drawn here, so no network can have seen them.

    Raises:
        InputError: as `training_images`; an image that cannot be decoded.
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
        flagged[part] = shares[part] > (0 if known else NAMED_ALIKE) or (False if checked else None)
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
    """Names of ImageNet's training images in a list, without folders and suffix.

    The list is a text file with an image a line, as `n02088364_1234`, with or without folders and
    suffix; what follows a space or a comma is passed over, so that ImageNet's own lists and
    Kaggle's can be given.

    Raises:
        InputError: no such file, or no name of that form in it.
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

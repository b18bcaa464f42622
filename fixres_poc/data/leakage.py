"""Images that stand in a dataset more than once: with equal bytes, or nearly equal to the eye.

The near ones are found by a difference hash (dHash): whether the grey image, shrunk to 17 x 16,
gets brighter from each place to the next, 256 bits. It survives another size, compression or
brightness, but neither crop nor mirror.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import imagehash
import numpy as np
import pandas as pd

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import resolve
from fixres_poc.config.provenance import cores
from fixres_poc.config.run_state import bar
from fixres_poc.data import decoding
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.sources import image_folder

HASH_SIDE = 16
BITS = HASH_SIDE**2
NEAR_BITS = 10
# px; JPEGs decoded no smaller than this have a hash at most 5 bits from the full one's
DRAFT = (17 * 16, 16 * 16)
# an image with fewer bits of one kind has too little in it to be told from others like it
PLAIN_BITS = 26
BLOCK = 512
MOST_LISTED = 1000


class Pair(NamedTuple):
    """Two images, relative to the dataset's folder, and the number of bits in which their hashes differ."""

    first: str
    second: str
    bits: int


@dataclass(frozen=True)
class NearDuplicates:
    """Numbers of pairs of images with different bytes whose hashes differ in at most 10 of 256 bits."""

    pairs: int = 0
    across_split: int = 0  # pairs that stand in two of train, val and test parts
    across_classes: int = 0  # pairs that stand in two classes
    plain: int = 0  # images without enough in them to be compared, such as those of one colour
    listed: tuple[Pair, ...] = ()  # the pairs across the split or across classes, at most 1,000


def fingerprints(data: ImageDataset) -> tuple[list[str], np.ndarray]:
    """Read and decode every image once.

    Returns:
        SHA-256 of each image's bytes, and its dHash: booleans (N, 256).

    Raises:
        InputError: an image that cannot be decoded, named.
    """
    with ThreadPoolExecutor(cores()) as pool:
        found = pool.map(_difference_hash, data.paths)
        hashes = list(bar(found, "looking for duplicates", len(data.table)))
    return image_folder.digests(data.paths), np.array(hashes).reshape(-1, BITS)


def _difference_hash(path: Path) -> np.ndarray:
    with decoding.opened(path) as image:
        image.draft("L", DRAFT)
        return np.ravel(imagehash.dhash(decoding.as_rgb(image), hash_size=HASH_SIDE).hash)


def near_duplicates(
    data: ImageDataset, digests: Sequence[str], hashes: np.ndarray
) -> tuple[NearDuplicates, set[str]]:
    """Compare every image with every other, from `fingerprints`; pairs with equal bytes are left out.

    Returns:
        What was found, and the images of test parts that have a near duplicate in train or val.
    """
    ones = hashes.sum(axis=1)
    rough = np.flatnonzero(np.minimum(ones, BITS - ones) >= PLAIN_BITS)
    table = data.table.iloc[rough].assign(content=np.asarray(digests, dtype=object)[rough])
    names, test = table["image"].to_numpy(), ~table["split"].isin(["train", "val"]).to_numpy()
    content, split, label = (table[key].factorize()[0] for key in ("content", "split", "label"))
    counts, listed, outside = np.zeros(3, int), list[Pair](), set[str]()
    for rows, columns, bits in _close(hashes[rough]):
        other = content[rows] != content[columns]
        rows, columns, bits = rows[other], columns[other], bits[other]
        splits = (split[rows] != split[columns]) & ~(test[rows] & test[columns])
        labels = label[rows] != label[columns]
        counts += [len(rows), splits.sum(), labels.sum()]
        for each in np.flatnonzero(splits | labels)[: MOST_LISTED - len(listed)]:
            listed.append(Pair(names[rows[each]], names[columns[each]], int(bits[each])))
        for side in (rows, columns):
            outside |= set(names[side[splits & test[side]]])
    every, across_split, across_classes = counts.tolist()
    return NearDuplicates(
        every, across_split, across_classes, len(hashes) - len(rough), tuple(listed)
    ), outside


def _close(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Row numbers of close pairs, the first below the second, and how many bits differ; block by block."""
    # Signs instead of bits make the comparison a matrix product: equal bits less unequal ones,
    # exact in float32.
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    for start in range(0, len(signs), BLOCK):
        differing = (BITS - signs[start : start + BLOCK] @ signs[start:].T) / 2
        rows, columns = np.nonzero(np.triu(differing <= NEAR_BITS, 1))
        yield rows + start, columns + start, differing[rows, columns].astype(int)


LONGEST_LINE = 10_000
IMAGENET_TRAIN_NAME = re.compile(r"^n\d{8}_\d+$")


@dataclass(frozen=True)
class Leakage:
    """What the audit found; shares are in [0, 1]."""

    # share of test images named like ImageNet training ones, as Stanford Dogs' are
    named_like_imagenet: float
    # images with equal bytes in more than one of train, val and test
    across_split: tuple[tuple[str, ...], ...]
    across_classes: tuple[tuple[str, ...], ...]  # images with equal bytes in more than one class
    near: NearDuplicates = field(default_factory=NearDuplicates)
    # share of the images of all test parts with an equal or nearly equal image in train or val
    twins: float = 0.0
    # share of test images in the user's list of ImageNet's training images
    listed_in_imagenet: float | None = None

    def summary(self) -> pd.DataFrame:
        """One row per check and what it found."""
        listed = self.listed_in_imagenet
        rows = {  # pandas cuts what is longer than 50 characters
            "test images named like ImageNet's training ones": f"{self.named_like_imagenet:.1%}",
            "test images in the given list of ImageNet's": "no list given"
            if listed is None
            else f"{listed:.1%}",
            "equal images in more than one split": str(len(self.across_split)),
            "equal images in two classes": str(len(self.across_classes)),
            f"nearly equal pairs (at most {NEAR_BITS} of {BITS} bits)": str(self.near.pairs),
            "nearly equal pairs in two splits": str(self.near.across_split),
            "nearly equal pairs in two classes": str(self.near.across_classes),
            "test images with such a twin in train or val": f"{self.twins:.1%}",
            "images too plain to be compared": str(self.near.plain),
        }
        return pd.DataFrame({"check": rows.keys(), "found": rows.values()})

    def verdict(self) -> str:
        """A few sentences for a reader."""
        leaks = _stand(
            len(self.across_split), self.near.across_split, "more than one of train, val and test"
        )
        if leaks:
            leaks += f" That is {self.twins:.1%} of the test images, and accuracies can be too high by up to that."
        text = f"{self._seen()} {leaks}".strip()
        text = (
            f"**Warning: leakage.** {text}"
            if text
            else "**No sign of leakage** in names, bytes or near duplicates."
        )
        labels = _stand(len(self.across_classes), self.near.across_classes, "two classes")
        return f"{text} **Doubtful labels.** {labels}" if labels else text

    def _seen(self) -> str:
        listed, named = self.listed_in_imagenet, self.named_like_imagenet
        if listed is None and named > 0.05:
            found = f"{named:.0%} of the test images are named like ImageNet *training* images."
        elif listed:
            found = f"{listed:.1%} of the test images are, by name, in the given list of ImageNet *training* images."
        else:
            return ""
        found += (
            " A backbone pre-trained on ImageNet (and no other) has seen them with their labels:"
        )
        return f"{found} accuracies are optimistic; compare rows with each other only."

    def record(self) -> dict[str, Any]:
        """The findings as JSON values, with the verdict; images by path."""
        return asdict(self) | {"verdict": self.verdict()}


def _stand(equal: int, near: int, where: str) -> str:
    counts = [f"{equal} byte for byte equal"] * bool(equal) + [f"{near} nearly equal"] * bool(near)
    return f"The same images occur in {where}: {' and '.join(counts)}." if counts else ""


def check_leakage(data: ImageDataset, imagenet_list: str | None = None) -> Leakage:
    """Check names, bytes and looks of a dataset; decodes every image once.

    Raises:
        InputError: as `share_listed`; an image that cannot be decoded.
    """
    names = list(data.split("test")["image"])
    count = max(1, len(names))
    listed = None if imagenet_list is None else share_listed(names, imagenet_list)
    digests, hashes = fingerprints(data)
    table = data.table.assign(digest=digests)
    same = [
        group
        for _, group in table[table.duplicated("digest", keep=False)].groupby("digest", sort=False)
    ]
    apart = [
        group
        for group in same
        if group["split"].nunique() > 1 and {"train", "val"} & set(group["split"])
    ]
    near, outside = near_duplicates(data, digests, hashes)
    tested = table["image"][~table["split"].isin(["train", "val"])]
    twins = outside.union(*(set(group["image"]) & set(tested) for group in apart))
    return Leakage(
        named_like_imagenet=sum(bool(IMAGENET_TRAIN_NAME.match(_stem(name))) for name in names)
        / count,
        across_split=tuple(tuple(group["image"]) for group in apart),
        across_classes=tuple(
            tuple(group["image"]) for group in same if group["label"].nunique() > 1
        ),
        near=near,
        twins=len(twins) / max(1, len(tested)),
        listed_in_imagenet=listed,
    )


def share_listed(names: list[str], imagenet_list: str) -> float:
    """Share, in [0, 1], of images whose file names are in a list of ImageNet's training images.

    Only names are compared, so a renamed image is not found. The list is a text file with an image
    a line, as `n02088364_1234`, with or without folders and suffix; what follows a space or a comma
    is passed over, so that ImageNet's own lists and Kaggle's can be given.

    Raises:
        InputError: no such file, or no name of that form in it.
    """
    wanted, found, known = {_stem(name) for name in names}, set[str](), False
    try:
        if not resolve(imagenet_list).is_file():
            raise OSError("no such file, or no regular one")
        with open(resolve(imagenet_list), encoding="utf-8-sig") as file:
            # 1.3 million of them: one at a time
            for line in iter(lambda: file.readline(LONGEST_LINE), ""):
                stem = _stem(re.split(r"[\s,]", line.strip(), maxsplit=1)[0])
                if IMAGENET_TRAIN_NAME.match(stem):
                    known = True
                    found |= {stem} & wanted
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            "not a text file" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        )
        raise InputError(f"imagenet_list = {imagenet_list!r}: cannot be read ({reason})") from None
    if not known:
        raise InputError(
            f"imagenet_list = {imagenet_list!r}: no name like n02088364_1234 in it, one a line is needed"
        )
    return sum(_stem(name) in found for name in names) / max(1, len(names))


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem

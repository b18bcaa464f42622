"""Images that stand in a dataset more than once: with equal bytes, or nearly equal to the eye.

The near ones are found by a difference hash (dHash): whether the grey image, shrunk to 17 x 16, gets brighter from
each place to the next, 256 bits. It survives another size, compression or brightness, but neither crop nor mirror.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np

from fixres_poc.config.progress import bar
from fixres_poc.config.provenance import cores
from fixres_poc.data import decoding
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.sources import splitting

HASH_SIDE = 16
BITS = HASH_SIDE**2
NEAR_BITS = 10
DRAFT = (17 * 16, 16 * 16)  # px; JPEGs decoded no smaller than this have a hash at most 5 bits from the full one's
PLAIN_BITS = 26  # an image with fewer bits of one kind has too little in it to be told from others like it
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
    return splitting.digests(data.paths), np.array(hashes).reshape(-1, BITS)


def _difference_hash(path: Path) -> np.ndarray:
    with decoding.opened(path) as image:
        image.draft("L", DRAFT)
        return np.ravel(imagehash.dhash(decoding.as_rgb(image), hash_size=HASH_SIDE).hash)


def near_duplicates(data: ImageDataset, digests: Sequence[str], hashes: np.ndarray) -> tuple[NearDuplicates, set[str]]:
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
    return NearDuplicates(every, across_split, across_classes, len(hashes) - len(rough), tuple(listed)), outside


def _close(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Row numbers of close pairs, the first below the second, and how many bits differ; block by block."""
    # Signs instead of bits make the comparison a matrix product: equal bits less unequal ones, exact in float32.
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    for start in range(0, len(signs), BLOCK):
        differing = (BITS - signs[start : start + BLOCK] @ signs[start:].T) / 2
        rows, columns = np.nonzero(np.triu(differing <= NEAR_BITS, 1))
        yield rows + start, columns + start, differing[rows, columns].astype(int)

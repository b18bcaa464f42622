"""Has the network seen the test images before, do equal ones stand on both sides of the split, or in two classes?

What is said about ImageNet concerns backbones that were pre-trained on it, as all but a few of the known ones were.
"""

import re
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import resolve
from fixres_poc.data.dataset import ImageDataset
from fixres_poc.data.leakage.duplicates import BITS, NEAR_BITS, NearDuplicates, fingerprints, near_duplicates

LONGEST_LINE = 10_000
IMAGENET_TRAIN_NAME = re.compile(r"^n\d{8}_\d+$")


@dataclass(frozen=True)
class Leakage:
    """What the audit found; shares are in [0, 1]."""

    named_like_imagenet: float  # share of test images named like ImageNet training ones, as Stanford Dogs' are
    across_split: tuple[tuple[str, ...], ...]  # images with equal bytes in more than one of train, val and test
    across_classes: tuple[tuple[str, ...], ...]  # images with equal bytes in more than one class
    near: NearDuplicates = field(default_factory=NearDuplicates)
    twins: float = 0.0  # share of the images of all test parts with an equal or nearly equal image in train or val
    listed_in_imagenet: float | None = None  # share of test images in the user's list of ImageNet's training images

    def summary(self) -> pd.DataFrame:
        """One row per check and what it found."""
        listed = self.listed_in_imagenet
        rows = {  # pandas cuts what is longer than 50 characters
            "test images named like ImageNet's training ones": f"{self.named_like_imagenet:.1%}",
            "test images in the given list of ImageNet's": "no list given" if listed is None else f"{listed:.1%}",
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
        leaks = _stand(len(self.across_split), self.near.across_split, "more than one of train, val and test")
        if leaks:
            leaks += f" That is {self.twins:.1%} of the test images, and accuracies can be too high by up to that."
        text = f"{self._seen()} {leaks}".strip()
        text = f"**Warning: leakage.** {text}" if text else "**No sign of leakage** in names, bytes or near duplicates."
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
        found += " A backbone pre-trained on ImageNet (and no other) has seen them with their labels:"
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
    same = [group for _, group in table[table.duplicated("digest", keep=False)].groupby("digest", sort=False)]
    apart = [group for group in same if group["split"].nunique() > 1 and {"train", "val"} & set(group["split"])]
    near, outside = near_duplicates(data, digests, hashes)
    tested = table["image"][~table["split"].isin(["train", "val"])]
    twins = outside.union(*(set(group["image"]) & set(tested) for group in apart))
    return Leakage(
        named_like_imagenet=sum(bool(IMAGENET_TRAIN_NAME.match(_stem(name))) for name in names) / count,
        across_split=tuple(tuple(group["image"]) for group in apart),
        across_classes=tuple(tuple(group["image"]) for group in same if group["label"].nunique() > 1),
        near=near,
        twins=len(twins) / max(1, len(tested)),
        listed_in_imagenet=listed,
    )


def share_listed(names: list[str], imagenet_list: str) -> float:
    """Share, in [0, 1], of images whose file names are in a list of ImageNet's training images.

    Only names are compared, so a renamed image is not found. The list is a text file with an image a line, as
    `n02088364_1234`, with or without folders and suffix; what follows a space or a comma is passed over, so that
    ImageNet's own lists and Kaggle's can be given.

    Raises:
        InputError: no such file, or no name of that form in it.
    """
    wanted, found, known = {_stem(name) for name in names}, set[str](), False
    try:
        if not resolve(imagenet_list).is_file():
            raise OSError("no such file, or no regular one")
        with open(resolve(imagenet_list), encoding="utf-8-sig") as file:
            for line in iter(lambda: file.readline(LONGEST_LINE), ""):  # 1.3 million of them: one at a time
                stem = _stem(re.split(r"[\s,]", line.strip(), maxsplit=1)[0])
                if IMAGENET_TRAIN_NAME.match(stem):
                    known = True
                    found |= {stem} & wanted
    except (OSError, UnicodeDecodeError) as error:
        reason = "not a text file" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise InputError(f"imagenet_list = {imagenet_list!r}: cannot be read ({reason})") from None
    if not known:
        raise InputError(f"imagenet_list = {imagenet_list!r}: no name like n02088364_1234 in it, one a line is needed")
    return sum(_stem(name) in found for name in names) / max(1, len(names))


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem

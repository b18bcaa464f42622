"""Has the network seen the test pictures before, do equal ones stand on both sides of the split, or in two classes?

What is said about ImageNet concerns backbones that were pre-trained on it, as all but a few of the known ones were.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from fixres_poc.config import InputError, resolve
from fixres_poc.datasets import Pictures
from fixres_poc.duplicates import BITS, NEAR_BITS, NearDuplicates, fingerprints, near_duplicates

IMAGENET_TRAIN_NAME = re.compile(r"^n\d{8}_\d+$")
SUSPICIOUS_SHARE = 0.05
Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Leakage:
    """What the audit found.

    Attributes:
        named_like_imagenet: share, in [0, 1], of test pictures that are named like ImageNet training pictures
            (`n02088364_1234`); Stanford Dogs keeps those names.
        across_split: groups of pictures with equal bytes that stand in more than one of train, val and test.
        across_classes: groups of pictures with equal bytes that stand in more than one class.
        near: pairs of pictures that are nearly equal.
        twins: share of test pictures with an equal or nearly equal picture in train or val.
        listed_in_imagenet: share of test pictures whose names are in the user's list of ImageNet's training pictures;
            None without a list.
    """

    named_like_imagenet: float
    across_split: Groups
    across_classes: Groups
    near: NearDuplicates = field(default_factory=NearDuplicates)
    twins: float = 0.0
    listed_in_imagenet: float | None = None

    def summary(self) -> pd.DataFrame:
        """One row per check and what it found."""
        listed = self.listed_in_imagenet
        rows = {  # pandas cuts what is longer than 50 characters
            "test pictures named like ImageNet's training ones": f"{self.named_like_imagenet:.1%}",
            "test pictures in the given list of ImageNet's": "no list given" if listed is None else f"{listed:.1%}",
            "equal pictures on both sides of the split": str(len(self.across_split)),
            "equal pictures in two classes": str(len(self.across_classes)),
            f"nearly equal pairs (at most {NEAR_BITS} of {BITS} bits)": str(self.near.pairs),
            "nearly equal pairs on both sides of the split": str(self.near.across_split),
            "nearly equal pairs in two classes": str(self.near.across_classes),
            "test pictures with such a twin in train or val": f"{self.twins:.1%}",
            "pictures too plain to be compared": str(self.near.plain),
        }
        return pd.DataFrame({"check": rows.keys(), "found": rows.values()})

    def verdict(self) -> str:
        """A few sentences for a reader."""
        leaks = _stand(len(self.across_split), self.near.across_split, "more than one of train, val and test")
        if leaks:
            leaks += f" That is {self.twins:.1%} of the test pictures, and accuracies can be too high by as much."
        text = f"{self._seen()} {leaks}".strip()
        text = f"**Warning: leakage.** {text}" if text else "**No sign of leakage** in names, bytes or near duplicates."
        labels = _stand(len(self.across_classes), self.near.across_classes, "two classes")
        return f"{text} **Doubtful labels.** {labels}" if labels else text

    def _seen(self) -> str:
        listed, named = self.listed_in_imagenet, self.named_like_imagenet
        if listed is None and named > SUSPICIOUS_SHARE:
            found = f"{named:.0%} of the test pictures are named like ImageNet *training* pictures."
        elif listed:
            found = (
                f"{listed:.1%} of the test pictures are, by name, in the given list of ImageNet *training* pictures."
            )
        else:
            return ""
        return (
            f"{found} A backbone that was pre-trained on ImageNet, and only such a one, has then seen them with their "
            "labels: accuracies are optimistic; compare rows with each other only."
        )

    def record(self) -> dict[str, Any]:
        """The findings as JSON values, with the verdict; pictures by path."""
        return asdict(self) | {"verdict": self.verdict()}


def _stand(equal: int, near: int, where: str) -> str:
    counts = [f"{equal} byte for byte equal"] * bool(equal) + [f"{near} nearly equal"] * bool(near)
    return f"In {where} stand the same pictures: {' and '.join(counts)}." if counts else ""


def leakage(pictures: Pictures, imagenet_list: str | None = None) -> Leakage:
    """Check names, bytes and looks of a data set; decodes every picture once.

    Args:
        pictures: the data set.
        imagenet_list: text file of ImageNet's training pictures, as `share_listed` reads it.

    Raises:
        InputError: as `share_listed`; a picture that cannot be decoded.
    """
    names = list(pictures.split("test")["picture"])
    listed = None if imagenet_list is None else share_listed(names, imagenet_list)
    digests, hashes = fingerprints(pictures)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        rows_of[digest].append(row)
    same = [pictures.table.iloc[rows] for rows in rows_of.values() if len(rows) > 1]
    apart = [group for group in same if group["split"].nunique() > 1]
    near, outside = near_duplicates(pictures, digests, hashes)
    twins = outside.union(*(group.loc[group["split"] == "test", "picture"] for group in apart))
    return Leakage(
        named_like_imagenet=_share(bool(IMAGENET_TRAIN_NAME.match(_stem(name))) for name in names),
        across_split=tuple(tuple(group["picture"]) for group in apart),
        across_classes=tuple(tuple(group["picture"]) for group in same if group["label"].nunique() > 1),
        near=near,
        twins=len(twins) / len(names) if names else 0.0,
        listed_in_imagenet=listed,
    )


def share_listed(names: list[str], imagenet_list: str) -> float:
    """Share, in [0, 1], of pictures whose file names are in a list of ImageNet's training pictures.

    Only names are compared, so a renamed picture is not found.

    Args:
        names: pictures.
        imagenet_list: text file with a picture a line, as `n02088364_1234`, with or without folders and suffix; what
            follows a space or a comma is passed over, so that ImageNet's own lists and Kaggle's can be given.

    Raises:
        InputError: no such file, or no name of that form in it.
    """
    wanted, found, known = {_stem(name) for name in names}, set[str](), False
    try:
        with open(resolve(imagenet_list), encoding="utf-8-sig") as lines:
            for line in lines:  # 1.3 million of them: one at a time
                stem = _stem(re.split(r"[\s,]", line.strip(), maxsplit=1)[0])
                if IMAGENET_TRAIN_NAME.match(stem):
                    known = True
                    found |= {stem} & wanted
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"imagenet_list = {imagenet_list!r}: cannot be read ({reason})") from None
    if not known:
        raise InputError(f"imagenet_list = {imagenet_list!r}: no name like n02088364_1234 in it, one a line is needed")
    return _share(_stem(name) in found for name in names)


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def _share(each: Iterable[bool]) -> float:
    flags = list(each)
    return sum(flags) / len(flags) if flags else 0.0

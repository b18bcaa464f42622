"""Has the network seen the test pictures before, and does the split keep equal pictures together?"""

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fixres_poc.datasets import Pictures

IMAGENET_TRAIN_NAME = re.compile(r"^n\d{8}_\d+$")
SUSPICIOUS_SHARE = 0.05


@dataclass(frozen=True)
class Leakage:
    """What the audit found.

    Attributes:
        named_like_imagenet: share, in [0, 1], of test pictures that are named like ImageNet training pictures
            (`n02088364_1234`); Stanford Dogs keeps those names.
        across_split: groups of pictures with equal bytes that stand in more than one of train, val and test.
        across_classes: groups of pictures with equal bytes that stand in more than one class.
    """

    named_like_imagenet: float
    across_split: tuple[tuple[str, ...], ...]
    across_classes: tuple[tuple[str, ...], ...]

    def summary(self) -> pd.DataFrame:
        """One row per check and what it found."""
        rows = {
            "test pictures named like ImageNet training pictures": f"{self.named_like_imagenet:.1%}",
            "equal pictures on both sides of the split": str(len(self.across_split)),
            "equal pictures in two classes": str(len(self.across_classes)),
        }
        return pd.DataFrame({"check": rows.keys(), "found": rows.values()})

    def verdict(self) -> str:
        """One or two sentences for a reader."""
        found = []
        if self.named_like_imagenet > SUSPICIOUS_SHARE:
            found.append(
                f"{self.named_like_imagenet:.0%} of the test pictures are named like ImageNet *training* pictures. A "
                "backbone that was pre-trained on ImageNet has then seen them with their labels"
            )
        if self.across_split:
            found.append(
                f"{len(self.across_split)} pictures stand, byte for byte, in more than one of train, val and test"
            )
        if self.across_classes:
            found.append(f"{len(self.across_classes)} pictures stand, byte for byte, in two classes")
        if not found:
            return "**No sign of leakage** in names or equal bytes. Near duplicates are not looked for."
        return (
            f"**Warning: leakage.** {'. '.join(found)}. Accuracies are optimistic; compare rows with each other only."
        )

    def record(self) -> dict[str, Any]:
        """The findings as JSON values, with the verdict; equal pictures as lists of paths."""
        return {
            "named_like_imagenet": self.named_like_imagenet,
            "across_split": [list(group) for group in self.across_split],
            "across_classes": [list(group) for group in self.across_classes],
            "verdict": self.verdict(),
        }


def leakage(pictures: Pictures) -> Leakage:
    """Check names and bytes of a data set."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(pictures.table["picture"]):
        groups[hashlib.sha256((pictures.root / name).read_bytes()).hexdigest()].append(row)
    same = [pictures.table.loc[rows, "picture"] for rows in groups.values() if len(rows) > 1]
    test = pictures.split("test")["picture"]
    return Leakage(
        float(test.map(lambda name: bool(IMAGENET_TRAIN_NAME.match(Path(name).stem))).mean()),
        tuple(tuple(names) for names in same if pictures.table.loc[names.index, "split"].nunique() > 1),
        tuple(tuple(names) for names in same if pictures.table.loc[names.index, "label"].nunique() > 1),
    )

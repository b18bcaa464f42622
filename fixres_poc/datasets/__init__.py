"""Pictures of a data set as one table: which, with what class, in which split. No torch in here.

`load` is what notebooks call; `prepare` is what a sweep calls once, before any training: it draws what is drawn,
decodes every picture to find broken ones, and writes the table.
"""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fixres_poc.config import DataSettings, InputError, resolve
from fixres_poc.datasets import image_folder, stanford_dogs, synthetic
from fixres_poc.files import pictures_record, write_atomically
from fixres_poc.progress import bar

SPLITS = ("train", "val", "test")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """The pictures of a data set.

    Attributes:
        root: folder that the paths are relative to.
        classes: class names, sorted; a label is an index into it.
        table: columns picture (path relative to root), label (int), split ("train", "val" or "test").
    """

    root: Path
    classes: tuple[str, ...]
    table: pd.DataFrame

    def split(self, name: str) -> pd.DataFrame:
        """Rows of one split, in order of path."""
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def counts(self) -> dict[str, int]:
        """Number of pictures per split."""
        return {name: int((self.table["split"] == name).sum()) for name in SPLITS}

    def part(self, split: str, index: int, parts: int) -> "Pictures":
        """One split's every `parts`-th picture, from number `index`."""
        return replace(self, table=self.split(split).iloc[index::parts])

    def some(self, split: str, most: int, seed: int) -> "Pictures":
        """At most `most` pictures of one split, drawn with the seed."""
        rows = self.split(split)
        return replace(self, table=rows.sample(min(most, len(rows)), random_state=seed).sort_index())

    def without(self, names: Collection[str]) -> "Pictures":
        """All but these pictures; the others stay in their split.

        Raises:
            InputError: a class would lose all of its pictures in one split.
        """
        kept = self.table[~self.table["picture"].isin(list(names))]
        before, after = (set(zip(each["label"], each["split"], strict=True)) for each in (self.table, kept))
        for label, split in sorted(before - after)[:1]:
            raise InputError(f"class {self.classes[label]!r} has no readable picture left in {split}")
        return replace(self, table=kept.reset_index(drop=True))

    def fingerprint(self) -> str:
        """16 hex digits that change when a picture is added, removed, renamed, replaced or moved to another split."""
        digest = hashlib.sha256()
        contents = image_folder.digests(self.root, self.table["picture"], whole=False)
        for picture, label, split in self.table[["picture", "label", "split"]].itertuples(index=False):
            digest.update(f"{picture}\0{self.classes[label]}\0{split}\0{contents[picture]}\n".encode())
        return digest.hexdigest()[:16]


def load(settings: DataSettings) -> Pictures:
    """The pictures that the settings name, drawn or downloaded first where that is their way.

    Those that the preparation of the settings' sweep left out as unreadable (`skip_unreadable`) are left out here too.

    Raises:
        InputError: folder missing, empty, or with a class too small to split; a download that failed.
    """
    pictures, sweep = _listed(settings), getattr(settings, "sweep", None)
    left_out = pictures_record(sweep).get("unreadable") if sweep else None
    return pictures.without(left_out) if left_out else pictures


def _listed(settings: DataSettings) -> Pictures:
    if settings.dataset == "synthetic":
        names = synthetic.prepare(settings.split_seed, settings.image_limit)
        root = synthetic.folder(settings.split_seed)
        rows = [(name, name.split("/")[1], name.split("/")[0]) for name in names]
    else:
        named = settings.dataset == "stanford_dogs"
        folder = stanford_dogs.prepare() if named else resolve(settings.dataset)
        root, rows = stanford_dogs.find(folder, settings.split_seed)
        rows = image_folder.limit(rows, settings.image_limit, settings.split_seed)
    classes = tuple(sorted({label for _, label, _ in rows}))
    table = pd.DataFrame(rows, columns=["picture", "label", "split"])
    table["label"] = table["label"].map({name: index for index, name in enumerate(classes)})
    return Pictures(root, classes, table)


def sizes(pictures: Pictures, decode: bool = True) -> pd.DataFrame:
    """The table with width and height in px.

    Args:
        pictures: from `load`.
        decode: False reads the files' headers alone, where the pictures have been checked before.

    Raises:
        InputError: a picture that cannot be decoded, named.
    """
    return _measured(pictures, decode=decode)[0].table


def _measured(
    pictures: Pictures, skip_unreadable: bool = False, decode: bool = True
) -> tuple[Pictures, dict[str, str]]:
    """The pictures that can be decoded, their table with width and height, and the others with the reason."""
    names = list(pictures.table["picture"])
    measured = bar(image_folder.measure(pictures.root, names, decode), "checking pictures", len(names))
    found = dict(zip(names, measured, strict=True))
    broken = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    if broken and not skip_unreadable:
        name, reason = next(iter(broken.items()))
        others = f", and {len(broken) - 1} more like it" if len(broken) > 1 else ""
        advice = "repair or remove it, or let the sweep file say skip_unreadable: true"
        raise InputError(f"{pictures.root / name}: {reason}{others}; {advice}")
    kept = pictures.without(broken)
    sides = [found[name] for name in kept.table["picture"]]
    return replace(kept, table=kept.table.assign(width=[w for w, _ in sides], height=[h for _, h in sides])), broken


def boxes(settings: DataSettings, pictures: Pictures, most: int = 200) -> pd.DataFrame | None:
    """The objects' boxes of randomly chosen pictures, where the data set has boxes: drawn dogs and Stanford Dogs.

    Args:
        settings: those that the pictures were loaded with.
        pictures: from `load`.
        most: number of pictures looked at.

    Returns:
        One row per object: picture, left, top, right, bottom, width, height (of the picture), px; None without boxes.

    Raises:
        InputError: an annotation that is missing or not readable.
    """
    names = list(pictures.table["picture"].sample(min(most, len(pictures.table)), random_state=0))
    if settings.dataset == "synthetic":
        return synthetic.boxes(settings.split_seed, names)
    return stanford_dogs.boxes(pictures.root, names) if stanford_dogs.annotations(pictures.root) else None


def prepare(settings: DataSettings, folder: Path, skip_unreadable: bool = False) -> str:
    """Draw, list and check the pictures of a sweep once; files that are passed over are told every time.

    Args:
        settings: which pictures.
        folder: where pictures.csv (picture, label, split, width, height) and pictures.json (classes, fingerprint,
            `unreadable`: name to reason) go; what lies there is kept when no picture changed.
        skip_unreadable: leave out what cannot be decoded. The split is made before, so that it moves no other picture.

    Returns:
        The fingerprint of the pictures.

    Raises:
        InputError: as `load` and `sizes`, or a class with no readable picture in a split.
    """
    listed = _listed(settings)
    if settings.dataset != "synthetic" and (others := image_folder.passed_over(listed.root)):
        named = ", ".join(f"{kind} ({count})" for kind, count in others.most_common(5))
        log.warning("%s: %d passed over for not being pictures: %s", listed.root, others.total(), named)
    whole, record = listed.fingerprint(), folder / "pictures.json"
    before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if before.get("listed") == whole and (skip_unreadable or not before["unreadable"]):
        broken, fingerprint = before["unreadable"], before["fingerprint"]
    else:
        pictures, broken = _measured(listed, skip_unreadable)
        fingerprint = pictures.fingerprint() if broken else whole
        content = {"fingerprint": fingerprint, "listed": whole, "classes": pictures.classes, "unreadable": broken}
        text = io.StringIO()
        pictures.table.to_csv(text, index=False, quoting=csv.QUOTE_NONNUMERIC)  # pandas leaves a lone \r unquoted
        write_atomically(folder / "pictures.csv", text.getvalue())
        write_atomically(record, json.dumps(content | pictures.counts(), indent=1))
    if broken:
        log.warning("%s: %d unreadable pictures are left out; %s lists them", listed.root, len(broken), record)
    return str(fingerprint)

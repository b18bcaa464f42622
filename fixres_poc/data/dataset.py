"""Images of a dataset as one table: which, with what class, in which split. No torch in here.

Notebooks call `load_dataset`; a sweep calls `prepare_dataset` once, before any training: it draws
what is drawn, decodes every image to find broken ones, and writes the table.
"""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import read_record, resolve, write_atomically
from fixres_poc.config.run_state import bar, images_record
from fixres_poc.config.settings import SPLITS, DataSettings, ExtraTest
from fixres_poc.data import decoding
from fixres_poc.data.sources import image_folder, named, stanford_dogs
from fixres_poc.data.synthetic import generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageDataset:
    """The images of a dataset."""

    root: Path
    classes: tuple[str, ...]  # names, sorted; a label is an index into it
    # columns image (see `paths`), label (int), split (of `SPLITS`, or the extra part's name)
    table: pd.DataFrame
    extra_root: Path | None = None  # folder of the extra test part's class folders
    # lines for the user: how folders were read, and what was skipped in them
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """Files of the table's rows; `image` is a path in `root`, of the extra part <its name>/<path in extra_root>."""
        rows = self.table[["image", "split"]].itertuples(index=False)
        extra = self.extra_root or self.root
        return [
            self.root / n if split in SPLITS else extra / n.partition("/")[2] for n, split in rows
        ]

    @property
    def test_parts(self) -> list[str]:
        """Names of the parts that are tested on: "test", and the extra one if there is one."""
        return ["test", *sorted(set(self.table["split"]) - set(SPLITS))]

    def only(self, split: str) -> "ImageDataset":
        """The images of one split, in order of path."""
        return replace(self, table=self.split(split))

    def split(self, name: str) -> pd.DataFrame:
        """Rows of one split, in order of path."""
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def counts(self) -> dict[str, int]:
        """Number of images per split."""
        return {
            name: int((self.table["split"] == name).sum())
            for name in (*SPLITS, *self.test_parts[1:])
        }

    def part(self, split: str, index: int, parts: int) -> "ImageDataset":
        """One split's every `parts`-th image, from number `index`."""
        return replace(self, table=self.split(split).iloc[index::parts])

    def some(self, split: str, most: int, seed: int) -> "ImageDataset":
        """At most `most` images of one split, drawn with the seed."""
        rows = self.split(split)
        return replace(
            self, table=rows.sample(min(most, len(rows)), random_state=seed).sort_index()
        )

    def without(self, names: Collection[str]) -> "ImageDataset":
        """All but these images; the others stay in their split.

        Raises:
            InputError: a class would lose all of its images in one split.
        """
        kept = self.table[~self.table["image"].isin(list(names))]
        before, after = (
            set(zip(each["label"], each["split"], strict=True)) for each in (self.table, kept)
        )
        for label, split in sorted(before - after)[:1]:
            raise InputError(f"class {self.classes[label]!r} has no readable image left in {split}")
        return replace(self, table=kept.reset_index(drop=True))

    def fingerprint(self) -> str:
        """16 hex digits that change when an image is added, removed, renamed, replaced or moved to another split."""
        digest = hashlib.sha256()
        rows = self.table[["image", "label", "split"]].itertuples(index=False)
        for (image, label, split), content in zip(
            rows, image_folder.digests(self.paths, whole=False), strict=True
        ):
            digest.update(f"{image}\0{self.classes[label]}\0{split}\0{content}\n".encode())
        return digest.hexdigest()[:16]


def load_dataset(settings: DataSettings) -> ImageDataset:
    """The images that the settings name, drawn or downloaded first where that is their way.

    Those that the preparation of the settings' sweep left out as unreadable (`skip_unreadable`) are
    left out here too.

    Raises:
        InputError: folder missing, empty, or with a class too small to split; a download that
            failed.
    """
    data, sweep = _listed(settings), getattr(settings, "sweep", None)
    return data.without((sweep and images_record(sweep).get("unreadable")) or {})


def _listed(settings: DataSettings) -> ImageDataset:
    seed, most, notes = settings.split_seed, settings.image_limit, list[str]()
    if settings.dataset == "synthetic":
        root = generator.folder(seed)
        rows = [
            (name, name.split("/")[1], name.split("/")[0]) for name in generator.prepare(seed, most)
        ]
    else:
        root, rows, notes = stanford_dogs.find(_folder(settings.dataset), seed)
        rows = image_folder.limit(rows, most, seed)
    table = pd.DataFrame(rows, columns=["image", "label", "split"])
    table["label"], classes = pd.factorize(table["label"], sort=True)
    data = ImageDataset(root, tuple(classes), table, notes=tuple(notes))
    return data if settings.extra_test is None else _with_extra(data, settings.extra_test)


def _folder(dataset: str) -> Path:
    """The folder of a dataset, downloaded first where it is a named one."""
    if dataset == "stanford_dogs":
        return stanford_dogs.prepare()
    return named.prepare(dataset) if dataset in named.SOURCES else resolve(dataset)


def _with_extra(data: ImageDataset, extra: ExtraTest) -> ImageDataset:
    """The dataset with a second test part."""
    more, unknown = class_folders(extra.folder, data.classes, "extra_test.folder")
    if unknown:
        log.warning(
            printable(
                f"{extra.folder}: left out, as there are no such classes: {', '.join(unknown)}"
            )
        )
    table = more.table.assign(image=f"{extra.name}/" + more.table["image"], split=extra.name)
    whole = pd.concat([data.table, table], ignore_index=True)
    return replace(data, table=whole, extra_root=more.root, notes=data.notes + more.notes)


def class_folders(
    folder: str, classes: Sequence[str], key: str = "dataset"
) -> tuple[ImageDataset, list[str]]:
    """All images of a folder of class folders, labelled by name with classes that are given.

    Args:
        key: the setting that names the folder, for errors.

    Returns:
        The images, as test split, and the class folders that are none of the classes, which are
        left out.

    Raises:
        InputError: no such folder, no images, or none of the classes among them.
    """
    if not resolve(folder).is_dir():
        raise InputError(f"{key} = {folder!r}: no such folder")
    root = image_folder.root(resolve(folder))
    names, skipped = image_folder.walk(root)
    found = image_folder.images(root, names)
    skipped["outside class folders"] = len(names) - sum(map(len, found.values()))
    rows = [
        (name, classes.index(label))
        for label, names in found.items()
        if label in classes
        for name in names
    ]
    if not rows:
        some = ", ".join(list(found)[:3])
        raise InputError(
            f"{key} = {folder!r}: its folders ({some}) are none of the classes, such as {classes[0]}"
        )
    table = pd.DataFrame(rows, columns=["image", "label"]).sort_values("image").assign(split="test")
    notes = tuple(image_folder.told(root, skipped))
    return ImageDataset(root, tuple(classes), table, notes=notes), [
        label for label in found if label not in classes
    ]


def image_sizes(data: ImageDataset, decode: bool = True) -> pd.DataFrame:
    """The table with width and height in px; `decode` False reads the headers alone of images checked before.

    Raises:
        InputError: an image that cannot be decoded, named.
    """
    return _measured(data, decode=decode)[0].table


def _measured(
    data: ImageDataset, skip: bool = False, decode: bool = True
) -> tuple[ImageDataset, dict[str, str]]:
    """The images that can be decoded, their table with width and height, and the others with the reason."""
    names = list(data.table["image"])
    measured = bar(decoding.measure(data.paths, decode), "checking images", len(names))
    found = dict(zip(names, measured, strict=True))
    broken = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    if broken and not skip:
        name, reason = next(iter(broken.items()))
        others = f", and {len(broken) - 1} more like it" if len(broken) > 1 else ""
        advice = "repair or remove it, or let the sweep file say skip_unreadable: true"
        raise InputError(f"{data.paths[names.index(name)]}: {reason}{others}; {advice}")
    kept = data.without(broken)
    sides = [found[name] for name in kept.table["image"]]
    return replace(
        kept, table=kept.table.assign(width=[w for w, _ in sides], height=[h for _, h in sides])
    ), broken


def object_boxes(
    settings: DataSettings, data: ImageDataset, most: int = 200
) -> pd.DataFrame | None:
    """The objects' boxes of at most `most` randomly chosen images, for synthetic dogs and Stanford Dogs.

    Returns:
        One row per object: image, left, top, right, bottom, width, height (of the image), px; None
            without boxes.

    Raises:
        InputError: an annotation that is missing or not readable.
    """
    own = data.table.loc[data.table["split"].isin(SPLITS), "image"]
    names = list(own.sample(min(most, len(own)), random_state=0))
    if settings.dataset == "synthetic":
        return generator.boxes(settings.split_seed, names)
    return stanford_dogs.boxes(data.root, names) if stanford_dogs.annotations(data.root) else None


def prepare_dataset(settings: DataSettings, folder: Path, skip_unreadable: bool = False) -> str:
    """Draw, list and check the images of a sweep once, give their fingerprint; files passed over are told each time.

    Args:
        folder: gets images.csv (image, label, split, width, height), images.json (classes,
            fingerprint, `parts`: those of the test parts, `unreadable`: name to reason, `notes`);
            what lies there is kept when no image changed.
        skip_unreadable: leave out what cannot be decoded. The split is made before, so that it
            moves no other image.

    Raises:
        InputError: as `load_dataset` and `image_sizes`, or a class with no readable image in a
            split.
    """
    listed = _listed(settings)
    for note in listed.notes:
        log.warning(printable(note))
    whole, record = listed.fingerprint(), folder / "images.json"
    notes = list(listed.notes)
    content = read_record(
        record, listed=str, fingerprint=str, classes=list, unreadable=dict, parts=dict
    )
    if content.get("listed") != whole or (content["unreadable"] and not skip_unreadable):
        data, broken = _measured(listed, skip_unreadable)
        parts = {part: data.only(part).fingerprint() for part in data.test_parts}
        content = data.counts() | {
            "listed": whole,
            "classes": data.classes,
            "unreadable": broken,
            "parts": parts,
        }
        content["fingerprint"] = data.fingerprint() if broken else whole
        text = io.StringIO()
        # pandas leaves a lone \r unquoted
        data.table.to_csv(text, index=False, quoting=csv.QUOTE_NONNUMERIC)
        write_atomically(folder / "images.csv", text.getvalue())
    if content.get("notes") != notes:
        write_atomically(record, json.dumps(content | {"notes": notes}, indent=1))
    if broken := content["unreadable"]:
        log.warning(
            printable(
                f"{listed.root}: {len(broken)} unreadable images are left out; {record} lists them"
            )
        )
    return str(content["fingerprint"])

"""The images of a dataset as one table of images, classes and splits, without importing torch.

Notebooks call `load_dataset`. A sweep calls `prepare_dataset` once before any training: it draws or
downloads the images, decodes each one to find unreadable ones, and writes the table.
"""

import csv
import hashlib
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import file_digest, read_record, resolve, write_atomically
from fixres_poc.config.run_state import bar, images_record
from fixres_poc.config.settings import SPLITS, DataSettings, ExtraTest
from fixres_poc.data import decoding, image_folder, named_datasets, synthetic

log = logging.getLogger(__name__)
MOST_NAMED = 4
"""Unreadable images that an error names beside the first one."""
BOX = ["image", "left", "top", "right", "bottom", "width", "height"]


@dataclass(frozen=True)
class ImageDataset:
    """The images of a dataset."""

    root: Path
    classes: tuple[str, ...]  # sorted names; a label is an index of this tuple
    # columns image (see `paths`), label (int), split (one of `SPLITS`, or the extra part's name)
    # and, from `load_dataset`, digest (of the image's bytes)
    table: pd.DataFrame
    extra: tuple[str, Path] | None = None  # name and folder of `extra_test`
    notes: tuple[str, ...] = ()  # lines for the user about layouts and skipped files

    @property
    def paths(self) -> list[Path]:
        """Files of the table's rows.

        `image` is a path below `root`; for the part `extra`, its name and a path below its folder.
        """
        name, folder = self.extra or ("", self.root)
        return [
            folder / image.removeprefix(f"{name}/") if extra else self.root / image
            for image, extra in zip(self.table["image"], self.from_extra, strict=True)
        ]

    @property
    def from_extra(self) -> "pd.Series[bool]":
        """Which rows are images of the folder of `extra_test`, for test or for validation."""
        prefix = f"{self.extra[0]}/" if self.extra else "//"  # no path begins with //
        return self.table["image"].str.startswith(prefix)

    @property
    def test_parts(self) -> list[str]:
        """Names of the test parts: "test", and the extra part if there is one."""
        return ["test", *sorted(set(self.table["split"]) - set(SPLITS))]

    def split(self, name: str) -> pd.DataFrame:
        """Rows of one split, in order of path."""
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def only(self, split: str, rows: slice = slice(None)) -> "ImageDataset":
        """The dataset with only one split, or some of its rows, in order of path."""
        return replace(self, table=self.split(split)[rows])

    def some(self, split: str, most: int, seed: int) -> "ImageDataset":
        """The dataset with at most `most` random images of one split."""
        rows = self.split(split)
        sample = rows.sample(min(most, len(rows)), random_state=seed)
        return replace(self, table=sample.sort_index())

    def counts(self) -> dict[str, int]:
        """Number of images per split."""
        counts = self.table["split"].value_counts()
        return {name: int(counts.get(name, 0)) for name in (*SPLITS, *self.test_parts[1:])}

    def without(self, names: Collection[str]) -> "ImageDataset":
        """The dataset without these images; the others keep their split.

        Raises:
            InputError: a class would lose all of its images in one split.
        """
        removed = self.table["image"].isin(list(names))
        empty = removed.groupby([self.table["label"], self.table["split"]]).all()
        for label, split in empty.index[empty]:
            raise InputError(f"class {self.classes[label]!r} has no readable image left in {split}")
        return replace(self, table=self.table[~removed].reset_index(drop=True))

    def fingerprint(self) -> str:
        """16 hex digits that depend on the name, content, class and split of every image."""
        digest = hashlib.sha256()
        rows = self.table[["image", "label", "split", "digest"]].itertuples(index=False)
        for image, label, split, content in rows:
            digest.update(f"{image}\0{self.classes[label]}\0{split}\0{content}\n".encode())
        return digest.hexdigest()[:16]


def load_dataset(settings: DataSettings, sweep: str | None = None) -> ImageDataset:
    """Load the images that the settings name; draw or download them first if necessary.

    Args:
        sweep: name of a sweep, whose unreadable images (`skip_unreadable`) are left out.

    Raises:
        InputError: the folder is missing or empty, a class is too small to split, or a download
            fails.
    """
    root, rows, cut, notes = _listed(settings)
    table = pd.DataFrame(rows, columns=["image", "label", "split"])
    table = table.sort_values("image", ignore_index=True)
    table["digest"] = image_folder.digests(root / image for image in table["image"])
    if cut:
        train = table["split"] == "train"
        shares = image_folder.SHARES if "test" in cut else image_folder.VALIDATION
        splits = image_folder.stratify(table[train], shares, "train", root, settings.split_seed)
        table.loc[train, "split"] = splits
    if settings.dataset != "synthetic":
        table = image_folder.limit(table, settings.image_limit, settings.split_seed)
    table["label"], classes = pd.factorize(table["label"], sort=True)
    table = table.reset_index(drop=True)
    data = ImageDataset(root, tuple(classes), table, notes=tuple(notes))
    if settings.extra_test:
        data = _with_extra(data, settings.extra_test, settings.split_seed)
    if sweep:
        data = data.without(images_record(sweep).get("unreadable") or {})
    return data


def _listed(settings: DataSettings) -> image_folder.Listing:
    if settings.dataset == "synthetic":
        names = synthetic.prepare(settings.split_seed, settings.image_limit)
        rows = [(name, name.split("/")[1], name.split("/")[0]) for name in names]
        return image_folder.Listing(synthetic.folder(settings.split_seed), rows, [], [])
    return named_datasets.find(named_datasets.prepare(settings.dataset))


def _with_extra(data: ImageDataset, extra: ExtraTest, seed: int) -> ImageDataset:
    """Add a second test part, a share of which may replace the validation part.

    Raises:
        InputError: as `class_folders`; a class is too small to share, or the dataset has a folder
            with the name of the part.
    """
    part, unknown = class_folders(extra.folder, data.classes, "extra_test.folder")
    if unknown:
        names = ", ".join(unknown)
        log.warning(printable(f"{extra.folder}: left out, as there are no such classes: {names}"))
    if data.table["image"].str.startswith(f"{extra.name}/").any():
        raise InputError(
            f"extra_test.name = {extra.name!r}: the dataset has a folder of that name; allowed is "
            "another name"
        )
    rows = part.table.assign(
        image=f"{extra.name}/" + part.table["image"],
        split=extra.name,
        digest=image_folder.digests(part.paths),
    )
    table = data.table
    notes = data.notes + part.notes
    if extra.validation:
        named = rows.assign(label=[data.classes[label] for label in rows["label"]])
        shares = {"val": extra.validation}
        rows["split"] = image_folder.stratify(named, shares, extra.name, part.root, seed)
        table = table[table["split"] != "val"]
        notes += (
            f"{part.root}: {extra.validation:.0%} of it are the validation part; the dataset's"
            " own one is not used",
        )
    table = pd.concat([table, rows], ignore_index=True)
    return replace(data, table=table, extra=(extra.name, part.root), notes=notes)


def class_folders(
    folder: str, classes: Sequence[str], key: str = "dataset"
) -> tuple[ImageDataset, list[str]]:
    """Load all images of a folder of class folders as test images of the given classes.

    Args:
        key: name of the setting, for errors.

    Returns:
        The images, and the names of class folders that are left out as unknown classes.

    Raises:
        InputError: there is no such folder, or it has no images of the classes.
    """
    if not resolve(folder).is_dir():
        raise InputError(f"{key} = {folder!r}: no such folder")
    root, folders, skipped = image_folder.outer_folders(resolve(folder))
    unknown = [name for name in folders if name not in classes]
    rows = [
        (image, classes.index(name), "test")
        for name, images in folders.items()
        if name in classes
        for image in images
    ]
    if not rows:
        some = ", ".join(unknown[:3])
        raise InputError(
            f"{key} = {folder!r}: its folders ({some}) are none of the classes, "
            f"such as {classes[0]}"
        )
    table = pd.DataFrame(rows, columns=["image", "label", "split"]).sort_values("image")
    notes = tuple(image_folder.skip_notes(root, skipped))
    return ImageDataset(root, tuple(classes), table, notes=notes), unknown


def image_sizes(data: ImageDataset) -> pd.DataFrame:
    """The table with width and height in px, from the headers of the images.

    Raises:
        InputError: a header is unreadable.
    """
    return measured(data, decode=False)[0].table


def measured(
    data: ImageDataset, skip: bool = False, decode: bool = True
) -> tuple[ImageDataset, dict[str, str]]:
    """Readable images, with width and height in px in their table, and reasons of unreadable ones.

    Args:
        skip: leave out unreadable images, instead of refusing them.
        decode: decode each image, instead of reading headers.

    Raises:
        InputError: an image is unreadable, or a class has no readable image in a split.
    """
    checked = [*bar(decoding.measure(data.paths, decode), "checking images", len(data.table))]
    named = zip(data.table["image"], checked, strict=True)
    unreadable = {name: size for name, size in named if isinstance(size, str)}
    if unreadable and not skip:
        reason = next(iter(unreadable.values()))
        file = data.paths[checked.index(reason)]
        others = [*unreadable][1:]
        rest = ", ..." if len(others) > MOST_NAMED else ""
        more = (
            f", and {len(others)} more ({', '.join(others[:MOST_NAMED])}{rest})" if others else ""
        )
        raise InputError(
            f"{file}: {reason}{more};"
            " repair or remove it, or let the sweep file say skip_unreadable: true"
        )
    readable = data.without(unreadable)
    sizes = [size for size in checked if not isinstance(size, str)]
    widths, heights = zip(*sizes, strict=True)
    table = readable.table.assign(width=widths, height=heights)
    return replace(readable, table=table), unreadable


def object_boxes(
    settings: DataSettings, data: ImageDataset, most: int = 200
) -> pd.DataFrame | None:
    """Boxes of the objects in at most `most` random images of synthetic or Stanford Dogs.

    Returns:
        One row per object: image, box (left, top, right, bottom), and width and height of the
        image, in px; None for datasets without boxes.

    Raises:
        InputError: an annotation is missing or unreadable.
    """
    images = data.table.loc[~data.from_extra, "image"]
    names = list(images.sample(min(most, len(images)), random_state=0))
    if settings.dataset == "synthetic":
        boxes = synthetic.boxes(settings.split_seed, names)
    elif folder := named_datasets.annotations(data.root):
        boxes = named_datasets.boxes(folder, names)
    else:
        return None
    return pd.DataFrame(boxes, columns=BOX)


def prepare_dataset(settings: DataSettings, folder: Path, skip_unreadable: bool = False) -> str:
    """List the images of a sweep, and decode each one unless an earlier call has done so.

    Every call warns about skipped files and unreadable images.

    Args:
        folder: for images.csv (image, label, split, width, height) and images.json (classes,
            fingerprint, fingerprints of the test `parts`, `unreadable`: name to reason).
        skip_unreadable: leave out unreadable images. They leave after the split, so that all other
            images keep their split.

    Returns:
        The fingerprint of the images.

    Raises:
        InputError: as `load_dataset`; an image is unreadable, or a class has no readable image in a
            split.
    """
    listed = load_dataset(settings)
    file = folder / "images.json"
    record = read_record(file, listed=str, fingerprint=str, unreadable=dict, table=str)
    wanted = {"listed": listed.fingerprint(), "table": file_digest(folder / "images.csv")}
    if not wanted.items() <= record.items() or (record["unreadable"] and not skip_unreadable):
        record = _checked(listed, folder, skip_unreadable)
        write_atomically(file, json.dumps(record, indent=1))
    notes = list(listed.notes)
    if count := len(record["unreadable"]):
        notes.append(f"{listed.root}: {count} unreadable images are left out; {file} lists them")
    for note in notes:
        log.warning(printable(note))
    return str(record["fingerprint"])


def _checked(listed: ImageDataset, folder: Path, skip_unreadable: bool) -> dict[str, Any]:
    """Decode every image, write images.csv, and return the entries of images.json."""
    data, unreadable = measured(listed, skip_unreadable)
    # QUOTE_NONNUMERIC, because pandas leaves a lone \r unquoted otherwise
    text = data.table.drop(columns="digest").to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    write_atomically(folder / "images.csv", text)
    return {
        "listed": listed.fingerprint(),
        "table": file_digest(folder / "images.csv"),
        "fingerprint": data.fingerprint(),
        "classes": data.classes,
        "unreadable": unreadable,
        "parts": {part: data.only(part).fingerprint() for part in data.test_parts},
    }

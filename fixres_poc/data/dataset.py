"""Images of a dataset as one table: which, with what class, in which split. No torch in here.

Notebooks call `load_dataset`; a sweep calls `prepare_dataset` once, before any training: it draws
what is drawn, decodes every image to find broken ones, and writes the table.
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
from fixres_poc.config.files import read_record, resolve, write_atomically
from fixres_poc.config.run_state import bar, images_record
from fixres_poc.config.settings import SPLITS, DataSettings, ExtraTest
from fixres_poc.data import decoding, image_folder, named_datasets, synthetic

log = logging.getLogger(__name__)
BOX = ["image", "left", "top", "right", "bottom", "width", "height"]


@dataclass(frozen=True)
class ImageDataset:
    """The images of a dataset."""

    root: Path
    classes: tuple[str, ...]  # names, sorted; a label is an index into it
    # columns image (see `paths`), label (int), split (of `SPLITS`, or the extra part's name) and,
    # from `load_dataset`, digest (of the image's bytes)
    table: pd.DataFrame
    extra: tuple[str, Path] | None = None  # name and folder of `extra_test`
    # lines for the user: how folders were read, and what was skipped in them
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """Files of the table's rows.

        `image` is a path in `root`, of `extra` <its name>/<path in its folder>.
        """
        name, folder = self.extra or ("", self.root)
        return [
            folder / image.removeprefix(f"{name}/") if extra else self.root / image
            for image, extra in zip(self.table["image"], self.from_extra, strict=True)
        ]

    @property
    def from_extra(self) -> "pd.Series[bool]":
        """Which rows are images of the folder of `extra_test`, be it for test or validation."""
        beginning = f"{self.extra[0]}/" if self.extra else "//"  # as none begins
        return self.table["image"].str.startswith(beginning)

    @property
    def test_parts(self) -> list[str]:
        """Names of the parts that are tested on: "test", and the extra one if there is one."""
        return ["test", *sorted(set(self.table["split"]) - set(SPLITS))]

    def split(self, name: str) -> pd.DataFrame:
        """Rows of one split, in order of path."""
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def only(self, split: str, rows: slice = slice(None)) -> "ImageDataset":
        """The images of one split, in order of path, or some of these rows."""
        return replace(self, table=self.split(split)[rows])

    def some(self, split: str, most: int, seed: int) -> "ImageDataset":
        """At most `most` images of one split, drawn with the seed."""
        rows = self.split(split)
        drawn = rows.sample(min(most, len(rows)), random_state=seed)
        return replace(self, table=drawn.sort_index())

    def counts(self) -> dict[str, int]:
        """Number of images per split."""
        number = self.table["split"].value_counts()
        return {name: int(number.get(name, 0)) for name in (*SPLITS, *self.test_parts[1:])}

    def without(self, names: Collection[str]) -> "ImageDataset":
        """All but these images; the others stay in their split.

        Raises:
            InputError: a class would lose all of its images in one split.
        """
        gone = self.table["image"].isin(list(names))
        lost = gone.groupby([self.table["label"], self.table["split"]]).all()
        for label, split in lost.index[lost]:
            raise InputError(f"class {self.classes[label]!r} has no readable image left in {split}")
        return replace(self, table=self.table[~gone].reset_index(drop=True))

    def fingerprint(self) -> str:
        """16 hex digits that change with any image: added, removed, renamed, replaced, moved."""
        digest = hashlib.sha256()
        rows = self.table[["image", "label", "split", "digest"]].itertuples(index=False)
        for image, label, split, content in rows:
            digest.update(f"{image}\0{self.classes[label]}\0{split}\0{content}\n".encode())
        return digest.hexdigest()[:16]


def load_dataset(settings: DataSettings, sweep: str | None = None) -> ImageDataset:
    """The images that the settings name, drawn or downloaded first where that is their way.

    Args:
        sweep: what its preparation left out as unreadable (`skip_unreadable`) is left out.

    Raises:
        InputError: folder missing, empty, or with a class too small to split; a download that
            failed.
    """
    root, rows, cut, notes = _listed(settings)
    table = pd.DataFrame(rows, columns=["image", "label", "split"])
    table = table.sort_values("image", ignore_index=True)
    table["digest"] = image_folder.digests(root / image for image in table["image"])
    if cut:
        train = table["split"] == "train"
        shares = image_folder.SHARES if "test" in cut else image_folder.VALIDATION
        split = image_folder.stratify(table[train], shares, "train", root, settings.split_seed)
        table.loc[train, "split"] = split
    if settings.dataset != "synthetic":
        table = image_folder.limit(table, settings.image_limit, settings.split_seed)
    table["label"], classes = pd.factorize(table["label"], sort=True)
    table = table.reset_index(drop=True)
    data = ImageDataset(root, tuple(classes), table, notes=tuple(notes))
    if settings.extra_test:
        data = _with_extra(data, settings.extra_test, settings.split_seed)
    return data.without(images_record(sweep).get("unreadable") or {}) if sweep else data


def _listed(settings: DataSettings) -> image_folder.Listing:
    if settings.dataset == "synthetic":
        names = synthetic.prepare(settings.split_seed, settings.image_limit)
        rows = [(name, name.split("/")[1], name.split("/")[0]) for name in names]
        return image_folder.Listing(synthetic.folder(settings.split_seed), rows, [], [])
    return named_datasets.find(named_datasets.prepare(settings.dataset))


def _with_extra(data: ImageDataset, extra: ExtraTest, seed: int) -> ImageDataset:
    """The dataset with a second test part, a share of which may be its validation part instead.

    Raises:
        InputError: as `class_folders`; a class too small to be shared; images of the dataset's own
            that cannot be told from those of the part.
    """
    more, unknown = class_folders(extra.folder, data.classes, "extra_test.folder")
    if unknown:
        names = ", ".join(unknown)
        log.warning(printable(f"{extra.folder}: left out, as there are no such classes: {names}"))
    table = more.table.assign(
        image=f"{extra.name}/" + more.table["image"],
        split=extra.name,
        digest=image_folder.digests(more.paths),
    )
    own, notes = data.table, data.notes + more.notes
    if own["image"].str.startswith(f"{extra.name}/").any():
        raise InputError(
            f"extra_test.name = {extra.name!r}: the dataset has a folder of that name; allowed is "
            "another name"
        )
    if extra.validation:
        named = table.assign(label=[data.classes[label] for label in table["label"]])
        shares = {"val": extra.validation}
        table["split"] = image_folder.stratify(named, shares, extra.name, more.root, seed)
        notes += (
            f"{more.root}: {extra.validation:.0%} of it are the validation part; the dataset's"
            " own one is not used",
        )
        own = own[own["split"] != "val"]
    whole = pd.concat([own, table], ignore_index=True)
    return replace(data, table=whole, extra=(extra.name, more.root), notes=notes)


def class_folders(
    folder: str, classes: Sequence[str], key: str = "dataset"
) -> tuple[ImageDataset, list[str]]:
    """All images of a folder of class folders, labelled by name with classes that are given.

    Args:
        key: what names the folder, for errors.

    Returns:
        The images, as test split, and the class folders that are none of the classes, which are
        left out.

    Raises:
        InputError: no such folder, no images, or none of the classes among them.
    """
    if not resolve(folder).is_dir():
        raise InputError(f"{key} = {folder!r}: no such folder")
    root, found, skipped = image_folder.outer_folders(resolve(folder))
    rows = [(name, label, "test") for label, own in found.items() for name in own]
    table = pd.DataFrame(rows, columns=["image", "label", "split"])
    table = table[table["label"].isin(list(classes))].sort_values("image")
    if table.empty:
        some = ", ".join(list(found)[:3])
        raise InputError(
            f"{key} = {folder!r}: its folders ({some}) are none of the classes, "
            f"such as {classes[0]}"
        )
    table["label"] = [classes.index(label) for label in table["label"]]
    notes = tuple(image_folder.told(root, skipped))
    unknown = [label for label in found if label not in classes]
    return ImageDataset(root, tuple(classes), table, notes=notes), unknown


def image_sizes(data: ImageDataset) -> pd.DataFrame:
    """The table with width and height in px, from the headers of images.

    Raises:
        InputError: an image without a readable header, named.
    """
    return _measured(data, decode=False)[0].table


def _measured(
    data: ImageDataset, skip: bool = False, decode: bool = True
) -> tuple[ImageDataset, dict[str, str]]:
    """The images that can be read, their table with their sizes, and the others with the reason."""
    found = bar(decoding.measure(data.paths, decode), "checking images", len(data.table))
    sizes = dict(zip(data.table["image"], found, strict=True))
    broken = {name: size for name, size in sizes.items() if isinstance(size, str)}
    if broken and not skip:
        name, reason = next(iter(broken.items()))
        file = data.paths[[*sizes].index(name)]
        more = f", and {len(broken) - 1} more like it" if len(broken) > 1 else ""
        raise InputError(
            f"{file}: {reason}{more};"
            " repair or remove it, or let the sweep file say skip_unreadable: true"
        )
    kept = data.without(broken)
    widths, heights = zip(*(sizes[name] for name in kept.table["image"]), strict=True)
    table = kept.table.assign(width=widths, height=heights)
    return replace(kept, table=table), broken


def object_boxes(
    settings: DataSettings, data: ImageDataset, most: int = 200
) -> pd.DataFrame | None:
    """The objects' boxes of at most `most` randomly chosen images, of synthetic and Stanford Dogs.

    Returns:
        One row per object: image, left, top, right, bottom, width, height (of the image), px; None
            without boxes.

    Raises:
        InputError: an annotation that is missing or not readable.
    """
    own = data.table.loc[~data.from_extra, "image"]
    names = list(own.sample(min(most, len(own)), random_state=0))
    if settings.dataset == "synthetic":
        return pd.DataFrame(synthetic.boxes(settings.split_seed, names), columns=BOX)
    if folder := named_datasets.annotations(data.root):
        return pd.DataFrame(named_datasets.boxes(folder, names), columns=BOX)
    return None


def prepare_dataset(settings: DataSettings, folder: Path, skip_unreadable: bool = False) -> str:
    """List the images of a sweep, and check those that no earlier call has checked.

    What was skipped or left out is told each time.

    Args:
        folder: gets images.csv (image, label, split, width, height), images.json (classes,
            fingerprint, `parts`: those of the test parts, `unreadable`: name to reason, `notes`).
        skip_unreadable: leave out what cannot be decoded. The split is made before, so that it
            moves no other image.

    Returns:
        The fingerprint of the images.

    Raises:
        InputError: as `load_dataset`, an image that cannot be decoded, or a class with no readable
            image in a split.
    """
    listed, record = load_dataset(settings), folder / "images.json"
    known = read_record(record, listed=str, fingerprint=str, unreadable=dict)
    if known.get("listed") != listed.fingerprint() or (known["unreadable"] and not skip_unreadable):
        known = _checked(listed, folder, skip_unreadable)
    write_atomically(record, json.dumps(known | {"notes": listed.notes}, indent=1))
    notes = list(listed.notes)
    if broken := known["unreadable"]:
        notes.append(
            f"{listed.root}: {len(broken)} unreadable images are left out; {record} lists them"
        )
    for note in notes:
        log.warning(printable(note))
    return str(known["fingerprint"])


def _checked(listed: ImageDataset, folder: Path, skip_unreadable: bool) -> dict[str, Any]:
    """Decode every image and write images.csv; returns what images.json keeps."""
    data, broken = _measured(listed, skip_unreadable)
    # pandas leaves a lone \r unquoted
    text = data.table.drop(columns="digest").to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    write_atomically(folder / "images.csv", text)
    return {
        "listed": listed.fingerprint(),
        "fingerprint": data.fingerprint(),
        "classes": data.classes,
        "unreadable": broken,
        "parts": {part: data.only(part).fingerprint() for part in data.test_parts},
    }

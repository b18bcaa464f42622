"""Datasets by name that torchvision knows: downloaded, checked, unpacked safely, and laid out by official split.

torchvision says where the archives are, which images belong to which split, and their labels. It
would extract without a filter, so that is done here. Archives go to data/<name>_archives/, which
may be removed later, and images to data/<name>/<split>/<class>/. Where there is no official
validation part, one is cut from train.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import home

OVERLAP = "It was not cut from ImageNet; overlap is not excluded, and the audit looks for near duplicates and names."
VGG = "https://www.robots.ox.ac.uk/~vgg/data/"


@dataclass(frozen=True)
class Source:
    """A dataset of torchvision.

    Attributes:
        loader: name of the class in `torchvision.datasets`.
        base: the folder below its root in which that class looks for what is unpacked.
        files: URL to checksum; md5 is what torchvision publishes, and "" where it publishes none.
        splits: our name of a split to the loader's.
        banner: rows of text at the bottom of each image, px, that are cut off.
        terms: who made it, and on which terms it may be used.
    """

    loader: str
    base: str
    files: Mapping[str, str]
    splits: Mapping[str, str]
    terms: str
    banner: int = 0


SOURCES = {
    "oxford_pets": Source(
        "OxfordIIITPet",
        "oxford-iiit-pet",
        {
            f"{VGG}pets/data/images.tar.gz": "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
            f"{VGG}pets/data/annotations.tar.gz": "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
        },
        {"train": "trainval", "test": "test"},
        "Oxford-IIIT Pet (Parkhi et al. 2012), CC BY-SA 4.0: images may be shown with this attribution.",
    ),
    "flowers102": Source(
        "Flowers102",
        "flowers-102",
        {
            f"{VGG}flowers/102/102flowers.tgz": "md5:52808999861908f626f3c1f4e79d11fa",
            f"{VGG}flowers/102/imagelabels.mat": "md5:e0620be6f572b9609742df49c70aed4d",
            f"{VGG}flowers/102/setid.mat": "md5:a5357ecc9cb78c4bef273ce3793fc85c",
        },
        {"train": "train", "val": "val", "test": "test"},
        "Oxford 102 Flowers (Nilsback and Zisserman 2008): no licence is stated, so images are not shown.",
    ),
    "fgvc_aircraft": Source(
        "FGVCAircraft",
        ".",
        {f"{VGG}fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz": ""},
        {"train": "train", "val": "val", "test": "test"},
        "FGVC-Aircraft (Maji et al. 2013): for non-commercial research only, so images are not shown.",
        banner=20,
    ),
}


def about(name: str) -> str:
    """Terms of a named dataset, and what is known about ImageNet in it; "" for any other."""
    return f"{SOURCES[name].terms} {OVERLAP}" if name in SOURCES else ""


def folder(name: str) -> Path:
    """Where a named dataset lies, as train/, test/ and perhaps val/ of class folders."""
    return home() / "data" / name


def prepare(name: str) -> Path:
    """Download, unpack and lay out what is not there yet; a broken download goes on where it stopped.

    Raises:
        InputError: no answer from the server, a wrong checksum, an archive that cannot be used, a
            full disk.
    """
    from fixres_poc.data.download import install

    source, target = SOURCES[name], folder(name)
    return install(target, target.is_dir, source.files, source.terms, partial(_lay_out, source))


def _lay_out(source: Source, files: list[Path], work: Path) -> Path:
    """Unpack the files, and sort the images by split and class."""
    import torchvision.datasets

    from fixres_poc.data.download import unpack

    base, fresh = work / "unpacked" / source.base, work / "laid_out"
    base.mkdir(parents=True)
    try:
        for file in files:
            if file.suffix == ".mat":
                shutil.copy(file, base)
            else:
                unpack(file, base)
        for own, theirs in source.splits.items():
            loaded: Any = getattr(torchvision.datasets, source.loader)(
                work / "unpacked", split=theirs
            )
            images = getattr(loaded, "_images", None) or loaded._image_files
            for image, label in zip(images, loaded._labels, strict=True):
                place = fresh / own / loaded.classes[label].replace("/", "-").replace(" ", "_")
                place.mkdir(parents=True, exist_ok=True)
                _put(Path(image), place / Path(image).name, source.banner)
    except InputError:
        raise
    except Exception as error:  # damaged lists raise errors of many kinds
        advice = "delete the archives there and run again to download them"
        raise InputError(
            f"{files[0].parent}: cannot be used as {source.loader} ({error}); {advice}"
        ) from None
    return fresh


def _put(image: Path, place: Path, banner: int) -> None:
    if not banner:
        os.replace(image, place)
        return
    from PIL import Image

    with Image.open(image, formats=["JPEG"]) as whole:
        whole.crop((0, 0, whole.width, whole.height - banner)).save(place, "JPEG", quality=95)

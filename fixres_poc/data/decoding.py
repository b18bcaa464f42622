"""How an image file is decoded, and whether it can be. No torch in here."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from fixres_poc.config.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What Pillow may take a file for, whatever its name: other plug-ins start programs (EPS) or read other files.

MPO, several JPEG images in one file, is opened as JPEG."""
MOST_PIXELS, MOST_ASPECT, STRIP = 120_000_000, 100, 256
Size = tuple[int, int] | str  # width and height in px, or why the image cannot be read


class UnfitError(ValueError):
    """An image that can be decoded, but not used."""


@contextmanager
def opened(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """An image whose header alone was read: the one place where files are opened as images.

    Raises:
        UnfitError: more than 120 million pixels, or one side more than 100 times the other.
        OSError, SyntaxError, ValueError...: what Pillow raises for damaged files and other formats.
    """
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise UnfitError(f"{width} x {height} px, more than {MOST_PIXELS} in all")
        if max(width, height) > MOST_ASPECT * min(width, height):
            raise UnfitError(f"{width} x {height} px, so one side is more than {MOST_ASPECT} times the other")
        yield image


def raise_passing(error: Exception, path: Path) -> None:
    """Raise what says nothing about a file's content: too little memory, and faults of disk, network and rights."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno is not None:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def orientation(image: Image.Image) -> int:
    """An image's EXIF orientation, 1 to 8, or the one in its XMP; 1 where there is none that can be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises errors of many kinds, and says nothing about the pixels
        return 1
    return found if found in range(1, 9) else 1


def as_rgb(image: Image.Image) -> Image.Image:
    """An image as it is read everywhere: upright by its EXIF orientation, RGB, 8 bits a channel.

    An orientation that cannot be read counts as none. Transparency is dropped, so that the colours under it show. Of
    an animation it is the first frame. Grey values of 16 bits are scaled, where Pillow would clip them.
    """
    image.load()
    upright = ImageOps.exif_transpose(image) if orientation(image) > 1 else image
    if upright.mode == "RGB":
        return upright
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        deep = np.asarray(upright)
        grey = np.empty(deep.shape, np.uint8)
        for start in range(0, len(deep), STRIP):  # all at once would take ten times the image's memory
            values = np.clip(deep[start : start + STRIP], 0, 65535).astype(np.uint32)
            grey[start : start + STRIP] = (values + 128) // 257
        upright = Image.fromarray(grey)
    return upright.convert("RGB")


def measure(paths: Iterable[Path], decode: bool = True) -> Iterator[Size]:
    """Decode every image once, or its header alone, to find broken ones before hours are spent.

    Yields:
        For every image (width, height) in px as it is shown, EXIF orientation applied, or why it cannot be used.

    Raises:
        InputError, MemoryError: a fault that says nothing about the image.
    """

    def size(path: Path) -> Size:
        try:
            with opened(path) as image:
                width, height = (as_rgb(image) if decode else image).size
                if not decode and orientation(image) > 4:  # on its side, which `as_rgb` has turned
                    width, height = height, width
        except UnfitError as error:
            return str(error)
        except Exception as error:  # damaged files raise errors of many kinds
            raise_passing(error, path)
            reason = str(error).replace(str(path), path.name)
            return f"not a readable image ({reason or type(error).__name__})"
        return width, height

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(size, paths)

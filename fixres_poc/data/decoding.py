"""Decoding of image files, and checks of them before it. This module does not import torch."""

import io
import math
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Semaphore

from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile

from fixres_poc.config.errors import InputError
from fixres_poc.config.provenance import cores

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that Pillow may detect: other plug-ins start programs (EPS) or read other files.

Pillow opens MPO, several JPEG images in one file, as JPEG."""
MOST_BYTES = 2**29
MOST_HEADER_BYTES = 2**23
MOST_READS = 300_000
MOST_SCANS = 100
SMALL_BYTES = 2**18  # a smaller file decodes as fast as a photograph, whatever its content
MOST_PIXELS = 120_000_000
MOST_ASPECT = 100
COSTS = {"WEBP": 2, "ppm": 60, "ppm_plain": 60, "bmp_rle": 60}
"""Memory or time per pixel relative to other formats; Pillow decodes the last three in Python."""
UNIT = 1_000_000  # pixels
_budget = Semaphore(MOST_PIXELS // UNIT)
_queue = Lock()
Size = tuple[int, int] | str  # width and height in px, or why the image is unreadable


class UnreadableError(InputError):
    """An unusable image file; `reason` is the message without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        """Build the message from the path and the reason."""
        self.reason = f"not a readable image ({reason})"
        super().__init__(f"{path}: {self.reason}; repair or remove it")


class _File(io.BufferedReader):
    """A file that limits reads and header bytes; slower than `open`."""

    reads_left = MOST_READS
    header_bytes_left = float(MOST_HEADER_BYTES)

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        self.header_bytes_left -= size or 0  # Pillow reads WebP with -1, the whole file
        if min(self.reads_left, self.header_bytes_left) < 0:
            raise ValueError("its header is too long, or it is in too many pieces")
        return super().read(size)


@contextmanager
def opened(path: Path) -> Iterator[ImageFile]:
    """Open an image and read its header; all code opens image files with this function.

    All threads together hold at most `MOST_PIXELS` open; further ones wait.

    Raises:
        UnreadableError: the file is damaged, of another format, not regular, larger than 512 MiB,
            or too slow to decode; it has more than 120 million pixels, or fewer in costly formats;
            one side is more than 100 times the other; or the code in the context raises any other
            error.
        InputError, MemoryError: the disk, the network, access rights or memory fail.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise ValueError(f"no regular file, or one of more than {MOST_BYTES} bytes")
        small = status.st_size <= SMALL_BYTES
        with open(path, "rb") if small else _File(io.FileIO(path)) as file:
            image = Image.open(file, formats=FORMATS)
            if isinstance(file, _File):
                file.header_bytes_left = math.inf
            units = _cost(image, file)
            with _queue:  # otherwise two threads, each with half of its units, would deadlock
                for _ in range(units):
                    _budget.acquire()
            try:
                yield image
            finally:
                _budget.release(units)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        if number := getattr(error, "errno", None):
            raise InputError(f"{path}: cannot be read ({os.strerror(number)})") from None
        reason = str(error).partition(" <")[0]  # Pillow may append a Python object
        raise UnreadableError(path, reason or type(error).__name__) from None


def _cost(image: ImageFile, file: io.BufferedReader) -> int:
    """Units of the budget that decoding an image takes.

    Raises:
        ValueError: the image has too many pixels, too long a side, or too many scans or comments.
    """
    width, height = image.size
    codec = image.tile[0].codec_name if image.tile else ""
    factor = COSTS.get(str(image.format), COSTS.get(codec, 1))
    cost = width * height * factor
    if cost > MOST_PIXELS or max(width, height) > MOST_ASPECT * min(width, height):
        raise ValueError(
            f"{width} x {height} px: more than {MOST_PIXELS // factor},"
            f" or a side more than {MOST_ASPECT} times the other"
        )
    mark = b"#" if codec == "ppm_plain" else b"\xff\xda"
    if codec == "ppm_plain" or "progressive" in image.info:
        file.seek(0)
        if file.read().count(mark) > MOST_SCANS:
            raise ValueError(f"more than {MOST_SCANS} scans or comments")
    return math.ceil(cost / UNIT)


def orientation(image: Image.Image) -> int:
    """An image's orientation in EXIF or XMP, 1 to 8; 1 if it is missing or unreadable."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises errors of many kinds; the pixels may still be good
        return 1
    return value if value in range(1, 9) else 1


def as_rgb(image: ImageFile) -> Image.Image:
    """Convert an image to upright RGB with 8 bits a channel; all code reads images in this form.

    An unreadable EXIF orientation is ignored. Transparency is dropped, so that the colours under it
    show. Of an animation or several pages the first image is read. Grey values of 12 and 16 bits
    are scaled; Pillow would clip them.

    Raises:
        ValueError: the values are signed, float or 32 bits, which have no known range, or the whole
            content lies in the transparency or in the low bits of 16.
    """
    tags = getattr(image, "tag_v2", {})
    unranged = image.mode == "F" or (image.mode == "I" and image.format == "TIFF")
    if unranged or set(tags.get(ExifTags.Base.SampleFormat, (1,))) != {1}:
        raise ValueError(
            "signed, float or 32-bit values without a range; convert it to 8 or 16 bits"
        )
    codec = str(image.tile[:1])
    deep = image.mode.startswith("I") or ";16" in codec or "ppm" in codec
    image.load()
    upright = ImageOps.exif_transpose(image) if orientation(image) > 1 else image
    if upright.mode.startswith("I"):
        slope = 255 / (2 ** int(tags.get(ExifTags.Base.BitsPerSample, (16,))[0]) - 1)
        start = 0.5
        if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # 0 is white
            slope = -slope
            start = 255.5
        upright = upright.point(lambda value: value * slope + start).convert("L")
    rgb = upright if upright.mode == "RGB" else upright.convert("RGB")
    if _is_plain(rgb) and (
        deep or (upright.has_transparency_data and not _is_plain(upright.convert("RGBA")))
    ):
        raise ValueError(
            "of one colour in 8 bits without transparency; scale it, or put it on a background"
        )
    return rgb


def _is_plain(image: Image.Image) -> bool:
    """Whether all pixels have the same colour."""
    return image.getcolors(1) is not None


def measure(paths: Iterable[Path], decode: bool = True) -> Iterator[Size]:
    """Decode every image, or only its header, to find unreadable ones before training.

    Yields:
        For each image its upright (width, height) in px, or why it is unreadable.

    Raises:
        InputError, MemoryError: as `opened`.
    """

    def size(path: Path) -> Size:
        try:
            with opened(path) as image:
                width, height = (as_rgb(image) if decode else image).size
                if not decode and orientation(image) > 4:  # on its side; `as_rgb` turns it
                    width, height = height, width
        except UnreadableError as error:
            return error.reason
        return width, height

    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(size, paths)

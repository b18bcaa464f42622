"""How an image file is decoded, and whether it can be: one place for all. No torch in here."""

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
"""What Pillow may take a file for: other plug-ins start programs (EPS) or read other files.

MPO, several JPEG images in one file, is opened as JPEG."""
MOST_BYTES, MOST_HEADER_BYTES, MOST_READS, MOST_SCANS = 2**29, 2**23, 300_000, 100
SMALL_BYTES = 2**18  # a smaller file takes no longer than a photograph, whatever is in it
MOST_PIXELS, MOST_ASPECT = 120_000_000, 100
COSTS = {"WEBP": 2, "ppm": 60, "ppm_plain": 60, "bmp_rle": 60}
"""Memory or time per pixel, relative to others; Pillow decodes the last three in Python."""
UNIT = 1_000_000  # pixels
_budget, _queue = Semaphore(MOST_PIXELS // UNIT), Lock()
Size = tuple[int, int] | str  # width and height in px, or why the image cannot be read


class UnreadableError(InputError):
    """An image file that cannot be used; `reason` says why without its path."""

    def __init__(self, path: Path, reason: str) -> None:
        """Name the file in the message."""
        self.reason = f"not a readable image ({reason})"
        super().__init__(f"{path}: {self.reason}; repair or remove it")


class _File(io.BufferedReader):
    """A file whose header and pixels take a bounded number of reads; slower than `open`."""

    reads, header_bytes = MOST_READS, float(MOST_HEADER_BYTES)  # that are left

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads -= 1
        self.header_bytes -= size or 0  # -1, all of the file, is how Pillow reads WebP
        if min(self.reads, self.header_bytes) < 0:
            raise ValueError("its header is too long, or it is in too many pieces")
        return super().read(size)


@contextmanager
def opened(path: Path) -> Iterator[ImageFile]:
    """An image whose header alone was read: the one place where files are opened as images.

    All threads together hold images of at most `MOST_PIXELS` open; others wait.

    Raises:
        UnreadableError: a damaged file or another format; no regular file; a file of more than 512
            MiB or made to take long; more than 120 million pixels, fewer in formats that cost more;
            one side more than 100 times the other; and every error that the code using the image
            raises, apart from the following.
        InputError, MemoryError: a fault of the disk, the network, access rights or memory, not of
            the image.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise ValueError(f"no regular file, or one of more than {MOST_BYTES} bytes")
        with open(path, "rb") if status.st_size <= SMALL_BYTES else _File(io.FileIO(path)) as file:
            image = Image.open(file, formats=FORMATS)
            if isinstance(file, _File):
                file.header_bytes = math.inf
            units = _cost(image, file)
            with _queue:  # two threads that each hold half of what they need would wait for ever
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
        text = str(error).partition(" <")[0]  # Pillow may name a Python object behind it
        raise UnreadableError(path, text or type(error).__name__) from None


def _cost(image: ImageFile, file: io.BufferedReader) -> int:
    """Units of the budget that decoding an image takes.

    Raises:
        ValueError: too many pixels, too long a shape, or content that is slow to decode for its
            size.
    """
    (width, height), codec = image.size, image.tile[0].codec_name if image.tile else ""
    factor = COSTS.get(str(image.format), COSTS.get(codec, 1))
    cost, most = width * height * factor, MOST_PIXELS // factor
    if cost > MOST_PIXELS or max(width, height) > MOST_ASPECT * min(width, height):
        raise ValueError(
            f"{width} x {height} px: more than {most},"
            f" or a side more than {MOST_ASPECT} times the other"
        )
    mark = b"#" if codec == "ppm_plain" else b"\xff\xda" if "progressive" in image.info else b""
    if mark and file.seek(0) == 0 and file.read().count(mark) > MOST_SCANS:
        raise ValueError(f"more than {MOST_SCANS} scans or comments")
    return math.ceil(cost / UNIT)


def orientation(image: Image.Image) -> int:
    """An image's orientation by EXIF or XMP, 1 to 8; 1 where there is none that can be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises errors of many kinds, and says nothing about the pixels
        return 1
    return found if found in range(1, 9) else 1


def as_rgb(image: ImageFile) -> Image.Image:
    """An image as it is read everywhere: upright by its EXIF orientation, RGB, 8 bits a channel.

    An orientation that cannot be read counts as none. Transparency is dropped, so that the colours
    under it show. Of an animation or of several pages it is the first. Grey values of 12 and 16
    bits are scaled, where Pillow would clip.

    Raises:
        ValueError: signed, float or 32-bit values, whose range no file says; an image that has all
            of its content in its transparency, or in the low bits of 16.
    """
    tags, coded = getattr(image, "tag_v2", {}), str(image.tile[:1])
    unranged = image.mode == "F" or (image.mode == "I" and image.format == "TIFF")
    if unranged or set(tags.get(ExifTags.Base.SampleFormat, (1,))) != {1}:
        raise ValueError(
            "signed, float or 32-bit values without a range; convert it to 8 or 16 bits"
        )
    deep = image.mode.startswith("I") or ";16" in coded or "ppm" in coded
    image.load()
    upright = ImageOps.exif_transpose(image) if orientation(image) > 1 else image
    if upright.mode.startswith("I"):
        scale = 255 / (2 ** int(tags.get(ExifTags.Base.BitsPerSample, (16,))[0]) - 1)
        slope, start = (
            (-scale, 255.5)
            if tags.get(ExifTags.Base.PhotometricInterpretation) == 0
            else (scale, 0.5)
        )
        upright = upright.point(lambda value: value * slope + start).convert("L")
    rgb = upright if upright.mode == "RGB" else upright.convert("RGB")
    if (
        (deep or upright.has_transparency_data)
        and _plain(rgb)
        and (deep or not _plain(upright.convert("RGBA")))
    ):
        raise ValueError(
            "of one colour in 8 bits without transparency; scale it, or put it on a background"
        )
    return rgb


def _plain(image: Image.Image) -> bool:
    return image.getcolors(1) is not None  # None: more than one


def measure(paths: Iterable[Path], decode: bool = True) -> Iterator[Size]:
    """Decode every image once, or its header alone, to find broken ones before hours are spent.

    Yields:
        For every image (width, height) in px as it is shown, EXIF orientation applied, or why it
        cannot be used.

    Raises:
        InputError, MemoryError: a fault that says nothing about the image.
    """

    def size(path: Path) -> Size:
        try:
            with opened(path) as image:
                width, height = (as_rgb(image) if decode else image).size
                if not decode and orientation(image) > 4:  # on its side, which `as_rgb` has turned
                    width, height = height, width
        except UnreadableError as error:
            return error.reason
        return width, height

    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(size, paths)

"""How an image file is decoded, and whether it can be: one place for all that read images. No torch in here."""

import io
import math
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fixres_poc.config.errors import InputError
from fixres_poc.config.provenance import cores

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What Pillow may take a file for, whatever its name: other plug-ins start programs (EPS) or read other files.

MPO, several JPEG images in one file, is opened as JPEG."""
MOST_PIXELS, MOST_ASPECT, STRIP = 120_000_000, 100, 256
MEMORY = {"WEBP": 2}  # bytes that decoding takes per pixel, relative to other formats
MOST_BYTES, BYTES_PER_PIXEL = 2**26, 16  # file size: pixels, and room for a film, layers or pages beside them
MOST_READS, BYTES_PER_READ = 10_000, 256  # the header of a photograph takes a few hundred, its pixels one for 64 KiB
MOST_HEADER_BYTES, MOST_TIFF_BYTES = 2**28, 2**22  # a WebP is read whole; a TIFF's header is slow to understand
MOST_SLOW_PIXELS, MOST_SLOW_BYTES, MOST_SCANS = 2_000_000, 2**25, 100
Size = tuple[int, int] | str  # width and height in px, or why the image cannot be read
_change, _pixels_at_work = threading.Condition(), [0]


class UnfitError(ValueError):
    """An image that can be decoded, but not used."""


class _File(io.BufferedReader):
    """A file that is read in bounded time and memory, whatever its header says."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size
        self.reads: float = MOST_READS + self.size // BYTES_PER_READ
        self.header: float = MOST_TIFF_BYTES if self.peek(2)[:2] in (b"II", b"MM") else MOST_HEADER_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads -= 1
        self.header -= self.size if size is None or size < 0 else size
        if min(self.reads, self.header) < 0:
            raise UnfitError("its header is too long, or it is in too many pieces")
        return super().read(size)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header alone was read: the one place where files are opened as images.

    All threads together hold images of at most `MOST_PIXELS` open; others wait.

    Raises:
        UnfitError: more than 120 million pixels (WebP: half of that), one side more than 100 times the other, more
            bytes than such an image has, no regular file, or one that is made to take long.
        OSError, SyntaxError, ValueError...: what Pillow raises for damaged files and other formats.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnfitError("no regular file")
    with _File(path) as file:
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise UnidentifiedImageError("cannot identify image file") from None  # Pillow's text names an object
        file.header = math.inf
        width, height = image.size
        weight = width * height * MEMORY.get(str(image.format), 1)
        if weight > MOST_PIXELS:
            raise UnfitError(f"{width} x {height} px, more than {MOST_PIXELS * width * height // weight} in all")
        if max(width, height) > MOST_ASPECT * min(width, height):
            raise UnfitError(f"{width} x {height} px, so one side is more than {MOST_ASPECT} times the other")
        _refuse_slow(image, file)
        with _held(weight):
            yield image


def opens(path: Path) -> bool:
    """Whether a file's header is one of an image that can be used."""
    try:
        with opened(path):
            return True
    except Exception:  # damaged files raise errors of many kinds
        return False


def _refuse_slow(image: Image.Image, file: _File) -> None:
    pixels, codec = image.width * image.height, next(iter(getattr(image, "tile", [])), [""])[0]
    if file.size > MOST_BYTES + BYTES_PER_PIXEL * pixels:
        raise UnfitError(f"{file.size} bytes, more than an image of {image.width} x {image.height} px has")
    if codec.startswith(("ppm", "bmp_rle")):  # text, an unusual depth, runs: decoded in Python, byte by byte
        file.reads = math.inf
        if pixels > MOST_SLOW_PIXELS or file.size > MOST_SLOW_BYTES:
            raise UnfitError(f"more than {MOST_SLOW_PIXELS} px of a kind that is slow to decode; convert it to PNG")
    mark = b"#" if codec == "ppm_plain" else b"\xff\xda" if "progressive" in image.info else b""
    if mark and file.seek(0) == 0 and file.read().count(mark) > MOST_SCANS:
        raise UnfitError(f"more than {MOST_SCANS} scans or comments")


@contextmanager
def _held(weight: int) -> Iterator[None]:
    with _change:
        _change.wait_for(lambda: _pixels_at_work[0] + weight <= MOST_PIXELS)
        _pixels_at_work[0] += weight
    try:
        yield
    finally:
        with _change:
            _pixels_at_work[0] -= weight
            _change.notify_all()


def reason(error: Exception, path: Path) -> str:
    """Why an image cannot be used; errors that the file's content did not cause are raised again.

    Raises:
        InputError, MemoryError: too little memory, and faults of disk, network and rights.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno is not None:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if isinstance(error, UnfitError):
        return str(error)
    return f"not a readable image ({str(error) or type(error).__name__})"


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
    an animation or of several pages it is the first. Grey values of 12 and 16 bits are scaled, where Pillow would clip.

    Raises:
        UnfitError: signed, float or 32-bit values, whose range no file says; an image that has all of its content in
            its transparency, or in the low bits of 16.
    """
    tags = getattr(image, "tag_v2", {})
    ranged = image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM"))
    if not ranged or set(tags.get(ExifTags.Base.SampleFormat, (1,))) != {1}:
        raise UnfitError("signed, float or 32-bit values without a range; convert it to 8 or 16 bits")
    deep = image.mode.startswith("I") or any(kind in str(getattr(image, "tile", "")) for kind in (";16", "ppm"))
    image.load()
    upright = ImageOps.exif_transpose(image) if orientation(image) > 1 else image
    if upright.mode.startswith("I"):
        white = 2 ** int(tags.get(ExifTags.Base.BitsPerSample, (16,))[0]) - 1
        upright = _grey(upright, white, tags.get(ExifTags.Base.PhotometricInterpretation) == 0)
    rgb = upright if upright.mode == "RGB" else upright.convert("RGB")
    if (deep or upright.has_transparency_data) and _plain(rgb):
        if deep:
            raise UnfitError("of one colour in 8 bits; scale it to 8 bits yourself")
        if not _plain(upright.convert("RGBA")):
            raise UnfitError("of one colour but for its transparency; put it on a background")
    return rgb


def _plain(image: Image.Image) -> bool:
    lows, highs = np.asarray(image.getextrema()).reshape(-1, 2).T
    return bool((lows == highs).all())


def _grey(image: Image.Image, white: int, inverted: bool) -> Image.Image:
    """Grey values from 0 to `white` as 8 bits."""
    grey = Image.new("L", image.size)
    for top in range(0, image.height, STRIP):  # all at once would take ten times the image's memory
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        values = np.clip(np.asarray(strip), 0, white).astype(np.uint32)
        values = ((white - values if inverted else values) * 255 + white // 2) // white
        grey.paste(Image.fromarray(values.astype(np.uint8)), (0, top))
    return grey


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
        except Exception as error:  # damaged files raise errors of many kinds
            return reason(error, path)
        return width, height

    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(size, paths)

"""Image files of every odd kind: decoded as Pillow does, EXIF applied, or refused in one line."""

import io
import struct
import threading
import time
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import load
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from PIL.ImageFile import ImageFile

from fixres_poc.config.errors import InputError
from fixres_poc.data import decoding
from fixres_poc.data.dataset import image_sizes
from fixres_poc.data.loading import read_image

BLOCKS = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
PHOTO = Image.fromarray(BLOCKS.repeat(8, axis=0).repeat(8, axis=1))
ORIENTATION = 0x0112


def saved(suffix: str, image: Image.Image = PHOTO, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[f".{suffix}"], **options)
    return buffer.getvalue()


def exif(kind: int, value: bytes, order: str = "<", count: int = 1) -> bytes:
    """EXIF with an orientation of any type, right or wrong."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHI", ORIENTATION, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0" + start + struct.pack(f"{order}IH", 8, 1) + entry + b"\0" * 4


BROKEN_EXIF = {
    "junk": b"Exif\0\0" + b"junk" * 4,
    "cut": b"Exif\0\0II*\0",
    "text": exif(2, b"6"),
    "zero": exif(3, b"\0"),
    "nine": exif(3, b"\x09"),
    "long": exif(4, b"\x06"),
    "two values": exif(3, b"\x06\0\x03", count=2),
    "a billion values": exif(3, b"\xff\xff\xff\x7f", count=2**30),
    "big-endian": exif(3, b"\0\x06", order=">"),
    "ratio": exif(5, b"\x08"),
}
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FINE = {
    "progressive.jpg": saved("jpg", progressive=True),
    "all colours.jpg": saved("jpg", subsampling=0),
    "bilevel.png": saved("png", PHOTO.convert("1")),
    "palette.png": saved("png", PHOTO.convert("P")),
    "transparent.png": saved("png", PHOTO.convert("RGBA")),
    "XMP alone.jpg": saved("jpg", xmp=XMP),
    "rubbish behind.jpg": saved("jpg") + b"<script>" * 99,
    "profile.tif": saved("tif", icc_profile=PROFILE),
}
for suffix in ("jpg", "png", "webp"):
    FINE[f"profile.{suffix}"] = saved(suffix, icc_profile=PROFILE)
    FINE[f"broken profile.{suffix}"] = saved(suffix, icc_profile=b"\xff" * 300)
    for name, content in BROKEN_EXIF.items():
        FINE[f"EXIF {name}.{suffix}"] = saved(suffix, exif=content)
for suffix, value in product(("jpg", "png", "webp", "tif"), range(1, 9)):
    FINE[f"orientation {value}.{suffix}"] = saved(suffix, exif=exif(3, bytes([value])))
for mode, quality in product(("L", "CMYK", "RGB"), (20, 100)):
    FINE[f"{mode}, quality {quality}.jpg"] = saved("jpg", PHOTO.convert(mode), quality=quality)
FRAMES = [ImageOps.invert(PHOTO)] * 3
for suffix in ("gif", "webp", "png", "tif", "mpo"):
    content = saved(suffix, append_images=FRAMES, save_all=True, duration=9)
    FINE[f"animated.{suffix}"] = content
for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif", "ppm"):
    FINE[f"one pixel.{suffix}"] = saved(suffix, PHOTO.resize((1, 1)))
    FINE[f"{suffix} as x.jpg"] = FINE[f"{suffix} as x.PNG"] = saved(suffix)


@pytest.mark.parametrize("name", FINE)
def test_odd_image_is_decoded_as_pillow_does(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(FINE[name])
    (size,) = decoding.measure([file])
    found = read_image(file).permute(1, 2, 0).numpy()
    with Image.open(file) as image:
        readable = not name.startswith(("EXIF junk", "EXIF cut"))
        expected = ImageOps.exif_transpose(image) if readable else image
        assert found.shape[1::-1] == size
        assert np.array_equal(found, np.asarray(expected.convert("RGB")))


WHOLE = {suffix: saved(suffix) for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif")}


@settings(max_examples=200)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damaged_and_cut_images(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    content = bytearray(WHOLE[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = WHOLE[suffix][: data.draw(st.integers(0, len(content) * 3 // 4))]
    files = [tmp_path / f"{name}.{suffix}" for name in ("damaged", "cut")]
    files[0].write_bytes(content)
    files[1].write_bytes(cut)
    size, reason = decoding.measure(files)
    if isinstance(size, str):
        assert size.startswith("not a readable image (") or "times the other" in size
    else:
        assert tuple(read_image(files[0]).shape) == (3, size[1], size[0])
    assert str(reason).startswith("not a readable image (")


GRADIENT = np.linspace(0, 1, 64)[None].repeat(48, 0)
GREY = Image.fromarray((GRADIENT * 255).astype(np.uint8))
RGB = GREY.convert("RGB")


def gradients() -> dict[str, Image.Image]:
    """The same gradient in every mode that Pillow has."""
    modes = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr")
    found = {mode: RGB.convert(mode) for mode in modes}
    for kind, most in {"uint16": 65535, ">u2": 65535, "int32": 65535, "float32": 1}.items():
        found[kind] = Image.fromarray((GRADIENT * most).astype(kind))
    found["low"] = Image.fromarray((GRADIENT * 99).astype(np.uint16))
    found["alpha"] = Image.new("RGBA", GREY.size)
    found["alpha"].putalpha(GREY)
    found["La"] = found["LA"].convert("La")
    source, target = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(RGB, source, target, outputMode="LAB")
    assert lab is not None
    return found | {"LAB": lab}


GRADIENTS = gradients()


@pytest.mark.parametrize("mode", GRADIENTS)
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "ppm"])
def test_a_gradient_in_any_mode_stays_one_or_is_refused(
    tmp_path: Path, mode: str, suffix: str
) -> None:
    try:
        GRADIENTS[mode].save(tmp_path / f"x.{suffix}")
    except OSError:
        return  # Pillow writes no such file
    if (mode, suffix) != ("alpha", "ppm"):  # which has no transparency
        check_gradient(tmp_path / f"x.{suffix}", 0.55 if mode == "1" else 0.95)  # dithered


def check_gradient(file: Path, least: float = 0.95) -> None:
    """Training and checks both see the gradient, or both refuse."""
    (size,) = decoding.measure([file])
    if isinstance(size, str):
        with pytest.raises(InputError):
            read_image(file)
    else:
        found = read_image(file).numpy().mean(0)
        assert np.corrcoef(found.ravel(), GRADIENT.ravel())[0, 1] > least


FIRST, SECOND = (GRADIENT * 4095).astype(int).reshape(-1, 2).T
TWELVE = (FIRST << 12 | SECOND).astype(">u4").view("u1").reshape(-1, 4)[:, 1:]  # two in 3 bytes
ODD_TIFFS = {  # values, bits of each, photometric interpretation, sample format
    "white is 0": (((1 - GRADIENT) * 65535).astype("<u2"), 16, 0, 1),
    "12 bits": (TWELVE, 12, 1, 1),
    "signed": ((GRADIENT * 60000 - 30000).astype("<i2"), 16, 1, 2),
}


@pytest.mark.parametrize("name", ODD_TIFFS)
def test_a_gradient_in_an_odd_tiff(tmp_path: Path, name: str) -> None:
    """A TIFF of one strip, written by hand, for depths that Pillow does not write."""
    values, bits, photometric, kind = ODD_TIFFS[name]
    strip, start = values.tobytes(), 200
    size = {256: 64, 257: 48, 258: bits, 259: 1, 262: photometric}
    tags = size | {273: start, 277: 1, 278: 48, 279: len(strip), 339: kind}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries
    file = tmp_path / "x.tif"
    file.write_bytes(header.ljust(start, b"\0") + strip)
    check_gradient(file)
    if name in ("white is 0", "12 bits"):
        assert read_image(file)[0, 0, [0, -1]].tolist() == [0, 255]


RUNS = bytearray(saved("bmp", PHOTO.convert("P")))
RUNS[18:26] = struct.pack("<ii", 2000, 2000)
RUNS[30] = 1  # compressed by run lengths
EMPTY_CHUNK = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
TIFF = struct.pack("<2sHI", b"II", 42, 8)
SCAN = b"\xff\xda\0\x08\1\1\0\0\0\0"
SLOW = {
    "runs.bmp": bytes(RUNS) + b"\0" * 300_000,
    "comment.ppm": b"P6\n#" + b"x" * 20_000_000 + b"\n4 4\n255\n" + bytes(48),
    "comments.ppm": b"P3\n90 90\n255\n" + b"#\n" * 100_000 + b"1 " * 24_300,
    "text.ppm": b"P3\n2000 2000\n255\n",
    "depth.ppm": b"P6\n2000 2000\n200\n" + bytes(12_000_000),
    "segments.jpg": WHOLE["jpg"][:2] + b"\xff\xe1\0\2" * 500_000 + WHOLE["jpg"][2:],
    "chunks.png": WHOLE["png"][:-12] + EMPTY_CHUNK * 500_000,
    "tags.tif": TIFF + struct.pack("<H", 65535) + struct.pack("<HHII", 30000, 3, 1, 0) * 65535,
    "strips.tif": TIFF + struct.pack("<HHHII", 1, 273, 4, 5_000_000, 50) + bytes(2**25),
    "scans.jpg": saved("jpg", progressive=True)[:-2] + SCAN * 101 + b"\xff\xd9",
}


@pytest.mark.parametrize("name", SLOW)
def test_an_image_that_takes_long_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SLOW[name])
    start = time.process_time()
    (reason,) = decoding.measure([tmp_path / name])
    assert isinstance(reason, str)
    assert time.process_time() - start < 2  # seconds


def test_a_sparse_file_is_not_read_whole(colour_folder: Path) -> None:
    with (colour_folder / "red" / "x.png").open("wb") as file:
        file.write(WHOLE["png"])
        file.truncate(20 * 2**30)
    start = time.process_time()
    data = load(colour_folder)
    data.fingerprint()
    with pytest.raises(InputError, match=r"red/x\.png"):
        image_sizes(data)
    assert time.process_time() - start < 3  # seconds


def test_threads_share_one_budget_of_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, at_once, most, real = tmp_path / "x.png", [0], [0], decoding.as_rgb
    PHOTO.save(file)

    def watched(image: ImageFile) -> Image.Image:
        at_once[0] += 1
        most.append(at_once[0])
        time.sleep(0.01)
        at_once[0] -= 1
        return real(image)

    monkeypatch.setattr(decoding, "cores", lambda: 6)
    monkeypatch.setattr(decoding, "_budget", threading.Semaphore(2))
    monkeypatch.setattr(decoding, "as_rgb", watched)
    assert list(decoding.measure([file] * 12)) == [PHOTO.size] * 12
    assert max(most) == 2


def test_a_webp_may_have_half_the_pixels_since_it_takes_twice_the_memory(tmp_path: Path) -> None:
    Image.new("RGB", (8000, 7501)).save(tmp_path / "x.webp", lossless=True, method=0)
    assert "60000000" in str(*decoding.measure([tmp_path / "x.webp"]))

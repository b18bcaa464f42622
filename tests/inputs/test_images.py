"""Image files of every odd kind: decoded as Pillow does, EXIF applied, by both decoders, or refused in one line."""

import io
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from PIL.ImageFile import ImageFile

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DataSettings
from fixres_poc.data import decoding
from fixres_poc.data.dataset import image_sizes, load_dataset, prepare_dataset
from fixres_poc.data.loading import read_image

PHOTO = Image.fromarray(
    np.kron(np.random.default_rng(0).integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(
        "uint8"
    )
)
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
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
XMP += b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FINE = {f"orientation {value}.{suffix}": saved(suffix, exif=exif(3, bytes([value]))) for value in range(1, 9)
        for suffix in ("jpg", "png", "webp", "tif")}  # fmt: skip
FINE |= {f"EXIF {name}.{suffix}": saved(suffix, exif=content) for name, content in BROKEN_EXIF.items()
         for suffix in ("jpg", "png", "webp")}  # fmt: skip
FINE |= {
    f"{mode}, quality {quality}.jpg": saved("jpg", PHOTO.convert(mode), quality=quality)
    for mode in ("L", "CMYK", "RGB")
    for quality in (20, 75, 100)
}
FINE |= {
    f"profile.{suffix}": saved(suffix, icc_profile=PROFILE)
    for suffix in ("jpg", "png", "webp", "tif")
}
FINE |= {
    f"broken profile.{suffix}": saved(suffix, icc_profile=b"\xff" * 300)
    for suffix in ("jpg", "png", "webp")
}
FINE |= {
    f"one pixel.{suffix}": saved(suffix, PHOTO.resize((1, 1)))
    for suffix in ("jpg", "png", "webp", "gif", "bmp")
}
FINE |= {
    f"animated.{suffix}": saved(
        suffix, append_images=[ImageOps.invert(PHOTO)] * 3, save_all=True, duration=9
    )
    for suffix in ("gif", "webp", "png", "tif")
}
FINE |= {f"{suffix} as {other}": saved(suffix) for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif", "ppm")
         for other in ("x.jpg", "x.JPEG", "x.png")}  # fmt: skip
FINE |= {
    "progressive.jpg": saved("jpg", progressive=True),
    "all colours.jpg": saved("jpg", subsampling=0),
    "bilevel.png": saved("png", PHOTO.convert("1")),
    "palette.png": saved("png", PHOTO.convert("P")),
    "transparent.png": saved("png", PHOTO.convert("RGBA")),
    "XMP alone.jpg": saved("jpg", xmp=XMP),
    "rubbish behind.jpg": saved("jpg") + b"<script>" * 99,
}


@pytest.mark.parametrize("name", FINE)
def test_odd_image_is_decoded_as_pillow_does_by_both_decoders(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(FINE[name])
    (size,) = decoding.measure([tmp_path / name])
    found = read_image(file).permute(1, 2, 0).numpy()
    with Image.open(file) as image:
        readable = not name.startswith(("EXIF junk", "EXIF cut"))
        expected = np.asarray(
            (ImageOps.exif_transpose(image) if readable else image).convert("RGB")
        )
    assert found.shape[1::-1] == size
    assert np.array_equal(found, expected)


def png(bits: int, colour: int, rows: bytes, size: tuple[int, int]) -> bytes:
    """A PNG written by hand, for depths that Pillow does not write and sizes that it has no memory for."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    chunks = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
        for n, d in parts.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("colour", "channels"), [(0, 1), (2, 3), (6, 4)], ids=["grey", "colour", "transparent"]
)
def test_16_bit_png_keeps_its_high_byte(tmp_path: Path, colour: int, channels: int) -> None:
    values = [
        ([0x00FF, 0x80FF, 0xFFFF] if x == 0 else [0xFFFF] * 3)[:channels]
        + [0xFFFF] * (channels == 4)
        for x in (0, 1)
    ]
    rows = b"\0" + b"".join(struct.pack(">H", value) for pixel in values for value in pixel)
    (tmp_path / "x.png").write_bytes(png(16, colour, rows, (2, 1)))
    # grey is scaled and rounded, see as_rgb
    expected = [1, 1, 1] if channels == 1 else [0, 0x80, 0xFF]
    assert read_image(tmp_path / "x.png")[:, 0, 0].tolist() == expected


WHOLE = {suffix: saved(suffix) for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif")}


def check(folder: Path, content: bytes, suffix: str) -> None:
    """Both decoders give an image of one size, or one line."""
    (folder / f"x.{suffix}").write_bytes(content)
    (size,) = decoding.measure([folder / f"x.{suffix}"])
    if isinstance(size, str):
        assert size.startswith("not a readable image (") or "times the other" in size
        return
    assert tuple(read_image(folder / f"x.{suffix}").shape) == (3, size[1], size[0])


@settings(max_examples=200)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damaged_image(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    content = bytearray(WHOLE[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check(tmp_path, bytes(content), suffix)


@settings(max_examples=100)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_cut_image_is_refused_by_both_decoders(
    tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    content = WHOLE[suffix][: data.draw(st.integers(0, len(WHOLE[suffix]) * 3 // 4))]
    file = tmp_path / f"x.{suffix}"
    file.write_bytes(content)
    (reason,) = decoding.measure([file])
    assert isinstance(reason, str)
    assert reason.startswith("not a readable image (")
    with pytest.raises(InputError, match="not a readable image"):
        read_image(file)


def bomb(suffix: str, side: int = 20_000) -> bytes:
    """An image whose header says side x side px, in a file of a few kB."""
    if suffix == "png":
        return png(8, 2, b"\0" * 300, (side, side))
    content = saved(suffix)
    width, height = PHOTO.size
    pack = ">HH" if suffix == "jpg" else "<HH" if suffix == "gif" else "<ii"
    old, new = (
        ((height, width), (side, side)) if suffix == "jpg" else ((width, height), (side, side))
    )
    assert content.count(struct.pack(pack, *old))
    return content.replace(struct.pack(pack, *old), struct.pack(pack, *new))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp"])
def test_bomb_is_refused_before_it_is_decoded(
    colour_folder: Path, tmp_path: Path, suffix: str
) -> None:
    (colour_folder / "red" / f"bomb.{suffix}").write_bytes(bomb(suffix))
    before = psutil.Process().memory_info().rss
    with pytest.raises(
        InputError,
        match=r"bomb\.\w+: not a readable image \(Image size \(400000000 pixels\) exceeds",
    ):
        prepare_dataset(DataSettings(dataset=str(colour_folder)), tmp_path / "run")
    with pytest.raises(InputError, match=r"not a readable image \(.*decompression bomb"):
        read_image(colour_folder / "red" / f"bomb.{suffix}")
    assert psutil.Process().memory_info().rss - before < 100e6


GRADIENT = np.linspace(0, 1, 64)[None].repeat(48, 0)
GREY = Image.fromarray((GRADIENT * 255).astype(np.uint8))


def gradients() -> dict[str, Image.Image]:
    """The same gradient in every mode that Pillow has."""
    black = Image.new("RGB", GREY.size)
    black.putalpha(GREY)
    kinds = {"uint16": 65535, ">u2": 65535, "int32": 65535, "float32": 1}
    found = {kind: Image.fromarray((GRADIENT * most).astype(kind)) for kind, most in kinds.items()}
    found |= {"low": Image.fromarray((GRADIENT * 99).astype(np.uint16)), "alpha": black}
    lab = ImageCms.profileToProfile(
        GREY.convert("RGB"),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    found |= {
        mode: GREY.convert("RGB").convert(mode)
        for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr")
    }
    assert lab is not None
    return found | {"La": GREY.convert("LA").convert("La"), "LAB": lab}


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "ppm"])
@pytest.mark.parametrize("mode", gradients())
def test_a_gradient_in_any_mode_stays_one_or_is_refused(
    tmp_path: Path, mode: str, suffix: str
) -> None:
    image, file = gradients()[mode], tmp_path / f"x.{suffix}"
    try:
        image.save(file)
    except OSError:
        pytest.skip("Pillow writes no such file")
    if mode == "alpha" and suffix == "ppm":
        pytest.skip("written without its transparency")
    check_gradient(file, 0.55 if mode == "1" else 0.95)  # dithered


def check_gradient(file: Path, least: float = 0.95) -> None:
    """Training and checks both see the gradient, or both refuse."""
    (size,) = decoding.measure([file])
    if isinstance(size, str):
        with pytest.raises(InputError):
            read_image(file)
    else:
        assert np.corrcoef(read_image(file).numpy().mean(0).ravel(), GRADIENT.ravel())[0, 1] > least


def tiff(values: np.ndarray, bits: int, photometric: int, kind: int) -> bytes:
    """A TIFF of one strip, written by hand, for depths that Pillow does not write."""
    strip = values.tobytes()
    tags = {
        256: 64,
        257: 48,
        258: bits,
        259: 1,
        262: photometric,
        273: 200,
        277: 1,
        278: 48,
        279: len(strip),
        339: kind,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries).ljust(200, b"\0") + strip


def twelve_bits() -> np.ndarray:
    values = (GRADIENT * 4095).astype(int).reshape(-1, 2)
    return np.stack(
        [values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], 1
    ).astype("u1")


@pytest.mark.parametrize(
    ("values", "bits", "photometric", "kind"),
    [
        (((1 - GRADIENT) * 65535).astype("<u2"), 16, 0, 1),
        (twelve_bits(), 12, 1, 1),
        ((GRADIENT * 254 - 127).astype("i1"), 8, 1, 2),
        ((GRADIENT * 60000 - 30000).astype("<i2"), 16, 1, 2),
        ((GRADIENT * 4e9).astype("<u4"), 32, 1, 1),
    ],
    ids=["white is 0", "12 bits", "signed 8", "signed 16", "32 bits"],
)
def test_a_gradient_in_an_odd_tiff(
    tmp_path: Path, values: np.ndarray, bits: int, photometric: int, kind: int
) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(values, bits, photometric, kind))
    check_gradient(tmp_path / "x.tif")
    if bits in (12, 16) and kind == 1:
        assert read_image(tmp_path / "x.tif")[0, 0, [0, -1]].tolist() == [0, 255]


def test_a_gradient_in_a_bmp_of_runs(tmp_path: Path) -> None:
    row = b"".join(bytes([1, int(value * 255)]) for value in GRADIENT[0]) + b"\0\0"
    runs = row * len(GRADIENT) + b"\0\1"
    palette = b"".join(bytes([value] * 3 + [0]) for value in range(256))
    info = struct.pack("<IiiHHIIiiII", 40, 64, 48, 1, 8, 1, len(runs), 0, 0, 256, 0)
    head = struct.pack("<2sIHHI", b"BM", 1078 + len(runs), 0, 0, 1078)
    (tmp_path / "x.bmp").write_bytes(head + info + palette + runs)
    assert list(decoding.measure([tmp_path / "x.bmp"])) == [(64, 48)]
    check_gradient(tmp_path / "x.bmp")


def segments(count: int) -> bytes:
    return WHOLE["jpg"][:2] + b"\xff\xe1\0\2" * count + WHOLE["jpg"][2:]


SLOW = {
    "comment.ppm": b"P6\n#" + b"x" * 20_000_000 + b"\n4 4\n255\n" + bytes(48),
    "comments.ppm": b"P3\n90 90\n255\n" + b"#\n" * 100_000 + b"1 " * 24_300,
    "text.ppm": b"P3\n2000 2000\n255\n",
    "depth.ppm": b"P6\n2000 2000\n200\n" + bytes(12_000_000),
    "segments.jpg": segments(500_000),
    "chunks.png": WHOLE["png"][:-12]
    + (b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))) * 500_000,
    "tags.tif": struct.pack("<2sHIH", b"II", 42, 8, 65535)
    + struct.pack("<HHII", 30000, 3, 1, 0) * 65535,
    "strips.tif": struct.pack("<2sHIH", b"II", 42, 8, 1)
    + struct.pack("<HHII", 273, 4, 5_000_000, 50)
    + bytes(2**25),
    "scans.jpg": saved("jpg", progressive=True)[:-2]
    + b"\xff\xda\0\x08\1\1\0\0\0\0" * 101
    + b"\xff\xd9",
}


@pytest.mark.parametrize("name", SLOW)
def test_an_image_that_takes_long_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SLOW[name])
    start = time.process_time()
    (reason,) = decoding.measure([tmp_path / name])
    assert isinstance(reason, str)
    assert time.process_time() - start < 2  # seconds


@pytest.mark.parametrize("head", [b"", WHOLE["png"], WHOLE["webp"]], ids=["none", "png", "webp"])
def test_a_sparse_file_is_not_read_whole(colour_folder: Path, head: bytes) -> None:
    with (colour_folder / "red" / "x.png").open("wb") as file:
        file.write(head)
        file.truncate(20 * 2**30)
    start = time.process_time()
    data = load_dataset(DataSettings(dataset=str(colour_folder)))
    data.fingerprint()
    with pytest.raises(InputError, match=r"red/x\.png"):
        image_sizes(data)
    assert time.process_time() - start < 3  # seconds


def test_threads_share_one_budget_of_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(12)]
    for file in files:
        PHOTO.save(file)
    at_once, most, real = [0], [0], decoding.as_rgb

    def watched(image: ImageFile) -> Image.Image:
        at_once[0] += 1
        most.append(at_once[0])
        time.sleep(0.01)
        at_once[0] -= 1
        return real(image)

    monkeypatch.setattr(decoding, "cores", lambda: 6)
    monkeypatch.setattr(decoding, "_budget", threading.Semaphore(2))
    monkeypatch.setattr(decoding, "as_rgb", watched)
    assert list(decoding.measure(files)) == [PHOTO.size] * 12
    assert max(most) == 2


def test_a_webp_may_have_half_the_pixels_since_it_takes_twice_the_memory(tmp_path: Path) -> None:
    Image.new("RGB", (8000, 7501)).save(tmp_path / "x.webp", lossless=True, method=0)
    assert "60000000" in str(*decoding.measure([tmp_path / "x.webp"]))

"""Sizes and grey values of images, and what is not read; tests/inputs has formats and modes."""

import errno
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import load
from PIL import ExifTags, Image

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DataSettings
from fixres_poc.data import decoding
from fixres_poc.data.dataset import image_sizes, prepare_dataset
from fixres_poc.data.loading import read_image


def test_headers_tell_the_sizes_that_decoding_tells(tmp_path: Path) -> None:
    exif = Image.Exif()
    for orientation, number in product((1, 3, 6, 8), range(3)):
        exif[ExifTags.Base.Orientation] = orientation
        (folder := tmp_path / f"{orientation}").mkdir(exist_ok=True)
        image = Image.new("RGB", (30 + number, 20), (number, 0, orientation))
        image.save(folder / f"{number}.jpg", exif=exif)
    data = load(tmp_path)
    assert list(decoding.measure(data.paths)) == list(decoding.measure(data.paths, decode=False))
    assert set(image_sizes(data)["width"]) == {20, 30, 31, 32}


@pytest.mark.parametrize("suffix", ["tif", "ppm"])
def test_grey_values_are_rounded_to_the_nearest(tmp_path: Path, suffix: str) -> None:
    deep = np.random.default_rng(0).permutation(65536).astype(np.uint16).reshape(512, 128)
    Image.fromarray(deep).save(tmp_path / f"x.{suffix}")
    assert (read_image(tmp_path / f"x.{suffix}")[0].numpy() == np.round(deep / 257)).all()


def test_other_formats_are_not_decoded_whatever_their_name(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png", "EPS")
    with pytest.raises(InputError, match=r"not a readable image \(cannot identify"):
        read_image(tmp_path / "x.png")
    assert "cannot identify" in str(*decoding.measure([tmp_path / "x.png"]))


@pytest.mark.parametrize(
    ("size", "why"), [((12_000, 10_001), "more than 120000000"), ((101, 1), "100 times the other")]
)
def test_one_limit_on_pixels_and_aspect_wherever_an_image_is_read(
    tmp_path: Path, size: tuple[int, int], why: str
) -> None:
    Image.new("1", size).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=why):
        read_image(tmp_path / "x.png")
    assert why in str(*decoding.measure([tmp_path / "x.png"], decode=False))


@pytest.mark.parametrize("fault", [MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_a_passing_fault_is_not_remembered_as_a_bad_image(
    colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    settings = DataSettings(dataset=str(colour_folder))

    def fail(_: Image.Image) -> Image.Image:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "as_rgb", fail)
        with pytest.raises((MemoryError, InputError)):
            prepare_dataset(settings, tmp_path / "runs", skip_unreadable=True)
    prepare_dataset(settings, tmp_path / "runs", skip_unreadable=True)
    assert len(load(colour_folder).table) == 36

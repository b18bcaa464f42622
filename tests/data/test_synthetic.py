"""The synthetic dataset: pure, sized and shared out as promised, no class told by colour."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from fixres_poc.data.drawing import Coat, Drawing, Part, draw, paint
from fixres_poc.data.synthetic import SHARES, VERSION, boxes, counts, folder, prepare, relative_path
from fixres_poc.method.apparent_size import pair_ratios, sample_crops


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return [draw(3, "train", index % 10, index // 10) for index in range(160)]


def stored(home: Path) -> dict[str, bytes]:
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file()
    }


def test_drawing_is_the_one_of_this_version() -> None:
    """Means of 16 blocks of 16 x 16 px; another drawing needs another VERSION and new means."""
    image = draw(0, "test", 4, 2).image
    height, width = image.shape[:2]
    tops, lefts = ([side * part // 5 for part in range(1, 5)] for side in (height, width))
    blocks = [image[y : y + 16, x : x + 16].mean() for y, x in product(tops, lefts)]
    expected = [
        *(155.9, 164.0, 169.6, 158.5, 125.0, 129.8, 108.0, 75.0),
        *(66.2, 84.3, 87.6, 78.5, 77.4, 84.3, 73.9, 83.9),
    ]
    name = relative_path("test", 4, 2)
    assert (VERSION, boxes(0, [name])) == (2, [(name, 39, 18, 180, 160, width, height)])
    assert (width, height) == (204, 162)
    np.testing.assert_allclose(blocks, expected, atol=1)


def test_objects_of_an_image_look_as_large_as_in_training_at_five_quarters(
    drawings: list[Drawing],
) -> None:
    sizes = pd.DataFrame([image.shape[1::-1] for image, _ in drawings], columns=["width", "height"])
    assert sizes.min().min() >= 140
    assert (sizes["width"] < sizes["height"]).mean() == pytest.approx(0.3, abs=0.08)
    (ratio,) = pair_ratios(sample_crops(sizes), [(64, 80)])["mean_of_ratios"]
    assert ratio == pytest.approx(1, abs=0.03)


def test_dogs_lie_in_their_images_and_vary_in_size(drawings: list[Drawing]) -> None:
    extents = []
    for image, (left, top, right, bottom) in drawings:
        height, width = image.shape[:2]
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        extents.append(max(right - left, bottom - top) / min(width, height))
    assert 0.45 < min(extents) < 0.6
    assert 0.85 < max(extents) <= 1.0


def test_the_box_is_what_is_painted() -> None:
    image, white = np.zeros((3, 120, 160), np.float32), np.ones((2, 3))
    dog = [Part(-0.4, 0.3, 0.5 + 0.1j, 0.2), Part(0.4 + 0.2j, 0.1, 0.5 + 0.9j, 0.1)]
    box = paint(image, dog, Coat(0.1), white, np.random.default_rng(0), 70 + 50j, 50 - 9j)
    rows, columns = (np.flatnonzero(image.max(axis=0).max(axis=axis) > 0.05) for axis in (1, 0))
    assert box == pytest.approx((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), abs=2)
    # of the first part: its left end is at 70 - 0.4 * 50 px, with a radius of 0.3 * |50 - 9i| px
    assert box[0] == pytest.approx(70 - 20 - 0.3 * 50.8, abs=1)


def test_mean_colour_does_not_tell_the_breed(drawings: list[Drawing]) -> None:
    def hits(colours: list[npt.NDArray[np.float64]]) -> float:
        known, asked = np.reshape(colours, (2, 8, 10, 3))
        distances = np.linalg.norm(asked[:, :, None] - known.mean(axis=0), axis=-1)
        return float((distances.argmin(axis=-1) == np.arange(10)).mean())

    assert hits([image.mean(axis=(0, 1)) for image, _ in drawings]) < 0.25
    assert (
        hits([image[t:b, left:r].mean(axis=(0, 1)) for image, (left, t, r, b) in drawings]) < 0.25
    )


def test_two_at_once_draw_what_is_missing_and_nothing_else(own_home: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        names, other = pool.map(lambda _: prepare(5, 30), range(2))
    assert other == names
    first = stored(own_home)
    assert sorted(first) == [f"data/synthetic/seed5-v{VERSION}/{name}" for name in names]
    lost, empty, kept = (folder(5) / name for name in names[:3])
    before = kept.stat().st_mtime_ns
    lost.unlink()
    empty.write_bytes(b"")  # as a power cut may leave it
    assert prepare(5, 30) == names
    assert stored(own_home) == first
    assert kept.stat().st_mtime_ns == before


def test_counts_are_exact_only_grow_and_keep_the_shares() -> None:
    smaller = counts(1)
    for limit in range(2, 200):
        larger = counts(limit)
        assert sum(larger.values()) == limit
        assert smaller <= larger
        assert len(larger) == min(limit, 30)
        smaller = larger
    number = counts(None)
    for split, share in SHARES.items():
        assert sum(number[split, label] for label in range(10)) == pytest.approx(16 * share, abs=2)
    of_class = [sum(number[split, label] for split in SHARES) for label in range(10)]
    assert max(of_class) / min(of_class) == pytest.approx(252 / 148, rel=0.02)

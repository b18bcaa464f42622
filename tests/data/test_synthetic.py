"""The synthetic dataset: pure, sized and shared out as promised, no class told by colour."""

import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from fixres_poc.data.synthetic import generator
from fixres_poc.data.synthetic.dogs import BREEDS, Drawing, draw
from fixres_poc.data.synthetic.generator import SHARES, counts, folder, open_image, prepare
from fixres_poc.data.synthetic.painting import Coat, Part, markings, paint
from fixres_poc.method.apparent_size import pair_ratios, sample_crops

BOX = (39, 18, 180, 160)  # of the dog in the drawing (0, "test", 4, 2)


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return [draw(3, "train", index % 10, index // 10) for index in range(160)]


def stored(home: Path) -> dict[str, bytes]:
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "other", [(1, "test", 4, 7), (0, "val", 4, 7), (0, "test", 5, 7), (0, "test", 4, 8)]
)
def test_any_other_argument_draws_another_image(other: tuple[int, str, int, int]) -> None:
    assert not np.array_equal(draw(*other).image, draw(0, "test", 4, 7).image)


def test_drawing_is_the_one_of_this_version() -> None:
    """Means of 16 blocks of 16 x 16 px; another drawing needs another VERSION and new means."""
    image, box = draw(0, "test", 4, 2)
    height, width = image.shape[:2]
    corners = [
        (row * height // 5, column * width // 5) for row in range(1, 5) for column in range(1, 5)
    ]
    blocks = [image[y : y + 16, x : x + 16].mean() for y, x in corners]
    expected = [
        *(155.9, 164.0, 169.6, 158.5, 125.0, 129.8, 108.0, 75.0),
        *(66.2, 84.3, 87.6, 78.5, 77.4, 84.3, 73.9, 83.9),
    ]
    assert (generator.VERSION, width, height, *box) == (2, 204, 162, *BOX)
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


def test_what_lies_outside_of_the_image_is_not_painted() -> None:
    image = np.zeros((3, 30, 40), np.float32)
    dog = [Part(0, 0.5, 1, 0.5)]
    for origin in (-90 + 10j, 90 + 10j, 20 - 90j, 20 + 90j):
        assert paint(
            image, dog, Coat(1), np.ones((2, 3)), np.random.default_rng(0), origin, 20
        ) == (0, 0, 0, 0)
    assert not image.any()


def test_breeds_of_a_build_differ_in_the_size_or_direction_of_their_markings() -> None:
    """Changes of the markings along and across the body, and along both diagonals."""
    points = np.add.outer(1j * np.arange(0, 3, 0.02), np.arange(0, 3, 0.02))
    found: dict[object, list[np.ndarray]] = {}
    for breed in BREEDS:
        marks = markings(np.random.default_rng(0), breed.coat, points)
        inner = marks[1:-1, 1:-1]
        beside = marks[1:-1, 2:], marks[2:, 1:-1], marks[2:, 2:], marks[2:, :-2]
        changes = np.array([np.abs(inner - other).mean() for other in beside])
        found.setdefault(breed.build, []).append(changes)
    for several in found.values():
        for first, second in combinations(several, 2):
            assert np.abs(np.log(first / second)).max() > 0.25


def test_mean_colour_does_not_tell_the_breed(drawings: list[Drawing]) -> None:
    def hits(colours: list[npt.NDArray[np.float64]]) -> float:
        known, asked = np.reshape(colours, (2, 8, 10, 3))
        distances = np.linalg.norm(asked[:, :, None] - known.mean(axis=0), axis=-1)
        return float((distances.argmin(axis=-1) == np.arange(10)).mean())

    assert hits([image.mean(axis=(0, 1)) for image, _ in drawings]) < 0.25
    assert (
        hits([image[t:b, left:r].mean(axis=(0, 1)) for image, (left, t, r, b) in drawings]) < 0.25
    )


@pytest.mark.parametrize("limit", [1, 30, 97, 1600])
def test_counts_are_exact(limit: int) -> None:
    assert sum(counts(limit).values()) == limit
    assert min(counts(limit).values()) >= (1 if limit >= 30 else 0)


def test_a_larger_limit_only_adds_images() -> None:
    for limit in range(1, 200):
        smaller, larger = counts(limit), counts(limit + 1)
        assert all(larger[cell] >= number for cell, number in smaller.items())


def test_shares_of_splits_and_classes() -> None:
    number = counts(None)
    for split, share in SHARES.items():
        assert sum(number[split, label] for label in range(10)) == pytest.approx(16 * share, abs=2)
    of_class = [sum(number[split, label] for split in SHARES) for label in range(10)]
    assert max(of_class) / min(of_class) == pytest.approx(252 / 148, rel=0.02)


def test_prepare_draws_what_is_missing_and_nothing_else(own_home: Path) -> None:
    names = prepare(5, 30)
    first = stored(own_home)
    assert sorted(first) == [f"data/synthetic/seed5-v{generator.VERSION}/{name}" for name in names]
    lost = folder(5) / names[3]
    kept = (folder(5) / names[4]).stat().st_mtime_ns
    lost.unlink()
    assert prepare(5, 30) == names
    assert stored(own_home) == first
    assert (folder(5) / names[4]).stat().st_mtime_ns == kept
    lost.write_bytes(b"")  # as a power cut may leave it
    assert prepare(5, 30) == names
    assert stored(own_home) == first


def test_processes_draw_the_same_files(own_home: Path) -> None:
    prepare(6, 41, workers=2)
    by_two = stored(own_home)
    shutil.rmtree(own_home)
    prepare(6, 41, workers=1)
    assert stored(own_home) == by_two


def test_an_image_is_the_same_from_disk_and_drawn() -> None:
    (name, _) = prepare(7, 2)
    with Image.open(folder(7) / name) as file:
        assert open_image(7, name).tobytes() == file.tobytes()


def test_boxes_are_those_of_the_drawings_and_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    name = generator.relative_path("test", 4, 2)
    assert generator.boxes(0, name) == ((name, *BOX, 204, 162),)
    monkeypatch.delattr(generator, "_drawing")
    assert [tuple(box) for box in generator.boxes(0, name)] == [(name, *BOX, 204, 162)]

"""The synthetic dataset: pure, sized and shared out as promised, no class told by colour."""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fixres_poc.data.synthetic import generator
from fixres_poc.data.synthetic.dogs import Drawing, draw
from fixres_poc.data.synthetic.generator import SHARES, counts, folder, open_image, prepare
from fixres_poc.data.synthetic.painting import Coat, Figure, Frame, Part, paint

WHITE = (1.0, 1.0, 1.0)


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
        *(89.8, 192.3, 159.0, 211.7, 216.3, 78.8, 154.6, 189.0),
        *(92.1, 81.3, 174.0, 91.2, 62.5, 45.1, 80.4, 80.5),
    ]
    assert (generator.VERSION, width, height, *box) == (1, 446, 305, 47, 32, 307, 255)
    np.testing.assert_allclose(blocks, expected, atol=1)


def test_sizes_are_those_of_stanford_dogs(drawings: list[Drawing]) -> None:
    sizes = np.array([image.shape[1::-1] for image, _ in drawings])
    assert sizes.mean(axis=0) == pytest.approx((442, 386), rel=0.03)
    portrait, square = (sizes[:, 0] < sizes[:, 1]).mean(), (sizes[:, 0] == sizes[:, 1]).mean()
    assert (portrait, square) == pytest.approx((0.24, 0.11), abs=0.05)


def test_dogs_lie_in_their_images_and_vary_in_size(drawings: list[Drawing]) -> None:
    extents = []
    for image, (left, top, right, bottom) in drawings:
        height, width = image.shape[:2]
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        extents.append(max(right - left, bottom - top) / min(width, height))
    assert 0.3 < min(extents) < 0.45
    assert 0.85 < max(extents) < 1.0


def test_the_box_is_what_is_painted() -> None:
    image, frame = np.zeros((120, 160, 3), np.float32), Frame(70, 50, 50, 9, -9, 60)
    dog = Figure(
        [Part(-0.4, 0, 0.3, 0.5, 0.1, 0.2), Part(0.4, 0.2, 0.1, 0.5, 0.9, 0.1)],
        WHITE,
        WHITE,
        Coat(0.1),
    )
    box = paint(image, dog, frame, (0, 0, 1), np.random.default_rng(0))
    rows, columns = (np.flatnonzero(image.max(axis=2).max(axis=axis) > 0.05) for axis in (1, 0))
    assert box == pytest.approx((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), abs=3)


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
    assert generator.boxes(0, name) == ((name, 47, 32, 307, 255, 446, 305),)
    monkeypatch.delattr(generator, "_drawing")
    assert [tuple(box) for box in generator.boxes(0, name)] == [(name, 47, 32, 307, 255, 446, 305)]

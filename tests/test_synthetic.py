"""The drawn data set: pure, sized and shared out as promised, and its classes not given away by colour."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fixres_poc.datasets import dogs, drawing, synthetic
from fixres_poc.datasets.dogs import BREEDS, Drawing, draw
from fixres_poc.datasets.drawing import Array
from fixres_poc.datasets.synthetic import CLASSES, SHARES, counts, folder, open_picture, prepare


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return [draw(3, "train", index % 10, index // 10) for index in range(160)]


def stored(home: Path) -> dict[str, bytes]:
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_same_arguments_draw_the_same_picture() -> None:
    first, again = draw(0, "test", 4, 7), draw(0, "test", 4, 7)
    assert np.array_equal(first.image, again.image)
    assert first.box == again.box


@pytest.mark.parametrize("other", [(1, "test", 4, 7), (0, "val", 4, 7), (0, "test", 5, 7), (0, "test", 4, 8)])
def test_any_other_argument_draws_another_picture(other: tuple[int, str, int, int]) -> None:
    assert not np.array_equal(draw(*other).image, draw(0, "test", 4, 7).image)


def test_drawing_is_the_one_of_this_version() -> None:
    """Means of 16 blocks of 16 x 16 px. Whoever changes the drawing raises VERSION and renews them."""
    image, box = draw(0, "test", 4, 2)
    height, width = image.shape[:2]
    corners = [[(row * height // 5, column * width // 5) for column in range(1, 5)] for row in range(1, 5)]
    blocks = [[image[y : y + 16, x : x + 16].mean() for y, x in row] for row in corners]
    expected = [
        [89.8, 192.3, 159.0, 211.7],
        [216.3, 78.8, 154.6, 189.0],
        [92.1, 81.3, 174.0, 91.2],
        [62.5, 45.1, 80.4, 80.5],
    ]
    assert (synthetic.VERSION, width, height, *box) == (1, 446, 305, 47, 32, 307, 255)
    np.testing.assert_allclose(blocks, expected, atol=1)


@pytest.mark.parametrize(("split", "label"), [("testing", 0), ("test", 10), ("test", -1)])
def test_unknown_split_or_label_is_refused(split: str, label: int) -> None:
    with pytest.raises(ValueError, match=f"{split!r}, label {label}"):
        draw(0, split, label, 0)


def test_sizes_are_those_of_stanford_dogs() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    sizes = np.array([dogs._size(generator) for _ in range(1000)])
    assert sizes.mean(axis=0) == pytest.approx((442, 386), rel=0.03)
    portrait, square = (sizes[:, 0] < sizes[:, 1]).mean(), (sizes[:, 0] == sizes[:, 1]).mean()
    assert (portrait, square) == pytest.approx((0.24, 0.11), abs=0.05)


def test_dogs_lie_in_their_pictures_and_vary_in_size(drawings: list[Drawing]) -> None:
    extents = []
    for image, (left, top, right, bottom) in drawings:
        height, width = image.shape[:2]
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        extents.append(max(right - left, bottom - top) / min(width, height))
    assert 0.3 < min(extents) < 0.45
    assert 0.85 < max(extents) < 1.0


def test_box_is_what_the_dog_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[tuple[tuple[int, ...] | None, npt.NDArray[np.bool_]]] = []

    def spy(image: Array, *others: object) -> tuple[int, ...] | None:
        before = image.copy()
        box = drawing.paint(image, *others)  # type: ignore[arg-type]
        painted.append((box, np.abs(image - before).max(axis=2) > 0.05))
        return box

    monkeypatch.setattr(dogs, "paint", spy)
    for index in range(5):
        painted.clear()
        box = draw(0, "val", 2, index).box
        changed = next(pixels for shown, pixels in painted if shown == box)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert box == pytest.approx((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), abs=3)


def test_mean_colour_does_not_tell_the_breed(drawings: list[Drawing]) -> None:
    def hits(colours: list[npt.NDArray[np.float64]]) -> float:
        known, asked = np.reshape(colours, (2, 8, 10, 3))
        distances = np.linalg.norm(asked[:, :, None] - known.mean(axis=0), axis=-1)
        return float((distances.argmin(axis=-1) == np.arange(10)).mean())

    assert hits([image.mean(axis=(0, 1)) for image, _ in drawings]) < 0.25
    assert hits([image[t:b, left:r].mean(axis=(0, 1)) for image, (left, t, r, b) in drawings]) < 0.25


@pytest.mark.parametrize("limit", [1, 30, 97, 1600])
def test_counts_are_exact(limit: int) -> None:
    assert sum(counts(limit).values()) == limit
    assert min(counts(limit).values()) >= (1 if limit >= 30 else 0)


def test_a_larger_limit_only_adds_pictures() -> None:
    for limit in range(1, 200):
        smaller, larger = counts(limit), counts(limit + 1)
        assert all(larger[cell] >= number for cell, number in smaller.items())


def test_shares_of_splits_and_classes() -> None:
    number = counts(None)
    assert sum(number.values()) == 1600
    for split, share in SHARES.items():
        assert sum(number[split, label] for label in range(10)) == pytest.approx(16 * share, abs=2)
    of_class = [sum(number[split, label] for split in SHARES) for label in range(10)]
    assert max(of_class) / min(of_class) == pytest.approx(252 / 148, rel=0.02)


def test_no_pictures_is_not_a_data_set() -> None:
    with pytest.raises(ValueError, match="limit = 0"):
        counts(0)


def test_classes_are_sorted_and_shown_in_the_path() -> None:
    assert list(CLASSES) == sorted(CLASSES)
    assert len(set(CLASSES)) == len(BREEDS) == 10
    assert synthetic.relative_path("test", 2, 12) == f"test/{CLASSES[2]}/00012.jpg"


def test_prepare_draws_what_is_missing_and_nothing_else(own_home: Path) -> None:
    names = prepare(5, 30)
    first = stored(own_home)
    assert sorted(first) == [f"data/synthetic/seed5-v{synthetic.VERSION}/{name}" for name in names]
    lost = folder(5) / names[3]
    kept = (folder(5) / names[4]).stat().st_mtime_ns
    lost.unlink()
    steps: list[tuple[int, int]] = []
    assert prepare(5, 30, progress=lambda done, total: steps.append((done, total))) == names
    assert steps == [(1, 1)]
    assert stored(own_home) == first
    assert (folder(5) / names[4]).stat().st_mtime_ns == kept
    lost.write_bytes(b"")  # as a power cut may leave it
    assert prepare(5, 30) == names
    assert stored(own_home) == first


def test_processes_draw_the_same_files() -> None:
    steps: list[tuple[int, int]] = []
    names = prepare(6, 41, workers=2, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 41) for done in range(1, 42)]
    for name in names[::8]:
        assert (folder(6) / name).read_bytes() == synthetic._jpeg(6, name)


def test_a_picture_is_the_same_from_disk_and_drawn() -> None:
    names = prepare(7, 2)
    on_disk = open_picture(7, names[0])
    with Image.open(folder(7) / names[0]) as file:
        assert np.array_equal(np.asarray(file), np.asarray(on_disk))
    (folder(7) / names[0]).unlink()
    drawn = open_picture(7, names[0])
    assert (drawn.mode, drawn.tobytes()) == ("RGB", on_disk.tobytes())


def test_boxes_are_those_of_the_drawings() -> None:
    table = synthetic.boxes(0, [synthetic.relative_path("test", 4, 2)])
    assert table.drop(columns="picture").to_numpy().tolist() == [[47, 32, 307, 255, 446, 305]]

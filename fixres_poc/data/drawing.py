"""Drawings of ten made-up dog breeds in front of random backdrops, with numpy.

There are three builds. Breeds of one build differ only in the size and direction of the coat's
markings, and all breeds share their colours. A drawing is a pure function of (seed, split, label,
index), equal on all machines to one grey level: every edge is a smooth ramp, so that the last bit
of a float, which differs between processors, changes a grey level by at most one.

The functions draw on float32 arrays (3, H, W) of 0..1. Points are complex numbers, x to the right
and y downwards. A figure is a list of tapered capsules.
"""

import cmath
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from fixres_poc.config.settings import SPLITS

Array = np.ndarray
WAVES = 10


class Part(NamedTuple):
    """A capsule between two ends with their radii; `tone` scales its brightness."""

    start: complex
    start_radius: float
    end: complex
    end_radius: float
    tone: float = 1.0


class Coat(NamedTuple):
    """Markings where a sum of waves exceeds a level or, with `lines`, along its contour lines."""

    scale: float  # mean wavelength in the figure's units
    angle: float = 0.0  # across the stripes, degrees, 0 along the body
    spread: float = 360.0  # of the waves' directions, degrees: small for stripes, 360 for spots
    level: float = 0.0  # standard normal value; the coat is marked above it
    lines: bool = False


class Build(NamedTuple):
    """A body; lengths are in trunk lengths of an average dog, angles in degrees (90 is up)."""

    half: float  # of the trunk
    depth: float
    leg: float
    ear_angle: float
    tail_angle: float
    tail_curl: float


HOUND = Build(0.4, 1.0, 0.72, 262.0, 150.0, -5.0)
SPITZ = Build(0.36, 1.12, 0.66, 98.0, 105.0, -47.0)
BASSET = Build(0.46, 0.95, 0.45, 250.0, 125.0, 8.0)


class Breed(NamedTuple):
    """A made-up breed."""

    name: str
    images: int  # its share of the dataset, in the unit of Stanford Dogs' class sizes
    build: Build
    coat: Coat


# Wavelengths from 0.15 on: about 3 px on the average dog in a test at 48 px, 9 px at 128 px.
BREEDS = (
    Breed("speckled_pointer", 212, HOUND, Coat(0.15)),
    Breed("brindle_courser", 160, HOUND, Coat(0.16, 0.0, 40.0)),
    Breed("marbled_harrier", 186, HOUND, Coat(0.42, lines=True)),
    Breed("clouded_hound", 152, HOUND, Coat(0.42)),
    Breed("sable_spitz", 252, SPITZ, Coat(0.16, 90.0, 40.0)),
    Breed("flecked_laika", 148, SPITZ, Coat(0.22)),
    Breed("veined_eskimo", 200, SPITZ, Coat(0.55, lines=True)),
    Breed("mottled_basset", 174, BASSET, Coat(0.36)),
    Breed("ticked_dachsel", 196, BASSET, Coat(0.18, level=0.6)),
    Breed("streaked_corgi", 168, BASSET, Coat(0.2, 45.0, 40.0)),
)


class Drawing(NamedTuple):
    """An image, uint8 (H, W, 3), and the box (left, top, right, bottom) in pixels of its dog."""

    image: np.ndarray
    box: tuple[int, int, int, int]


def draw(seed: int, split: str, label: int, index: int) -> Drawing:
    """Draw one image.

    Args:
        seed: of the dataset.
        split: one of train, val and test.
        label: index of `BREEDS`, 0 to 9.
        index: number of the image in its split and class, from 0.
    """
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), label, index]))
    long = int(rng.integers(200, 261))
    short = round(long * rng.uniform(0.7, 1.0))
    height, width = (long, short) if rng.random() < 0.3 else (short, long)
    image = _backdrop(rng, height, width)
    breed = BREEDS[label]
    scale, angle = breed.coat.scale * rng.uniform(0.88, 1.12), rng.uniform(-10, 10)
    coat = breed.coat._replace(scale=scale, angle=breed.coat.angle + angle)
    dog = _dog(breed.build, rng)
    box = paint(image, dog, coat, _colours(rng), rng, *_place(dog, rng, height, width))
    warm = 1 + rng.uniform(-0.1, 0.1) * np.array([[[1]], [[0]], [[-1]]])
    image *= np.float32(rng.uniform(0.8, 1.15) * warm)
    image += 0.05 * (rng.random((height, width), dtype=np.float32) - 0.5)
    if rng.random() < 0.5:
        image, box = image[..., ::-1], (width - box[2], box[1], width - box[0], box[3])
    levels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    return Drawing(np.ascontiguousarray(levels.transpose(1, 2, 0)), box)


def _colours(rng: np.random.Generator) -> np.ndarray:
    """Ground and mark colour of a coat, (2, 3): white, grey or brown, and a darker shade of it."""
    bright, warm = rng.uniform([[0.65], [0.15]], [[0.95], [0.4]]), rng.uniform(0, 0.5)
    return bright * (1 - warm * np.array([0, 0.4, 1])) + rng.uniform(-0.04, 0.04, (2, 3))


def _backdrop(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Foreground below a horizon and background above it, (3, H, W)."""
    tints = rng.uniform(0.35, 0.85, (2, 1)) + rng.uniform(-0.15, 0.15, (2, 3))
    far, near = tints.astype(np.float32)[..., None, None]
    cells = {2.5: 0.25, 8: 0.3, 40: 0.3}  # px, and the weight of each
    rough = 1 + sum(weight * noise(rng, height, width, cell) for cell, weight in cells.items())
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None] - rng.uniform(0.1, 0.6)
    edge = ramp(30 * (rows + 0.1 * noise(rng, height, width, 30)))
    return np.asarray((far + edge * (near - far)) * rough, np.float32)


def _chain(
    start: complex, angle: float, length: float, radii: tuple[float, ...], bend: float = 0
) -> list[Part]:
    """Capsules in a row, each turned by `bend` degrees from the previous one; 90 degrees are up."""
    parts = list[Part]()
    for start_radius, end_radius in pairwise(radii):
        end = start + cmath.rect(length / (len(radii) - 1), -math.radians(angle))
        parts.append(Part(start, start_radius, end, end_radius))
        start, angle = end, angle + bend
    return parts


def _dog(build: Build, rng: np.random.Generator) -> list[Part]:
    """A dog in right profile, with its trunk at the origin and random pose and proportions."""
    half, depth, leg = build[:3] * rng.uniform(0.9, 1.1, 3)
    legs = list[Part]()
    for x, bend in ((-half, -30), (half, 8)) * 2:
        swing = 270 + rng.uniform(-18, 18) - bend / 2
        legs += _chain(x + 0.04j, swing, leg, (0.11, 0.07, 0.055), bend)
    far = [part._replace(tone=0.6) for part in legs[:4]]
    rise = build.tail_angle + rng.uniform(-25, 25)
    tail = _chain(
        -half - 0.1 - 0.08j, rise, 0.62, (0.06, 0.06, 0.055, 0.045, 0.03), build.tail_curl
    )
    trunk = Part(-half, 0.19 * depth, half, 0.235 * depth)
    (neck,) = _chain(half - 0.07j, rng.uniform(28, 68), 0.4, (0.19 * depth, 0.135))
    tilt = rng.uniform(-28, 14)
    ahead, head = cmath.rect(1, -math.radians(tilt)), neck.end
    nose, eye, ear = (head + ahead * at for at in (0.36 + 0.03j, 0.1 - 0.05j, -0.05 - 0.09j))
    return [
        *(*far, *tail, trunk, *legs[4:], neck),
        Part(head, 0.15, head + 0.05 * ahead, 0.14),
        Part(head + 0.1 * ahead, 0.105, nose, 0.065),
        Part(nose, 0.035, nose, 0.035, 0.25),
        Part(eye, 0.02, eye, 0.02, 0.2),
        *_chain(ear, build.ear_angle + tilt, 0.28, (0.07, 0.06, 0.02)),
    ]


def _place(
    dog: list[Part], rng: np.random.Generator, height: int, width: int
) -> tuple[complex, complex]:
    """Random origin and turn, with the whole dog inside the image."""
    turn = cmath.rect(1, rng.uniform(-0.17, 0.17))
    left, top, right, bottom = extent(moved(dog, 0, turn))
    share = 0.5 + 0.45 * math.sqrt(rng.random())
    zoom = share * min(height, width) / max(right - left, bottom - top)
    free = np.array([width - zoom * (right - left), height - zoom * (bottom - top)])
    # the mean of two draws prefers the middle, as photographers do
    x, y = (rng.random((2, 2)).mean(axis=0) * free - zoom * np.array([left, top])).tolist()
    return complex(x, y), zoom * turn


def moved(parts: Sequence[Part], origin: complex, turn: complex) -> list[Part]:
    """Parts turned and enlarged by `turn`, then moved from 0 to `origin`."""
    scale = abs(turn)
    return [
        Part(
            origin + turn * part.start,
            scale * part.start_radius,
            origin + turn * part.end,
            scale * part.end_radius,
            part.tone,
        )
        for part in parts
    ]


def extent(parts: Sequence[Part]) -> list[float]:
    """Left, top, right and bottom of parts."""
    points = np.array([end for part in parts for end in (part.start, part.end)])
    radii = np.array([r for part in parts for r in (part.start_radius, part.end_radius)])
    low, high = points - radii * (1 + 1j), points + radii * (1 + 1j)
    return [low.real.min(), low.imag.min(), high.real.max(), high.imag.max()]


def ramp(values: Array) -> Array:
    """Clip values to [-1, 1] and map them linearly to [0, 1]."""
    return np.clip(0.5 + 0.5 * values, 0, 1)


def noise(rng: np.random.Generator, height: int, width: int, cell_px: float) -> Array:
    """Smooth noise (height, width), about -0.5 to 0.5, in cells of `cell_px`."""
    cells = math.ceil(height / cell_px) + 3, math.ceil(width / cell_px) + 3
    lattice = Image.fromarray(rng.random(cells, dtype=np.float32) - 0.5)
    part = (1.0, 1.0, 1 + width / cell_px, 1 + height / cell_px)
    return np.asarray(lattice.resize((width, height), Image.Resampling.BICUBIC, box=part))


def markings(rng: np.random.Generator, coat: Coat, points: Array) -> Array:
    """Share of the mark colour, 0..1, at points (H, W) of the figure."""
    angles = np.radians(coat.angle + coat.spread * rng.uniform(-0.5, 0.5, WAVES))
    waves = 2 * math.pi / coat.scale * rng.uniform(0.75, 1.25, WAVES) * np.exp(1j * angles)
    field = np.zeros(points.shape, np.float32)
    for wave in waves.astype(np.complex64):
        field += np.cos((points * wave).real + np.float32(rng.uniform(0, 2 * math.pi)))
    field *= math.sqrt(2 / WAVES)
    return ramp(5 * (0.35 - np.abs(field) if coat.lines else field - coat.level))


def paint(
    image: Array,
    parts: Sequence[Part],
    coat: Coat,
    colours: Array,
    rng: np.random.Generator,
    origin: complex,
    turn: complex,
) -> tuple[int, int, int, int]:
    """Paint a figure over an image, in place.

    Args:
        parts: in the figure's units, at least partly inside the image.
        colours: (2, 3), of ground and markings, 0..1.
        origin: position of the figure's 0, px.
        turn: px per unit; its angle turns the figure.

    Returns:
        Box (left, top, right, bottom) of the visible pixels.
    """
    placed = moved(parts, origin, turn)
    left, top, right, bottom = _whole(extent(placed))
    image = image[:, top:bottom, left:right]
    cover = np.zeros(image.shape[1:], np.float32)
    shade = np.full_like(cover, 0.8)
    rows, columns = np.indices(cover.shape, np.float32)
    pixels = np.asarray(columns + 1j * rows + complex(left + 0.5, top + 0.5))
    light = cmath.rect(1, rng.uniform(0.5, 2.6))
    for part in placed:
        x, y, x_end, y_end = _whole(extent([part]))
        area = slice(y - top, y_end - top), slice(x - left, x_end - left)
        _add(part, pixels[area], light, cover[area], shade[area])
    marks = markings(rng, coat, (pixels - origin) / turn)
    ground, marking = colours.astype(np.float32)[..., None, None]
    image += cover * ((ground + marks * (marking - ground)) * shade - image)
    shown = np.argwhere(cover > 0.5)
    (y, x), (y_end, x_end) = shown.min(axis=0), shown.max(axis=0) + 1
    return left + int(x), top + int(y), left + int(x_end), top + int(y_end)


def _whole(box: Sequence[float]) -> tuple[int, int, int, int]:
    """Whole pixels around a box (left, top, right, bottom), clipped at 0."""
    left, top, right, bottom = (max(0, math.floor(edge)) for edge in box)
    return max(left - 1, 0), max(top - 1, 0), right + 2, bottom + 2


def _add(part: Part, pixels: Array, light: complex, cover: Array, shade: Array) -> None:
    """Add a part to cover and shade (H, W) at their pixels, in place."""
    axis = part.end - part.start
    offset = pixels - part.start
    along = np.clip((offset * axis.conjugate()).real / max(abs(axis) ** 2, 1e-9), 0, 1)
    offset -= along * axis
    radius = part.start_radius + along * (part.end_radius - part.start_radius)
    solid = ramp(2 * (radius - np.abs(offset)))
    shade += solid * (part.tone * (0.8 + 0.3 * (offset * light).real / radius) - shade)
    np.maximum(cover, solid, out=cover)

"""Ten made-up dog breeds and the scenes they stand in, drawn from a random generator.

Breeds come in three builds; within a build they differ in the fine markings of the coat alone, and
all share their colours. A drawing is a pure function of (seed, split, label, index), the same on
every machine to one grey level.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np

from fixres_poc.config.settings import SPLITS
from fixres_poc.data.synthetic.painting import (
    Coat,
    Colour,
    Figure,
    Frame,
    Part,
    cast_shadow,
    noise,
    paint,
    smoothstep,
)


@dataclass(frozen=True)
class Breed:
    """A made-up breed; lengths are in trunk lengths of an average dog, angles in degrees (0 ahead, 90 up)."""

    name: str
    images: int  # its share of the dataset, in the unit of Stanford Dogs' class sizes
    coat: Coat
    body_length: float = 1.0
    body_depth: float = 1.0
    leg_length: float = 0.72
    muzzle_length: float = 0.24
    ear_length: float = 0.27
    ear_angle: float = 262.0
    tail_length: float = 0.62
    tail_angle: float = 150.0
    tail_curl: float = -5.0
    hair: float = 0.02
    # colour of muzzle and feet: 0 ground, 1 mark colour, None as the rest of the coat
    points: float | None = None


_HOUND = Breed("hound", 0, Coat(1.0))
_SPITZ = replace(
    _HOUND, body_length=0.9, body_depth=1.12, leg_length=0.66, muzzle_length=0.19, ear_length=0.2, ear_angle=98.0,
    tail_length=0.7, tail_angle=105.0, tail_curl=-47.0, hair=0.045, points=0.0,
)  # fmt: skip
_BASSET = replace(
    _HOUND, body_length=1.14, body_depth=0.95, leg_length=0.47, muzzle_length=0.27, ear_length=0.34, ear_angle=250.0,
    tail_length=0.5, tail_angle=125.0, tail_curl=8.0, hair=0.03, points=1.0,
)  # fmt: skip
# Within a build only the markings differ, above all in their size (spots, lines) and direction
# (stripes): what a larger test resolution resolves. Their scales leave a network trained at 64 or
# 96 px something to gain there.
BREEDS = (
    replace(_HOUND, name="speckled_pointer", images=212, coat=Coat(0.028)),
    replace(_HOUND, name="brindle_courser", images=160, coat=Coat(0.02, 4.0, 80.0)),
    replace(_HOUND, name="marbled_harrier", images=186, coat=Coat(0.068, band=0.085)),
    replace(_HOUND, name="clouded_hound", images=152, coat=Coat(0.1)),
    replace(_SPITZ, name="sable_spitz", images=252, coat=Coat(0.021, 4.0, 10.0)),
    replace(_SPITZ, name="flecked_laika", images=148, coat=Coat(0.036)),
    replace(_SPITZ, name="veined_eskimo", images=200, coat=Coat(0.12, band=0.06)),
    replace(_BASSET, name="mottled_basset", images=174, coat=Coat(0.055, level=0.58, band=0.05)),
    replace(_BASSET, name="ticked_dachsel", images=196, coat=Coat(0.042, level=0.68)),
    replace(_BASSET, name="streaked_corgi", images=168, coat=Coat(0.045, 5.0, 125.0)),
)
# Ground and mark colours, shared by all breeds.
PALETTES: tuple[tuple[Colour, Colour], ...] = (
    ((0.90, 0.87, 0.82), (0.20, 0.18, 0.17)),
    ((0.88, 0.82, 0.72), (0.40, 0.25, 0.15)),
    ((0.76, 0.58, 0.38), (0.22, 0.16, 0.12)),
    ((0.68, 0.68, 0.70), (0.24, 0.25, 0.28)),
    ((0.86, 0.76, 0.60), (0.58, 0.33, 0.16)),
)
# Far and near colour, spread of the near one's brightness, stretch of its texture: grass, sand,
# snow, room.
GROUNDS: tuple[tuple[Colour, Colour, float, float], ...] = (
    ((0.55, 0.66, 0.74), (0.34, 0.44, 0.20), 0.55, 0.5),
    ((0.66, 0.74, 0.80), (0.74, 0.64, 0.46), 0.32, 2.0),
    ((0.72, 0.77, 0.83), (0.86, 0.88, 0.92), 0.2, 3.0),
    ((0.70, 0.64, 0.56), (0.46, 0.33, 0.24), 0.37, 6.0),
    ((0.30, 0.40, 0.24), (0.50, 0.46, 0.36), 0.5, 1.5),
)


class Drawing(NamedTuple):
    """An image, uint8 (H, W, 3), and the box (left, top, right, bottom) in pixels of the dog in it."""

    image: np.ndarray
    box: tuple[int, int, int, int]


def draw(seed: int, split: str, label: int, index: int) -> Drawing:
    """Draw the image number `index`, from 0, of a split and class; `label` is the place in `BREEDS`, 0 to 9.

    Raises:
        ValueError: unknown split, or label out of range.
    """
    if split not in SPLITS or not 0 <= label < len(BREEDS):
        raise ValueError(
            f"no drawing for split {split!r}, label {label!r}; splits {SPLITS}, labels 0 to 9"
        )
    rng = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, SPLITS.index(split), label, index]))
    )
    long = int(rng.integers(440, 521))  # the sides are 442 and 386 px on average
    short, kind = round(long * rng.uniform(0.63, 0.8)), rng.random()
    width, height = (
        (long, short) if kind < 0.65 else (short, long) if kind < 0.89 else (long - 60, long - 60)
    )
    angle = math.radians(rng.uniform(-70, 70))
    light = (0.75 * math.sin(angle), -0.75 * math.cos(angle), 0.66)
    dog = _dog(BREEDS[label], rng)
    frame = _placed(dog, rng, height, width)
    horizon = max(
        0.0, min(rng.uniform(0.1, 0.55) * height, frame.extent(dog.parts)[3] - 0.05 * height)
    )
    image, box = _backdrop(rng, height, width, horizon), (0, 0, 0, 0)
    scene = [
        (dog, frame),
        *(_distractor(rng, height, width, horizon) for _ in range(int(rng.integers(1, 5)))),
    ]
    # the nearest last
    for figure, place in sorted(scene, key=lambda thing: thing[1].extent(thing[0].parts)[3]):
        cast_shadow(image, figure, place, light)
        shown = paint(image, figure, place, light, rng)
        box = shown if figure is dog and shown else box
    return Drawing(_exposed(image, rng), box)


def _colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    def varied(colour: Colour, bright: float) -> Colour:
        return cast(
            Colour,
            tuple(
                min(1.0, max(0.05, bright * value + rng.uniform(-0.04, 0.04))) for value in colour
            ),
        )

    ground, marking = PALETTES[int(rng.integers(len(PALETTES)))]
    return varied(ground, rng.uniform(0.85, 1.08)), varied(marking, rng.uniform(0.8, 1.5))


def _chain(
    x: float, y: float, angle: float, length: float, radii: tuple[float, ...], bend: float
) -> list[Part]:
    """Capsules in a row, each turned by `bend` degrees from the one before."""
    parts, step = [], length / (len(radii) - 1)
    for r0, r1 in pairwise(radii):
        x1, y1 = x + step * math.cos(math.radians(angle)), y - step * math.sin(math.radians(angle))
        parts.append(Part(x, y, r0, x1, y1, r1))
        x, y, angle = x1, y1, angle + bend
    return parts


def _leg(
    x: float,
    y: float,
    length: float,
    swing: float,
    bend: float,
    thick: float,
    tone: float,
    mark: float | None,
) -> list[Part]:
    thigh, shank = _chain(
        x, y, 270 + swing - bend / 2, length, (1.7 * thick, thick, 0.8 * thick), bend
    )
    paw = Part(shank.x1, shank.y1, 0.85 * thick, shank.x1 + 0.07, shank.y1 + 0.01, 0.7 * thick)
    return [
        replace(part, tone=tone, mark=mark if part is not thigh else None)
        for part in (thigh, shank, paw)
    ]


def _dog(breed: Breed, rng: np.random.Generator) -> Figure:
    """A dog seen from its right side, its trunk around the origin, in a random pose and of random proportions."""

    def about(value: float, spread: float = 0.08) -> float:
        return value * rng.uniform(1 - spread, 1 + spread)

    half, depth, leg = (
        about(0.4 * breed.body_length),
        about(breed.body_depth),
        about(breed.leg_length),
    )
    chest, hip, thick = 0.235 * depth, 0.185 * depth, about(0.062)
    far, near = (
        _leg(
            -half - 0.02,
            0.02,
            leg,
            rng.uniform(-20, 16),
            about(-38, 0.3),
            1.15 * thick,
            tone,
            breed.points,
        )
        + _leg(
            half - 0.02, 0.04, leg, rng.uniform(-16, 20), about(10, 0.9), thick, tone, breed.points
        )
        for tone in (0.62, 1.0)
    )
    root = about(0.05) + 0.6 * breed.hair
    tail = _chain(-half - 0.12, -0.08, breed.tail_angle + rng.uniform(-25, 25), about(breed.tail_length, 0.15),
                  tuple(root * taper for taper in (1, 1, 1, 0.8, 0.6, 0.4)), breed.tail_curl)  # fmt: skip
    trunk = [Part(-half, 0, hip, half, 0, chest), Part(-half, 0.02, hip, -half + 0.08, 0.06, hip)]
    neck = _chain(half + 0.02, -0.07, rng.uniform(28, 68), about(0.36), (0.19 * depth, 0.135), 0)
    parts = far + tail + trunk + near + neck + _head(breed, rng, neck[-1].x1, neck[-1].y1)
    coat = replace(
        breed.coat,
        scale=about(breed.coat.scale, 0.15),
        angle=breed.coat.angle + rng.uniform(-10, 10),
    )
    return Figure(parts, *_colours(rng), replace(coat, patches=rng.uniform(0.75, 1.0)), breed.hair)


def _head(breed: Breed, rng: np.random.Generator, x: float, y: float) -> list[Part]:
    tilt = rng.uniform(-28, 14)
    forward, up = math.radians(tilt), math.radians(tilt + 90)

    def at(ahead: float, above: float) -> tuple[float, float]:
        right = x + ahead * math.cos(forward) + above * math.cos(up)
        return right, y - ahead * math.sin(forward) - above * math.sin(up)

    (muzzle,) = _chain(*at(0.1, -0.03), tilt - 4, breed.muzzle_length, (0.105, 0.065), 0)
    nose, eye, ear = at(0.11 + breed.muzzle_length, 0.0), at(0.1, 0.05), at(-0.05, 0.09)
    pricked = breed.ear_angle < 180
    width = (0.075, 0.05, 0.012) if pricked else (0.05, 0.085, 0.06)
    length, angle = (
        breed.ear_length * rng.uniform(0.85, 1.15),
        breed.ear_angle + tilt + rng.uniform(-12, 12),
    )
    near_ear = [replace(part, tone=0.9) for part in _chain(*ear, angle, length, width, 0)]
    far_ear = (
        [replace(part, x0=part.x0 + 0.09, x1=part.x1 + 0.09, tone=0.7) for part in near_ear]
        if pricked
        else []
    )
    skull, muzzle = Part(x, y, 0.15, *at(0.05, 0.01), 0.14), replace(muzzle, mark=breed.points)
    tip = Part(*nose, 0.034, *nose, 0.03, tone=0.25, mark=1.0)
    return [
        *far_ear,
        skull,
        muzzle,
        tip,
        Part(*eye, 0.02, *eye, 0.02, tone=0.2, mark=1.0),
        *near_ear,
    ]


def _placed(dog: Figure, rng: np.random.Generator, height: int, width: int) -> Frame:
    """A frame with a random size, tilt and side, most of the dog within the image."""
    tilt, side = math.radians(rng.uniform(-10, 10)), 2 * int(rng.integers(2)) - 1
    squeeze = rng.uniform(0.82, 1.0)  # the dog stands a little aslant
    frame = Frame(0, 0, side * squeeze * math.cos(tilt), -side * math.sin(tilt),
                  squeeze * math.sin(tilt), math.cos(tilt))  # fmt: skip
    left, top, right, bottom = frame.extent(dog.parts)
    zoom = (
        (0.35 + 0.6 * math.sqrt(rng.random()))
        * min(height, width)
        / max(right - left, bottom - top)
    )
    loose = 0.2 if rng.random() < 0.25 else 0.0  # share of the dog that may be cut off
    place = []
    for low, high, room in ((left, right, width), (top, bottom, height)):
        extent = zoom * (high - low)
        # as a photographer does: rather the middle than the rim
        middle = (rng.random() + rng.random()) / 2
        place.append(middle * (room - (1 - 2 * loose) * extent) - loose * extent - zoom * low)
    return Frame(
        place[0], place[1], *(zoom * value for value in (frame.xu, frame.xv, frame.yu, frame.yv))
    )


def _backdrop(rng: np.random.Generator, height: int, width: int, horizon: float) -> np.ndarray:
    """Ground, and what is behind it above the horizon (in pixels from the top): (H, W, 3)."""
    far, near, spread, stretch = GROUNDS[int(rng.integers(len(GROUNDS)))]
    rows = np.arange(height, dtype=np.float32)[:, None]
    ridge = rows / height - horizon / height + 0.1 * (noise(rng, height, width, 60) - 0.5)
    edge = smoothstep(-0.03, 0.03, ridge)
    octaves = ((2.5, 0.65), (9, 0.7), (40, 0.9))
    fine = sum(
        (noise(rng, height, width, cell, stretch) - 0.5) * weight for cell, weight in octaves
    )
    soft = noise(rng, height, width, 70, 1.5) - 0.5
    tint = [np.float32(value + rng.uniform(-0.05, 0.05)) for value in (*far, *near)]
    ground, behind = (
        edge * (1 + np.float32(spread) * fine),
        (1 - edge) * (1 + np.float32(0.5) * soft),
    )
    return np.stack(
        [behind * tint[channel] + ground * tint[channel + 3] for channel in range(3)], axis=-1
    )


def _distractor(
    rng: np.random.Generator, height: int, width: int, horizon: float
) -> tuple[Figure, Frame]:
    """A ball, a post, a bush, or a lump with a coat like a dog's."""
    size = rng.uniform(0.05, 0.2) * min(height, width)
    frame = Frame(rng.uniform(0, width), rng.uniform(horizon, height), size, 0, 0, size)
    kind = int(rng.integers(4))
    coat = replace(BREEDS[int(rng.integers(len(BREEDS)))].coat, scale=rng.uniform(0.08, 0.3))
    if kind == 3:
        lump = Part(
            rng.uniform(-0.9, 0),
            0,
            rng.uniform(0.4, 0.8),
            rng.uniform(0, 0.9),
            0,
            rng.uniform(0.4, 0.8),
        )
        return Figure([lump], *_colours(rng), coat, 0.1), frame
    bright = rng.uniform(0.15, 0.85, 3)
    if kind == 0:
        return Figure(
            [Part(0, 0, 0.5, 0, 0, 0.5)],
            tuple(bright),
            tuple(0.7 * bright),
            replace(coat, scale=0.6),
        ), frame
    if kind == 1:
        return Figure(
            [Part(0, -1.7, 0.13, 0, 0.3, 0.15)],
            (0.5, 0.4, 0.3),
            (0.36, 0.28, 0.2),
            Coat(0.05, 6, 90),
        ), frame
    leaves = [Part(x0, y0, 0.4, x1, y1, 0.3) for x0, y0, x1, y1 in rng.uniform(-0.6, 0.6, (4, 4))]
    return Figure(leaves, (0.2, 0.34, 0.12), (0.36, 0.5, 0.2), Coat(0.08), 0.5), frame


def _exposed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image as a camera gives it: exposure, colour temperature, a gradient of light, a little grain."""
    height, width = image.shape[:2]
    warm, bright = rng.uniform(-0.1, 0.1), rng.uniform(0.8, 1.2)
    slope_x, slope_y = rng.uniform(-0.2, 0.2, 2)
    across = np.linspace(-slope_x, slope_x, width, dtype=np.float32)[None, :]
    down = np.linspace(-slope_y, slope_y, height, dtype=np.float32)[:, None]
    grain = rng.random((height, width), dtype=np.float32) - np.float32(0.5)
    image *= (np.float32(bright) + across + down)[..., None] * np.asarray(
        (1 + warm, 1, 1 - warm), np.float32
    )
    image += (np.float32(0.06) * grain)[..., None]
    return np.clip(image * 255 + np.float32(0.5), 0, 255).astype(np.uint8)

"""Ten made-up dog breeds and the scenes they stand in, drawn from a random generator.

Breeds come in three builds; within a build they differ in the fine markings of the coat alone, and
all share their colours. A drawing is a pure function of (seed, split, label, index), the same on
every machine to one grey level.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fixres_poc.config.settings import SPLITS
from fixres_poc.data.synthetic.painting import (
    Coat,
    Figure,
    Frame,
    Part,
    cast_shadow,
    noise,
    paint,
    smoothstep,
)


class Build(NamedTuple):
    """A body; lengths are in trunk lengths of an average dog, angles in degrees (90 is up)."""

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


HOUND = Build()
SPITZ = Build(0.9, 1.12, 0.66, 0.19, 0.2, 98.0, 0.7, 105.0, -47.0, 0.045, 0.0)
BASSET = Build(1.14, 0.95, 0.47, 0.27, 0.34, 250.0, 0.5, 125.0, 8.0, 0.03, 1.0)


class Breed(NamedTuple):
    """A made-up breed."""

    name: str
    images: int  # its share of the dataset, in the unit of Stanford Dogs' class sizes
    build: Build
    coat: Coat


# Within a build only the markings differ, above all in their size (spots, lines) and direction
# (stripes): what a larger test resolution resolves. Their scales leave a network trained at 64 or
# 96 px something to gain there.
BREEDS = (
    Breed("speckled_pointer", 212, HOUND, Coat(0.028)),
    Breed("brindle_courser", 160, HOUND, Coat(0.02, 4.0, 80.0)),
    Breed("marbled_harrier", 186, HOUND, Coat(0.068, band=0.085)),
    Breed("clouded_hound", 152, HOUND, Coat(0.1)),
    Breed("sable_spitz", 252, SPITZ, Coat(0.021, 4.0, 10.0)),
    Breed("flecked_laika", 148, SPITZ, Coat(0.036)),
    Breed("veined_eskimo", 200, SPITZ, Coat(0.12, band=0.06)),
    Breed("mottled_basset", 174, BASSET, Coat(0.055, level=0.58, band=0.05)),
    Breed("ticked_dachsel", 196, BASSET, Coat(0.042, level=0.68)),
    Breed("streaked_corgi", 168, BASSET, Coat(0.045, 5.0, 125.0)),
)
# Ground and mark colours, shared by all breeds.
PALETTES = (
    ((0.90, 0.87, 0.82), (0.20, 0.18, 0.17)),
    ((0.88, 0.82, 0.72), (0.40, 0.25, 0.15)),
    ((0.76, 0.58, 0.38), (0.22, 0.16, 0.12)),
    ((0.68, 0.68, 0.70), (0.24, 0.25, 0.28)),
    ((0.86, 0.76, 0.60), (0.58, 0.33, 0.16)),
)
# Far and near colour, spread of the near one's brightness, stretch of its texture.
BACKDROPS = (
    (0.55, 0.66, 0.74, 0.34, 0.44, 0.20, 0.55, 0.5),  # grass
    (0.66, 0.74, 0.80, 0.74, 0.64, 0.46, 0.32, 2.0),  # sand
    (0.72, 0.77, 0.83, 0.86, 0.88, 0.92, 0.2, 3.0),  # snow
    (0.70, 0.64, 0.56, 0.46, 0.33, 0.24, 0.37, 6.0),  # room
    (0.30, 0.40, 0.24, 0.50, 0.46, 0.36, 0.5, 1.5),  # wood
)
BALL, POST, LUMP = 0, 1, 3  # kinds of distractors; 2 is a bush


class Drawing(NamedTuple):
    """An image, uint8 (H, W, 3), and the box (left, top, right, bottom) in pixels of its dog."""

    image: np.ndarray
    box: tuple[int, int, int, int]


def draw(seed: int, split: str, label: int, index: int) -> Drawing:
    """Draw one image.

    Args:
        seed: of the dataset.
        split: one of train, val and test.
        label: the place in `BREEDS`, 0 to 9.
        index: number of the image in its split and class, from 0.
    """
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), label, index]))
    long = int(rng.integers(440, 521))  # the sides are 442 and 386 px on average
    short, kind = round(long * rng.uniform(0.63, 0.8)), rng.random()
    width, height = long, short
    if kind >= 0.89:
        width = height = long - 60
    elif kind >= 0.65:
        width, height = short, long
    angle = math.radians(rng.uniform(-70, 70))
    light = (0.75 * math.sin(angle), -0.75 * math.cos(angle), 0.66)
    dog = _dog(BREEDS[label], rng)
    frame = _placed(dog, rng, height, width)
    feet = frame.extent(dog.parts)[3]
    horizon = max(0.0, min(rng.uniform(0.1, 0.55) * height, feet - 0.05 * height))
    image, box = _backdrop(rng, height, width, horizon), (0, 0, 0, 0)
    others = [_distractor(rng, height, width, horizon) for _ in range(rng.integers(1, 5))]
    # the nearest last
    for figure, place in sorted(
        [(dog, frame), *others], key=lambda thing: thing[1].extent(thing[0].parts)[3]
    ):
        cast_shadow(image, figure, place, light)
        shown = paint(image, figure, place, light, rng)
        if figure is dog and shown:
            box = shown
    return Drawing(_exposed(image, rng), box)


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ground and mark colour of a coat."""

    def varied(colour: tuple[float, ...], bright: float) -> np.ndarray:
        return (bright * np.array(colour) + rng.uniform(-0.04, 0.04, 3)).clip(0.05, 1)

    ground, marking = PALETTES[rng.integers(len(PALETTES))]
    return varied(ground, rng.uniform(0.85, 1.08)), varied(marking, rng.uniform(0.8, 1.5))


def _point(x: float, y: float, angle: float, distance: float) -> tuple[float, float]:
    """The point at a distance from another one; an angle of 0 degrees is ahead, 90 is up."""
    turn = math.radians(angle)
    return x + distance * math.cos(turn), y - distance * math.sin(turn)


def _chain(
    x: float, y: float, angle: float, length: float, radii: tuple[float, ...], bend: float = 0
) -> list[Part]:
    """Capsules in a row, each turned by `bend` degrees from the one before."""
    parts, step = list[Part](), length / (len(radii) - 1)
    for r0, r1 in pairwise(radii):
        x1, y1 = _point(x, y, angle, step)
        parts.append(Part(x, y, r0, x1, y1, r1))
        x, y, angle = x1, y1, angle + bend
    return parts


def _leg(
    x: float, y: float, angle: float, length: float, bend: float, thick: float, points: float | None
) -> list[Part]:
    """Thigh, shank and paw; a hind leg bends backwards, and is thicker."""
    radii = (1.7 * thick, thick, 0.8 * thick)
    thigh, shank = _chain(x, y, angle - bend / 2, length, radii, bend)
    paw = Part(shank.x1, shank.y1, 0.85 * thick, shank.x1 + 0.07, shank.y1 + 0.01, 0.7 * thick)
    return [thigh, shank._replace(mark=points), paw._replace(mark=points)]


def _dog(breed: Breed, rng: np.random.Generator) -> Figure:
    """A dog seen from its right side, its trunk at the origin, in a random pose and proportions."""

    def about(value: float, spread: float = 0.08) -> float:
        return value * rng.uniform(1 - spread, 1 + spread)

    build, coat = breed.build, breed.coat
    half, depth = about(0.4 * build.body_length), about(build.body_depth)
    leg = about(build.leg_length)
    chest, hip, thick = 0.235 * depth, 0.185 * depth, about(0.062)
    legs = []
    for tone in (0.62, 1.0):  # those of the far side are darker
        swing = rng.uniform(-20, 16)
        bend = about(-38, 0.3)
        hind = _leg(-half - 0.02, 0.02, 270 + swing, leg, bend, 1.15 * thick, build.points)
        swing = rng.uniform(-16, 20)
        fore = _leg(half - 0.02, 0.04, 270 + swing, leg, about(10, 0.9), thick, build.points)
        legs.append([part._replace(tone=tone) for part in hind + fore])
    root = about(0.05) + 0.6 * build.hair
    rise, length = build.tail_angle + rng.uniform(-25, 25), about(build.tail_length, 0.15)
    radii = (root, root, root, 0.8 * root, 0.6 * root, 0.4 * root)
    tail = _chain(-half - 0.12, -0.08, rise, length, radii, build.tail_curl)
    trunk = [Part(-half, 0, hip, half, 0, chest), Part(-half, 0.02, hip, -half + 0.08, 0.06, hip)]
    (neck,) = _chain(half + 0.02, -0.07, rng.uniform(28, 68), about(0.36), (0.19 * depth, 0.135))
    head = _head(build, rng, neck.x1, neck.y1)
    parts = legs[0] + tail + trunk + legs[1] + [neck] + head
    scale, angle = about(coat.scale, 0.15), coat.angle + rng.uniform(-10, 10)
    colours = _colours(rng)
    patches = rng.uniform(0.75, 1.0)
    own = coat._replace(scale=scale, angle=angle, patches=patches)
    return Figure(parts, *colours, own, build.hair)


def _head(build: Build, rng: np.random.Generator, x: float, y: float) -> list[Part]:
    tilt = rng.uniform(-28, 14)

    def at(ahead: float, above: float) -> tuple[float, float]:
        return _point(*_point(x, y, tilt, ahead), tilt + 90, above)

    def dot(place: tuple[float, float], r0: float, r1: float, tone: float) -> Part:
        return Part(*place, r0, *place, r1, tone, 1.0)

    (muzzle,) = _chain(*at(0.1, -0.03), tilt - 4, build.muzzle_length, (0.105, 0.065))
    pricked = build.ear_angle < 180
    radii = (0.075, 0.05, 0.012) if pricked else (0.05, 0.085, 0.06)
    length = build.ear_length * rng.uniform(0.85, 1.15)
    angle = build.ear_angle + tilt + rng.uniform(-12, 12)
    ear = [part._replace(tone=0.9) for part in _chain(*at(-0.05, 0.09), angle, length, radii)]
    far_ear = [part._replace(x0=part.x0 + 0.09, x1=part.x1 + 0.09, tone=0.7) for part in ear]
    return [
        *(far_ear if pricked else []),
        Part(x, y, 0.15, *at(0.05, 0.01), 0.14),
        muzzle._replace(mark=build.points),
        dot(at(0.11 + build.muzzle_length, 0.0), 0.034, 0.03, 0.25),
        dot(at(0.1, 0.05), 0.02, 0.02, 0.2),
        *ear,
    ]


def _placed(dog: Figure, rng: np.random.Generator, height: int, width: int) -> Frame:
    """A frame with a random size, tilt and side, most of the dog within the image."""
    tilt, side = math.radians(rng.uniform(-10, 10)), 2 * int(rng.integers(2)) - 1
    squeeze = rng.uniform(0.82, 1.0)  # the dog stands a little aslant
    cos, sin = math.cos(tilt), math.sin(tilt)
    turn = (side * squeeze * cos, -side * sin, squeeze * sin, cos)
    left, top, right, bottom = Frame(0, 0, *turn).extent(dog.parts)
    share = 0.35 + 0.6 * math.sqrt(rng.random())
    zoom = share * min(height, width) / max(right - left, bottom - top)
    loose = 0.2 if rng.random() < 0.25 else 0.0  # share of the dog that may be cut off
    place = []
    for low, high, room in ((left, right, width), (top, bottom, height)):
        extent = zoom * (high - low)
        # as a photographer does: rather the middle than the rim
        middle = (rng.random() + rng.random()) / 2
        place.append(middle * (room - (1 - 2 * loose) * extent) - loose * extent - zoom * low)
    return Frame(*place, *(zoom * value for value in turn))


def _backdrop(rng: np.random.Generator, height: int, width: int, horizon: float) -> np.ndarray:
    """Ground, and what is behind it above the horizon (in pixels from the top): (H, W, 3)."""
    *tints, spread, stretch = BACKDROPS[rng.integers(len(BACKDROPS))]
    rows = np.arange(height, dtype=np.float32)[:, None]
    ridge = rows / height - horizon / height + 0.1 * (noise(rng, height, width, 60) - 0.5)
    edge = smoothstep(-0.03, 0.03, ridge)
    octaves = ((2.5, 0.65), (9, 0.7), (40, 0.9))
    fine = sum(
        (noise(rng, height, width, cell, stretch) - 0.5) * weight for cell, weight in octaves
    )
    soft = noise(rng, height, width, 70, 1.5) - 0.5
    far, near = np.float32(np.array(tints) + rng.uniform(-0.05, 0.05, 6)).reshape(2, 3)
    ground, behind = edge * (1 + spread * fine), (1 - edge) * (1 + 0.5 * soft)
    return np.stack([behind * a + ground * b for a, b in zip(far, near, strict=True)], axis=-1)


def _distractor(
    rng: np.random.Generator, height: int, width: int, horizon: float
) -> tuple[Figure, Frame]:
    """A ball, a post, a bush, or a lump with a coat like a dog's."""
    size = rng.uniform(0.05, 0.2) * min(height, width)
    frame = Frame(rng.uniform(0, width), rng.uniform(horizon, height), size, 0, 0, size)
    kind = rng.integers(4)
    coat = BREEDS[rng.integers(len(BREEDS))].coat._replace(scale=rng.uniform(0.08, 0.3))
    if kind == LUMP:
        x0, r0, x1, r1 = rng.uniform((-0.9, 0.4, 0, 0.4), (0, 0.8, 0.9, 0.8)).tolist()
        return Figure([Part(x0, 0, r0, x1, 0, r1)], *_colours(rng), coat, 0.1), frame
    bright = rng.uniform(0.15, 0.85, 3)
    if kind == BALL:
        ball = Part(0, 0, 0.5, 0, 0, 0.5)
        return Figure([ball], bright, 0.7 * bright, coat._replace(scale=0.6)), frame
    if kind == POST:
        post = Part(0, -1.7, 0.13, 0, 0.3, 0.15)
        return Figure([post], (0.5, 0.4, 0.3), (0.36, 0.28, 0.2), Coat(0.05, 6, 90)), frame
    ends = rng.uniform(-0.6, 0.6, (4, 4)).tolist()
    leaves = [Part(x0, y0, 0.4, x1, y1, 0.3) for x0, y0, x1, y1 in ends]
    return Figure(leaves, (0.2, 0.34, 0.12), (0.36, 0.5, 0.2), Coat(0.08), 0.5), frame


def _exposed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image as a camera gives it: exposure, colour temperature, a gradient of light, grain."""
    height, width = image.shape[:2]
    warm, bright = rng.uniform(-0.1, 0.1), rng.uniform(0.8, 1.2)
    slope_x, slope_y = rng.uniform(-0.2, 0.2, 2)
    across = np.linspace(-slope_x, slope_x, width, dtype=np.float32)
    down = np.linspace(-slope_y, slope_y, height, dtype=np.float32)[:, None]
    grain = rng.random((height, width), dtype=np.float32) - 0.5
    tint = np.array((1 + warm, 1, 1 - warm), np.float32)
    image *= (bright + across + down)[..., None] * tint
    image += (0.06 * grain)[..., None]
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)

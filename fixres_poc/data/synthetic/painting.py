"""Drawing of shaded, textured figures with numpy.

Images are float32 arrays (3, H, W) of 0..1. Points are complex numbers, x to the right and y
downwards. A figure is a list of tapered capsules. Every edge is a smooth ramp, so that the last bit
of a float, which differs between processors, never moves a grey level by more than one.
"""

import cmath
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

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
    """Markings: a sum of waves cut at a level, or, with `lines`, its contour lines."""

    scale: float  # mean wavelength in the figure's units
    angle: float = 0.0  # across the stripes, degrees, 0 along the body
    spread: float = 360.0  # of the waves' directions, degrees: few give stripes, all give spots
    level: float = 0.0  # value (standard normal) from which on the coat is marked
    lines: bool = False


def moved(parts: Sequence[Part], origin: complex, turn: complex) -> list[Part]:
    """Parts turned and enlarged by `turn`, then moved from 0 to `origin`."""
    scale = abs(turn)
    return [
        Part(origin + turn * start, scale * first, origin + turn * end, scale * last, tone)
        for start, first, end, last, tone in parts
    ]


def extent(parts: Sequence[Part]) -> list[float]:
    """Left, top, right and bottom of parts."""
    points = np.array([end for part in parts for end in (part.start, part.end)])
    radii = np.array([r for part in parts for r in (part.start_radius, part.end_radius)])
    low, high = points - radii * (1 + 1j), points + radii * (1 + 1j)
    return [low.real.min(), low.imag.min(), high.real.max(), high.imag.max()]


def ramp(values: Array) -> Array:
    """From 0 where a value is -1 to 1 where it is 1."""
    return np.clip(0.5 + 0.5 * values, 0, 1)


def noise(rng: np.random.Generator, height: int, width: int, cell_px: float) -> Array:
    """Smooth noise (height, width), about -0.5 to 0.5, in cells of `cell_px`."""
    cells = math.ceil(height / cell_px) + 3, math.ceil(width / cell_px) + 3
    lattice = Image.fromarray(rng.random(cells, dtype=np.float32) - 0.5)
    part = (1.0, 1.0, 1 + width / cell_px, 1 + height / cell_px)
    return np.asarray(lattice.resize((width, height), Image.Resampling.BICUBIC, box=part))


def markings(rng: np.random.Generator, coat: Coat, points: Array) -> Array:
    """How far the coat has the mark colour at points (H, W) of the figure, 0..1."""
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
    origin: complex = 0,
    turn: complex = 1,
) -> tuple[int, int, int, int]:
    """Paint a figure over an image, in place.

    Args:
        parts: in the figure's units.
        colours: (2, 3), of ground and markings, 0..1.
        origin: where the figure's 0 lies, px.
        turn: px per unit; its angle turns the figure.

    Returns:
        Box (left, top, right, bottom) in pixels of what shows; without area where nothing does.
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
    if not len(shown):
        return 0, 0, 0, 0
    (y, x), (y_end, x_end) = shown.min(axis=0), shown.max(axis=0) + 1
    return left + int(x), top + int(y), left + int(x_end), top + int(y_end)


def _whole(box: Sequence[float]) -> tuple[int, int, int, int]:
    """Whole pixels that hold a box (left, top, right, bottom), none left of 0 or above it."""
    left, top, right, bottom = (max(0, math.floor(edge)) for edge in box)
    return max(left - 1, 0), max(top - 1, 0), right + 2, bottom + 2


def _add(part: Part, pixels: Array, light: complex, cover: Array, shade: Array) -> None:
    """Put a part over cover and shade (H, W) at their pixels, in place."""
    axis = part.end - part.start
    off = pixels - part.start
    along = np.clip((off * axis.conjugate()).real / max(abs(axis) ** 2, 1e-9), 0, 1)
    off -= along * axis
    radius = part.start_radius + along * (part.end_radius - part.start_radius)
    solid = ramp(2 * (radius - np.abs(off)))
    shade += solid * (part.tone * (0.8 + 0.3 * (off * light).real / radius) - shade)
    np.maximum(cover, solid, out=cover)

"""Drawing of shaded, textured figures with numpy and PIL.

Images are float32 arrays (H, W, 3) of 0..1, x to the right and y downwards. A figure is a list of
tapered capsules in its own units; a `Frame` maps those to pixels. Every edge is a smooth ramp, so
that the last bit of a float, which differs between processors, never moves a grey level by more
than one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = np.ndarray
Light = tuple[float, float, float]
Window = tuple[int, int, int, int]  # left, top, right, bottom
REACH = 2.0  # figures stay within this distance of their origin, in their own units


class Part(NamedTuple):
    """A capsule from (x0, y0) with radius r0 to (x1, y1) with radius r1, in figure units."""

    x0: float
    y0: float
    r0: float
    x1: float
    y1: float
    r1: float
    tone: float = 1.0  # scales its brightness
    # where given, instead of the coat's pattern: 0 ground colour, 1 mark colour
    mark: float | None = None


class Coat(NamedTuple):
    """Markings: smooth noise cut at a level, or, with `band` above 0, its contour lines."""

    scale: float  # size of the markings in figure units
    stretch: float = 1.0  # how many times longer than wide they are
    angle: float = 0.0  # direction of their length in degrees, 0 along the body
    # noise value (about 0..1, mean 0.5) from which on the coat is marked; 0.5 marks half of it
    level: float = 0.5
    band: float = 0.0  # half width of the contour lines in noise values, 0 for filled markings
    patches: float = 1.0  # noise value from which on large patches are wholly marked; 1 for none


PATCHES, STRANDS = Coat(0.45), Coat(0.013, 3.0, -30.0)


class Figure(NamedTuple):
    """Parts in painting order, colours, markings and the length of the hair at the edges."""

    parts: Sequence[Part]
    ground: npt.ArrayLike  # colour (3,), 0..1
    marking: npt.ArrayLike
    coat: Coat
    hair: float = 0.0


class Frame(NamedTuple):
    """Affine map to pixels: x = x0 + xu * u + xv * v, y = y0 + yu * u + yv * v."""

    x0: float
    y0: float
    xu: float
    xv: float
    yu: float
    yv: float

    @property
    def scale(self) -> float:
        """Pixels per figure unit."""
        return math.sqrt(abs(self.xu * self.yv - self.xv * self.yu))

    def inverse(self) -> tuple[float, float, float, float]:
        """Matrix (u per x, u per y, v per x, v per y) of the way back."""
        area = self.xu * self.yv - self.xv * self.yu
        return self.yv / area, -self.xv / area, -self.yu / area, self.xu / area

    def extent(
        self, parts: Sequence[Part], margin: float = 0.0
    ) -> tuple[float, float, float, float]:
        """Box (left, top, right, bottom) of parts in pixels, widened by `margin` figure units."""
        wide, high = math.hypot(self.xu, self.xv), math.hypot(self.yu, self.yv)
        boxes = []
        for u, v, r in (end for part in parts for end in (part[:3], part[3:6])):
            x, y = self.x0 + self.xu * u + self.xv * v, self.y0 + self.yu * u + self.yv * v
            dx, dy = wide * (r + margin), high * (r + margin)
            boxes.append((x - dx, y - dy, x + dx, y + dy))
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    def window(self, parts: Sequence[Part], margin: float, within: Window) -> Window:
        """Whole pixels of `extent` inside another window; without area where they do not meet."""
        left, top, right, bottom = self.extent(parts, margin)
        x, y = max(within[0], math.floor(left) - 2), max(within[1], math.floor(top) - 2)
        right, bottom = min(within[2], math.ceil(right) + 2), min(within[3], math.ceil(bottom) + 2)
        return x, y, max(x, right), max(y, bottom)


def smoothstep(low: float, high: float, values: Array) -> Array:
    """Ramp from 0 at `low` to 1 at `high` with flat ends."""
    t = np.clip((values - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def noise(
    rng: np.random.Generator, height: int, width: int, cell_px: float, stretch: float = 1.0
) -> Array:
    """Smooth noise (height, width), mean 0.5, in cells `cell_px` high and `stretch` as wide."""
    rows, columns = max(2, round(height / cell_px)), max(2, round(width / (cell_px * stretch)))
    lattice = Image.fromarray(rng.random((rows + 2, columns + 2), dtype=np.float32))
    inner = (1.0, 1.0, columns + 1.0, rows + 1.0)
    return np.asarray(lattice.resize((width, height), Image.Resampling.BICUBIC, box=inner))


def texture(rng: np.random.Generator, coat: Coat, frame: Frame, window: Window) -> Array:
    """Smooth noise as `noise` in a window, fixed to the figure: it turns and grows with the frame.

    Its cells have the size, stretch and direction of the coat's markings. The number of draws does
    not depend on frame and window.
    """
    ux, uy, vx, vy = frame.inverse()
    sizes = coat.scale * coat.stretch, coat.scale
    columns, rows = (2 * math.ceil(REACH / size) + 4 for size in sizes)
    lattice = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    long, across = (1 / size for size in sizes)
    cos, sin = math.cos(math.radians(coat.angle)), math.sin(math.radians(coat.angle))
    a, b = (cos * ux - sin * vx) * long, (cos * uy - sin * vy) * long
    d, e = (sin * ux + cos * vx) * across, (sin * uy + cos * vy) * across
    left, top, right, bottom = window
    dx, dy = left - frame.x0, top - frame.y0
    affine = (a, b, columns / 2 + a * dx + b * dy, d, e, rows / 2 + d * dx + e * dy)
    method, resample = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return np.asarray(lattice.transform((right - left, bottom - top), method, affine, resample))


def markings(rng: np.random.Generator, coat: Coat, frame: Frame, window: Window) -> Array:
    """How far each pixel of the window has the mark colour, 0..1."""
    field = texture(rng, coat, frame, window)
    if coat.band > 0:
        marks = 1 - smoothstep(0.7 * coat.band, 1.3 * coat.band, np.abs(field - coat.level))
    else:
        marks = smoothstep(coat.level - 0.06, coat.level + 0.06, field)
    large = texture(rng, PATCHES, frame, window)
    return marks.clip(min=smoothstep(coat.patches - 0.03, coat.patches + 0.03, large))


def cast_shadow(image: Array, figure: Figure, frame: Frame, light: Light) -> None:
    """Darken the ground below a figure, away from the light, in place."""
    left, top, right, bottom = frame.extent(figure.parts)
    wide, high = 0.6 * (right - left), 0.18 * (bottom - top)
    middle = (left + right) / 2 - wide * 0.3 * light[0]
    under, disc = Frame(middle, bottom - 0.25 * high, wide, 0, 0, high), Part(0, 0, 1, 0, 0, 1)
    window = under.window([disc], 0, (0, 0, image.shape[1], image.shape[0]))
    dark = 0.5 * smoothstep(0, 0.8, -_capsule(disc, under, window)[0])
    x, y, x_end, y_end = window
    image[y:y_end, x:x_end] *= (1 - dark)[..., None]


def paint(
    image: Array, figure: Figure, frame: Frame, light: Light, rng: np.random.Generator
) -> Window | None:
    """Paint a figure over an image, in place.

    Args:
        image: (H, W, 3), 0..1.
        light: unit vector towards the light: right, down, towards the viewer.

    Returns:
        Box in pixels of what shows of the figure, None where nothing does.
    """
    window = frame.window(figure.parts, figure.hair, (0, 0, image.shape[1], image.shape[0]))
    left, top, right, bottom = window
    if left == right or top == bottom:
        return None
    marks = markings(rng, figure.coat, frame, window)
    strands = texture(rng, STRANDS, frame, window) - 0.5
    cover, shade = np.zeros_like(marks), np.zeros_like(marks)
    for part in figure.parts:
        _add(part, frame, window, light, figure.hair, strands, (cover, shade, marks))
    ground, marking = np.asarray(figure.ground, np.float32), np.asarray(figure.marking, np.float32)
    colour = ground + marks[..., None] * (marking - ground)
    colour *= (shade * (1 + 0.3 * strands))[..., None]
    region = image[top:bottom, left:right]
    region += cover[..., None] * (colour - region)
    rows, columns = (np.flatnonzero((cover > 0.5).any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    x, y = left + int(columns[0]), top + int(rows[0])
    return x, y, left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def _add(
    part: Part,
    frame: Frame,
    window: Window,
    light: Light,
    hair: float,
    strands: Array,
    layers: tuple[Array, Array, Array],
) -> None:
    """Put one part over the layers (cover, shade, marks) of a window."""
    inner = left, top, right, bottom = frame.window([part], 0.05, window)
    area = slice(top - window[1], bottom - window[1]), slice(left - window[0], right - window[0])
    cover, shade, marks = (layer[area] for layer in layers)
    distance, nx, ny = _capsule(part, frame, inner)
    distance = (distance + hair * strands[area]) * frame.scale
    solid = np.clip(0.5 - distance / max(1.0, 0.3 * hair * frame.scale), 0, 1)
    nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.02))
    towards_u = (light[0] * frame.xu + light[1] * frame.yu) / frame.scale
    towards_v = (light[0] * frame.xv + light[1] * frame.yv) / frame.scale
    lit = nx * towards_u + ny * towards_v + nz * light[2]
    weight = solid
    if part.tone == 1:
        # Where a part lies on another one its shading fades in over its rim, as a muscle's would.
        rim = max(1.0, 0.35 * max(part.r0, part.r1) * frame.scale)
        weight = np.maximum(np.clip(-distance / rim, 0, 1) * solid, solid * (1 - cover))
    shade += weight * (part.tone * (0.62 + 0.42 * lit) - shade)
    if part.mark is not None:
        marks += weight * (part.mark - marks)
    np.maximum(cover, solid, out=cover)


def _capsule(part: Part, frame: Frame, window: Window) -> tuple[Array, Array, Array]:
    """Distance to a part's surface in figure units (negative inside), and the normal's u and v."""
    ux, uy, vx, vy = frame.inverse()
    left, top, right, bottom = window
    x = np.arange(left, right, dtype=np.float32) + (0.5 - frame.x0)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + (0.5 - frame.y0)
    u = ux * x - part.x0 + uy * y
    v = vx * x - part.y0 + vy * y
    du, dv = part.x1 - part.x0, part.y1 - part.y0
    square = max(du * du + dv * dv, 1e-9)
    along = np.clip(u * (du / square) + v * (dv / square), 0, 1)
    u -= along * du
    v -= along * dv
    radius = part.r0 + along * (part.r1 - part.r0)
    return np.sqrt(u * u + v * v) - radius, u / radius, v / radius

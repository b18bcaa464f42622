"""The look that all figures share (fixres.mplstyle), labels on them, and their file format."""

import base64
import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

LOOK = Path(__file__).with_name("fixres.mplstyle")
PNG, SVG = "image/png", "image/svg+xml"
BESIDE = [(6, 0), (-6, 0), (0, 10), (0, -10), (6, 10), (6, -10), (-6, 10), (-6, -10)]
BESIDE += [(6 * side, step) for step in (20, -20, 30, -30, 40, -40) for side in (1, -1)]
"""Offsets in points from a point to its label, in the order in which they are tried."""


def use_style(svg: bool = False) -> None:
    """Use the project's look; in a notebook give every figure `described` as alternative text.

    Args:
        svg: show figures as SVG, but for those with images in them.
    """
    plt.rcdefaults()  # a matplotlibrc of the user's own may want LaTeX, or another size
    plt.style.use(LOOK)
    if not (shell := get_ipython()):
        return
    bundle = shell.display_formatter.mimebundle_formatter
    if svg:
        plt.switch_backend(plt.get_backend())  # loads the inline one, which adds a PNG to figures
        shell.display_formatter.formatters[PNG].pop(Figure, None)
        bundle.for_type(Figure, lambda figure, **_: packed(figure))
    else:
        bundle.for_type(Figure, lambda figure, **_: ({}, {PNG: {"alt": described(figure)}}))


def packed(figure: Figure) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """A figure as SVG, or as PNG if it shows images, and its description: data and metadata."""
    content = io.BytesIO()
    if any(axis.images for axis in figure.axes):
        kind = PNG
        figure.savefig(content, format="png")
        data = base64.b64encode(content.getvalue())
    else:
        kind = SVG
        figure.savefig(content, format="svg", metadata={"Date": None})  # the same at every run
        data = content.getvalue()
    return {kind: data.decode()}, {kind: {"alt": described(figure)}}


def described(figure: Figure) -> str:
    """A figure's label, else its titles and all words in it, in at most 600 characters."""
    description = str(figure.get_label())
    if not description:
        figure.draw_without_rendering()  # ticks have no text before
        texts = [axis.get_title(loc="left") for axis in figure.axes]
        texts += [text.get_text() for text in figure.findobj(Text)]
        words = [" ".join(text.split()) for text in texts if re.search(r"[^\W\d_]", text)]
        description = "figure: " + "; ".join(dict.fromkeys(words))
    return textwrap.shorten(description, 600, placeholder=" \N{HORIZONTAL ELLIPSIS}")


def legend(figure: Figure, columns: int = 2) -> None:
    """One legend below all axes, with each label once."""
    handles = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def logarithmic(axis: Axes, *subs: int) -> None:
    """Make the x axis logarithmic, with plain numbers at these multiples of the powers of ten."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=subs))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def note(
    axis: Axes, text: str, x: float, y: float, offset: tuple[float, float] = (7, 0), **look: Any
) -> Any:
    """Write a text beside a point, at an offset in points."""
    usual: dict[str, Any] = {"va": "center", "fontsize": 9}
    return axis.annotate(text, (x, y), offset, textcoords="offset points", **(usual | look))


def label_points(
    axis: Axes,
    labels: Sequence[tuple[str, float, float]],
    offsets: Sequence[tuple[int, int]] = BESIDE,
    **look: Any,
) -> None:
    """Write texts beside points (x, y) so that no text touches an earlier one.

    Set the axes' limits before. A text that fits at no offset is left out.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    occupied = list[Bbox]()
    for text, x, y in labels:
        for across, up in offsets:
            align = "left" if across > 0 else "right" if across < 0 else "center"
            label = note(axis, text, x, y, (across, up), ha=align, **look)
            box = label.get_window_extent()
            inside = figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
            if inside and not any(map(box.overlaps, occupied)):
                occupied.append(box)
                break
            label.remove()


def label_ends(axis: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Write texts (text, x, y, colour) at the right of lines' ends, as near to them as they fit.

    Set the axes' limits before.
    """
    axis.figure.draw_without_rendering()  # type: ignore[union-attr]
    ends = sorted(ends, key=lambda end: end[2])
    pixels = 72 / axis.figure.dpi
    heights = axis.transData.transform([end[1:3] for end in ends])[:, 1] * pixels
    steps = 11.0 * np.arange(len(ends))
    placed = np.maximum.accumulate(heights - steps) + steps
    placed -= (placed - heights).mean()
    placed += max(axis.bbox.y0 * pixels - placed[0], 0)
    for (text, x, y, colour), height, moved in zip(ends, heights, placed, strict=True):
        note(axis, text, x, y, (6, moved - height), color=colour)


def short_label(label: object) -> str:
    """A class name for an axis: without a WordNet prefix, on at most two lines."""
    plain = re.sub(r"^n\d{8}[-_]", "", str(label)).replace("_", " ")
    return textwrap.shorten(wrapped(plain, 30), 32, placeholder=" \N{HORIZONTAL ELLIPSIS}")


def wrapped(text: str, width: int = 22) -> str:
    """The text in lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width))

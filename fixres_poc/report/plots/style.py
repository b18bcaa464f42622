"""The look that all figures share (fixres.mplstyle), and what is written on them."""

import re
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

LOOK = Path(__file__).with_name("fixres.mplstyle")


def use_style() -> None:
    """Use the project's look; in a notebook give every figure `described` as alternative text."""
    plt.rcdefaults()  # a matplotlibrc of the user's own may want LaTeX, or another size
    plt.style.use(LOOK)
    if shell := get_ipython():
        shell.display_formatter.mimebundle_formatter.for_type(
            Figure, lambda figure, **_: ({}, {"image/png": {"alt": described(figure)}})
        )


def described(figure: Figure) -> str:
    """A figure in words: titles, axes, names in it, and legend; at most 600 characters."""
    parts = [figure.get_suptitle()]
    for axis in figure.axes:
        named = [
            tick.get_text()
            for tick in axis.get_yticklabels()
            if re.search(r"[^\W\d_]", tick.get_text())
        ]
        axes = " against ".join(filter(None, [axis.get_ylabel(), axis.get_xlabel()]))
        parts += [
            axis.get_title(loc="left") or axis.get_title(),
            axes,
            *named,
            *axis.get_legend_handles_labels()[1],
        ]
    parts += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    unique = dict.fromkeys(" ".join(part.split()) for part in parts if part)
    return "figure: " + textwrap.shorten(
        "; ".join(unique), 600, placeholder=" \N{HORIZONTAL ELLIPSIS}"
    )


def legend(figure: Figure, columns: int = 2) -> None:
    """One legend below all axes, with each label once."""
    shown = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns)


def logarithmic(axis: Axes, *subs: int) -> None:
    """Make the x axis logarithmic, with plain numbers at these multiples of the powers of ten."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=subs))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def note(
    axis: Axes, text: str, x: float, y: float, offset: tuple[float, float] = (7, 0), **look: Any
) -> None:
    """Write a text beside a point, at an offset in points."""
    usual: dict[str, Any] = {"va": "center", "fontsize": 9}
    axis.annotate(text, (x, y), offset, textcoords="offset points", **(usual | look))


def short_label(label: object) -> str:
    """A class name for an axis: on at most two lines."""
    return textwrap.shorten(
        wrapped(str(label).replace("_", " "), 30), 32, placeholder=" \N{HORIZONTAL ELLIPSIS}"
    )


def wrapped(text: str, width: int = 22) -> str:
    """The text in lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width))

"""What tests of figures share: where texts lie, and results to draw."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from made_up import CLAIM, decided, grid, same
from matplotlib.figure import Figure
from matplotlib.text import Text

from fixres_poc.analysis.results import Results


def apart(texts: Sequence[Text]) -> bool:
    """Whether no two of these texts touch, as drawn."""
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def inside(figure: Figure, texts: Sequence[Text]) -> bool:
    """Whether the texts lie in the figure."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)


def readable(figure: Figure, texts: Sequence[Text]) -> bool:
    """Whether the texts lie in the figure and touch none of one another."""
    return inside(figure, texts) and apart(texts)


GRID = CLAIM | {(96, 160): same(0.30) | {"head_bn": 0.66}}


def answered(**values: Any) -> tuple[Results, dict[str, Any]]:
    found = grid(GRID, GRID, epochs=9, **values)
    return found, decided(found)


def xs(line: Any) -> list[float]:
    return [float(x) for x in np.atleast_1d(line.get_xdata())]


def ys(line: Any) -> list[float]:
    return [float(y) for y in np.atleast_1d(line.get_ydata())]


def words(texts: Sequence[Text]) -> list[str]:
    return [text.get_text() for text in texts]

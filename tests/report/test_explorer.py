from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fixres_poc.report import explorer

WIDE = {"image": "a.png", "width": 200, "height": 100}
BOX = {"left": 50, "top": 25, "right": 100, "bottom": 75}


@pytest.mark.parametrize(
    ("box", "title"),
    # 50 px, enlarged by 128 / 100
    [(BOX, "64 px in the test"), ({}, "the whole image looks")],
)
def test_figure_shows_crops_and_the_size_of_the_object(box: dict[str, int], title: str) -> None:
    image = torch.full((3, 100, 200), 90, dtype=torch.uint8)
    figure = explorer.framed(image, pd.DataFrame([WIDE | box]), 64, 112, crop_pct=0.875)
    shapes = [axis.images[0].get_array().shape for axis in figure.axes]  # type: ignore[union-attr]
    assert shapes == [(100, 200, 3), (64, 64, 3), (64, 64, 3), (112, 112, 3)]
    assert title in figure.get_suptitle()
    figure.draw_without_rendering()
    heights = [axis.get_window_extent().bounds[1::2] for axis in figure.axes]
    assert heights == [pytest.approx(heights[0])] * 4  # in one row
    assert len({np.ptp(axis.get_xlim()) for axis in figure.axes[1:]}) == 1  # to one scale


def test_nobody_is_asked_where_nobody_watches(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []

    def show(*_: object, **given: object) -> object:
        shown.append(given)
        return shown

    monkeypatch.setattr(explorer, "display", show)
    monkeypatch.setattr("ipywidgets.interact", show)
    table = pd.DataFrame([{"image": "red/00.png", "width": 72, "height": 56}])
    explorer.explore(colours, table, 64, 80)
    assert len(shown) == 1
    monkeypatch.delenv("FIXRES_PROGRESS")
    explorer.explore(colours, table, 64, 80)
    assert len(shown) == 3

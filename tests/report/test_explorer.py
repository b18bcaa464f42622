from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fixres_poc.report import explorer


def row(**box: int) -> pd.DataFrame:
    return pd.DataFrame([{"image": "a.png", "width": 200, "height": 100} | box])


def test_figure_shows_crops_and_the_size_of_the_object() -> None:
    image = torch.full((3, 100, 200), 90, dtype=torch.uint8)
    figure = explorer.framed(
        image, row(left=50, top=25, right=100, bottom=75), 64, 112, crop_pct=0.875
    )
    shapes = [axis.images[0].get_array().shape for axis in figure.axes]  # type: ignore[union-attr]
    assert shapes == [(100, 200, 3), (64, 64, 3), (64, 64, 3), (112, 112, 3)]
    assert "64 px in the test" in figure.get_suptitle()  # 50 px, enlarged by 128/100
    figure.draw_without_rendering()
    heights = [axis.get_window_extent().bounds[1::2] for axis in figure.axes]
    assert heights == [pytest.approx(heights[0])] * 4  # in one row
    assert len({np.ptp(axis.get_xlim()) for axis in figure.axes[1:]}) == 1  # to one scale


def test_without_a_box_the_image_stands_for_it() -> None:
    figure = explorer.framed(torch.zeros((3, 100, 200), dtype=torch.uint8), row(), 64, 112)
    assert figure.get_suptitle().startswith("the whole image looks")


def test_nobody_is_asked_where_nobody_watches(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []

    def display(figure: object, **_: bool) -> object:
        shown.append(figure)
        return shown

    monkeypatch.setattr(explorer, "display", display)
    monkeypatch.setattr("ipywidgets.interact", lambda *_, **given: shown.append(given))
    table = pd.DataFrame([{"image": "red/00.png", "width": 72, "height": 56}])
    explorer.explore(colour_folder, table, 64, 80)
    assert len(shown) == 1
    monkeypatch.delenv("FIXRES_PROGRESS")
    explorer.explore(colour_folder, table, 64, 80)
    assert len(shown) == 3

"""One image as training and test see it, at sizes that a reader picks.

The figure is an output of its own, which the drop-downs replace. So a notebook stores a PNG, and
its page needs no kernel.
"""

import functools
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fixres_poc.config.run_state import watched
from fixres_poc.data.loading import read_image
from fixres_poc.data.transforms import as_array, plain_transforms
from fixres_poc.method.apparent_size import predicted_object_sizes
from fixres_poc.report.plots.datasets import centred

SIZES = (64, 96, 128, 160, 192, 224, 256, 320, 384)
DRAWS = 500


def explore(
    root: Path, table: pd.DataFrame, train_size: int, test_size: int, **framing: Any
) -> None:
    """Show the first image at the given sizes; in a watched notebook also let a person choose.

    Args:
        table: columns image, width and height, px, and left, top, right and bottom where objects'
            boxes are known.
        framing: `resize`, `crop_pct` and `crop_scale`.
    """
    rows = table.drop_duplicates("image").set_index("image", drop=False)

    def draw(image: str, train_size: int, test_size: int) -> Figure:
        return framed(read_image(root / image), rows.loc[[image]], train_size, test_size, **framing)

    still = display(draw(rows.index[0], train_size, test_size), display_id=True)  # type: ignore[no-untyped-call]
    if still is None or not watched():
        return
    sizes = sorted({*SIZES, train_size, test_size})
    slider = functools.partial(ipywidgets.SelectionSlider, options=sizes, continuous_update=False)
    sliders = {
        "train_size": slider(value=train_size, description="train (px)"),
        "test_size": slider(value=test_size, description="test (px)"),
    }
    image = ipywidgets.Dropdown(options=list(rows.index), description="image")
    ipywidgets.interact(lambda **chosen: still.update(draw(**chosen)), image=image, **sliders)


def framed(
    image: torch.Tensor, row: pd.DataFrame, train_size: int, test_size: int, **framing: Any
) -> Figure:
    """An image, two train crops and its test crop to one scale, and the object's apparent size.

    Args:
        row: the image's row of the table that `explore` takes; the whole image stands for a box
            that is not known.
    """
    name, box = "its object", row
    if "left" not in row:
        name = "the whole image"
        box = row.assign(left=0, top=0, right=row["width"], bottom=row["height"])
    sizes = predicted_object_sizes(
        box.reset_index(drop=True), train_size, test_size, draws=DRAWS, **framing
    )
    low, middle, high = sizes["train_px"].quantile([0.25, 0.5, 0.75])
    transforms = plain_transforms(train_size, test_size, **framing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        crops = [as_array(transforms[stage](image)) for stage in ("train", "train", "val_test")]
    figure, axes = plt.subplots(1, 4, figsize=(5.6, 2.0))
    plt.close(figure)  # it is displayed as an output of its own
    titles = ["image", f"train, {train_size} px", "another crop", f"test, {test_size} px"]
    sides = [max(image.shape), *[max(train_size, test_size)] * 3]
    drawn = [as_array(image / 255), *crops]
    for axis, pixels, side, title in zip(axes, drawn, sides, titles, strict=True):
        centred(axis, pixels, side)
        axis.set_title(title, fontsize=8, loc="center")
    left, top, right, bottom = box[["left", "top", "right", "bottom"]].iloc[0]
    look: dict[str, Any] = {"fill": False, "edgecolor": "#d95f02", "linewidth": 1.5}
    axes[0].add_patch(Rectangle((left, top), right - left, bottom - top, **look))
    looks = f"{name} looks {middle:.0f} px large in training (middle half {low:.0f} to {high:.0f})"
    figure.suptitle(f"{looks},\n{sizes['test_px'].iloc[0]:.0f} px in the test", fontsize=9)
    return figure

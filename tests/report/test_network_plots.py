"""What the figures of published networks show is what the table holds."""

import numpy as np
import pytest
from drawn import apart, words, xs
from matplotlib.collections import PathCollection

from fixres_poc.report import published
from fixres_poc.report.plots import networks

CHOICE = "ResNeXt-101 32x48d WSL"


pytestmark = pytest.mark.usefixtures("own_look")


def test_every_network_with_a_cost_is_drawn_once_and_the_choice_is_ringed() -> None:
    models = published.networks().dropna(subset="gmacs")
    figure = networks.accuracy_by_cost(published.networks(), CHOICE)
    (axis,) = figure.axes
    clouds = [cloud for cloud in axis.collections if isinstance(cloud, PathCollection)]
    drawn = {str(cloud.get_label()): np.asarray(cloud.get_offsets()) for cloud in clouds}
    ring = drawn.pop(CHOICE)
    assert ring[:, 1] == pytest.approx([85.4, 86.4])
    assert list(drawn) == list(networks.EXTRA_DATA)
    alone = len(drawn["ImageNet-1k alone"]), len(drawn["and ImageNet-21k"])
    extra = models["extra_data"]
    assert alone == (extra.eq("none").sum(), extra.eq("ImageNet-21k").sum())
    points = np.concatenate(list(drawn.values()))
    wanted = models[["gmacs", "top1"]].to_numpy() * [1, 100]
    assert sorted(points.tolist()) == [pytest.approx(point) for point in sorted(wanted.tolist())]
    figure.draw_without_rendering()
    assert {"EfficientNet-B0", "EVA-02-L"} <= {*words(axis.texts)}
    assert apart(axis.texts)


def test_gains_are_in_points_beside_their_sizes() -> None:
    gains = published.size_gains(published.networks())
    axis = networks.size_gains(gains).axes[0]
    drawn = sorted(x for line in axis.lines for x in xs(line))
    assert drawn == pytest.approx(sorted(gains["gain"] * 100))
    assert "224/384, ×1.71" in words(axis.texts)
    assert words(axis.get_yticklabels())[-1] == "ResNet-50"

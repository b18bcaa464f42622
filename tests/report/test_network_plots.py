"""What the figures of published networks show is what the table holds."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from fixres_poc.report import published
from fixres_poc.report.plots import networks

CHOICE = "ResNeXt-101 32x48d WSL"


pytestmark = pytest.mark.usefixtures("own_look")


def test_every_network_with_a_cost_is_drawn_once_and_the_choice_is_ringed() -> None:
    models = published.networks().dropna(subset="gmacs")
    axis = networks.accuracy_by_cost(published.networks(), CHOICE).axes[0]
    drawn = {
        str(each.get_label()): np.asarray(each.get_offsets())
        for each in axis.collections
        if isinstance(each, PathCollection)
    }
    ring = drawn.pop(CHOICE)
    assert ring[:, 1] == pytest.approx([85.4, 86.4])
    assert list(drawn) == list(networks.EXTRA_DATA)
    points = np.concatenate(list(drawn.values()))
    wanted = models[["gmacs", "top1"]].to_numpy() * [1, 100]
    assert np.allclose(points[np.lexsort(points.T)], wanted[np.lexsort(wanted.T)])


def test_names_on_the_frontier_do_not_lie_on_each_other() -> None:
    figure = networks.accuracy_by_cost(published.networks(), CHOICE)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert {"EfficientNet-B0", "EVA-02-L"} <= {text.get_text() for text in figure.axes[0].texts}
    assert not any(
        one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index]
    )


def test_extra_data_has_a_kind_each() -> None:
    kinds = (
        networks.extra_data(published.networks())
        .groupby(published.networks()["extra_data"])
        .unique()
    )
    assert kinds["none"].tolist() == ["ImageNet-1k alone"]
    assert kinds.filter(like="940 M Instagram").iloc[0].tolist() == ["and other images"]


def test_gains_are_in_points_beside_their_sizes() -> None:
    gains = published.size_gains(published.networks())
    axis = networks.size_gains(gains).axes[0]
    drawn = np.concatenate([np.asarray(line.get_xdata(), dtype=float) for line in axis.lines])
    assert sorted(drawn) == pytest.approx(sorted(gains["gain"] * 100))
    assert "224/384, ×1.71" in [text.get_text() for text in axis.texts]
    assert [label.get_text() for label in axis.get_yticklabels()][-1] == "ResNet-50"

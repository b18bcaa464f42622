"""docs/cost.md: its script gives its numbers, and counts as `make plan` does."""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from fixres_poc import plan
from fixres_poc.config import REPOSITORY
from fixres_poc.preflight import Fit
from fixres_poc.reading import load_sweep

PAGE = (REPOSITORY / "docs/cost.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], names)
    return names


@pytest.mark.parametrize("network", ["efficientnet_lite0", "timm:resnet50", "resnext101_32x48d_wsl"])
def test_a_row_of_the_page_is_what_its_script_gives(script: dict[str, Any], network: str) -> None:
    cost: Callable[[str], list[float]] = script["cost"]
    (row,) = re.findall(rf"^\| {network} \| (.*) \|$", PAGE, re.MULTILINE)
    places = (1, 1, 2, 2, 2)
    assert row.split(" | ") == [f"{value:.{n}f}" for value, n in zip(cost(network), places, strict=True)]
    assert network in script["NETWORKS"]
    assert len(set(script["NETWORKS"])) == 20


def test_the_script_counts_as_the_plan_does(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"fit": Fit(32, False, 0, True), "adapting_bytes": 0, "steps": pd.DataFrame()}.items():
        monkeypatch.setattr(plan, name, lambda *_, value=value: value)
    sweep = load_sweep("sweeps/perspectives.yml").model_copy(
        update={"backbone": "timm:resnet18", "views": ("center",), "full_pairs": ()}
    )
    total_s = plan.plan(sweep, memory=2**40, tflops=20)["sweep"]["total_s"][0]
    assert script["cost"]("timm:resnet18")[3] * 3600 == pytest.approx(total_s)


def test_totals_follow_from_the_table() -> None:
    (row,) = re.findall(r"^\| all 20 on one data set \| (.*) \|$", PAGE, re.MULTILINE)
    parameters, _, _, hours, hours_each = map(float, row.split(" | "))
    assert f"Ten data sets: {10 * hours:.0f} GPU hours, not {10 * hours_each:,.0f}" in PAGE
    assert f"{parameters:,.0f} M parameters = {10 * 5 * 4 * parameters / 1000:.0f} GB" in PAGE
    n, v, t = 10_200, 1_800, 8_580
    seen = 5 * (6 * (n + v) + 2 * n) + 50 * (2 * n + v + t) + n + v + t
    assert f"{seen / 1e6:.2f} million" in PAGE
    assert f"{200 * seen / 1e6:.0f} million in all: {200 * seen / 1000 / 3600:.0f} hours" in PAGE

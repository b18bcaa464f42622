import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, measure, page, usual
from fixres_poc.config.settings import Adaptation, PairSettings
from fixres_poc.model.memory_plan import parameters_and_flops


def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    seconds = measure.alternating(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2
    )
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert [len(each) for each in seconds.values()] == [2, 2]


def test_ratios_are_those_of_each_repeat_and_the_exponent_that_of_the_growth() -> None:
    assert measure.ratios([4.0, 6.0, 9.0], [2.0, 2.0, 2.0]) == (3.0, 2.0, 4.5)
    assert math.isclose(measure.exponent([1, 2, 4], [3.0, 12.0, 48.0]), 2.0)


def test_the_cost_of_a_process_counts_what_it_has_started(tmp_path: Path) -> None:
    work = "import time\nwhile time.process_time() < 0.5:\n    pass"
    child = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); print('done')"
    )
    cost = measure.run(["-c", child], tmp_path)
    assert 0.5 <= cost.core_seconds < 2
    assert cost.seconds >= 0.5
    assert cost.said == "done\n"


def test_the_page_says_what_is_missed(tmp_path: Path) -> None:
    drawing = {"one": [10.0, 11.0], "own": [8.0, 8.0], "images": 1000, "data": "synthetic images"}
    start_up = {"pair": [2.0, 3.0, 2.25], "predict": [3.5]}
    growth = {"pixels": {"100": [1.0], "400": [4.0]}, "data": "synthetic images"}
    top1 = {"own": {"none": 0.5, "head": 0.625}, "fastai": {"none": 0.25, "head": 0.75}}
    peers = {"fastai": [30.0, 40.0], "own": [10.0, 10.0], "top1": top1}
    page.write(
        tmp_path / "bench.md",
        {"drawing": drawing, "growth": growth, "start_up": start_up, "peers_grid": peers},
    )
    text = (tmp_path / "bench.md").read_text()
    assert "| 1.31 (1.25–1.38) | ≥ 1.85 | **no** | 2 |" in text
    assert "| fastai | 3.50 (3.00–4.00) | ≥ 4 | **no** | 2 |" in text
    assert "here and there: `none` 50.0% and 25.0%, `head` 62.5% and 75.0%." in text
    assert "seconds of a core | 2.2 (2.0–3.0) | ≤ 1 | **no** | 3 |" in text
    assert "one image, seconds of a core | 3.5 (3.5–3.5) | ≤ 3 | **no** | 1 |" in text
    assert "| pixels | 100, 400 | 1.00, 4.00 | 1.00 |" in text
    missing = "predictions, network_alone, train_step, several_sizes, grid, peers_evaluation, "
    assert f"Not measured for this version: {missing}peers_epoch, memory." in text


def test_the_usual_loop_gives_every_result_of_a_pair(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usual, "CORES", 1)
    names: tuple[Adaptation, ...] = ("none", "bn_stats", "head", "head_bn")
    sizes: Any = {"train_size": 32, "test_size": 48, "batch_size": 8}
    given: Any = {"epochs": 6, "adapt_epochs": 1, "learning_rate": 0.03, "adaptations": names}
    settings = PairSettings(dataset=str(colour_folder), **sizes, **given)
    found = usual.pair(settings)
    assert set(found) == {*names, "control_bn_stats", "control_head", "control_head_bn"}
    assert min(found.values()) > 0.45, found  # of 12 images; a third by chance


def test_the_gpu_benchmark_counts_images_and_waiting(colour_folder: Path) -> None:
    small: Any = {"train_size": 32, "test_size": 32, "batch_size": 4}
    settings = PairSettings(dataset=str(colour_folder), **small)
    line: Any = gpu.measure(settings, training=True, name="channels_last", peak=1e12)
    assert json.loads(json.dumps(line)) == line
    flops = parameters_and_flops(settings.backbone, gpu.CLASSES, 32)[1]
    expected = 3 * flops * line["images_per_second"] / 1e12
    assert line["share_of_peak"] == pytest.approx(expected)

"""Predicted memory against what real steps take, and how a step is made to fit."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.settings import PairSettings, TrainSettings
from fixres_poc.method.epochs import train_mode
from fixres_poc.model import backbones, device, memory_plan
from fixres_poc.model.memory_plan import step_plans, training_bytes

LITE, RESNEXT = "efficientnet_lite0", "timm:resnext50_32x4d"


def settings(
    backbone: str = LITE, size: int = 64, batch: int = 8, **others: object
) -> TrainSettings:
    values = {"backbone": backbone, "train_size": size, "batch_size": batch, **others}
    return TrainSettings.model_validate(values)


def step(model: nn.Module, sgd: torch.optim.Optimizer, images: torch.Tensor, pieces: int) -> None:
    for part in images.chunk(pieces):
        targets = torch.zeros(len(part), dtype=torch.long)
        loss = nn.functional.cross_entropy(model(part), targets, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
    sgd.step()
    sgd.zero_grad()


def optimizer(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True, foreach=False
    )


def measured_bytes(
    model: nn.Module, chosen: torch.optim.Optimizer, images: torch.Tensor, pieces: int
) -> int:
    """Peak of what is held before a real step, and of its allocations that the profiler sees."""
    step(model, chosen, images, pieces)
    moments = [value for each in chosen.state.values() for value in each.values()]
    held: int = sum(each.nbytes for each in [*model.parameters(), *model.buffers(), *moments])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(model, chosen, images, pieces)
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    changes = [each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())]
    return held + images.nbytes // pieces + int(np.cumsum(changes).max())


@pytest.mark.parametrize(
    ("backbone", "size", "pieces", "recompute", "batch_norm", "name"),
    [
        (LITE, 160, 1, False, "frozen", "adamw"),
        (RESNEXT, 96, 1, True, "train", "sgd"),
        (RESNEXT, 96, 2, False, "frozen", "sgd"),
        (RESNEXT, 96, 2, True, "train", "adamw"),
        ("timm:convnext_atto", 96, 1, False, "train", "adamw"),
        ("timm:vit_tiny_patch16_224", 224, 2, True, "train", "adamw"),
    ],
)
def test_prediction_is_within_15_percent_of_a_real_step(
    backbone: str,
    size: int,
    pieces: int,
    recompute: bool,
    batch_norm: Literal["frozen", "train"],
    name: str,
) -> None:
    model = backbones.create(backbone, 10, pretrained=False).to(memory_format=torch.channels_last)
    train_mode(model, batch_norm)
    if recompute:
        device.recompute(model)
    given = settings(backbone, size, optimizer=name)
    predicted = training_bytes(given, size, 10, 8 // pieces, recompute)
    adamw = torch.optim.AdamW(model.parameters(), 1e-3, foreach=False)
    chosen = adamw if name == "adamw" else optimizer(model)
    measured = measured_bytes(model, chosen, torch.rand(8, 3, size, size), pieces)
    assert predicted == pytest.approx(measured, rel=0.15)


def test_recorder_agrees_with_the_tracker_of_torch() -> None:
    with torch.device("meta"):
        model = backbones.create(LITE, 10, pretrained=False).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        sgd = optimizer(model)
        images = torch.empty(4, 3, 64, 64)
        for each in model.parameters():
            sgd.state[each]["momentum_buffer"] = torch.zeros_like(each)
        tracker = MemTracker()
        tracker.track_external(model, sgd, images)
        with tracker:
            step(model, sgd, images, pieces=1)
    expected = sum(each["Total"] for each in tracker.get_tracker_snapshot("peak").values())
    assert training_bytes(settings(batch=4, optimizer="sgd"), 64, 10, 4, False) == pytest.approx(
        expected, rel=1e-4
    )


def test_flops_are_those_published() -> None:
    parameters, flops = memory_plan.parameters_and_flops("timm:resnet50", 1000, 224)
    # torchvision's table of models, as are the 4.09 G multiply-adds
    assert parameters == 25_557_032
    assert flops / 2 == pytest.approx(4.09e9, rel=0.005)


def test_stage_2_needs_less_than_stage_1_and_more_with_more_tails() -> None:
    def pair(*adaptations: str) -> int:
        values = settings().model_dump() | {"test_size": 64, "adaptations": adaptations}
        return memory_plan.adapting_bytes(PairSettings.model_validate(values), 10)

    whole = training_bytes(settings(), 64, 10, 8, False)
    assert pair("head") < pair("head", "head_bn") < whole


def ways(
    budget: int, wish: object = "auto", network: str = LITE, batch: int = 6
) -> list[tuple[int, bool]]:
    """Micro-batch and checkpointing of every plan, in order."""
    chosen = settings(network, batch=batch, gradient_checkpointing=wish)
    plans = step_plans(chosen, 64, 10, budget)
    return [(each.micro_batch_size, each.gradient_checkpointing) for each in plans]


def test_plans_go_from_the_first_that_should_fit_to_one_image() -> None:
    ladder = [(6, False), (6, True), (3, True), (2, True), (1, True)]
    need = [training_bytes(settings(batch=6), 64, 10, *each) for each in ladder]
    assert [each.peak_bytes for each in step_plans(settings(batch=6), 64, 10, need[0])] == need
    assert ways(need[0]) == ladder
    assert ways(need[0] - 1) == ways(need[1]) == ladder[1:]
    assert ways(need[1] - 1) == ladder[2:]
    assert ways(0) == ladder[-1:]
    assert ways(need[0], True) == ladder[1:]
    assert ways(need[0] - 1, False) == [(3, False), (2, False), (1, False)]


def test_a_network_that_cannot_recompute_gets_smaller_batches() -> None:
    assert ways(0, network="timm:vgg11", batch=4) == [(1, False)]
    with pytest.raises(InputError, match=r"^gradient_checkpointing = True: .* allowed"):
        ways(0, True, "timm:vgg11", 4)


def test_budget_is_half_of_the_lowest_limit_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, inner = tmp_path / "cgroup", tmp_path / "groups" / "a" / "b"
    own.write_text("0::/a/b\n")
    inner.mkdir(parents=True)
    for folder, limit in ((inner, "max"), (inner.parent, "4096"), (inner.parents[1], "8192")):
        (folder / "memory.max").write_text(f"{limit}\n")
    limits = memory_plan.group_limits
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(memory_plan, "group_limits", lambda: limits(own, tmp_path / "groups"))
    assert memory_plan.budget_bytes() == 2048
    own.unlink()
    assert memory_plan.budget_bytes() == psutil.virtual_memory().total // 2


LARGEST = """
from pathlib import Path
from fixres_poc.config.settings import TrainSettings
from fixres_poc.model.memory_plan import training_bytes
settings = TrainSettings(backbone="resnext101_32x48d_wsl", batch_size=16, train_size=320)
assert training_bytes(settings, 320, 120, 16, False) > 2**34
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(),
    reason="getrusage would count the parent's memory as well",
)
def test_the_largest_network_is_planned_in_2_gib() -> None:
    run = [sys.executable, "-c", LARGEST]
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * 2**20

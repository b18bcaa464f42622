"""The device that networks run on: precision, memory format, loader processes."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import ModelSettings
from fixres_poc.model import device
from fixres_poc.model.backbones import create

LAST, NCHW = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    ("name", "on_gpu"),
    [
        ("efficientnet_lite0", LAST),  # depthwise
        ("timm:resnet50", LAST),  # no groups
        ("resnext101_32x8d_wsl", LAST),  # 8 channels a group in the first stage
        ("resnext101_32x16d_wsl", NCHW),
        ("timm:regnetx_040", NCHW),  # 40 channels
    ],
)
def test_only_wide_groups_on_a_gpu_are_not_channels_last(
    name: str, on_gpu: torch.memory_format
) -> None:
    with torch.device("meta"):
        model = create(name, pretrained=False)
    gpu: Any = SimpleNamespace(device=torch.device("cuda"))
    assert device.memory_format(model, ModelSettings(), gpu) == on_gpu
    assert device.memory_format(model, ModelSettings(), device.accelerator_for("fp32")) == LAST


@pytest.mark.parametrize("wished", ["channels_last", "nchw"])
def test_a_memory_format_that_is_set_is_the_one(wished: Literal["channels_last", "nchw"]) -> None:
    settings, accelerator = ModelSettings(memory_format=wished), device.accelerator_for("fp32")
    model = device.place(create("timm:resnet18", pretrained=False), settings, accelerator)
    assert device.format_name(model) == wished
    assert model.get_parameter("layer1.0.conv1.weight").is_contiguous() == (wished == "nchw")


def test_loader_processes_are_as_many_as_the_cores_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 6})
    assert device.workers() == 3


def test_half_precision_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="fp16"):
        device.accelerator_for("fp16")

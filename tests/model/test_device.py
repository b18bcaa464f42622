"""The device that networks run on: precision, memory format, and memory that runs out."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import ModelSettings
from fixres_poc.model import device
from fixres_poc.model.backbones import create
from fixres_poc.model.trunk import Trunk

LAST, NCHW = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    ("name", "on_gpu"),
    [
        ("efficientnet_lite0", LAST),  # depthwise
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


def test_which_errors_mean_that_memory_ran_out() -> None:
    on_gpu = torch.OutOfMemoryError("CUDA out of memory.")
    on_cpu = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 GB")
    for error in (MemoryError(), on_gpu, on_cpu):
        assert device.out_of_memory(error)
    assert not device.out_of_memory(RuntimeError("shapes differ"))


def test_a_frozen_network_takes_fewer_images_at_once_and_gives_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trunk = Trunk(create("efficientnet_lite0", 3, pretrained=False).eval())
    images = torch.randn(8, 3, 48, 48)
    most = 3

    def narrow(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(part) > most:
            raise MemoryError
        return trunk(part)

    portions = device.Portions(narrow, 8, torch.device("cpu"))
    assert torch.allclose(portions(images)[0], trunk(images)[0], atol=1e-5)
    assert portions.size == 2
    assert "now 2 images at once" in caplog.text
    most = 0
    with pytest.raises(MemoryError):
        portions(images)


def test_a_single_value_per_channel_is_normalised_with_running_statistics() -> None:
    norm, plain = (torch.nn.BatchNorm2d(3, momentum=0.5) for _ in range(2))
    device.spare_single_values(norm)
    for images in (torch.randn(2, 3, 1, 1), torch.randn(1, 3, 2, 2)):
        assert torch.equal(norm(images), plain(images))
    one = torch.randn(1, 3, 1, 1)
    assert torch.equal(norm(one), plain.eval()(one))
    assert norm.training
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    assert not norm.eval()(one).isnan().any()
    assert not norm.training

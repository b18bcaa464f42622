"""What is done when memory runs out, and that memory is kept for what comes next."""

import platform
import subprocess
import sys

import pytest
import torch

from fixres_poc.config.errors import InputError
from fixres_poc.model.backbones import create
from fixres_poc.model.device import Portion, first_that_fits, out_of_memory, spare_single_values
from fixres_poc.model.trunk import Trunk

FAULTS = """
import resource, sys, torch
from fixres_poc.model import device
if sys.argv[1] == "kept":
    device.keep_freed()
for _ in range(4):
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of GNU's C library")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    run = [sys.executable, "-c", FAULTS]
    done = [
        subprocess.run([*run, name], capture_output=True, text=True, check=True)
        for name in ("kept", "given back")
    ]
    kept, given_back = (int(each.stdout) for each in done)
    assert kept < 100 < 10_000 < given_back


def test_which_errors_mean_that_memory_ran_out() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 GB")
    )
    assert not out_of_memory(RuntimeError("shapes differ"))
    assert not out_of_memory(ValueError("x"))


def test_ways_are_tried_until_one_fits_and_other_errors_pass() -> None:
    def attempt(images: int) -> str:
        if images > 2:
            raise MemoryError
        return f"done with {images}"

    lines = ["out of memory with 8: on with 4", "out of memory with 4: on with 2"]
    assert first_that_fits(iter([8, 4, 2, 1]), attempt) == ("done with 2", lines)
    assert first_that_fits([1], attempt) == ("done with 1", [])
    with pytest.raises(InputError, match="not even one image fits into memory: 4 was the last"):
        first_that_fits([8, 4], attempt)
    with pytest.raises(RuntimeError, match="shapes differ"):
        first_that_fits([1, 2], lambda _: (_ for _ in ()).throw(RuntimeError("shapes differ")))


def test_a_frozen_network_takes_fewer_images_at_once_and_gives_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trunk = Trunk(create("efficientnet_lite0", 3, pretrained=False).eval())
    images = torch.randn(8, 3, 48, 48)

    def narrow(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(part) > 3:
            raise MemoryError
        return trunk(part)

    portion = Portion(8)
    assert torch.allclose(portion.run(narrow, images)[0], trunk(images)[0], atol=1e-5)
    assert portion.size == 2
    assert "on with 2 images at once" in caplog.text
    with pytest.raises(MemoryError):
        Portion(4).run(lambda part: (_ for _ in ()).throw(MemoryError()), images)


def test_a_single_value_per_channel_is_normalised_with_running_statistics() -> None:
    norm, plain = (torch.nn.BatchNorm2d(3, momentum=0.5) for _ in range(2))
    spare_single_values(norm)
    for images in (torch.randn(2, 3, 1, 1), torch.randn(1, 3, 2, 2)):
        assert torch.equal(norm(images), plain(images))
    one = torch.randn(1, 3, 1, 1)
    assert torch.equal(norm(one), plain.eval()(one))
    assert norm.training
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    assert not norm.eval()(one).isnan().any()
    assert not norm.training

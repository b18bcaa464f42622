import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from fixres_poc import memory
if sys.argv[1] == "kept":
    memory.keep_freed()
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
    faults = {
        name: int(subprocess.run([*run, name], capture_output=True, text=True, check=True).stdout)
        for name in ("kept", "given_back")
    }
    assert faults["kept"] < 100 < 10_000 < faults["given_back"]

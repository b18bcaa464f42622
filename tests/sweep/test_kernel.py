"""A kernel that notebooks share: each finds it as if it had just been started."""

import json
import os
import platform
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import throwaway

from fixres_poc.config.files import REPOSITORY
from fixres_poc.sweep import kernel

IMPORTS = """import gc, json, os, sys, warnings
import matplotlib.pyplot as plt, numpy as np, pandas as pd, torch
from tqdm.std import tqdm"""
LOOK = """
state = {"names": sorted(globals()), "counts": [len(In), len(Out)], "folder": os.getcwd()}
state |= {"path": sys.path}
state["environment"] = {k: v for k, v in os.environ.items() if k != "FIXRES_BEGUN"}
state |= {"filters": repr(warnings.filters), "figures": plt.get_fignums()}
drawn, _ = torch.rand(1).item(), torch.manual_seed(7)
state |= {"seeded by others": drawn == torch.rand(1).item()}
state |= {"rc": repr(dict(plt.rcParams)), "backend": plt.get_backend()}
state |= {"numpy": [repr(np.get_printoptions())]}
state |= {"errors": np.geterr()}
state["pandas"] = [pd.get_option(k) for k in ("display.max_rows", "display.precision")]
state |= {"threads": torch.get_num_threads(), "dtype": str(torch.get_default_dtype())}
state |= {"grad": torch.is_grad_enabled(), "collects": gc.isenabled()}
state |= {"flags": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark]}
state |= {"precision": torch.get_float32_matmul_precision(), "bars": len(tqdm._instances)}
print(json.dumps(state, sort_keys=True))
1 + 1
"""
POLLUTE = """
left, _ = 1, 2
os.environ["LEFT"], os.environ["HOME"] = "1", "/nowhere"
os.chdir("/")
sys.path.insert(0, "/left")
warnings.simplefilter("error")
plt.rcParams["figure.figsize"], plt.rcParams["axes.grid"] = (1, 1), True
plt.switch_backend("agg")
plt.figure()
np.set_printoptions(precision=1)
np.seterr(all="raise")
pd.set_option("display.max_rows", 3, "display.precision", 1)
torch.set_num_threads(torch.get_num_threads() + 1)
torch.use_deterministic_algorithms(True)
torch.backends.cudnn.benchmark = True
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.set_float32_matmul_precision("medium")
torch.manual_seed(7)
bar = tqdm(range(3))
3 + 4
"""


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    return tmp_path / "notebooks"


def write(notebooks: Path, name: str, *sources: str) -> Path:
    return throwaway.write_notebook(notebooks / f"{name}.ipynb", "x = 0", *sources)


def run(shared: kernel.Kernel, notebook: Path, **variables: str) -> list[dict[str, Any]]:
    """The code cells of the executed notebook."""
    executed = notebook.with_suffix(".executed.ipynb")
    shared.run(notebook, executed, {"x": 1}, variables)
    cells = json.loads(executed.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return [{key: cell[key] for key in ("outputs", "execution_count")} for cell in code]


def test_a_notebook_finds_what_it_would_in_a_kernel_of_its_own_and_leaves_nothing(
    notebooks: Path,
) -> None:
    look = write(notebooks, "look", IMPORTS, "line = plt.plot([1, 2])", LOOK)
    pollute = write(notebooks, "pollute", IMPORTS, "", POLLUTE)
    with closing(kernel.Kernel([look, pollute])) as shared:
        cold = run(shared, look, OWN="1")
    assert [cell["execution_count"] for cell in cold] == [1, 2, 3, 4, 5]
    assert "image/png" in cold[-2]["outputs"][0]["data"]
    text = "".join(cold[-1]["outputs"][0]["text"])
    assert '"OWN": "1"' in text
    assert '"collects": true' in text
    with closing(kernel.Kernel([look, pollute])) as shared:
        run(shared, pollute, OWN="2", OTHER="3")
        assert run(shared, look, OWN="1") == cold


WHERE = "import os\nprint(os.getpid())"


def number(cells: list[dict[str, Any]]) -> int:
    return int(cells[-1]["outputs"][0]["text"][0])


@pytest.mark.slow
def test_thirty_notebooks_leave_neither_descriptors_nor_memory(notebooks: Path) -> None:
    source = "import os\nkept = [str(number) for number in range(300_000)]\nprint(os.getpid())"
    notebook = write(notebooks, "fill", source)
    found = []
    with closing(kernel.Kernel([notebook])) as shared:
        for _ in range(30):
            process = psutil.Process(number(run(shared, notebook)))
            memory = process.memory_info().rss
            found.append((process, process.num_fds(), psutil.Process().num_fds(), memory))
    processes, theirs, ours, memory = zip(*found[2:], strict=True)
    assert len(set(processes)) == 1
    assert min(theirs[-5:]) <= 1.05 * min(theirs[:5])  # connections end a little later
    assert max(ours) - min(ours) <= 0.05 * ours[0]
    assert max(memory) - min(memory) <= 0.05 * memory[0]


@pytest.mark.parametrize(
    "source", ["1 / 0", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)", "os._exit(1)"]
)
def test_after_a_failure_the_kernel_is_a_fresh_one(notebooks: Path, source: str) -> None:
    where, fail = write(notebooks, "where", WHERE), write(notebooks, "fail", WHERE, source)
    with closing(kernel.Kernel([where, fail])) as shared:
        first = number(run(shared, where))
        assert number(run(shared, where)) == first
        with pytest.raises(Exception, match=r"ZeroDivisionError|KeyboardInterrupt|Kernel died"):
            run(shared, fail)
        assert not psutil.pid_exists(first)
        assert number(run(shared, where)) != first


def test_a_kernel_that_has_died_or_has_older_code_is_replaced(
    notebooks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = write(notebooks, "where", WHERE)
    with closing(kernel.Kernel([where])) as shared:
        first = number(run(shared, where))
        psutil.Process(first).kill()
        second = number(run(shared, where))
        monkeypatch.setattr(kernel, "library_hash", lambda **_: "changed")
        third = number(run(shared, where))
        assert third == number(run(shared, where))
    assert len({first, second, third}) == 3
    assert not psutil.pid_exists(third)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_a_kernel_whose_parent_has_ended_before_it_asked_ends_at_once() -> None:
    command = f"-m fixres_poc.sweep.kernel_state {os.getpid() + 1} -f none.json"
    done = subprocess.run([sys.executable, *command.split()], cwd=REPOSITORY, timeout=60)
    assert done.returncode == 1


FAULTS = """
import resource, sys
from fixres_poc.sweep import kernel_state
if sys.argv[1] == "kept":
    kernel_state.keep_freed_memory()
import torch, fixres_poc.model.device
for _ in range(12):  # the heap settles
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of GNU's C library")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    faults = []
    for name in ("kept", "given back"):
        command = [sys.executable, "-c", FAULTS, name]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        faults.append(int(done.stdout))
    assert faults[0] < 100 < 10_000 < faults[1]

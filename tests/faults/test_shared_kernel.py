"""Notebooks 03 and 04 in a kernel that others have used leave what they leave in their own."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import throwaway
from safetensors.torch import load_file

from fixres_poc.config.files import REPOSITORY, file_digest, run_folder, write_atomically
from fixres_poc.config.notebooks import NOTEBOOKS, Notebook
from fixres_poc.config.settings import Settings
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.model import checkpoint
from fixres_poc.sweep import execution, notebook_run

pytestmark = pytest.mark.faults
TRAINING, PAIRS = "train32_seed0", ("train32_test48_seed0", "train32_test64_seed0")
KEYS = {
    "dataset": "synthetic",
    "image_limit": 60,
    "pairs": [[32, 48], [32, 64]],
    "epochs": 1,
    "adapt_epochs": 1,
}
MEASURED = {"wall_seconds", "seconds", "peak_memory_bytes", "eval_images_per_second"}
MEASURING = ["budget", "price", "memory", "seconds"]
DRAWN = ["crop(image)", "plots.framing", "fork_rng"]  # without a seed
POLLUTE = """
import os, sys, warnings
import matplotlib.pyplot as plt, numpy as np, pandas as pd, torch
os.environ["OMP_NUM_THREADS"], os.environ["FIXRES_HOME"] = "7", "/nowhere"
os.chdir("/")
sys.path.insert(0, "/left")
warnings.simplefilter("ignore")
plt.rcParams["figure.dpi"], plt.rcParams["axes.grid"] = 30, True
plt.figure()
np.set_printoptions(precision=1)
pd.set_option("display.max_rows", 3, "display.precision", 1)
torch.set_num_threads(torch.get_num_threads() + 1)
torch.use_deterministic_algorithms(True)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.manual_seed(7)
settings = data = 3
"""
OTHERS = {
    "pollute": POLLUTE,
    "raise": "1 / 0",
    "interrupt": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(REPOSITORY / "notebooks", folder / "notebooks")
    for name, source in OTHERS.items():
        throwaway.write_notebook(folder / f"notebooks/{name}.ipynb", "pass", source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXRES_HOME", str(folder))
        patch.setenv("FIXRES_NOTEBOOKS", str(folder / "notebooks"))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        sweep = validate(SweepSettings, KEYS | {"name": "own"}, "own.yml")
        execution.lay_out(sweep, execution.prepare_data(sweep))
        for name in OTHERS:
            patch.setitem(NOTEBOOKS, name, Notebook(Settings))
            content = {"notebook": name, "parameters": {}}
            write_atomically(run_folder("own", name) / "settings.json", json.dumps(content))
        yield folder


def run(home: Path, *names: str) -> dict[str, Any]:
    """What runs leave that one job does in this order; a training is done from its beginning."""
    os.environ["FIXRES_HOME"] = str(home)
    for name in {TRAINING} & set(names):
        run_folder("own", name).joinpath("checkpoint.safetensors").unlink(missing_ok=True)
    notebook_run.run_job([run_folder("own", name) / "settings.json" for name in names])
    return {name: left(run_folder("own", name)) for name in names if name not in OTHERS}


def left(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    found: dict[str, Any] = {
        "metrics": {key: value for key, value in metrics.items() if key not in MEASURED}
    }
    found["metrics"].get("history", {}).pop("seconds", None)
    found["metrics"]["used"].pop("checkpoint", None)  # it holds seconds as well
    cells = json.loads((folder / "notebook.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    found["counts"] = [cell["execution_count"] for cell in code]
    for index, cell in enumerate(code):
        if not any(word in "".join(cell["source"]) for word in MEASURING + DRAWN):
            found[f"outputs of cell {index}"] = (
                printed(cell),
                [strip(each) for each in cell["outputs"] if "text" not in each],
            )
    for file in folder.glob("*.safetensors"):
        found[file.name] = checkpoint.digest(load_file(file))
    if (file := folder / "predictions.parquet").exists():
        found[file.name] = file_digest(file)
    return found


def printed(cell: dict[str, Any]) -> str:
    """Text that may have come in several parts."""
    return "".join("".join(each["text"]) for each in cell["outputs"] if "text" in each)


def strip(output: dict[str, Any]) -> dict[str, Any]:
    """An output without the numbers of widgets, which are drawn."""
    return {
        **output,
        "data": {
            kind: value for kind, value in output.get("data", {}).items() if "widget" not in kind
        },
    }


@pytest.fixture(scope="module")
def cold(home: Path) -> dict[str, Any]:
    return run(home, TRAINING) | run(home, PAIRS[0]) | run(home, PAIRS[1])


@pytest.mark.parametrize(
    "order",
    [
        (TRAINING, *PAIRS),
        (PAIRS[1], PAIRS[0]),
        ("pollute", TRAINING, "pollute", PAIRS[0]),
        ("raise", PAIRS[0], "interrupt", PAIRS[1]),
    ],
    ids=lambda names: "-".join(names),
)
def test_it_leaves_what_it_leaves_in_a_kernel_of_its_own(
    home: Path, cold: dict[str, Any], order: tuple[str]
) -> None:
    found = run(home, *order)
    assert not [
        (name, part)
        for name in found
        for part in cold[name]
        if found[name].get(part) != cold[name][part]
    ]

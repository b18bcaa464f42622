"""The committed notebooks turn red when the method is broken: sabotage in a copy, then nbval.

Each sabotage replaces a piece of code; if that is not there, nothing turns red, and the test fails.
The copy of the library alone, unbroken, must stay green.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fixres_poc.config.files import REPOSITORY

NOTEBOOKS = ("02_baseline", "03_train", "04_fixres")
FRAMING = 'transforms_for(settings, test_size, test_size, view)["{}"]'
LABELS = 'self.table["label"].to_numpy()'
SHIFTED = '((self.table["label"] + 1) % len(data.classes)).to_numpy()'
STEP = "state.optimizer.step()\n"
SABOTAGES = {  # file in fixres_poc, code, what stands there instead
    "nothing": ("method/epochs.py", STEP, STEP),
    "no optimizer step in stage 1": ("method/epochs.py", STEP, "pass\n"),
    "no optimizer step in stage 2": ("method/stage2.py", "        self.optimizer.step()\n", ""),
    "wrong mean and std": (
        "model/backbones.py",
        "return HALF, HALF",
        "return (0.0,) * 3, (1.0,) * 3",
    ),
    "labels shifted by one": ("data/loading.py", LABELS, SHIFTED),
    "train crop at test": (
        "method/evaluation.py",
        FRAMING.format("val_test"),
        FRAMING.format("train"),
    ),
}


@pytest.mark.sabotage
@pytest.mark.parametrize("name", SABOTAGES)
def test_nbval_is_red_exactly_if_the_method_is_broken(name: str, tmp_path: Path) -> None:
    for folder in ("fixres_poc", "notebooks"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    place, code, broken = SABOTAGES[name]
    file = tmp_path / "fixres_poc" / place
    file.write_text(file.read_text(encoding="utf-8").replace(code, broken), encoding="utf-8")
    own = {"PYTHONPATH": str(tmp_path), "FIXRES_HOME": str(tmp_path / "home")}
    variables = os.environ | own | {"FIXRES_PROGRESS": os.devnull}
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-x"]
    command += [f"notebooks/{stem}.ipynb" for stem in NOTEBOOKS]  # -x: one red cell will do
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    red = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    print(f"{name}: {red[0] if red else 'green'}")
    assert done.returncode == (name != "nothing"), done.stdout[-3000:]
    assert bool(red) == (name != "nothing")

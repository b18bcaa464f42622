"""Notebook parameters of any kind: text stays text until the kernel has it."""

import json
import os
from pathlib import Path

import pytest
from throwaway import write_notebook

from fixres_poc.config import files
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.sweep_settings import Run
from fixres_poc.sweep import notebook_run

MODELS = [each.settings for stem, each in NOTEBOOKS.items() if stem != "05_results"]
HOSTILE = "".join(
    [
        '"; __import__("os").mkdir("executed"); "',
        "'''; __import__('os').mkdir('executed'); '''",
        '"""\n__import__("os").mkdir("executed")\n"""',
        '\\"; __import__("os").mkdir("executed") #',
        "a\nb\r\u2028c\x00\x1b{dataset} {{}} %(x)s $HOME `touch executed`\N{DOG FACE}\\",
    ]
)


def test_hostile_text_in_every_parameter_and_in_the_environment_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One real run whose notebook writes down what it got; also its folder has a hostile name."""
    path = os.pathsep.join([str(files.REPOSITORY), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("FIXRES_HOME", str(tmp_path / "{dataset} '; $(touch executed) \"#%s"))
    monkeypatch.setenv("FIXRES_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setattr("fixres_poc.sweep.kernel.REPOSITORY", tmp_path)  # the notebook's folder
    names = sorted({name for model in MODELS for name in model.model_fields})
    texts = [HOSTILE[index:] + HOSTILE for index in range(len(names))]
    got = f"json.dumps([{', '.join(names)}])"
    keep = f"import json, pathlib\npathlib.Path('got.json').write_text({got})"
    defaults = "\n".join(f"{name} = ''" for name in names)
    write_notebook(tmp_path / "notebooks" / "00_state_of_the_art.ipynb", defaults, keep)
    parameters = dict(zip(names, texts, strict=True))
    run = Run("state_of_the_art", "00_state_of_the_art", parameters)
    monkeypatch.setattr(notebook_run, "read_run", lambda _: run)
    folder = files.run_folder("x", run.name)
    folder.mkdir(parents=True)
    assert notebook_run.run_job([folder / "settings.json"]) == {}
    assert json.loads((tmp_path / "got.json").read_text()) == texts
    assert not list(tmp_path.rglob("executed"))

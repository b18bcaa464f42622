import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import throwaway
from papermill.clientwrap import PapermillNotebookClient

from fixres_poc.config import run_state
from fixres_poc.config.errors import Failure
from fixres_poc.config.files import REPOSITORY
from fixres_poc.sweep import execution, notebook_run

PARAMETERS = 'train_size = 64\nbackbone = "default"'
LOOK = """
import os, sys
print(train_size, backbone, sys.executable, os.getcwd(), os.environ["FIXRES_PROGRESS"])
"""


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIXRES_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path / "runs/tiny/train64_seed0"


def execute(run_folder: Path, *sources: str, time_limit: int | None = None) -> Failure | None:
    """What went wrong in the only run of a job."""
    lay(run_folder, *sources)
    failed = notebook_run.run_job([run_folder / "settings.json"], time_limit)
    assert run_state.failure(run_folder) == failed.get("train64_seed0")
    return run_state.failure(run_folder)


def lay(run_folder: Path, *sources: str) -> None:
    notebooks = run_folder.parents[2] / "notebooks"
    throwaway.write_notebook(notebooks / "03_train.ipynb", PARAMETERS, *sources)
    run_folder.mkdir(parents=True, exist_ok=True)
    parameters = {"train_size": 64, "backbone": "timm:given"}
    settings = {"notebook": "03_train", "parameters": parameters}
    (run_folder / "settings.json").write_text(json.dumps(settings))


def test_notebook_gets_parameters_and_runs_in_this_interpreter(run_folder: Path) -> None:
    run_state.end(run_folder, Failure("error", "an old error"))
    assert execute(run_folder, LOOK) is None
    executed = json.loads((run_folder / "notebook.ipynb").read_text())
    progress = str(run_folder / "progress.log")
    expected = ["64", "timm:given", sys.executable, str(REPOSITORY), progress]
    assert "".join(executed["cells"][-1]["outputs"][0]["text"]).split() == expected
    left = sorted(file.name for file in run_folder.iterdir())
    assert left == ["notebook.ipynb", "settings.json"]


IMPORT = "from fixres_poc.config.errors import InputError"
FULL = """
import os
try:
    raise OSError(28, os.strerror(28))
finally:
    raise RuntimeError("unexpected pos")
"""


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (f'{IMPORT}\nraise InputError("epochs = 0: too\\nfew")', "input", r"epochs = 0: too\nfew"),
        (
            r"raise ValueError('\x1b]0;title\x07 \x1b[31mred')",
            "error",
            r"ValueError: \x1b]0;title\x07 red",
        ),
        ("import os\nos._exit(1)", "killed", "the notebook's process died; the usual cause is too"),
        (FULL, "input", "a disk is full, "),
    ],
)
def test_what_went_wrong_is_one_line_without_what_a_terminal_would_obey(
    run_folder: Path, source: str, kind: str, message: str
) -> None:
    failed = execute(run_folder, 'print("before")', source, 'print("after")')
    assert failed is not None
    assert failed.kind == kind
    assert failed.message.startswith(message)
    assert any("Traceback" in line for line in failed.trace)
    assert "\x1b" not in "".join(failed.trace)
    assert not (run_folder / "progress.log").exists()
    assert "before" in (run_folder / "notebook.ipynb").read_text()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_kernel_that_does_not_start_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, run_folder: Path, failures: int
) -> None:
    left, plain = [RuntimeError("no answer")] * failures, PapermillNotebookClient.start_new_kernel

    def start(client: PapermillNotebookClient) -> None:
        if left:
            raise left.pop()
        plain(client)

    monkeypatch.setattr(PapermillNotebookClient, "start_new_kernel", start)
    failed = execute(run_folder, "x = 1")
    assert (failed.message if failed else "") == ["", "RuntimeError: no answer"][failures - 1]
    assert not left


STUCK = """
import ctypes, os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
with open(os.environ["FIXRES_PROGRESS"], "w") as file:
    print(os.getpid(), file=file)
ctypes.PyDLL(None).sleep(600)  # keeps the interpreter's lock
"""


def test_kernel_that_hears_nothing_is_killed_at_its_time_limit(run_folder: Path) -> None:
    failed = execute(run_folder, STUCK, time_limit=4)
    assert failed is not None
    assert failed.message == "run_time_limit = 4: not done after 4 s, so it was ended"
    assert failed.kind == "error", "it would take as long again"
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), 5)
    assert not alive
    assert execute(run_folder, "print('quick')", time_limit=60) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_kernel_that_hears_nothing_is_killed_with_its_run(run_folder: Path) -> None:
    lay(run_folder, STUCK)
    progress = run_folder / "progress.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "fixres_poc", "run", str(run_folder / "settings.json")]
    )
    while not (progress.exists() and progress.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.1)
    kernel = psutil.Process(int(progress.read_text()))
    process.kill()
    kernel.wait(timeout=5)


def job(home: Path, **values: object) -> tuple[list[str], list[str], Path]:
    """Do what a training of four pairs lacks: what failed, what ran, and the mark of its end."""
    sweep = throwaway.tiny(**{"pairs": [[64, size] for size in (64, 80, 96, 112)]} | values)
    execution.lay_out(sweep, "a")
    runs = sweep.jobs()["train64_seed0"]
    files = [home / "runs/tiny" / run.name / "settings.json" for run in runs]
    done = files[0].with_name("job.done")
    return [*notebook_run.run_job(files, done=done)], throwaway.ran(home), done


def test_a_pair_that_fails_stops_no_other_and_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    throwaway.use(monkeypatch, tmp_path)
    every = ["train64_seed0", *(f"train64_test{size}_seed0" for size in (112, 64, 80, 96))]
    (tmp_path / "broken").touch()
    failed, ran, done = job(tmp_path)
    assert (failed, ran, done.exists()) == (["train64_test96_seed0"], every, True)
    (tmp_path / "broken").unlink()
    assert job(tmp_path) == ([], ["train64_test96_seed0"], done)
    assert done.exists()
    added = job(tmp_path, pairs=[[64, size] for size in (64, 96, 128)])
    assert added[:2] == ([], ["train64_test128_seed0"])


def test_without_its_training_no_pair_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    throwaway.use(monkeypatch, tmp_path)
    throwaway.write_notebook(
        tmp_path / "notebooks/03_train.ipynb", "pass", throwaway.START, "1 / 0"
    )
    failed, ran, done = job(tmp_path)
    assert (failed, ran, done.exists()) == (["train64_seed0"], ["train64_seed0"], False)


def test_gpus_are_those_made_visible_else_those_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = {"": [], "0": ["0"], "1, 3": ["1", "3"], "-1": [], "2,-1,0": ["2"]}
    for visible, names in lists.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert notebook_run.gpus() == names
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU 0: A\\n  MIG 1g.10gb Device 0: y\\nGPU 1: A\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert notebook_run.gpus() == ["0", "1"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert notebook_run.gpus() == []


def test_two_trainings_get_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(wanted: bool = True) -> "contextlib.AbstractContextManager[None]":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
        return notebook_run.own_gpu(wanted)

    with taken():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
        with taken():
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    with taken(False):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5"

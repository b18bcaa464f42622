import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import throwaway

from fixres_poc.config.errors import InputError
from fixres_poc.config.files import REPOSITORY
from fixres_poc.sweep import execution, kernel, notebook_run

PARAMETERS = 'train_size = 64\nname = "default"'
LOOK = """
import os, sys
print(train_size, name, sys.executable, os.getcwd(), os.environ["FIXRES_PROGRESS"])
"""


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIXRES_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path / "runs/tiny/train64_seed0"


def execute(
    run_folder: Path, *sources: str, time_limit: int | None = None, **parameters: object
) -> str:
    lay(run_folder, *sources, **parameters)
    return notebook_run.execute(run_folder / "settings.json", time_limit)


def lay(run_folder: Path, *sources: str, **parameters: object) -> None:
    throwaway.write_notebook(
        run_folder.parents[2] / "notebooks/03_train.ipynb", PARAMETERS, *sources
    )
    run_folder.mkdir(parents=True, exist_ok=True)
    settings = {"notebook": "03_train", "parameters": parameters}
    (run_folder / "settings.json").write_text(json.dumps(settings))


def register_other_kernel(folder: Path) -> None:
    """A kernel named python3 that is another interpreter, and does not even start."""
    python = folder / "other_python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    kernel = folder / "kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(
        json.dumps({"argv": [str(python)], "display_name": "other", "language": "python"})
    )


def test_notebook_gets_parameters_and_runs_in_this_interpreter(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    register_other_kernel(tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    run_folder.mkdir(parents=True)
    (run_folder / "error.txt").write_text("an old error")
    assert execute(run_folder, LOOK, name="given", unknown=1) == ""
    executed = json.loads((run_folder / "notebook.ipynb").read_text())
    expected = ["64", "given", sys.executable, str(REPOSITORY), str(run_folder / "progress.log")]
    assert "".join(executed["cells"][-1]["outputs"][0]["text"]).split() == expected
    assert sorted(file.name for file in run_folder.iterdir()) == [
        "notebook.ipynb",
        "run.log",
        "settings.json",
    ]
    assert "unknown parameter: unknown" in (run_folder / "run.log").read_text()
    assert "unknown parameter" not in "".join(capfd.readouterr())


def test_wrong_input_is_told_in_its_own_words(run_folder: Path) -> None:
    source = 'print("before")\nfrom fixres_poc.config.errors import InputError\nraise InputError("epochs = 0: too\\nfew")'
    assert execute(run_folder, source, 'print("after")') == r"epochs = 0: too\nfew"
    first, *rest = (run_folder / "error.txt").read_text().splitlines()
    assert first == r"epochs = 0: too\nfew"
    assert any("Traceback" in line for line in rest)
    assert "\x1b" not in "".join(rest)
    assert not (run_folder / "progress.log").exists()
    texts = (run_folder / "notebook.ipynb").read_text()
    assert "before" in texts


def test_other_errors_are_told_with_their_type_and_a_dead_kernel_with_its_likely_cause(
    run_folder: Path,
) -> None:
    assert execute(run_folder, "1 / 0") == "ZeroDivisionError: division by zero"
    dead = execute(run_folder, "import os\nos._exit(1)")
    assert (
        dead == "DeadKernelError: the notebook's process died; the usual cause is too little memory"
    )


def test_nothing_that_a_terminal_would_obey_is_left_in_a_message(run_folder: Path) -> None:
    assert (
        execute(run_folder, r"raise ValueError('\x1b]0;title\x07 \x1b[31mred')")
        == r"ValueError: \x1b]0;title\x07 red"
    )


@pytest.mark.parametrize(
    ("failures", "message"), [(1, ""), (2, "RuntimeError: Kernel didn't respond in 150 seconds")]
)
def test_a_kernel_that_does_not_start_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, run_folder: Path, failures: int, message: str
) -> None:
    left = [RuntimeError("Kernel didn't respond in 150 seconds")] * failures

    def start(*_: object, **__: object) -> None:
        if left:
            raise left.pop()

    monkeypatch.setattr(kernel, "execute_notebook", start)
    assert execute(run_folder, "x = 1") == message
    assert not left


def test_full_disk_is_named_however_deep_its_error_lies(run_folder: Path) -> None:
    source = "import os\ntry:\n    raise OSError(28, os.strerror(28))\nfinally:\n    raise RuntimeError('unexpected pos')"
    assert (execute(run_folder, source) or "").startswith("a disk is full, ")


STUCK = """
import ctypes, os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
with open(os.environ["FIXRES_PROGRESS"], "w") as file:
    print(os.getpid(), file=file)
ctypes.PyDLL(None).sleep(600)  # keeps the interpreter's lock
"""


def test_kernel_that_hears_nothing_is_killed_at_its_time_limit(run_folder: Path) -> None:
    assert (
        execute(run_folder, STUCK, time_limit=4)
        == "run_time_limit = 4: not done after 4 s, so it was ended"
    )
    left = psutil.Process().children(recursive=True)
    assert all(each.status() == psutil.STATUS_ZOMBIE for each in left)
    assert execute(run_folder, "print('quick')", time_limit=60) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_kernel_that_hears_nothing_is_killed_with_its_run(run_folder: Path) -> None:
    lay(run_folder, STUCK, train_size=64)
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


def job(home: Path, **values: object) -> tuple[int, list[str], Path]:
    """Do what a training of four pairs lacks, as Snakemake would: the exit code, what ran, and the mark of its end."""
    sweep = throwaway.tiny(**{"pairs": [[64, size] for size in (64, 80, 96, 112)]} | values)
    execution.lay_out(sweep, "a")
    runs = sweep.jobs()["train64_seed0"]
    files = [home / "runs/tiny" / run.name / "settings.json" for run in runs]
    done = files[0].with_name("job.done")
    return notebook_run.run_job(files, done=done), throwaway.ran(home), done


def test_a_pair_that_fails_stops_no_other_and_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    throwaway.use(monkeypatch, tmp_path)
    every = ["train64_seed0", *(f"train64_test{size}_seed0" for size in (112, 64, 80, 96))]
    (tmp_path / "broken").touch()
    code, ran, done = job(tmp_path)
    assert (code, ran, done.exists()) == (1, every, False)
    (tmp_path / "broken").unlink()
    assert job(tmp_path) == (0, ["train64_test96_seed0"], done)
    assert done.exists()
    assert job(tmp_path, pairs=[[64, size] for size in (64, 96, 128)])[:2] == (
        0,
        ["train64_test128_seed0"],
    )


def test_without_its_training_no_pair_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    throwaway.use(monkeypatch, tmp_path)
    throwaway.write_notebook(
        tmp_path / "notebooks/03_train.ipynb", "pass", throwaway.START, "1 / 0"
    )
    assert job(tmp_path)[:2] == (1, ["train64_seed0"])


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_unusable_settings_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=r"settings\.json: cannot be read as a settings file"):
        notebook_run.execute(tmp_path / "settings.json")


@pytest.mark.parametrize(("visible", "names"), [("", []), ("0", ["0"]), ("1, 3", ["1", "3"])])
def test_gpus_are_those_made_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert notebook_run.gpus() == names


def test_gpus_are_counted_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho '  MIG 1g.10gb Device 0: y'\necho 'GPU 1: A (UUID: z)'\n"
    )
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert notebook_run.gpus() == ["0", "1"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert notebook_run.gpus() == []


def test_locks_of_gpus_lie_in_a_folder_of_this_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with notebook_run.own_gpu(["03_train"]):
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with (
        pytest.raises(InputError, match="is not a folder of this user's alone"),
        notebook_run.own_gpu(["03_train"]),
    ):
        pass
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    with (
        pytest.raises(InputError, match="is not a folder of this user's alone"),
        notebook_run.own_gpu(["03_train"]),
    ):
        pass


@pytest.mark.parametrize("job", ["", "17"])
def test_two_trainings_get_a_gpu_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    with notebook_run.own_gpu(["03_train"]):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
        with notebook_run.own_gpu(["04_fixres"]):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    with notebook_run.own_gpu(["01_dataset_eda"]):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5"

"""Runs that are forked with everything imported: alike to cold ones, and gone with whoever asked for them."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import throwaway

from fixres_poc.config.files import REPOSITORY
from fixres_poc.sweep.warm import asking

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux only")
TELL = """
import json, os, sys, threading, torch
parents, process = [], __import__("psutil").Process()
while process.ppid() > 1 and len(parents) < 4:
    process = process.parent()
    parents.append(process.pid)
told = {"parents": parents, "pid": os.getpid(), "folder": os.getcwd(), "own": os.environ.get("OWN"), "modules": before}
told |= {"session": os.getsid(0), "threads": torch.get_num_threads(), "omp": os.environ["OMP_NUM_THREADS"]}
with open(os.environ["TOLD"], "w") as file:
    json.dump(told, file)
print("printed")
"""
BEFORE = "import sys\nbefore = sorted(sys.modules)"
WAIT = """
import os, time
with open(os.environ["TOLD"] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(os.environ["TOLD"] + ".new", os.environ["TOLD"])
{}
while True:
    time.sleep(0.1)
"""
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


@pytest.fixture
def settings(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a run whose notebook tests write."""
    monkeypatch.setenv("FIXRES_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    folder = own_home / "runs/tiny/train64_seed0"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"notebook": "03_train", "parameters": {}}))
    return folder / "settings.json"


def start(settings: Path, *sources: str, more: str = "", line: socket.socket | None = None) -> "subprocess.Popen[str]":
    """A server whose Snakemake is the run's command itself; of a sweep that was killed unless there is a line to it."""
    throwaway.write_notebook(Path(os.environ["FIXRES_NOTEBOOKS"]) / "03_train.ipynb", "pass", *sources)
    asker = [sys.executable, "-m", "fixres_poc", "run", str(settings)]
    killed, theirs = socket.socketpair()
    killed.close()
    with theirs:
        return subprocess.Popen(
            throwaway.light_command(asker, more=more),
            stdin=(line or theirs).fileno(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"OWN": "a \udcff b"},
            cwd=settings.parent,
        )


def told() -> Path:
    return Path(os.environ["TOLD"])


def waiting(settings: Path, code: str = "") -> tuple["subprocess.Popen[str]", dict[str, psutil.Process]]:
    """A run at work: its server, and its processes by what they are."""
    process = start(settings, WAIT.format(code))
    throwaway.until(told().exists, 60)
    kernel = psutil.Process(int(told().read_text()))
    server = psutil.Process(process.pid)
    run = kernel.parent()
    assert run is not None
    (asker,) = [each for each in server.children() if each != run]
    return process, {"kernel": kernel, "run": run, "server": server, "asker": asker}


def test_a_forked_run_is_as_one_of_its_own(settings: Path) -> None:
    process = start(settings, BEFORE, TELL)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    found = json.loads(told().read_text())
    assert found["parents"][1] == process.pid
    assert found["session"] == found["pid"]
    assert (found["folder"], found["own"]) == (str(REPOSITORY), "a \udcff b")
    assert (found["threads"], found["omp"]) == (1, "1")
    assert "papermill" in found["modules"]
    assert "torch" not in found["modules"]
    notebook = json.loads((settings.parent / "notebook.ipynb").read_text())
    assert notebook["cells"][-1]["outputs"][0]["text"] == ["printed\n"]
    assert not list(Path("/tmp", f"fixres_poc-{os.getuid()}").glob(f"{process.pid}.socket"))


def test_a_forked_run_that_fails_says_so_and_ends_with_1(settings: Path) -> None:
    process = start(settings, "raise ValueError('no such thing')")
    assert "failed: train64_seed0: ValueError: no such thing" in process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert (settings.parent / "error.txt").read_text().startswith("ValueError: no such thing")


@pytest.mark.parametrize("module", ["no_such_module", "starts_a_thread"])
def test_what_cannot_be_forked_starts_cold(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    code = "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    (tmp_path / "starts_a_thread.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}{os.pathsep}{tmp_path}")
    process = start(settings, BEFORE, TELL, more=repr(module))
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert "papermill" not in json.loads(told().read_text())["modules"]
    assert ("ModuleNotFoundError" in said) == (module == "no_such_module")


@pytest.mark.parametrize("target", ["kernel", "run", "server", "asker"])
def test_whichever_process_is_killed_the_others_end(settings: Path, target: str) -> None:
    process, parts = waiting(settings, DEAF)
    parts[target].kill()
    process.communicate(timeout=20)
    assert process.returncode not in (0, None)
    psutil.wait_procs(list(parts.values()), timeout=5)
    throwaway.until(lambda: not [each for each in throwaway.processes() if each in parts.values()], 5)
    error = settings.parent / "error.txt"
    assert error.exists() == (target == "kernel")


def test_what_interrupts_the_asker_interrupts_the_run_once(settings: Path) -> None:
    process, parts = waiting(settings)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, and as a sweep does at its end
    said = process.communicate(timeout=20)[0]
    assert process.returncode not in (0, None)
    throwaway.until(lambda: not throwaway.processes(), 5)
    assert "Traceback" not in said
    assert not parts["kernel"].is_running()


def test_an_interrupted_asker_does_not_wait_for_a_run_that_hears_nothing(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is interrupted all the same, and nothing else is raised."""
    ours, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    said: Iterator[bytes | BaseException] = iter([b"forked", KeyboardInterrupt(), TimeoutError("timed out")])

    class Line(socket.socket):
        def connect(self, address: object) -> None: ...

        def recv(self, *_: int) -> bytes:
            each = next(said)
            if isinstance(each, BaseException):
                raise each
            return each

        def send(self, data: bytes, *_: int) -> int:  # type: ignore[override]
            return ours.send(data)

    monkeypatch.setenv(asking.SOCKET, "somewhere")
    monkeypatch.setattr("fixres_poc.sweep.warm.asking.socket.socket", Line)
    monkeypatch.setattr("fixres_poc.sweep.warm.asking.socket.send_fds", lambda *_: None)
    with server, ours, pytest.raises(KeyboardInterrupt):
        asking.ask(settings, None)


def test_processes_have_titles(settings: Path) -> None:
    process, parts = waiting(settings)
    assert parts["run"].cmdline()[0].startswith(f"fixres_poc run {settings}"[:60])
    assert "ipykernel_launcher" in parts["kernel"].cmdline()[0]
    process.kill()
    process.communicate(timeout=20)


def test_a_sweep_can_ask_as_well_until_it_lets_go(settings: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        process = start(settings, "raise ValueError(1)", line=theirs)
        theirs.close()
        assert ours.recv(100) == b"1"  # Snakemake's exit code
        assert process.poll() is None
        with asking.reachable(process.pid):
            assert asking.ask(settings, None) == 1
        assert process.poll() is None
    said = process.communicate(timeout=20)[0]
    assert said.count("failed: train64_seed0: ValueError: 1") == 1  # the other one was said here
    assert process.returncode == 1
    with asking.reachable(process.pid):
        assert asking.ask(settings, None) is None


def test_without_a_server_nothing_is_asked(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asking.ask(settings, None) is None
    monkeypatch.setenv(asking.SOCKET, str(settings.parent / "gone.socket"))
    assert asking.ask(settings, None) is None

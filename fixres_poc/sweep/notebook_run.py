"""Notebook runs from their settings files, one after another in one kernel; an error becomes one line.

The settings file runs/<sweep>/<run>/settings.json holds `notebook`, `wanted` and `parameters`; what
else lies in the folder stands in `run_state`. The notebook itself writes its outputs.
"""

import contextlib
import errno
import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock, Timeout

from fixres_poc.config import run_state
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import home
from fixres_poc.config.provenance import notebook_path
from fixres_poc.config.sweep_settings import Run

if TYPE_CHECKING:
    from fixres_poc.sweep.kernel import Kernel

TORCH_NOTEBOOKS = ("02_baseline", "03_train", "04_fixres")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
LONGEST_MESSAGE = 400
DISK_FULL = os.strerror(errno.ENOSPC)


def run_job(
    settings_files: Sequence[Path],
    time_limit: int | None = None,
    done: Path | None = None,
    turn: int = 1,
) -> int:
    """Run notebooks one after another in one kernel, and say of each that fails what went wrong.

    A failed notebook stops no other, but a training that failed stops the pairs after it.

    Args:
        settings_files: of the runs, a training before its pairs.
        time_limit: most seconds for each notebook.
        done: file to make once every run is done; runs that are done already are then left alone.
        turn: 1 for the first try; later ones do not repeat a run that failed by itself.

    Returns:
        The exit code: 0 if nothing failed.

    Raises:
        InputError: a settings file cannot be read.
    """
    failed: list[str] = []
    runs = {file.resolve().parent: _read(file) for file in settings_files}
    left = {
        folder: run for folder, run in runs.items() if done is None or not _is_done(folder, run)
    }
    with own_gpu([run.notebook for run in left.values()]), _kernel(left.values()) as kernel:
        for folder, run in left.items():
            if run.notebook == "04_fixres" and "03_train" in failed:
                break
            message = run_state.failed_by_itself(folder) if turn > 1 else ""
            if message := message or _execute(folder, run, kernel, time_limit):
                print(f"failed: {run.name}: {message}", file=sys.stderr)
                failed.append(run.notebook)
    if done and not failed:
        done.touch()
    return int(bool(failed))


def execute(settings_file: Path, time_limit: int | None = None) -> str:
    """Run one notebook in a kernel of its own; returns "" or the one-line message that `error.txt` begins with."""
    run = _read(settings_file)
    with own_gpu([run.notebook]), _kernel([run]) as kernel:
        return _execute(settings_file.resolve().parent, run, kernel, time_limit)


def _kernel(runs: Collection[Run]) -> "contextlib.closing[Kernel]":
    from fixres_poc.sweep.kernel import Kernel

    return contextlib.closing(Kernel([notebook_path(run.notebook) for run in runs]))


def _read(settings_file: Path) -> Run:
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        return Run(
            settings_file.resolve().parent.name, settings["notebook"], settings["parameters"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{settings_file}: cannot be read as a settings file ({type(error).__name__})"
        ) from None


def _is_done(folder: Path, run: Run) -> bool:
    return run_state.checked(folder.parent.name, run).status == "done"


def _execute(folder: Path, run: Run, kernel: "Kernel", time_limit: int | None) -> str:
    progress, over = run_state.begin(folder), threading.Event()
    variables = {"FIXRES_PROGRESS": str(progress), "FIXRES_HOME": str(home())}
    message = ""
    try:
        with _limited(time_limit, over), _log_to(folder / "run.log"), _silent_when_interrupted():
            executed = kernel.run(
                notebook_path(run.notebook), folder / "notebook.ipynb", run.parameters, variables
            )
            run_state.record_notebook(folder, executed)
    except Exception as error:
        message, trace = _explain(error)
        if over.is_set():
            message = (
                f"run_time_limit = {time_limit}: not done after {time_limit} s, so it was ended"
            )
        with contextlib.suppress(OSError):  # where there is not even room for this, stderr has it
            run_state.fail(folder, message, trace)
    run_state.end(folder)
    return message


@contextlib.contextmanager
def _limited(seconds: int | None, over: threading.Event) -> Iterator[None]:
    """Kill what this process has started once its time is over, and say so by `over`."""
    done = threading.Event()

    def watch() -> None:
        done.wait(seconds)
        while not done.is_set():
            over.set()
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
            done.wait(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _explain(error: Exception) -> tuple[str, str]:
    """The one-line message and the traceback of a failed run, without colours."""
    name, text = getattr(error, "ename", None), getattr(error, "evalue", "")
    trace = "\n".join(getattr(error, "traceback", None) or traceback.format_exception(error))
    if name is None:
        name, text = type(error).__name__, str(error)
    if name == "DeadKernelError":
        text = "the notebook's process died; the usual cause is too little memory"
    if DISK_FULL in trace:
        name, text = (
            InputError.__name__,
            f"a disk is full, {home()} or that of temporary files ({DISK_FULL})",
        )
    message = " ".join(
        ANSI.sub("", text if name == InputError.__name__ else f"{name}: {text}").split()
    )
    return printable(message)[:LONGEST_MESSAGE] or name, ANSI.sub("", trace)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _silent_when_interrupted() -> Iterator[None]:
    """After Ctrl-C, what still waits for the kernel is dropped, and asyncio must not show that the kernel has died."""
    try:
        yield
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True
        raise


@contextlib.contextmanager
def _log_to(file: Path) -> Iterator[None]:
    logger, handler = (
        logging.getLogger("papermill"),
        logging.FileHandler(file, mode="w", encoding="utf-8"),
    )
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        handler.close()


def gpus() -> list[str]:
    """Names of the GPUs that may be used: those of $CUDA_VISIBLE_DEVICES, otherwise all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        str(index) for index in range(sum(line.startswith("GPU ") for line in listed.splitlines()))
    ]


@contextlib.contextmanager
def own_gpu(notebooks: Collection[str]) -> Iterator[None]:
    """Give a job one of several GPUs to itself; on a cluster it has one only."""
    names = [] if set(notebooks).isdisjoint(TORCH_NOTEBOOKS) else gpus()
    with contextlib.ExitStack() as stack:
        while len(names) > 1:
            name = next((name for name in names if _claimed(name, stack)), None)
            if name is not None:
                stack.enter_context(_environment(CUDA_VISIBLE_DEVICES=name))
                break
            time.sleep(1)
        yield


def _claimed(gpu: str, stack: contextlib.ExitStack) -> bool:
    job = os.environ.get("SLURM_JOB_ID", "")  # in which GPUs may be counted from 0 again
    file = f"gpu_{re.sub(r'[^A-Za-z0-9-]', '_', gpu)}_{job}.lock"
    try:
        stack.enter_context(FileLock(private_folder() / file).acquire(timeout=0))
    except Timeout:
        return False
    return True


def private_folder() -> Path:
    """A folder for locks in the machine's temporary one, which nobody else can write to or have made."""
    folder = Path(tempfile.gettempdir()) / f"fixres_poc-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise InputError(
            f"{folder}: is not a folder of this user's alone; remove it, or set TMPDIR"
        )
    return folder


def end_with_parent() -> None:
    """Interrupt this process once the one that started it is gone, so that a killed sweep leaves nothing at work."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        print("the sweep is gone, so this run ends", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()

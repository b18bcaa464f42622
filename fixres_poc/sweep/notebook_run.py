"""Notebook runs from their settings files, one after another in one kernel.

The settings file runs/<sweep>/<run>/settings.json holds `notebook`, `wanted` and `parameters`; what
else lies in the folder stands in `run_state`. The notebook itself writes its outputs.
"""

import contextlib
import errno
import logging
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from filelock import FileLock, Timeout

from fixres_poc.config import run_state
from fixres_poc.config.errors import Failure, InputError, printable
from fixres_poc.config.files import home
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.provenance import notebook_path
from fixres_poc.config.sweep_settings import Run
from fixres_poc.config.validation import read_run

if TYPE_CHECKING:
    from fixres_poc.sweep.kernel import Kernel

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
LONGEST_MESSAGE = 400
DISK_FULL = os.strerror(errno.ENOSPC)


def run_job(
    settings_files: Sequence[Path],
    time_limit: int | None = None,
    done: Path | None = None,
    turn: int = 1,
) -> dict[str, Failure]:
    """Run notebooks one after another in one kernel.

    A failed notebook stops no other, but a training that failed stops the pairs after it.

    Args:
        settings_files: of the runs, a training before its pairs.
        time_limit: most seconds for each notebook.
        done: file to make once every run is done; runs that are done already are then left alone.
        turn: 1 for the first try; later ones repeat only what was killed.

    Returns:
        What went wrong, by name of the run.

    Raises:
        InputError: a settings file cannot be used.
    """
    from fixres_poc.sweep.kernel import Kernel

    runs = {file.resolve().parent: read_run(file) for file in settings_files}
    if done:
        states = {folder: run_state.checked(run).status for folder, run in runs.items()}
        runs = {folder: run for folder, run in runs.items() if states[folder] != "done"}
    notebooks = [NOTEBOOKS[run.notebook] for run in runs.values()]
    kernel = Kernel([notebook_path(run.notebook) for run in runs.values()])
    failed: dict[str, Failure] = {}
    with own_gpu(any(each.uses_gpu for each in notebooks)), contextlib.closing(kernel):
        for folder, run in runs.items():
            before = run_state.failure(folder) if turn > 1 else None
            if before is None or before.kind == "killed":
                before = _execute(folder, run, kernel, time_limit)
            if before:
                failed[run.name] = before
                if run.notebook in [each.needs for each in notebooks]:
                    break
    if done and not failed:
        done.touch()
    return failed


def _execute(folder: Path, run: Run, kernel: "Kernel", time_limit: int | None) -> Failure | None:
    variables = {"FIXRES_PROGRESS": str(run_state.begin(folder)), "FIXRES_HOME": str(home())}
    notebook, executed, failed = notebook_path(run.notebook), folder / "notebook.ipynb", None
    try:
        content = kernel.run(notebook, executed, run.parameters, variables, time_limit)
        run_state.record_notebook(folder, content)
    except KeyboardInterrupt:
        # what still waits for the kernel is dropped, and asyncio must not show that it has died
        logging.getLogger("asyncio").disabled = True
        raise
    except Exception as error:
        failed = _failure(error, time_limit)
    with contextlib.suppress(OSError):  # where there is not even room for this, stderr has it
        run_state.end(folder, failed)
    return failed


def _failure(error: Exception, time_limit: int | None) -> Failure:
    """What went wrong, without colours; of an error in the kernel only text is known."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    parts = getattr(error, "traceback", None) or traceback.format_exception(error)
    trace = [printable(line) for line in ANSI.sub("", "\n".join(parts)).splitlines()]
    if any(DISK_FULL in line for line in trace):
        said = f"a disk is full, {home()} or that of temporary files ({DISK_FULL})"
        return Failure("input", said, trace)
    if isinstance(error, DeadKernelError):
        said = "the notebook's process died; the usual cause is too little memory"
        return Failure("killed", said, trace)
    if isinstance(error, CellTimeoutError):
        said = f"run_time_limit = {time_limit}: not done after {time_limit} s, so it was ended"
        return Failure("error", said, trace)
    name, text = getattr(error, "ename", None), getattr(error, "evalue", "")
    if name is None:
        name, text = type(error).__name__, str(error)
    wrong_input = name == InputError.__name__  # the kernel sends names of classes
    message = " ".join(ANSI.sub("", text if wrong_input else f"{name}: {text}").split())
    kind: Literal["input", "error"] = "input" if wrong_input else "error"
    return Failure(kind, printable(message)[:LONGEST_MESSAGE] or name, trace)


def gpus() -> list[str]:
    """Names of the GPUs that may be used: $CUDA_VISIBLE_DEVICES, else all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    try:
        listed = subprocess.check_output(["nvidia-smi", "-L"], text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(index) for index in range(len(re.findall(r"(?m)^GPU ", listed)))]


@contextlib.contextmanager
def own_gpu(wanted: bool) -> Iterator[None]:
    """Give this process one of several GPUs to itself; on a cluster a job has one only."""
    names = gpus() if wanted else []
    if len(names) < 2:
        yield
        return
    job = os.environ.get("SLURM_JOB_ID", "")  # in which GPUs may be counted from 0 again
    while True:
        for name in names:
            plain = re.sub(r"[^A-Za-z0-9-]", "_", name)
            lock = FileLock(home() / "runs" / f".gpu_{platform.node()}_{job}_{plain}.lock")
            with contextlib.suppress(Timeout), lock.acquire(timeout=0):
                os.environ["CUDA_VISIBLE_DEVICES"] = name
                yield
                return
        time.sleep(1)


def end_with_parent() -> None:
    """Interrupt this process once its parent is gone: a killed sweep leaves nothing at work."""
    parent = psutil.Process(os.getppid())

    def watch() -> None:
        parent.wait()
        print("the sweep is gone, so this run ends", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()

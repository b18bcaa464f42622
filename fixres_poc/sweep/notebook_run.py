"""Notebook runs from their settings files, one after another in one kernel.

The settings file runs/<sweep>/<run>/settings.json holds `notebook`, `wanted` and `parameters`;
`run_state` describes the other files of the folder. The notebook itself writes its outputs.
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
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

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

    After a failed notebook the others run, except the pairs of a training that failed.

    Args:
        settings_files: of the runs, a training before its pairs.
        time_limit: of each notebook, in seconds.
        done: created unless the training fails or a run is killed; finished runs are skipped.
        turn: number of the try, from 1; later ones repeat only runs that were killed.

    Returns:
        The failures, by name of the run.

    Raises:
        InputError: a settings file cannot be used.
    """
    from fixres_poc.sweep.kernel import Kernel

    runs = {file.resolve().parent: read_run(file) for file in settings_files}
    if done:
        runs = {
            folder: run for folder, run in runs.items() if run_state.checked(run).status != "done"
        }
    notebooks = [NOTEBOOKS[run.notebook] for run in runs.values()]
    kernel = Kernel([notebook_path(run.notebook) for run in runs.values()])
    failures: dict[str, Failure] = {}
    uses_gpu = any(notebook.uses_gpu for notebook in notebooks)
    with own_gpu(uses_gpu), contextlib.closing(kernel):
        for folder, run in runs.items():
            failure = run_state.failure(folder) if turn > 1 else None
            if failure is None or failure.kind == "killed":
                failure = _execute(folder, run, kernel, time_limit)
            if failure:
                failures[run.name] = failure
                if run.notebook in [notebook.needs for notebook in notebooks]:
                    return failures
    if done and "killed" not in [failure.kind for failure in failures.values()]:
        done.touch()
    return failures


def _execute(folder: Path, run: Run, kernel: "Kernel", time_limit: int | None) -> Failure | None:
    variables = {"FIXRES_PROGRESS": str(run_state.begin(folder)), "FIXRES_HOME": str(home())}
    notebook = notebook_path(run.notebook)
    executed = folder / "notebook.ipynb"
    failure = None
    try:
        content = kernel.run(notebook, executed, run.parameters, variables, time_limit)
        run_state.record_notebook(folder, content)
    except KeyboardInterrupt:
        # asyncio must not report the tasks that still wait for the dead kernel
        logging.getLogger("asyncio").disabled = True
        raise
    except Exception as error:
        failure = _failure(error, time_limit)
    with contextlib.suppress(OSError):  # on a full disk stderr alone has the failure
        run_state.end(folder, failure)
    return failure


def _failure(error: Exception, time_limit: int | None) -> Failure:
    """The record of an exception, without colours; errors in the kernel arrive as text."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    parts = getattr(error, "traceback", None) or traceback.format_exception(error)
    trace = [printable(line) for line in ANSI.sub("", "\n".join(parts)).splitlines()]
    if any(DISK_FULL in line for line in trace):
        message = f"a disk is full, {home()} or that of temporary files ({DISK_FULL})"
        return Failure("input", message, trace)
    if isinstance(error, DeadKernelError):
        message = "the notebook's process died; the usual cause is too little memory"
        return Failure("killed", message, trace)
    if isinstance(error, CellTimeoutError):
        message = f"run_time_limit = {time_limit}: not done after {time_limit} s, so it was ended"
        return Failure("error", message, trace)
    name = getattr(error, "ename", type(error).__name__)  # the kernel sends names of classes
    text = getattr(error, "evalue", str(error))
    wrong_input = name == InputError.__name__
    message = " ".join(ANSI.sub("", text if wrong_input else f"{name}: {text}").split())
    message = printable(message)[:LONGEST_MESSAGE] or name
    return Failure("input" if wrong_input else "error", message, trace)


def gpus() -> list[str]:
    """Names of the usable GPUs: those of $CUDA_VISIBLE_DEVICES, else all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = filter(None, map(str.strip, visible.split(",")))
        return [*takewhile(lambda name: not name.startswith("-"), names)]  # as CUDA does
    try:
        output = subprocess.check_output(["nvidia-smi", "-L"], text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"(?m)^GPU (\d+)", output)


@contextlib.contextmanager
def own_gpu(wanted: bool) -> Iterator[None]:
    """Reserve one of several GPUs for this process; a cluster's job sees only one.

    Args:
        wanted: False if the process uses no GPU.
    """
    names = gpus() if wanted else []
    if len(names) < 2:
        yield
        return
    job = os.environ.get("SLURM_JOB_ID", "")  # each job may count its GPUs from 0
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
    """Interrupt this process when its parent ends, so that a killed sweep leaves no process."""
    parent = psutil.Process(os.getppid())

    def watch() -> None:
        parent.wait()
        print("the sweep is gone, so this run ends", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()

"""One notebook run: its settings file in, its executed notebook out, its error in one line where it fails.

The settings file runs/<sweep>/<run>/settings.json holds `notebook`, `wanted` and `parameters`; what else lies in the
folder stands in `run_state`. The notebook itself writes its outputs.
"""

import contextlib
import errno
import functools
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from fixres_poc.config import run_state
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import REPOSITORY, home
from fixres_poc.config.provenance import notebook_path

TORCH_NOTEBOOKS = ("02_baseline", "03_train", "04_fixres")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
LONGEST_MESSAGE = 400
DISK_FULL = os.strerror(errno.ENOSPC)
# Linux kills the kernel with its run, for it may be stuck in code that hears no signal and lets no thread run; 1 is
# PR_SET_PDEATHSIG. The kernel asks for it itself: code between fork and exec can hang a process that has threads.
ASK = "__import__('ctypes').CDLL(None).prctl(1, 9);" if sys.platform == "linux" else ""
# By default, looking for garbage among the many objects that imports leave takes a fifth of their time, and goes on.
GARBAGE = (50_000, 20, 10)
KERNEL_START_S = 150
START_KERNEL = [f"--IPKernelApp.exec_lines={ASK}__import__('gc').set_threshold{GARBAGE}"]


def execute(settings_file: Path, time_limit: int | None = None) -> str | None:
    """Run the notebook that a settings file names, and keep what it says.

    Returns:
        None after success, otherwise the one-line message that `error.txt` begins with.

    Raises:
        InputError: no such settings file.
    """
    folder = settings_file.resolve().parent
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        stem, parameters = settings["notebook"], settings["parameters"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{settings_file}: cannot be read as a settings file ({type(error).__name__})") from None
    progress, over = run_state.begin(folder), threading.Event()
    try:
        variables = _environment(FIXRES_PROGRESS=str(progress), FIXRES_HOME=str(home()))
        with variables, own_gpu(stem), _limited(time_limit, over):
            _run_notebook(notebook_path(stem), folder, parameters)
    except Exception as error:
        message, trace = _explain(error)
        if over.is_set():
            message = f"run_time_limit = {time_limit}: not done after {time_limit} s, so it was ended"
        with contextlib.suppress(OSError):  # where there is not even room for this, stderr has it
            run_state.fail(folder, message, trace)
        run_state.end(folder)
        return message
    run_state.end(folder)
    return None


def run(settings_file: Path, time_limit: int | None = None) -> int:
    """As `execute`, for a process of its own: says what went wrong, and gives the exit code."""
    message = execute(settings_file, time_limit)
    if message is not None:
        print(f"failed: {settings_file.parent.name}: {message}", file=sys.stderr)
    return int(message is not None)


def _run_notebook(notebook: Path, folder: Path, parameters: dict[str, Any]) -> None:
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from papermill import execute_notebook

    class SameInterpreter(AsyncKernelManager):
        """Starts ipykernel with this very interpreter, whatever kernel the user has registered as `python3`."""

        def __init__(self, **values: Any) -> None:
            super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **values)

    once = functools.partial(
        execute_notebook,
        *(re.sub(r"([{}])", r"\1\1", str(path)) for path in (notebook, folder / "notebook.ipynb")),  # no fields
        parameters,
        kernel_name="python3",
        progress_bar=False,
        start_timeout=KERNEL_START_S,
        cwd=REPOSITORY,
        kernel_manager_class=SameInterpreter,
        shutdown_kernel="immediate",
        extra_arguments=["--log-level=ERROR", *START_KERNEL],
    )
    with _log_to(folder / "run.log"), _silent_when_interrupted():
        try:
            executed = once()
        except RuntimeError as error:  # another program may have taken one of the kernel's ports before it did
            if "Kernel didn't respond" not in str(error):
                raise
            executed = once()
    run_state.record_notebook(folder, executed)


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
        name, text = InputError.__name__, f"a disk is full, {home()} or that of temporary files ({DISK_FULL})"
    message = " ".join(ANSI.sub("", text if name == InputError.__name__ else f"{name}: {text}").split())
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
    logger, handler = logging.getLogger("papermill"), logging.FileHandler(file, mode="w", encoding="utf-8")
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
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


@contextlib.contextmanager
def own_gpu(notebook: str) -> Iterator[None]:
    """Give the run one of several GPUs to itself; a job of its own on a cluster has one only."""
    names = gpus() if notebook in TORCH_NOTEBOOKS else []
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
        raise InputError(f"{folder}: is not a folder of this user's alone; remove it, or set TMPDIR")
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

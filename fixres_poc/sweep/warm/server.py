"""The process that starts Snakemake and forks its runs; see the package for how they hang together."""

import contextlib
import ctypes
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fixres_poc.sweep.warm import forked
from fixres_poc.sweep.warm.asking import MOST_BYTES, SOCKET, socket_file

SET_PDEATHSIG = 1
PRELOADED = (
    *("IPython.core.completer", "ipykernel.kernelapp", "papermill", "setproctitle", "matplotlib.pyplot"),
    *("scipy.stats", "sklearn.linear_model", "sklearn.metrics", "sklearn.pipeline", "statsmodels.stats.proportion"),
    *("fixres_poc.method.adaptations", "fixres_poc.method.zero_shot", "fixres_poc.analysis.results"),
    *("fixres_poc.data.leakage.audit", "fixres_poc.data.synthetic.generator", "fixres_poc.geometry.crops"),
    *("fixres_poc.report.explorer", "fixres_poc.report.run_text", "fixres_poc.report.tables", "fixres_poc.report.text"),
    *("fixres_poc.report.plots.datasets", "fixres_poc.report.plots.networks", "fixres_poc.report.plots.results"),
)


@dataclass
class _Run:
    """A run that was asked for, or is about to be."""

    asker: socket.socket
    pid: int = 0
    pidfd: int = -1


def main(snakemake: list[str]) -> int:
    """Start Snakemake by its command, and fork its runs. Forked processes return from here as well.

    Ends as Snakemake does once the sweep, which has the other end of the socket that is standard input, has closed it.
    Until then the sweep can ask for runs, too; it is sent Snakemake's exit code.
    """
    signal.signal(signal.SIGINT, lambda *_: None)  # Snakemake hears it too, and ends the runs
    sweep = socket.socket(fileno=os.dup(0))
    with _listening() as listener:
        told = {} if listener is None else {SOCKET: listener.getsockname()}
        # What is inherited is the sweep's lock alone.
        process = subprocess.Popen(snakemake, env=os.environ | told, stdin=subprocess.DEVNULL, close_fds=False)
        request = _serve(listener, process, sweep) if listener is not None and _preloaded() else None
    if request is not None:
        return forked.run(request)
    return _tell(sweep, process)


def _tell(sweep: socket.socket, snakemake: "subprocess.Popen[bytes]") -> int:
    """Wait for Snakemake, and let the sweep, if it is still there, know its exit code."""
    code = snakemake.wait()
    with contextlib.suppress(OSError):
        sweep.send(str(code).encode())
    return code


@contextlib.contextmanager
def _listening() -> Iterator[socket.socket | None]:
    """A socket of this process in this user's own folder, while it is at work; None where there can be none."""
    with contextlib.ExitStack() as stack:
        listener, owner = None, os.getpid()
        with contextlib.suppress(OSError):
            path = socket_file(owner)
            path.unlink(missing_ok=True)  # of another process of this number
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            listener.bind(str(path))
            stack.callback(_remove, path, owner)
            listener.listen(128)
        yield listener


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked run
        path.unlink(missing_ok=True)


def _preloaded() -> bool:
    """Import what runs need; whether they can be forked afterwards."""
    import gc

    gc.disable()
    try:
        for name in PRELOADED:
            importlib.import_module(name)
    except Exception:
        traceback.print_exc()
        return False
    gc.enable()
    gc.freeze()
    return len(os.listdir("/proc/self/task")) == 1


def _serve(
    listener: socket.socket, snakemake: "subprocess.Popen[bytes]", sweep: socket.socket
) -> dict[str, Any] | None:
    """Fork what is asked for until Snakemake, all runs and the sweep are done; in a run what it was asked to do."""
    with selectors.DefaultSelector() as selector:
        ended = os.pidfd_open(snakemake.pid)
        for each in (listener, ended, sweep):
            selector.register(each, selectors.EVENT_READ)
        while len(selector.get_map()) > 1:
            key, _ = selector.select()[0]  # others are still there at the next turn, unless this one ends them
            run: _Run | None = key.data
            if key.fileobj is listener:
                run = _Run(listener.accept()[0])
                selector.register(run.asker, selectors.EVENT_READ, run)
            elif run is None:
                selector.unregister(key.fileobj)
                _tell(sweep, snakemake) if key.fileobj == ended else sweep.close()
            elif key.fileobj == run.pidfd:
                selector.unregister(run.pidfd)
                if run.asker in selector.get_map():
                    selector.unregister(run.asker)
                _reap(run)
            elif run.pid and run.asker.recv(MOST_BYTES):
                os.kill(run.pid, signal.SIGINT)
            elif run.pid:
                selector.unregister(run.asker)  # it has gone
                os.kill(run.pid, signal.SIGKILL)
            elif (request := _fork(run, selector)) is not None:
                return request
    return None


def _fork(run: _Run, selector: selectors.BaseSelector) -> dict[str, Any] | None:
    """Start a run; in the run itself what it was asked to do, on the asker's input, output and environment."""
    message, descriptors, _, _ = socket.recv_fds(run.asker, MOST_BYTES, 3)
    server = os.getpid()
    run.pid = os.fork() if message else 0
    if message and not run.pid:
        ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        os.setpgid(0, 0)  # what interrupts Snakemake reaches it by way of its asker, once
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for key in selector.get_map().values():
            os.close(key.fileobj) if isinstance(key.fileobj, int) else cast(socket.socket, key.fileobj).close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        request: dict[str, Any] = json.loads(message)
        forked.settle(request, f"fixres_poc run {request['settings_file']}")
        return request
    for descriptor in descriptors:
        os.close(descriptor)
    if not message:  # it has gone before it asked
        selector.unregister(run.asker)
        run.asker.close()
        return None
    run.pidfd = os.pidfd_open(run.pid)
    selector.register(run.pidfd, selectors.EVENT_READ, run)
    run.asker.send(b"forked")
    return None


def _reap(run: _Run) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(run.pid, 0)[1])
    with contextlib.suppress(OSError):
        run.asker.send(str(abs(code)).encode())
    run.asker.close()
    os.close(run.pidfd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Asking the server for a run, and the command that starts a server. Imports nothing heavy."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from fixres_poc.sweep.notebook_run import private_folder

SOCKET = "FIXRES_WARM"
"""Holds the path of the server's socket, for what Snakemake starts."""
MOST_BYTES = 2**20  # of a message
PATIENCE_S = 3.0  # with a run that was interrupted; then it is killed
SINGLE = {  # keeps imports from starting threads, and from what cannot be forked
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # the other way to look for a card cannot be forked
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # that of kernels, read on import
    "SPT_NOENV": "1",  # a process's title does not overwrite its environment
}


def command(snakemake: list[str], threads: int) -> list[str]:
    """Snakemake's command, preceded by the server's where runs can start warm; `threads` are those of a run."""
    if sys.platform != "linux":
        return snakemake
    variables = [f"{name}={value}" for name, value in (SINGLE | {"OMP_NUM_THREADS": str(threads)}).items()]
    return ["env", *variables, sys.executable, "-P", "-m", "fixres_poc.sweep.warm.server", *snakemake]


@contextlib.contextmanager
def reachable(server: int) -> Iterator[None]:
    """Within it, this process asks the server that has this process number."""
    os.environ[SOCKET] = str(socket_file(server))
    try:
        yield
    finally:
        os.environ.pop(SOCKET, None)


def socket_file(server: int) -> Path:
    """Where the server of this process number listens, in this user's own folder."""
    return private_folder() / f"{server}.socket"


def ask(settings_file: Path, time_limit: int | None) -> int | None:
    """Let a run be forked, and wait for it; its exit code, or None where nothing has run and it must start cold.

    Raises:
        KeyboardInterrupt: this process was interrupted, and so was the run.
    """
    path = os.environ.pop(SOCKET, None)
    if path is None:
        return None
    wanted = {"settings_file": str(settings_file), "time_limit": time_limit, "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.connect(path)
            socket.send_fds(server, [json.dumps(wanted | {"folder": os.getcwd()}).encode()], [0, 1, 2])
            if not server.recv(MOST_BYTES):
                return None
        except OSError:
            return None
        try:
            code = server.recv(MOST_BYTES)
        except KeyboardInterrupt:
            server.send(b"interrupt")
            server.settimeout(PATIENCE_S)
            with contextlib.suppress(OSError):
                server.recv(MOST_BYTES)
            raise
        return int(code) if code else 1

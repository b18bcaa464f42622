"""A kernel that notebooks share; `kernel_state` restores its initial state before each one."""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.utils import run_sync  # type: ignore[attr-defined]
from papermill import execute_notebook
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from fixres_poc.config.files import REPOSITORY
from fixres_poc.config.provenance import library_hash

ENGINE = "shared_kernel"
KERNEL_START_S = 150


class _Manager(AsyncKernelManager):
    """Starts a kernel with this interpreter, whatever is registered as `python3`."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "fixres_poc.sweep.kernel_state"]
        command += [str(os.getpid()), "-f", "{connection_file}"]
        return KernelSpec(argv=command, language="python", display_name="Python 3")


class _Engine(NBClientEngine):  # type: ignore[misc]
    """Papermill's engine with a kernel that outlives the notebook."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        return options["execute"](nb_man, kernel_name)


papermill_engines.register(ENGINE, _Engine)


class Kernel:
    """A kernel that the first notebook starts; `close` or a failing notebook ends it.

    Args:
        notebooks: to run in it; it does their imports when it starts.
    """

    def __init__(self, notebooks: Sequence[Path]) -> None:
        """Note the notebooks; no process is started."""
        self._notebooks = [str(notebook) for notebook in notebooks]
        self._manager: _Manager | None = None
        self._library = ""

    def close(self) -> None:
        """End the kernel; the next notebook gets a fresh one."""
        manager, self._manager = self._manager, None
        if manager:
            with contextlib.suppress(RuntimeError):  # the process has ended
                run_sync(manager.shutdown_kernel)(now=True)
            run_sync(manager.cleanup_resources)()

    def run(
        self,
        notebook: Path,
        executed: Path,
        parameters: Mapping[str, Any],
        variables: Mapping[str, str],
        time_limit: int | None = None,
    ) -> Any:
        """Execute a notebook and return it.

        A kernel that died or has older library code is replaced first.

        Args:
            executed: file for the executed notebook.
            variables: environment variables for this notebook alone.
            time_limit: seconds from the start of its first cell; None for no limit.

        Raises:
            CellTimeoutError: the time limit was exceeded.
            PapermillExecutionError: a cell failed.
            DeadKernelError: the kernel died.
            RuntimeError: no kernel could be started.
        """
        library = library_hash(everything=True)
        if self._manager and (library != self._library or not run_sync(self._manager.is_alive)()):
            self.close()
        self._library = library
        logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the caller reports errors
        # papermill would format the braces
        paths = [re.sub(r"([{}])", r"\1\1", str(path)) for path in (notebook, executed)]
        try:
            return execute_notebook(
                *paths,
                parameters,
                ENGINE,
                kernel_name="python3",
                progress_bar=False,
                cwd=REPOSITORY,
                execute=partial(self._execute, variables, time_limit),
            )
        except BaseException:
            self.close()
            raise

    def _execute(
        self, variables: Mapping[str, str], time_limit: int | None, nb_man: Any, kernel_name: str
    ) -> Any:
        """Execute papermill's notebook in the kernel, in its initial state."""
        client = PapermillNotebookClient(
            nb_man,
            kernel_name=kernel_name,
            startup_timeout=KERNEL_START_S,
            extra_arguments=["--log-level=ERROR"],
            log=logging.getLogger("papermill"),
        )
        client.owns_km = False  # the kernel outlives the notebook
        try:
            self._connect(client)
        except RuntimeError:  # another program took its port or killed it: try once more
            self.close()
            self._connect(client)
        connection = client.kc
        try:
            _call(client, "restore", dict(variables))
            if time_limit:
                end = time.monotonic() + time_limit
                client.timeout_func = lambda _: max(0.1, end - time.monotonic())
            return client.execute()
        finally:
            connection.stop_channels()
            connection.context.destroy(linger=0)

    def _connect(self, client: PapermillNotebookClient) -> None:
        """Connect a client to the kernel, and start one if there is none."""
        fresh = self._manager is None
        client.km = self._manager = self._manager or _Manager(kernel_name=client.kernel_name)
        if fresh:
            client.start_new_kernel()
        client.start_new_kernel_client()
        if fresh:
            _call(client, "note", self._notebooks)


def _call(client: PapermillNotebookClient, function: str, argument: object) -> None:
    """Call a function of `kernel_state` in the kernel without touching the notebook's namespace."""
    code = f"__import__('fixres_poc.sweep.kernel_state', fromlist=['']).{function}({argument!r})"
    message = client.kc.execute(code, silent=True, store_history=False, allow_stdin=False)
    reply = client.wait_for_reply(message)["content"]
    if reply["status"] != "ok":
        raise RuntimeError(f"kernel_state.{function}: {reply.get('ename')}: {reply.get('evalue')}")

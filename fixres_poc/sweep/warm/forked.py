"""What a forked process is: a run, or the kernel of one."""

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil

from fixres_poc.sweep import notebook_run
from fixres_poc.sweep.warm.asking import MOST_BYTES

INTERRUPTED = 130


def settle(given: dict[str, Any], title: str) -> None:
    """Take over another process's environment and folder."""
    import setproctitle

    setproctitle.setproctitle(title)
    os.environ.clear()
    os.environ.update(given["environment"])
    os.chdir(given["folder"])


def run(request: dict[str, Any]) -> int:
    """Be the run that was asked for, or the kernel that it forks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        ours.close()
        return _kernel(theirs)
    theirs.close()
    _offer(Child(pid), ours)
    try:
        return notebook_run.run(Path(request["settings_file"]), request["time_limit"])
    except KeyboardInterrupt:
        return INTERRUPTED


class Child(psutil.Process):  # type: ignore[misc]
    """A forked process as jupyter_client wants one, which calls it as it would a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        """Its exit code, None while it is at work."""
        try:
            return cast(int, self.wait(0))
        except psutil.TimeoutExpired:
            return None


def _offer(kernel: Child, line: socket.socket) -> None:
    """Let papermill have this kernel instead of starting one; if that does not answer, the next one starts cold."""
    from jupyter_client.provisioning import factory, local_provisioner

    class Forked(local_provisioner.LocalProvisioner):
        async def launch_kernel(self, cmd: list[str], **values: Any) -> Any:
            if line.fileno() < 0:
                return await super().launch_kernel(cmd, **values)
            environment = values["env"] | {"JPY_PARENT_PID": str(os.getpid())}
            self.process, self.pid, self.pgid = kernel, kernel.pid, kernel.pid
            self.cwd = values.get("cwd") or os.getcwd()
            line.recv(MOST_BYTES)  # it has a session of its own
            line.send(json.dumps({"command": cmd, "environment": environment, "folder": str(self.cwd)}).encode())
            line.close()
            return self.connection_info

    known = factory.KernelProvisionerFactory.instance()
    known.provisioners["forked"] = cast(Any, SimpleNamespace(load=lambda: Forked))  # instead of an entry point
    known.default_provisioner_name = "forked"


def _kernel(run: socket.socket) -> int:
    """Be a kernel, once the run says how it would have started one."""
    os.setsid()
    run.send(b"ready")
    message = run.recv(MOST_BYTES)
    run.close()
    if not message:
        return 0
    given = json.loads(message)
    settle(given, " ".join(given["command"]))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from ipykernel.kernelapp import IPKernelApp

    arguments = given["command"][given["command"].index("ipykernel_launcher") + 1 :]
    # Read from the environment on import, that is in the server.
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.environ['JPY_PARENT_PID']}"])
    return 0

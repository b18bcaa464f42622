"""A Slurm cluster of this machine alone: munged, slurmctld and two slurmd in a folder of their own.

All is ended by its id. It has no accounting, and its GPUs, one per node, are make-believe: links
to /dev/null. Everything listens on 127.0.0.1.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from throwaway import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
NODES, MEMORY_MB = ("node0", "node1"), 1500  # of one core and one GPU each
CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdTimeout=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=2
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 "
    "RealMemory={memory_mb} Gres=gpu:1"
)


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.getuid() == 0 else "slurmd needs root"


class Cluster:
    """What is up, and how a node of it dies."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, node: str) -> None:
        """Start a node, and wait until it takes jobs."""
        command = ["slurmd", "-D", "-N", node]
        self.nodes[node] = self.stack.enter_context(daemon(self.folder / f"{node}.log", command))
        until(lambda: say("sinfo", "--noheader", f"--nodes={node}", "--format=%t") == "idle", 60)

    def kill(self, node: str) -> None:
        """Kill a node with all of its jobs, as if its power had failed."""
        self.nodes[node].kill()
        for job in say("squeue", "--noheader", f"--nodelist={node}", "--format=%A").split():
            for each in psutil.process_iter(["cmdline"]):
                if f"slurmstepd: [{job}." in " ".join(each.info["cmdline"] or []):
                    for process in [*each.children(recursive=True), each]:
                        process.kill()


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Start it and let Slurm's commands find it; all that was started is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    folder.chmod(0o755)  # munged is another user
    for name in ("munge", "state", "bin", *(f"spool/{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    shutil.chown(folder / "munge", "munge", "munge")
    configure(folder)
    log = f"--log-file={folder}/munge/log"
    munge = [
        f"--key-file={folder}/munge/key",
        f"--socket={folder}/munge/socket",
        f"--pid-file={folder}/munge/pid",
    ]
    munge += [log, f"--seed-file={folder}/munge/seed", "--foreground"]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        variables = stack.enter_context(pytest.MonkeyPatch.context())
        variables.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        variables.setenv("PATH", str(folder / "bin"), prepend=":")
        stack.enter_context(daemon(folder / "munged.log", ["munged", *munge], user="munge"))
        until((folder / "munge/socket").exists)
        stack.enter_context(daemon(folder / "slurmctld.log", ["slurmctld", "-D", "-i"]))
        started = Cluster(folder, stack)
        for node in NODES:
            started.start(node)
        stack.callback(say, "scancel", "--user=root")
        yield started


def configure(folder: Path) -> None:
    """Write the key, slurm.conf, gres.conf with a device for each node, and an srun for them."""
    key = folder / "munge/key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    shutil.chown(key, "munge", "munge")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in (*NODES, "slurmctld")]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    common = {"host": socket.gethostname().split(".")[0], "memory_mb": MEMORY_MB}
    nodes = [
        NODE.format(name=name, port=port, **common)
        for name, port in zip(NODES, ports, strict=False)
    ]
    text = CONF.format(folder=folder, port=ports[-1], nodes="\n".join(nodes), **common)
    (folder / "slurm.conf").write_text(text)
    (folder / "gpu0").symlink_to("/dev/null")
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu0\n")
    # The plugin's job step forgets SLURM_CONF, which a cluster with /etc/slurm/slurm.conf does
    # without.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)


@contextlib.contextmanager
def daemon(
    log: Path, command: list[str], user: str | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a daemon in the foreground; ended politely, then killed."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, user=user, group=user, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def say(*command: str) -> str:
    """What a command of Slurm prints, or what it complains of."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return (done.stdout or done.stderr).strip()

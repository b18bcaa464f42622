"""A Slurm cluster of this machine alone: munged, slurmctld and slurmd in a folder of their own, ended by their ids.

It has no accounting, and its two GPUs are make-believe: links to /dev/null. Everything listens on 127.0.0.1 only.
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

import pytest
from throwaway import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
CPUS, GPUS, MEMORY_MB = 2, 2, 3000
CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
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
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} Gres=gpu:{gpus}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.getuid() == 0 else "slurmd needs root"


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Start it and let Slurm's commands find it; all that was started is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    folder.chmod(0o755)  # munged is another user
    for name in ("munge", "state", "spool", "bin"):
        (folder / name).mkdir()
    shutil.chown(folder / "munge", "munge", "munge")
    configure(folder)
    log = f"--log-file={folder}/munge/log"
    munge = [f"--key-file={folder}/munge/key", f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid"]
    munge += [log, f"--seed-file={folder}/munge/seed", "--foreground"]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        variables = stack.enter_context(pytest.MonkeyPatch.context())
        variables.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        variables.setenv("PATH", str(folder / "bin"), prepend=":")
        stack.enter_context(daemon(folder / "munged.log", ["munged", *munge], user="munge"))
        until((folder / "munge/socket").exists)
        stack.enter_context(daemon(folder / "slurmctld.log", ["slurmctld", "-D", "-i"]))
        stack.enter_context(daemon(folder / "slurmd.log", ["slurmd", "-D"]))
        until(lambda: say("sinfo", "--noheader", "--format=%T") == "idle")
        stack.callback(say, "scancel", "--user=root")
        yield


def configure(folder: Path) -> None:
    """Write the key, slurm.conf, gres.conf with a device for each GPU, and a way for srun to find them."""
    key = folder / "munge/key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    shutil.chown(key, "munge", "munge")
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (one, other)]
    host = socket.gethostname().split(".")[0]
    text = CONF.format(folder=folder, host=host, ports=ports, cpus=CPUS, gpus=GPUS, memory_mb=MEMORY_MB)
    (folder / "slurm.conf").write_text(text)
    for index in range(GPUS):
        (folder / f"gpu{index}").symlink_to("/dev/null")
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    # The plugin's job step forgets SLURM_CONF, which a cluster with /etc/slurm/slurm.conf does without.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)


@contextlib.contextmanager
def daemon(log: Path, command: list[str], user: str | None = None) -> Iterator[None]:
    """Run a daemon in the foreground; ended politely, then killed."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, user=user, group=user, start_new_session=True)
    try:
        yield
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

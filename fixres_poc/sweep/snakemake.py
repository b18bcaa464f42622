"""Snakemake as a child process: its command, its end, signals that end it early, its Slurm jobs.

Those jobs know nothing of the sweep's lock, and outlive it where Snakemake was killed.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from fixres_poc.config.files import REPOSITORY, home, resolve, sweep_folder
from fixres_poc.config.provenance import cores as available_cores
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.sweep.notebook_run import gpus

Process = subprocess.Popen[bytes]
LOCAL_PROFILE = "profiles/local"
GRACE_S = 3.0
TIMEOUT_S = 60
LONGEST_END_S = 180
"""Slurm sends SIGTERM first, and SIGKILL 30 s later where KillWait has its default."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OPTIONS = "--workflow-profile none --keep-going --rerun-incomplete --nolock --nocolor"
"""What no profile may change: `execution.lay_out` decides what is done again, not Snakemake."""


class Shares(NamedTuple):
    """How the jobs of a sweep share a machine, whatever is left of it, so that results stay equal.

    Attributes:
        cores: in all; None for a cluster's.
        cards: GPUs; 0 for a cluster, whose scheduler hands them out.
        jobs: at work at once, one a card.
        threads: of each job.
    """

    cores: int | None
    cards: int
    jobs: int
    threads: int


def shares(sweep: SweepSettings, cores: int | None, profile: str) -> Shares:
    """The local profile uses all cores unless told otherwise."""
    local = resolve(profile) == resolve(LOCAL_PROFILE)
    cards = len(gpus()) if local else 0
    cores = cores or (available_cores() if local else None)
    jobs = min(sweep.jobs_at_once(), cards or sys.maxsize, cores or sys.maxsize)
    return Shares(cores, cards, jobs, max(1, (cores or 1) // jobs))


def command_line(sweep: SweepSettings, shared: Shares, profile: str) -> list[str]:
    """Snakemake's command for a sweep."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--directory", str(sweep_folder(sweep.name)), "--profile", str(resolve(profile))]
    command += [*OPTIONS.split(), "--rerun-triggers", "mtime"]
    command += ["--config", f"threads={shared.threads}"]
    command += ["--cores", str(shared.cores)] if shared.cores else []
    command += ["--resources", f"gpu={shared.cards}"] if shared.cards else []
    return command


def run_snakemake(
    folder: Path, command: list[str], lock: int, follow: Callable[[Process], None]
) -> None:
    """Run Snakemake to its end; whatever was started is gone then.

    Args:
        folder: of the sweep.
        lock: a descriptor that Snakemake inherits.
        follow: waits for the process.
    """
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "FIXRES_HOME": str(home())}
    cache = Path("~/.cache").expanduser()
    # Snakemake makes it
    if not os.access(cache if cache.exists() else cache.parent, os.W_OK):
        environment.setdefault("XDG_CACHE_HOME", str(home() / "runs" / ".cache"))
    with open(folder / "snakemake.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=[lock],
        )
        try:
            follow(process)
        finally:
            # who presses Ctrl-C twice wants nothing left at work, either
            with on_stop_signals(signal.SIG_IGN):
                _stop(process)
                cancel_jobs(folder)


def _stop(process: Process) -> None:
    """Interrupt the process's whole group, kill it after `GRACE_S`; kernels end with their run."""
    end = time.monotonic() + GRACE_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        while time.monotonic() < end:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_error(log: Path) -> str:
    """The first error in what Snakemake said, else the last line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    text = "\n".join(filter(str.strip, text.splitlines()))
    found = re.search(r"(?im)^.*error(.*:\n)?.*", text) or re.search(r".*\Z", text)
    return " ".join(found[0].split()) if found and found[0] else "it said nothing"


@contextlib.contextmanager
def on_stop_signals(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    """Within it, SIGINT, SIGTERM and SIGHUP go to the handler."""
    # nohup's SIGHUP stays ignored: such a sweep is to outlive its terminal
    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, each in before.items():
            signal.signal(number, each)


def slurm_jobs(folder: Path) -> list[str]:
    """Ids of this user's jobs that wait or work in a sweep's folder; none without Slurm."""
    if shutil.which("squeue") is None:
        return []
    command = ["squeue", "--me", "--noheader", "--format=%i %Z"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S).stdout
    return re.findall(rf"(?m)^(\S+) {re.escape(str(folder))}$", listed)


def cancel_jobs(folder: Path) -> None:
    """End the jobs of a sweep's folder, and wait until they are gone.

    Raises:
        RuntimeError: some do not end.
    """
    end = time.monotonic() + LONGEST_END_S
    while left := slurm_jobs(folder):
        if time.monotonic() > end:
            raise RuntimeError(
                f"jobs {', '.join(left)} of {folder} do not end; scancel them, or ask who runs "
                "Slurm"
            )
        subprocess.run(["scancel", *left], capture_output=True, timeout=TIMEOUT_S)
        time.sleep(1)

"""Snakemake as a child process: its command, its end, stop signals, and its Slurm jobs.

Slurm jobs do not hold the sweep's lock, and outlive a Snakemake that was killed.
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
OPTIONS = (
    "--workflow-profile none --keep-going --rerun-incomplete --nolock --nocolor "
    "--rerun-triggers mtime"
)
"""Options that no profile may change: `execution.lay_out` decides what is repeated."""


class Shares(NamedTuple):
    """How the jobs of a sweep share a machine.

    The numbers follow from the whole sweep, not from its missing runs, so that a resumed sweep
    gives the same results.

    Attributes:
        cores: in total; None for a cluster.
        cards: GPUs; 0 for a cluster, whose scheduler assigns them.
        jobs: at the same time, at most one per card.
        threads: of each job.
    """

    cores: int | None
    cards: int
    jobs: int
    threads: int


def shares(sweep: SweepSettings, cores: int | None, profile: str) -> Shares:
    """Shares of a sweep's jobs; the local profile takes all cores by default."""
    cards = 0
    if resolve(profile) == resolve(LOCAL_PROFILE):
        cards = len(gpus())
        cores = cores or available_cores()
    jobs = min(filter(None, (sweep.jobs_at_once(), cards, cores)))
    return Shares(cores, cards, jobs, cores // jobs if cores else 1)


def command_line(sweep: SweepSettings, shared: Shares, profile: str) -> list[str]:
    """The command that runs Snakemake for a sweep."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--directory", str(sweep_folder(sweep.name)), "--profile", str(resolve(profile))]
    command += [*OPTIONS.split(), "--config", f"threads={shared.threads}"]
    if shared.cores:
        command += ["--cores", str(shared.cores)]
    if shared.cards:
        command += ["--resources", f"gpu={shared.cards}"]
    return command


def run_snakemake(
    folder: Path, command: list[str], lock: int, follow: Callable[[Process], None]
) -> None:
    """Run Snakemake to its end, and leave none of its processes or jobs.

    Args:
        folder: of the sweep.
        lock: descriptor of the sweep's lock, which Snakemake inherits.
        follow: returns when the process has ended.
    """
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "FIXRES_HOME": str(home())}
    cache = Path("~/.cache").expanduser()
    # Snakemake creates the folder if it is missing
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
            # a second Ctrl-C must not interrupt the cleaning up
            with on_stop_signals(signal.SIG_IGN):
                _stop(process)
                cancel_jobs(folder)


def _stop(process: Process) -> None:
    """Interrupt the process group, and kill it after `GRACE_S`; kernels end with their jobs."""
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
    """The first error in Snakemake's log, else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    match = re.search(r"(?im)^.*error(.*:\n)?.*", "\n".join(lines))
    if match:
        return " ".join(match[0].split())
    return " ".join(lines[-1].split()) if lines else "it said nothing"


@contextlib.contextmanager
def on_stop_signals(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP with this handler inside the context."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, previous in before.items():
        # under nohup SIGHUP stays ignored: the sweep shall outlive its terminal
        if previous != signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def slurm_jobs(folder: Path) -> list[str]:
    """Ids of this user's Slurm jobs in a sweep's folder, pending or running; none without Slurm."""
    if shutil.which("squeue") is None:
        return []
    command = ["squeue", "--me", "--noheader", "--format=%i %Z"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S).stdout
    return re.findall(rf"(?m)^(\S+) {re.escape(str(folder))}$", output)


def cancel_jobs(folder: Path) -> None:
    """Cancel the Slurm jobs of a sweep's folder, and wait until they are gone.

    Raises:
        RuntimeError: some do not end within `LONGEST_END_S`.
    """
    end = time.monotonic() + LONGEST_END_S
    while jobs := slurm_jobs(folder):
        if time.monotonic() > end:
            raise RuntimeError(
                f"jobs {', '.join(jobs)} of {folder} do not end; scancel them, or ask who runs "
                "Slurm"
            )
        subprocess.run(["scancel", *jobs], capture_output=True, timeout=TIMEOUT_S)
        time.sleep(1)

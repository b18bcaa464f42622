"""The jobs that Slurm has of a sweep. They know nothing of its lock, and outlive it where Snakemake was killed."""

import shutil
import subprocess
import time
from pathlib import Path

TIMEOUT_S = 60
LONGEST_END_S = 180
"""Slurm sends SIGTERM first, and SIGKILL 30 s later where KillWait has its default."""


def jobs(folder: Path) -> list[str]:
    """Ids of this user's jobs that wait or work in a sweep's folder; none where there is no Slurm."""
    if shutil.which("squeue") is None:
        return []
    command = ["squeue", "--me", "--noheader", "--format=%i %Z"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S).stdout
    return [job for job, _, where in (line.partition(" ") for line in listed.splitlines()) if where == str(folder)]


def cancel(folder: Path) -> None:
    """End the jobs of a sweep's folder, and wait until they are gone.

    Raises:
        RuntimeError: some do not end.
    """
    end = time.monotonic() + LONGEST_END_S
    while left := jobs(folder):
        if time.monotonic() > end:
            raise RuntimeError(f"jobs {', '.join(left)} of {folder} do not end; scancel them, or ask who runs Slurm")
        subprocess.run(["scancel", *left], capture_output=True, timeout=TIMEOUT_S)
        time.sleep(1)

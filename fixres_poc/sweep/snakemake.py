"""Snakemake as a child process: its command, its end, the signals that end it early, and the jobs that Slurm has of it.

Such jobs know nothing of the sweep's lock, and outlive it where Snakemake was killed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fixres_poc.config.files import REPOSITORY, home, resolve, run_folder, sweep_folder
from fixres_poc.config.provenance import cores as available_cores
from fixres_poc.config.run_state import PROGRESS, state
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.sweep.notebook_run import gpus

PLAIN_PAUSE_S = 15.0
TAIL_BYTES = 600
ANNOUNCED = {"active": "started", "done": "done", "failed": "failed"}


class Monitor:
    """Shows the state of a sweep's runs on a stream."""

    def __init__(self, sweep: SweepSettings, stream: TextIO) -> None:
        """Begin with the present state; what is done already is not announced."""
        self.sweep, self.runs, self.stream = sweep.name, sweep.runs(), stream
        self.live = (
            Live(console=Console(file=stream), auto_refresh=False, transient=True)
            if stream.isatty()
            else None
        )
        self.begun = self.progress_shown = time.monotonic()
        self.states = self._look()
        self.done_before = self.count("done")

    def _look(self) -> dict[str, str]:
        return {run.name: state(self.sweep, run) for run in self.runs}

    def count(self, wanted: str) -> int:
        """Number of runs in a state."""
        return list(self.states.values()).count(wanted)

    def show(self) -> None:
        """Look at the runs' folders and tell what is new."""
        before, self.states = self.states, self._look()
        active = {
            name: self._progress(name) for name, each in self.states.items() if each == "active"
        }
        if self.live:
            self.live.start()
            lines = [self.summary(), *(f"  {name}: {bar}" for name, bar in active.items())]
            self.live.update(
                Group(*(Text(line, no_wrap=True, overflow="crop") for line in lines)), refresh=True
            )
            return
        now = time.monotonic()
        for name, each in self.states.items():
            if each != before[name] and each in ANNOUNCED:
                print(f"{ANNOUNCED[each]}: {name} ({self.summary()})", file=self.stream, flush=True)
                self.progress_shown = now
        if active and now - self.progress_shown >= PLAIN_PAUSE_S:
            texts = "; ".join(f"{name}: {bar}" for name, bar in active.items())
            print(f"{self.summary()}; {texts}", file=self.stream, flush=True)
            self.progress_shown = now

    def close(self) -> None:
        """Take the live lines away."""
        if self.live:
            self.live.stop()

    def summary(self) -> str:
        """One line, such as "runs 3/14, 2 failed, about 4 min left"."""
        done, failed, every = self.count("done"), self.count("failed"), len(self.states)
        text = f"runs {done}/{every}" + (f", {failed} failed" if failed else "")
        ended, left = done + failed - self.done_before, every - done - failed
        if ended > 0 and left:
            minutes = (time.monotonic() - self.begun) / ended * left / 60
            text += (
                f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
            )
        return text

    def _progress(self, name: str) -> str:
        """The last bar that the run has written."""
        try:
            with open(run_folder(self.sweep, name) / PROGRESS, "rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
                chunks = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
        except OSError:
            return "at work"
        return next((chunk.strip() for chunk in reversed(chunks) if chunk.strip()), "at work")


LOCAL_PROFILE = "profiles/local"
GRACE_S = 3.0
TIMEOUT_S = 60
LONGEST_END_S = 180
"""Slurm sends SIGTERM first, and SIGKILL 30 s later where KillWait has its default."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command_line(sweep: SweepSettings, cores: int | None, profile: str) -> list[str]:
    """Snakemake's command for a sweep; the local profile uses all cores unless told otherwise.

    Trainings that can be at work at once share the cores, whatever is left of the sweep, so that
    results stay equal.
    """
    local = resolve(profile) == resolve(LOCAL_PROFILE)
    cards = len(gpus()) if local else 0
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += [
        "--directory",
        str(sweep_folder(sweep.name)),
        "--profile",
        str(resolve(profile)),
        "--workflow-profile",
        "none",
    ]
    cores = cores or (available_cores() if local else None)
    threads = (cores or 1) // min(sweep.trainings_at_once(), cards or sys.maxsize, cores or 1)
    command += [
        "--keep-going",
        "--rerun-incomplete",
        "--nolock",
        "--rerun-triggers",
        "mtime",
        "--nocolor",
    ]
    command += ["--config", f"threads={threads}"]
    command += ["--cores", str(cores)] if cores else []
    command += ["--resources", f"gpu={cards}"] if cards else []
    return command


def run_snakemake(sweep: SweepSettings, command: list[str], lock: int, monitor: Monitor) -> int:
    """Run Snakemake to its end, and give its exit code; whatever was started is gone then."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "FIXRES_HOME": str(home())}
    cache = os.path.expanduser("~/.cache")
    # Snakemake makes it
    if not os.access(cache if os.path.exists(cache) else os.path.dirname(cache), os.W_OK):
        environment.setdefault("XDG_CACHE_HOME", str(home() / "runs" / ".cache"))
    with open(sweep_folder(sweep.name) / "snakemake.log", "w", encoding="utf-8") as log:
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
            while process.poll() is None:
                monitor.show()
                time.sleep(0.3)
            monitor.show()
            return process.returncode
        finally:
            monitor.close()
            # who presses Ctrl-C twice wants nothing left at work, either
            with on_stop_signals(signal.SIG_IGN):
                _stop(process)
                cancel_jobs(sweep_folder(sweep.name))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process's whole group: interrupted first, killed after `GRACE_S`; kernels end with their run."""
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
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next(
        (index for index, line in enumerate(lines) if "error" in line.lower()), len(lines) - 1
    )
    return " ".join(lines[first : first + 1 + lines[first].endswith(":")]) if lines else "nothing"


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler that does what Ctrl-C does."""
    raise KeyboardInterrupt


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
    """Ids of this user's jobs that wait or work in a sweep's folder; none where there is no Slurm."""
    if shutil.which("squeue") is None:
        return []
    command = ["squeue", "--me", "--noheader", "--format=%i %Z"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S).stdout
    return [
        job
        for job, _, where in (line.partition(" ") for line in listed.splitlines())
        if where == str(folder)
    ]


def cancel_jobs(folder: Path) -> None:
    """End the jobs of a sweep's folder, and wait until they are gone.

    Raises:
        RuntimeError: some do not end.
    """
    end = time.monotonic() + LONGEST_END_S
    while left := slurm_jobs(folder):
        if time.monotonic() > end:
            raise RuntimeError(
                f"jobs {', '.join(left)} of {folder} do not end; scancel them, or ask who runs Slurm"
            )
        subprocess.run(["scancel", *left], capture_output=True, timeout=TIMEOUT_S)
        time.sleep(1)

"""What a person sees while a sweep is at work: live lines on a terminal, plain lines in a log.

All of it is read from the runs' folders, so it is the same whichever executor does the work.
"""

import time
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fixres_poc.config.files import run_folder
from fixres_poc.config.run_state import PROGRESS, state
from fixres_poc.config.sweep_settings import SweepSettings

PLAIN_PAUSE_S = 15.0
TAIL_BYTES = 600
ANNOUNCED = {"active": "started", "done": "done", "failed": "failed"}


class Monitor:
    """Shows the state of a sweep's runs on a stream."""

    def __init__(self, sweep: SweepSettings, stream: TextIO) -> None:
        """Begin with the present state; what is done already is not announced."""
        self.sweep, self.runs, self.stream = sweep.name, sweep.runs(), stream
        self.live = Live(console=Console(file=stream), auto_refresh=False, transient=True) if stream.isatty() else None
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
        active = {name: self._progress(name) for name, each in self.states.items() if each == "active"}
        if self.live:
            self.live.start()
            lines = [self.summary(), *(f"  {name}: {bar}" for name, bar in active.items())]
            self.live.update(Group(*(Text(line, no_wrap=True, overflow="crop") for line in lines)), refresh=True)
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
            text += f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
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

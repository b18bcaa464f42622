"""What a person sees while a sweep is at work: live lines on a terminal, plain lines in a log.

All of it is read from the runs' folders, so it is the same whichever executor does the work.
"""

import shutil
import time
from typing import TextIO

from fixres_poc.config import Run, SweepSettings, run_folder
from fixres_poc.runner import complete

PLAIN_PAUSE_S = 15.0
TAIL_BYTES = 600


class Monitor:
    """Shows the state of a sweep's runs on a stream."""

    def __init__(self, sweep: SweepSettings, stream: TextIO) -> None:
        """Begin with the present state; what is done already is not announced."""
        self.sweep, self.stream = sweep, stream
        self.live = stream.isatty()
        self.lines = 0
        self.begun = self.progress_shown = time.monotonic()
        self.states = {run.name: self._state(run) for run in sweep.runs()}
        self.done_before = self.counts()["done"]

    def counts(self) -> dict[str, int]:
        """Number of runs that are waiting, active, done and failed."""
        states = list(self.states.values())
        return {state: states.count(state) for state in ("waiting", "active", "done", "failed")}

    def show(self) -> None:
        """Look at the runs' folders and tell what is new."""
        before, self.states = self.states, {run.name: self._state(run) for run in self.sweep.runs()}
        if self.live:
            self._draw([self.summary(), *(f"  {name}: {self._progress(name)}" for name in self._active())])
            return
        now = time.monotonic()
        words = {"active": "started", "done": "done", "failed": "failed"}
        for name, state in self.states.items():
            if state != before[name] and state in words:
                print(f"{words[state]}: {name} ({self.summary()})", file=self.stream, flush=True)
                self.progress_shown = now
        if self._active() and now - self.progress_shown >= PLAIN_PAUSE_S:
            texts = "; ".join(f"{name}: {self._progress(name)}" for name in self._active())
            print(f"{self.summary()}; {texts}", file=self.stream, flush=True)
            self.progress_shown = now

    def close(self) -> None:
        """Take the live lines away."""
        if self.live:
            self._draw([])

    def summary(self) -> str:
        """One line, such as "runs 3/14, 2 failed, about 4 min left"."""
        counts = self.counts()
        text = f"runs {counts['done']}/{len(self.states)}"
        text += f", {counts['failed']} failed" if counts["failed"] else ""
        ended = counts["done"] + counts["failed"] - self.done_before
        left = len(self.states) - counts["done"] - counts["failed"]
        if ended > 0 and left:
            minutes = (time.monotonic() - self.begun) / ended * left / 60
            text += f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
        return text

    def _state(self, run: Run) -> str:
        folder = run_folder(self.sweep.name, run.name)
        if (folder / "progress.log").exists():
            return "active"
        if (folder / "error.txt").exists():
            return "failed"
        return "done" if complete(folder, run.notebook) else "waiting"

    def _active(self) -> list[str]:
        return [name for name, state in self.states.items() if state == "active"]

    def _progress(self, name: str) -> str:
        """The last bar that the run has written."""
        try:
            with open(run_folder(self.sweep.name, name) / "progress.log", "rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
                chunks = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
        except OSError:
            return "at work"
        return next((chunk.strip() for chunk in reversed(chunks) if chunk.strip()), "at work")

    def _draw(self, lines: list[str]) -> None:
        columns, rows = shutil.get_terminal_size()
        shown = [line[: columns - 1] for line in lines[: rows - 1]]
        up = f"\x1b[{self.lines}F" if self.lines else ""
        self.stream.write(f"{up}\x1b[J" + "".join(f"{line}\n" for line in shown))
        self.stream.flush()
        self.lines = len(shown)

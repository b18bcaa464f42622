"""A whole sweep: pictures, then Snakemake over the graph of runs, then the report over whatever exists.

In runs/<sweep>/ lie sweep.json (the settings), one folder a run, snakemake.log, and `lock`, which this process and
Snakemake hold, so that two sweeps of one name never work at the same time and a killed one never blocks the next.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from fixres_poc import __version__, machine, slurm
from fixres_poc.config import (
    EMBEDDED_BACKBONES,
    REPOSITORY,
    InputError,
    SweepSettings,
    TrainSettings,
    home,
    report_folder,
    resolve,
    run_folder,
)
from fixres_poc.files import write_atomically
from fixres_poc.monitor import Monitor
from fixres_poc.records import intact, library_hash
from fixres_poc.runner import OUTPUTS, code_hash, complete, gpus, notebook_path

LOCAL_PROFILE = "profiles/local"
REPORT_NOTEBOOK = "05_results"
GRACE_S = 3.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def sweep_folder(sweep: str) -> Path:
    """Folder of a sweep's runs, such as runs/demo."""
    return home() / "runs" / sweep


def run_sweep(sweep: SweepSettings, cores: int | None = None, profile: str = LOCAL_PROFILE) -> bool:
    """Do everything that a sweep still lacks, and render its report.

    Args:
        sweep: the settings.
        cores: processor cores to use, all by default.
        profile: folder of a Snakemake profile.

    Returns:
        Whether every run succeeded.

    Raises:
        InputError: pictures or notebooks cannot be used, or pictures were changed meanwhile.
        RuntimeError: Snakemake itself failed.
        KeyboardInterrupt: stopped by Ctrl-C, SIGTERM or SIGHUP; nothing is left at work.
    """
    folder = sweep_folder(sweep.name)
    folder.mkdir(parents=True, exist_ok=True)
    with _on_stop_signals(_interrupt), _locked(folder / "lock") as lock:
        _check_model(sweep)
        slurm.cancel(folder)  # jobs of a sweep that was killed
        fingerprint = prepare_data(sweep)
        _lay_out(sweep, fingerprint)
        monitor = Monitor(sweep, sys.stderr)
        ended = 0
        if monitor.counts()["done"] < len(sweep.runs()):
            ended = _run_snakemake(sweep, _command(folder, cores, profile), lock, monitor)
            if prepare_data(sweep) != fingerprint:
                raise InputError(f"dataset = {sweep.dataset!r}: changed while the sweep was at work; start it again")
        _explain_missing(sweep)
        failed = failures(sweep)
        if ended and not failed:
            raise RuntimeError(f"snakemake ended with {ended}; its output is in {folder / 'snakemake.log'}")
        for name, message in failed.items():
            print(f"failed: {name}: {message}", file=sys.stderr)
        page = _report(sweep)
    runs = len(sweep.runs())
    print(f"{runs - len(failed)} of {runs} runs of {sweep.name} are done, {len(failed)} failed; report: {page}")
    return not failed


def train_all(sweep: SweepSettings) -> None:
    """Do a sweep's trainings in all processes that `accelerate launch` has started; 03_train reads what they leave.

    Raises:
        InputError: pictures, notebooks, backbone or weights cannot be used.
    """
    from fixres_poc import datasets, evaluation, training

    accelerator = evaluation.accelerator(sweep.precision)
    folder = sweep_folder(sweep.name)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                stack.enter_context(_locked(folder / "lock"))
                _check_model(sweep)
                _lay_out(sweep, prepare_data(sweep))
        for run in sweep.runs():
            if run.notebook == "03_train":
                settings = TrainSettings(**run.parameters)
                trained = training.train_or_load(settings, datasets.load(settings), accelerator)
                accelerator.print(f"{run.name}: {trained.history['val_top1'].max():.1%} on validation")
    accelerator.end_training()


def _check_model(sweep: SweepSettings) -> None:
    """Refuse what cannot be used before pictures are drawn, and name terms; the embedded one is known without torch."""
    if sweep.backbone not in EMBEDDED_BACKBONES or sweep.weights is not None:
        from fixres_poc import backbones

        backbones.check(sweep.backbone, sweep.weights)
        sizes = {size for pair in sweep.resolution_pairs() for size in pair}
        backbones.check_use(sweep.backbone, sweep.adaptations, sizes)
        if terms := backbones.licence(sweep.backbone, sweep.weights):
            print(terms, file=sys.stderr)


def prepare_data(sweep: SweepSettings) -> str:
    """Draw or check the pictures of a sweep; returns their fingerprint.

    Raises:
        InputError: the folder cannot be used.
    """
    from fixres_poc import datasets

    return datasets.prepare(sweep.data_settings(), sweep_folder(sweep.name), sweep.skip_unreadable)


def failures(sweep: SweepSettings) -> dict[str, str]:
    """The error line of every failed run of a sweep, by the run's name."""
    files = {run.name: run_folder(sweep.name, run.name) / "error.txt" for run in sweep.runs()}
    return {name: file.read_text(encoding="utf-8").split("\n")[0] for name, file in files.items() if file.exists()}


def render(sweep: SweepSettings) -> Path:
    """Collect the runs of a sweep and write its report, whatever exists; returns the report's page."""
    from fixres_poc import report, results

    results.collect(sweep)
    return report.write_report(sweep)


def _lay_out(sweep: SweepSettings, fingerprint: str) -> None:
    """Write sweep.json and the runs' settings.json; what is outdated or half done goes, with all that used it."""
    write_atomically(sweep_folder(sweep.name) / "sweep.json", sweep.model_dump_json(indent=1))
    codes = {stem: code_hash(notebook_path(stem)) for stem in OUTPUTS}
    library, weights = library_hash(), _weights(sweep)
    outdated: set[str] = set()
    for run in sweep.runs():
        folder = run_folder(sweep.name, run.name)
        settings = {"notebook": run.notebook, "version": __version__, "code": codes[run.notebook], "library": library}
        own = weights if "weights" in run.parameters else {}
        text = json.dumps(settings | own | {"data": fingerprint, "parameters": run.parameters}, indent=1)
        file = folder / "settings.json"
        changed = not file.exists() or file.read_text(encoding="utf-8") != text
        half_done = (folder / "progress.log").exists() or not (complete(folder, run.notebook) and intact(folder))
        if changed or half_done or outdated & set(run.needs):
            outdated.add(run.name)
            for temporary in filter(Path.is_file, folder.glob(".*")):  # of writers that were killed
                temporary.unlink()
        for name in ("error.txt", "progress.log", *(OUTPUTS[run.notebook] if run.name in outdated else ())):
            (folder / name).unlink(missing_ok=True)
        if changed:  # last, so that a crash before it leaves the run as changed
            write_atomically(file, text)
        for each in folder.glob("*.*"):  # if the clock was set back; Snakemake takes what follows for a failure
            if each.stat().st_mtime > time.time():
                os.utime(each)


def _weights(sweep: SweepSettings) -> dict[str, Any]:
    """What settings.json says of a weights file, so that another one at the same path is noticed."""
    if sweep.weights is None:
        return {}
    from fixres_poc import weights

    return {"weights": weights.fingerprint(sweep.weights)}


def _command(folder: Path, cores: int | None, profile: str) -> list[str]:
    local = resolve(profile) == resolve(LOCAL_PROFILE)
    cores = cores or (machine.cores() if local else None)
    cards = len(gpus()) if local else 0
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--directory", str(folder), "--profile", str(resolve(profile)), "--workflow-profile", "none"]
    command += ["--keep-going", "--rerun-incomplete", "--nolock", "--rerun-triggers", "mtime", "--nocolor"]
    command += ["--config", f"threads={max(1, (cores or 1) // max(2, cards))}"]
    command += ["--cores", str(cores)] if cores else []
    return command + (["--resources", f"gpu={cards}"] if cards else [])


def _run_snakemake(sweep: SweepSettings, command: list[str], lock: int, monitor: Monitor) -> int:
    """Returns Snakemake's exit code; whatever it started is gone when this returns or raises."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "FIXRES_HOME": str(home())}
    cache = os.path.expanduser("~/.cache")
    if not os.access(cache if os.path.exists(cache) else os.path.dirname(cache), os.W_OK):  # Snakemake makes it
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
    finally:
        with _on_stop_signals(signal.SIG_IGN):  # who presses Ctrl-C twice wants nothing left at work, either
            _stop(process)
            slurm.cancel(sweep_folder(sweep.name))
        monitor.close()
    return process.returncode


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


def _explain_missing(sweep: SweepSettings) -> None:
    """Leave an error for every run that neither finished nor said why."""
    failed, said = failures(sweep), _last_error(sweep_folder(sweep.name) / "snakemake.log")
    for run in sweep.runs():
        folder = run_folder(sweep.name, run.name)
        if run.name not in failed and not complete(folder, run.notebook):
            cause = next((name for name in run.needs if name in failed), None)
            started = (folder / "progress.log").exists()
            own = "ended without a word: killed?" if started else f"not done; snakemake: {said}"
            failed[run.name] = f"not run, because {cause} failed" if cause else own
            write_atomically(folder / "error.txt", failed[run.name] + "\n")


def _last_error(log: Path) -> str:
    """The first error in what Snakemake said, else the last line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((index for index, line in enumerate(lines) if "error" in line.lower()), len(lines) - 1)
    return " ".join(lines[first : first + 1 + lines[first].endswith(":")]) if lines else "nothing"


def _report(sweep: SweepSettings) -> Path:
    """The report's page, rendered unless nothing has changed since it was."""
    page, stamp = report_folder(sweep.name) / "index.html", sweep_folder(sweep.name) / "report.json"
    state = json.dumps(_report_state(sweep), indent=1)
    if not (page.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == state):
        stamp.unlink(missing_ok=True)  # a failed report leaves a page, too
        page = render(sweep)
        write_atomically(stamp, state)
    return page


def _report_state(sweep: SweepSettings) -> dict[str, object]:
    notebook = notebook_path(REPORT_NOTEBOOK)
    made = {run.name: run_folder(sweep.name, run.name) / "metrics.json" for run in sweep.runs()}
    return {
        "version": __version__,
        "library": library_hash(everything=True),
        "notebook": code_hash(notebook, ("code", "markdown")) if notebook.exists() else None,
        "sweep": sweep.model_dump(mode="json"),
        "runs": {name: file.stat().st_mtime_ns for name, file in made.items() if file.exists()},
        "errors": failures(sweep),
    }


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[int]:
    """Hold the sweep's lock; a plain flock, since Snakemake inherits it and so keeps it should we be killed."""
    with open(file, "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another sweep is at work in {file.parent}; waiting until it ends", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _on_stop_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    # nohup's SIGHUP stays ignored: such a sweep is to outlive its terminal
    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, each in before.items():
            signal.signal(number, each)

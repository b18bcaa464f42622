"""A whole sweep: images, then Snakemake over the graph of runs, then the report over whatever exists.

In runs/<sweep>/ lie sweep.json (the settings), one folder a run, snakemake.log, and `lock`, which this process and
Snakemake hold, so that two sweeps of one name never work at the same time and a killed one never blocks the next.
"""

import contextlib
import resource
import sys

from fixres_poc.config import run_state
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import report_folder, run_folder, sweep_folder
from fixres_poc.config.run_state import images_record
from fixres_poc.config.settings import EMBEDDED_BACKBONES, TrainSettings
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.sweep.monitor import Monitor
from fixres_poc.sweep.reporting import render_if_changed
from fixres_poc.sweep.snakemake import (
    LOCAL_PROFILE,
    cancel_jobs,
    command_line,
    interrupt,
    last_error,
    on_stop_signals,
    run_snakemake,
)
from fixres_poc.sweep.workspace import lay_out, locked, refuse_loss

FEWEST_FILES, MANY_FILES = 256, 4096


def run_sweep(
    sweep: SweepSettings, cores: int | None = None, profile: str = LOCAL_PROFILE, replace: bool = False
) -> bool:
    """Do everything that a sweep still lacks, and render its report.

    Args:
        cores: processor cores to use, all by default.
        replace: delete finished runs that were made with other settings, instead of refusing to.

    Returns:
        Whether every run succeeded.

    Raises:
        InputError: images or notebooks cannot be used, or images were changed meanwhile.
        RuntimeError: Snakemake itself failed.
        KeyboardInterrupt: stopped by Ctrl-C, SIGTERM or SIGHUP; nothing is left at work.
    """
    folder = sweep_folder(sweep.name)
    with on_stop_signals(interrupt), locked(sweep.name) as lock:
        _check_start(sweep, replace)
        cancel_jobs(folder)  # jobs of a sweep that was killed
        fingerprint = prepare_data(sweep)
        _check_trained(sweep)
        lay_out(sweep, fingerprint)
        monitor = Monitor(sweep, sys.stderr)
        ended = 0
        if monitor.count("done") < len(sweep.runs()):
            ended = run_snakemake(sweep, command_line(sweep, cores, profile), lock, monitor)
            if prepare_data(sweep) != fingerprint:
                raise InputError(f"dataset = {sweep.dataset!r}: changed while the sweep was at work; start it again")
        failed = _explained_failures(sweep)
        if ended and not failed:
            raise RuntimeError(f"snakemake ended with {ended}; its output is in {folder / 'snakemake.log'}")
        _report(sweep, failed)
    return not failed


def _report(sweep: SweepSettings, failed: dict[str, str]) -> None:
    """Print what failed, and render the report; if no pair succeeded, the first failure is said last."""
    lines = [f"failed: {name}: {message}" for name, message in failed.items()]
    no_pair = all(run.name in failed for run in sweep.runs() if run.notebook == "04_fixres")
    for line in lines[no_pair:]:
        print(line, file=sys.stderr)
    try:
        page = render_if_changed(sweep)
    except RuntimeError:
        if not no_pair:  # without pairs notebook 05 always fails, which explains nothing
            raise
        page = report_folder(sweep.name) / "index.html"
    runs = len(sweep.runs())
    print(
        f"{runs - len(failed)} of {runs} runs of {sweep.name} are done, {len(failed)} failed; report: {page}",
        flush=True,
    )
    if no_pair:
        print(lines[0], file=sys.stderr)


def train_all(sweep: SweepSettings, replace: bool = False) -> None:
    """Do a sweep's trainings in all processes that `accelerate launch` has started; 03_train reads what they leave.

    Raises:
        InputError: images, notebooks, backbone or weights cannot be used.
    """
    from fixres_poc.data.dataset import load_dataset
    from fixres_poc.method import stage1
    from fixres_poc.model.device import accelerator_for

    accelerator = accelerator_for(sweep.precision)
    with contextlib.ExitStack() as stack:
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                stack.enter_context(locked(sweep.name))
                _check_start(sweep, replace)
                lay_out(sweep, prepare_data(sweep))
        for run in sweep.runs():
            if run.notebook == "03_train":
                settings = TrainSettings(**run.parameters)
                trained = stage1.train_or_load(settings, load_dataset(settings), accelerator)
                accelerator.print(f"{run.name}: {trained.val_top1:.1%} on validation")
    accelerator.end_training()


def _check_start(sweep: SweepSettings, replace: bool = False) -> None:
    """Refuse what cannot be used before images are drawn, and name terms; the embedded one is known without torch."""
    _allow_files()
    if not replace:
        refuse_loss(sweep)
    if sweep.backbone != EMBEDDED_BACKBONES[0] or sweep.weights is not None:
        from fixres_poc.model import backbones

        backbones.check(sweep)
        if terms := backbones.licence(sweep.backbone, sweep.weights):
            print(terms, file=sys.stderr)


def _allow_files() -> None:
    """Raise the limit of open files as far as it may be, for all that the sweep starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < FEWEST_FILES:  # a negative number stands for no limit
        raise InputError(f"ulimit -n = {hard}: too few files may be open at once; a sweep needs {FEWEST_FILES}")
    if 0 <= soft < MANY_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MANY_FILES) if hard > 0 else MANY_FILES, hard))


def _check_trained(sweep: SweepSettings) -> None:
    """Refuse a trained network that does not fit these classes before anything runs."""
    if sweep.head_start == "file":
        from fixres_poc.method import baseline

        baseline.from_file(sweep, images_record(sweep.name)["classes"])


def prepare_data(sweep: SweepSettings) -> str:
    """Draw or check the images of a sweep; returns their fingerprint.

    Raises:
        InputError: the folder cannot be used.
    """
    from fixres_poc.data.dataset import prepare_dataset

    return prepare_dataset(sweep.data_settings(), sweep_folder(sweep.name), sweep.skip_unreadable)


def _explained_failures(sweep: SweepSettings) -> dict[str, str]:
    """The failed runs' messages, after an error was left for every run that is not valid and did not say why."""
    jobs = sweep.jobs()
    failed, said = set(run_state.failures(sweep)), last_error(sweep_folder(sweep.name) / "snakemake.log")
    for each in run_state.outcomes(sweep):
        run = each.run
        if each.status in ("done", "failed"):
            continue
        unfinished = {job for job, runs in jobs.items() if failed.intersection(one.name for one in runs)}
        message = "ended without a word: killed?" if each.status == "active" else f"not done; snakemake: {said}"
        for name in run.needs:
            if name in failed or name in unfinished:
                message = f"not run, because {name if name in failed else f'a pair of {name}'} failed"
        if each.error:  # changed while it was at work
            message = f"{each.error}; start the sweep again"
        failed.add(run.name)
        folder = run_folder(sweep.name, run.name)
        run_state.fail(folder, message)
        run_state.end(folder)
    return run_state.failures(sweep)

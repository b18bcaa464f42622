# One sweep as a graph of jobs. `python -m fixres_poc sweep` starts it inside runs/<sweep>/, after it has written
# sweep.json there and a settings.json into every run's folder. A job runs notebooks one after another in one kernel.
import json
import re
import shlex
import sys
from pathlib import Path

from fixres_poc.config.run_state import JOB_DONE, state
from fixres_poc.config.notebooks import NOTEBOOKS
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate

SWEEP = validate(SweepSettings, json.loads(Path("sweep.json").read_text(encoding="utf-8")), "sweep.json")
LIMIT = f" --time-limit {SWEEP.run_time_limit}" if SWEEP.run_time_limit else ""
PYTHON = re.sub(r"([{}])", r"\1\1", shlex.quote(sys.executable))  # Snakemake would fill in what stands in braces
JOBS = SWEEP.jobs()


def settings_files(job):
    return [f"{run.name}/settings.json" for run in JOBS[job]]


def awaited(job):
    """Jobs that are waited for: of seed 0, whose choices later seeds take over, unless its training is done already."""
    known = {run.name: run for runs in JOBS.values() for run in runs}
    needs = {name for run in JOBS[job] for name in run.needs} - {job}
    return [f"{name}/{JOB_DONE}" for name in needs if state(known[name]) != "done"]


rule all:
    input:
        [f"{job}/{JOB_DONE}" for job in JOBS],


rule job:
    # What is outdated is gone before we start, so no file's age counts: clocks may go backwards.
    input:
        settings=lambda wildcards: [ancient(file) for file in settings_files(wildcards.job)],
        awaited=lambda wildcards: [ancient(file) for file in awaited(wildcards.job)],
    # No run's outputs: Snakemake deletes those of a failed job, and with them the runs that were done.
    output:
        f"{{job}}/{JOB_DONE}",
    wildcard_constraints:
        job="|".join(map(re.escape, JOBS)),
    priority: lambda wildcards: -list(JOBS).index(wildcards.job)
    threads: int(config.get("threads", 1))
    resources:
        gpu=lambda wildcards: int(any(NOTEBOOKS[run.notebook].uses_gpu for run in JOBS[wildcards.job])),
        turn=lambda wildcards, attempt: attempt,
    # exec makes Snakemake the job's parent, which the job watches.
    shell:
        f"exec {PYTHON} -m fixres_poc run{LIMIT} "
        "--turn {resources.turn} --done {output:q} {input.settings:q}"

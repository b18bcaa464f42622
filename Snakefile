# One sweep as a graph of files. `python -m fixres_poc sweep` starts it inside runs/<sweep>/, after it has written
# sweep.json there and a settings.json into every run's folder; a run depends on its settings.json, not on the sweep's.
import json
import re
import shlex
import sys
from pathlib import Path

from fixres_poc.config.run_state import OUTPUTS
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.sweep.notebook_run import TORCH_NOTEBOOKS

SWEEP = validate(SweepSettings, json.loads(Path("sweep.json").read_text(encoding="utf-8")), "sweep.json")
LIMIT = f" --time-limit {SWEEP.run_time_limit}" if SWEEP.run_time_limit else ""
PYTHON = re.sub(r"([{}])", r"\1\1", shlex.quote(sys.executable))  # Snakemake would fill in what stands in braces
RUNS = {run.name: run for run in SWEEP.runs()}


rule all:
    input:
        [f"{run.name}/{file}" for run in RUNS.values() for file in OUTPUTS[run.notebook]],


for notebook, files in OUTPUTS.items():
    if notebook not in {run.notebook for run in RUNS.values()}:
        continue

    rule:
        name:
            notebook.split("_", 1)[1]
        # What is outdated is gone before we start, so no file's age counts: clocks may go backwards.
        input:
            ancient("{run}/settings.json"),
            lambda wildcards: [ancient(f"{name}/metrics.json") for name in RUNS[wildcards.run].needs],
        output:
            [f"{{run}}/{file}" for file in files],
        # Logs outlive a failure, outputs do not. error.txt is no log, since Snakemake makes an empty one after success.
        log:
            "{run}/notebook.ipynb",
        wildcard_constraints:
            run="|".join(re.escape(run.name) for run in RUNS.values() if run.notebook == notebook),
        threads: int(config.get("threads", 1))
        resources:
            gpu=int(notebook in TORCH_NOTEBOOKS),
            turn=lambda wildcards, attempt: attempt,
        # Snakemake exports OMP_NUM_THREADS and the like; runs that are forked have one thread of OpenBLAS, so all do.
        # exec makes Snakemake the run's parent, which the run watches.
        shell:
            f"export OPENBLAS_NUM_THREADS=1; exec {PYTHON} -m fixres_poc run --end-with-parent{LIMIT} "
            "--turn {resources.turn} {input[0]:q}"

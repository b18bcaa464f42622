"""The command line: `python -m fixres_poc sweep|plan|train|data|run|report`.

Exit codes: 0 all went well; 1 a run or the program failed; 2 wrong input, in one line; 130 stopped by Ctrl-C.
"""

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

FILE = typer.Argument(help="the sweep file, such as sweeps/demo.yml", show_default=False)
SweepFile = Annotated[Path, FILE]
DATASET = "synthetic, stanford_dogs, or a folder of class folders; replaces the file's, and the sweep's name becomes "
DATASET += "<file's stem>-<folder's name>, as in reports/pictures-birds"
Dataset = Annotated[str | None, typer.Option(help=DATASET)]
Weights = Annotated[str | None, typer.Option(help="file to load instead of the backbone's own weights")]
Backbone = Annotated[str | None, typer.Option(help="replaces the file's backbone")]


class OneLineErrors(TyperGroup):
    """Turns exceptions into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; nobody sees a traceback, but the unexpected ones are kept in runs/error.log."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            raise typer.Exit(130) from None
        except Exception as error:
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort):
                raise  # typer's own, such as a missing argument
            raise typer.Exit(_tell(error)) from None


def _tell(error: Exception) -> int:
    from fixres_poc.config import InputError, home

    line = " ".join(str(error).split())
    if isinstance(error, InputError):
        print(f"error: {line}", file=sys.stderr)
        return 2
    log = home() / "runs" / "error.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    print(f"error: {type(error).__name__}: {line}; traceback in {log}", file=sys.stderr)
    return 1


app = typer.Typer(cls=OneLineErrors, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def describe() -> None:
    """Does FixRes help on my pictures, at which train and test size, and at what cost?"""


@app.command()
def sweep(
    file: SweepFile,
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
    cores: Annotated[int | None, typer.Option(min=1, help="processor cores to use, all by default")] = None,
    profile: Annotated[str, typer.Option(help="folder of a Snakemake profile")] = "profiles/local",
) -> None:
    """Do everything that a sweep still lacks: pictures, runs, report."""
    from fixres_poc.config import InputError, resolve
    from fixres_poc.engine import run_sweep
    from fixres_poc.reading import load_sweep

    if not (resolve(profile) / "config.yaml").is_file():
        raise InputError(f"profile = {profile!r}: no folder with a config.yaml; there are profiles/local and /slurm")
    settings = load_sweep(file, {"dataset": dataset, "backbone": backbone, "weights": weights})
    if not run_sweep(settings, cores, profile):
        raise typer.Exit(1)


@app.command()
def train(file: SweepFile, dataset: Dataset = None, backbone: Backbone = None, weights: Weights = None) -> None:
    """Do the trainings of a sweep, on several GPUs: accelerate launch -m fixres_poc train sweeps/x.yml."""
    from fixres_poc.engine import train_all
    from fixres_poc.reading import load_sweep

    train_all(load_sweep(file, {"dataset": dataset, "backbone": backbone, "weights": weights}))


@app.command()
def plan(
    file: SweepFile,
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
    memory: Annotated[str | None, typer.Option(help="of the card to plan for, such as 16GiB")] = None,
    tflops: Annotated[float | None, typer.Option(min=0.001, help="10^12 FLOP/s that training achieves there")] = None,
    json: Annotated[bool, typer.Option("--json", help="print it for programs: bytes, FLOPs, seconds")] = False,
) -> None:
    """Say what a sweep will need, memory and time, without drawing, downloading or training anything."""
    from fixres_poc import plan as planning
    from fixres_poc.reading import load_sweep

    settings = load_sweep(file, {"dataset": dataset, "backbone": backbone, "weights": weights})
    tables = planning.plan(settings, planning.memory_bytes(memory) if memory else None, tflops)
    if json:
        lines = (f'"{name}": {table.to_json(orient="records")}' for name, table in tables.items())
        print("{" + ",\n".join(lines) + "}")
    else:
        print(planning.text(tables))


@app.command()
def data(file: SweepFile, dataset: Dataset = None) -> None:
    """Draw or check the pictures of a sweep, without any training."""
    from fixres_poc.engine import prepare_data
    from fixres_poc.reading import load_sweep

    settings = load_sweep(file, {"dataset": dataset})
    print(f"the pictures of {settings.dataset} are ready, fingerprint {prepare_data(settings)}")


@app.command()
def report(file: SweepFile, dataset: Dataset = None, backbone: Backbone = None, weights: Weights = None) -> None:
    """Collect the runs of a sweep and render its report again, whatever exists."""
    from fixres_poc.engine import render
    from fixres_poc.reading import load_sweep

    settings = load_sweep(file, {"dataset": dataset, "backbone": backbone, "weights": weights})
    print(f"report: {render(settings)}")


@app.command()
def run(
    settings_file: Annotated[Path, typer.Argument(help="runs/<sweep>/<run>/settings.json", show_default=False)],
    end_with_parent: Annotated[bool, typer.Option("--end-with-parent", hidden=True)] = False,
) -> None:
    """Run one notebook from its settings file; what a sweep calls for every run."""
    from fixres_poc import runner

    if end_with_parent:
        runner.end_with_parent()
    message = runner.execute(settings_file)
    if message is not None:
        print(f"failed: {settings_file.parent.name}: {message}", file=sys.stderr)
        raise typer.Exit(1)

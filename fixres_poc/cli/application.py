"""The application, and what its commands share: one-line errors, options, output.

Exit codes: 0 success; 1 a run or the program failed; 2 wrong input, in one line; 130 stopped by
Ctrl-C. Relative paths are relative to the working folder. `make` passes its variables as
environment variables, FIXRES_SWEEP and so on; an option on the command line wins.
"""

import atexit
import contextlib
import gc
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Exit, Option
from typer.core import TyperGroup

from fixres_poc import __version__
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import REPOSITORY, home, resolve
from fixres_poc.config.settings import NAMED_DATASETS
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import load_sweep
from fixres_poc.sweep.kernel_state import keep_freed_memory

NEED_CLONE = ("sweep", "train", "run", "report", "publish")
"""Commands that need the notebooks and the Snakefile, which the package does not contain."""
FOREIGN = ("MPLBACKEND", "PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONSTARTUP", "PYTHONWARNINGS")


class OneLineErrors(TyperGroup):
    """Commands whose exceptions become one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; the traceback of an unexpected error goes to runs/error.log."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("stopped; run the same command again to resume", error=True)
            raise Exit(130) from None
        except Exception as error:
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort):
                raise  # an exception of typer, such as a missing argument
            raise Exit(_tell(error)) from None


def _tell(error: Exception) -> int:
    line = " ".join(str(error).split())
    if isinstance(error, InputError):
        say(f"error: {line}", error=True)
        return 2
    log = home() / "runs" / "error.log"
    hint = ""
    with contextlib.suppress(OSError):  # a full disk, or a folder that is not writable
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        hint = f"; traceback in {log}"
    say(f"error: {type(error).__name__}: {line}{hint}", error=True)
    return 1


def say(*lines: str, error: bool = False) -> None:
    """Print lines to stdout or stderr; terminal codes in names are escaped."""
    for line in lines:
        print(printable(line), file=sys.stderr if error else sys.stdout)


def answer(lines: Iterable[str], value: Any, as_json: bool) -> None:
    """Print lines for people, or a value as JSON for programs."""
    say(*(json.dumps(value, indent=1).splitlines() if as_json else lines))


def records(table: Any) -> Any:
    """A table as a list of rows, for JSON."""
    return json.loads(table.to_json(orient="records"))


def here(path: Path | None) -> Path | None:
    """Absolute form of a path of the command line."""
    return path and resolve(path, Path.cwd())


def _dataset(name: str | None) -> str | None:
    """The name of a named dataset, or the absolute path of a folder."""
    if not name:
        return name
    folder = resolve(name, Path.cwd())
    if name not in ("synthetic", *NAMED_DATASETS):
        return str(folder)
    if folder.is_dir():
        say(
            f"dataset {name}: the one of that name, not the folder {folder}; ./{name} is",
            error=True,
        )
    return name


def load(
    file: Path, dataset: str | None = None, backbone: str | None = None, weights: Path | None = None
) -> SweepSettings:
    """The settings of a sweep file, with the options of the command line."""
    options = {"dataset": dataset, "backbone": backbone, "weights": weights and str(weights)}
    return load_sweep(file, options)


SweepFile = Annotated[
    Path, Argument(envvar="FIXRES_SWEEP", callback=here, help="such as sweeps/demo.yml")
]
DATASET = "synthetic, a named one such as oxford_pets, or a folder of class folders"
Images = Annotated[str, Argument(callback=_dataset, help=DATASET)]
Dataset = Annotated[
    str | None,
    Option(
        envvar="FIXRES_DATASET",
        callback=_dataset,
        help=f"{DATASET}; replaces the file's, and the sweep's name becomes "
        "<file's stem>-<folder's name>, as in reports/images-birds",
    ),
]
Weights = Annotated[
    Path | None,
    Option(
        envvar="FIXRES_WEIGHTS",
        callback=here,
        help="file to load instead of the backbone's own weights",
    ),
]
Backbone = Annotated[
    str | None, Option(envvar="FIXRES_BACKBONE", help="replaces the file's backbone")
]
Replace = Annotated[
    bool,
    Option(
        "--replace", envvar="FIXRES_REPLACE", help="delete finished runs made with other settings"
    ),
]
Json = Annotated[bool, Option("--json", help="print JSON, in fractions, seconds and bytes")]
Run = Annotated[Path, Argument(callback=here, help="a finished run's folder, runs/<sweep>/<run>")]
Adaptation = Annotated[str | None, Option(help="one of the run's; default: the best on validation")]

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        say(f"fixres-poc {__version__}")
        raise Exit


Version = Annotated[
    bool, Option("--version", callback=_print_version, is_eager=True, help="print the version")
]


@app.callback()
def describe(ctx: typer.Context, _version: Version = False) -> None:
    """Does FixRes help on my images, at which train and test resolution, and at what cost?"""
    if ctx.invoked_subcommand in NEED_CLONE and not (REPOSITORY / "Snakefile").is_file():
        raise InputError(f"{ctx.invoked_subcommand}: needs a clone of the project's repository")
    # garbage collection took a fifth of the time of imports
    gc.set_threshold(1_000_000, 20, 100)
    atexit.register(gc.freeze)  # to collect all modules at the end took 0.8 s
    keep_freed_memory()
    # jsonschema takes seconds to import it, for a format that notebooks do not use
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    shield()
    # a path may hold letters that the terminal's encoding lacks
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def shield() -> None:
    """Change the environment, which runs inherit, so that they are the same on every machine.

    The user's settings of Python, IPython and matplotlib are ignored. A user unknown to the system,
    as in a container, gets a name and a home.
    """
    for name in FOREIGN:
        os.environ.pop(name, None)
    filters = [entry for entry in warnings.filters if entry[0] != "error"]
    warnings.filters[:] = filters  # type: ignore[index]
    os.environ["MATPLOTLIBRC"] = os.devnull
    if "FIXRES_HOME" in os.environ:  # the working folder changes while a notebook runs
        os.environ["FIXRES_HOME"] = str(home())
    runs = home() / "runs"
    os.environ["IPYTHONDIR"] = str(runs / ".ipython")
    if os.path.expanduser("~") == "~":  # neither $HOME nor an entry in /etc/passwd
        os.environ["HOME"] = str(runs / ".cache")
    os.environ.setdefault("USER", str(os.getuid()))  # Snakemake asks for a name

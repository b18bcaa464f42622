"""What all commands share: the application, its one-line errors, its options.

Exit codes: 0 all went well; 1 a run or the program failed; 2 wrong input, in one line; 130 stopped
by Ctrl-C.
"""

import contextlib
import gc
import io
import json as plain_json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fixres_poc.cli import surroundings
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import home, resolve
from fixres_poc.config.settings import NAMED_DATASETS
from fixres_poc.config.sweep_settings import SweepSettings

# jsonschema, which reads notebooks, would import this for a second, to check names of a kind that
# notebooks lack.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
SweepFile = Annotated[
    Path, typer.Argument(help="the sweep file, such as sweeps/demo.yml", show_default=False)
]
DATASET = "synthetic, a named one such as oxford_pets, or a folder of class folders; replaces the file's, and the "
DATASET += "sweep's name becomes <file's stem>-<folder's name>, as in reports/images-birds"
Dataset = Annotated[str | None, typer.Option(help=DATASET)]
Weights = Annotated[
    str | None, typer.Option(help="file to load instead of the backbone's own weights")
]
Backbone = Annotated[str | None, typer.Option(help="replaces the file's backbone")]
Replace = Annotated[
    bool, typer.Option("--replace", help="delete finished runs made with other settings")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON, in fractions, seconds and bytes")]
Run = Annotated[
    str, typer.Argument(help="a finished run's folder, runs/<sweep>/<run>", show_default=False)
]
ADAPTATION = "an adaptation of the run; default: the best on validation"
Adaptation = Annotated[str | None, typer.Option(help=ADAPTATION, show_default=False)]
Adaptations = Annotated[
    list[str] | None, typer.Option("--adaptation", help="may be given several times")
]
TEST_SIZE: Any = typer.Option(
    min=32, max=2048, help="side of the test crop in px", show_default=False
)


class OneLineErrors(TyperGroup):
    """Turns exceptions into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; nobody sees a traceback, but the unexpected ones are kept in runs/error.log."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("stopped; run the same command again to resume", file=sys.stderr)
            raise typer.Exit(130) from None
        except Exception as error:
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort):
                raise  # typer's own, such as a missing argument
            raise typer.Exit(_tell(error)) from None


def _tell(error: Exception) -> int:
    line = printable(" ".join(str(error).split()))
    if isinstance(error, InputError):
        print(f"error: {line}", file=sys.stderr)
        return 2
    log, kept = home() / "runs" / "error.log", ""
    with contextlib.suppress(OSError):  # a full disk, or one that may not be written to
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        kept = f"; traceback in {log}"
    print(f"error: {type(error).__name__}: {line}{kept}", file=sys.stderr)
    return 1


def say(*lines: str, json: Any = None) -> None:
    """Print lines for people, or a value for programs in their place."""
    for line in plain_json.dumps(json, indent=1).split("\n") if json else lines:
        print(printable(line))  # names in it may hold what a terminal would obey


def here(path: str | Path) -> Path:
    """Absolute form of a path that the command line gives: relative ones are relative to the working folder."""
    return resolve(path, Path.cwd())


def dataset_here(given: str) -> str:
    """The name of a named dataset, or the absolute path of a folder."""
    if given in ("", "synthetic", *NAMED_DATASETS):
        if given and Path(given).is_dir():
            print(
                f"dataset {given}: the one of that name, not the folder {here(given)}; ./{given} is",
                file=sys.stderr,
            )
        return given
    return str(here(given))


def load(file: Path, **overrides: str | None) -> SweepSettings:
    """The settings of a sweep file, with the options that were given."""
    from fixres_poc.config.validation import load_sweep

    given = {key: value for key, value in overrides.items() if value is not None}
    given |= {key: str(here(given[key])) for key in ("weights", "imagenet_list") if given.get(key)}
    return load_sweep(
        here(file), given | {key: dataset_here(given[key]) for key in given if key == "dataset"}
    )


def records(table: Any) -> Any:
    """A table as a list of rows, for JSON."""
    return plain_json.loads(table.to_json(orient="records"))


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def describe() -> None:
    """Does FixRes help on my images, at which train and test resolution, and at what cost?"""
    # looking for garbage among what imports leave took a fifth of their time
    gc.set_threshold(1_000_000, 20, 100)
    surroundings.shield()
    # a path may hold letters that the terminal's encoding has not
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

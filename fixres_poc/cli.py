"""The command line: `fixres-poc`, or `python -m fixres_poc`; docs/command_line.md shows every command.

Exit codes: 0 all went well; 1 a run or the program failed; 2 wrong input, in one line; 130 stopped by Ctrl-C.
"""

import contextlib
import io
import json as plain_json
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from fixres_poc.config import DatasetSettings, InputError, SweepSettings, View, home, report_folder, resolve

# jsonschema, which reads notebooks, would import this for a second, to check names of a kind that notebooks lack.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

SweepFile = Annotated[Path, typer.Argument(help="the sweep file, such as sweeps/demo.yml", show_default=False)]
DATASET = "synthetic, stanford_dogs, or a folder of class folders; replaces the file's, and the sweep's name becomes "
DATASET += "<file's stem>-<folder's name>, as in reports/pictures-birds"
Dataset = Annotated[str | None, typer.Option(help=DATASET)]
Weights = Annotated[str | None, typer.Option(help="file to load instead of the backbone's own weights")]
Backbone = Annotated[str | None, typer.Option(help="replaces the file's backbone")]
Json = Annotated[bool, typer.Option("--json", help="print for programs; fractions, seconds, bytes")]
Run = Annotated[str, typer.Argument(help="a finished run's folder, runs/<sweep>/<run>", show_default=False)]
ADAPTATION = "which of the run's; by default the one that validation prefers"
Adaptation = Annotated[str | None, typer.Option(help=ADAPTATION, show_default=False)]
Adaptations = Annotated[list[str] | None, typer.Option("--adaptation", help="may be given several times")]
TEST_SIZE: Any = typer.Option(min=32, max=2048, help="side of the test crop in px", show_default=False)
Format = StrEnum("Format", ["html", "pdf", "slides"])


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
    line = " ".join(str(error).split())
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


def _say(json: bool, value: Any, *lines: str) -> None:
    """Print the value for programs, or the lines for people."""
    for line in [plain_json.dumps(value, indent=1)] if json else lines:
        print(line)


def _load(file: Path, **overrides: str | None) -> SweepSettings:
    from fixres_poc.reading import load_sweep

    return load_sweep(file, overrides)


def _records(table: Any) -> Any:
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
    """Does FixRes help on my pictures, at which train and test size, and at what cost?"""
    for stream in (sys.stdout, sys.stderr):  # a path may hold letters that the terminal's encoding has not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@app.command(epilog="Example: fixres-poc sweep sweeps/pictures.yml --dataset /my/birds --cores 4")
def sweep(
    file: SweepFile,
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
    cores: Annotated[int | None, typer.Option(min=1, help="processor cores to use, all by default")] = None,
    profile: Annotated[str, typer.Option(help="folder of a Snakemake profile")] = "profiles/local",
    json: Json = False,
) -> None:
    """Do everything that a sweep still lacks: pictures, runs, report."""
    from fixres_poc import engine

    if not (resolve(profile) / "config.yaml").is_file():
        raise InputError(f"profile = {profile!r}: no folder with a config.yaml; there are profiles/local and /slurm")
    settings = _load(file, dataset=dataset, backbone=backbone, weights=weights)
    with contextlib.redirect_stdout(sys.stderr if json else sys.stdout):
        succeeded = engine.run_sweep(settings, cores, profile)
    if json:
        page = report_folder(settings.name) / "index.html"
        runs = [each.name for each in settings.runs()]
        failed = engine.failures(settings)
        _say(True, {"sweep": settings.name, "runs": runs, "failed": failed, "report": str(page)})
    if not succeeded:
        raise typer.Exit(1)


@app.command(epilog="Example: accelerate launch -m fixres_poc train sweeps/stanford_dogs.yml")
def train(file: SweepFile, dataset: Dataset = None, backbone: Backbone = None, weights: Weights = None) -> None:
    """Do only the trainings of a sweep, on several GPUs if `accelerate launch` starts it."""
    from fixres_poc.engine import train_all

    train_all(_load(file, dataset=dataset, backbone=backbone, weights=weights))


@app.command(epilog="Example: fixres-poc plan sweeps/stanford_dogs.yml --memory 24GiB --tflops 20")
def plan(
    file: SweepFile,
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
    memory: Annotated[str | None, typer.Option(help="of the card to plan for, such as 16GiB")] = None,
    tflops: Annotated[float | None, typer.Option(min=0.001, help="10^12 FLOP/s that training achieves there")] = None,
    json: Json = False,
) -> None:
    """Say what a sweep will need, memory and time, without drawing, downloading or training anything."""
    from fixres_poc import plan as planning

    settings = _load(file, dataset=dataset, backbone=backbone, weights=weights)
    tables = planning.plan(settings, planning.memory_bytes(memory) if memory else None, tflops)
    _say(json, {name: _records(table) for name, table in tables.items()}, planning.text(tables))


@app.command(epilog="Example: fixres-poc data sweeps/pictures.yml --dataset /my/birds")
def data(file: SweepFile, dataset: Dataset = None, json: Json = False) -> None:
    """Draw or check the pictures of a sweep, without any training."""
    from fixres_poc.engine import prepare_data

    settings = _load(file, dataset=dataset)
    fingerprint = prepare_data(settings)
    value = {"dataset": settings.dataset, "sweep": settings.name, "fingerprint": fingerprint}
    _say(json, value, f"the pictures of {settings.dataset} are ready, fingerprint {fingerprint}")


@app.command(epilog="Example: fixres-poc audit /my/birds --json")
def audit(
    pictures: Annotated[str, typer.Argument(help="a sweep file, or a folder of class folders", show_default=False)],
    imagenet_list: Annotated[str | None, typer.Option(help="ImageNet's training pictures, one a line")] = None,
    json: Json = False,
) -> None:
    """Are test pictures known to the backbone, or do near duplicates stand in two parts of the split or two classes?"""
    from fixres_poc import audit as auditing
    from fixres_poc import datasets
    from fixres_poc.reading import validate

    if pictures.endswith((".yml", ".yaml")):
        given = _load(Path(pictures), imagenet_list=imagenet_list)
        values = given.model_dump(include=set(DatasetSettings.model_fields))
    else:
        folder = str(Path(pictures).resolve()) if Path(pictures).is_dir() else pictures
        values = {"dataset": folder, "imagenet_list": imagenet_list}
    settings = validate(DatasetSettings, values, "audit")
    found = auditing.leakage(datasets.load(settings), settings.imagenet_list)
    twins = [f"{each.first} ~ {each.second} ({each.bits} bits)" for each in found.near.listed]
    summary = [f"{result:>13}  {check}" for check, result in found.summary().itertuples(index=False)]
    _say(json, found.record(), *summary, *twins, found.verdict().replace("**", ""))


@app.command(epilog="Example: fixres-poc adapt runs/demo/train96_seed0 --test-size 160 --adaptation none")
def adapt(run: Run, test_size: Annotated[int, TEST_SIZE], adaptation: Adaptations = None, json: Json = False) -> None:
    """Adapt a finished training at one more test size, and keep it as a run beside those of its sweep.

    Adapts and tests `none` and `head_bn` unless told otherwise.
    """
    from fixres_poc import finished

    folder = finished.adapt(run, test_size, adaptation or ["none", "head_bn"])
    rows = plain_json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["accuracies"]
    _say(json, {"run": str(folder), "accuracies": rows}, *map(_accuracy, rows), f"kept in {folder}")


@app.command(epilog="Example: fixres-poc evaluate runs/demo/train96_test144_seed0 --dataset /other/pictures")
def evaluate(
    run: Run,
    split: Annotated[Literal["test", "val", "train"], typer.Option(help="of the run's own pictures")] = "test",
    dataset: Annotated[str | None, typer.Option(help="other class folders; classes are matched by name")] = None,
    view: Annotated[View, typer.Option(help="crops of a picture, averaged")] = "center",
    test_size: Annotated[int | None, TEST_SIZE] = None,
    adaptation: Adaptations = None,
    json: Json = False,
) -> None:
    """Measure a finished run again: on another split or folder, in another view, at another test size."""
    from fixres_poc import finished

    network = finished.load(run)
    pictures, unknown = finished.class_folders(dataset, network.classes) if dataset else (network.pictures(), [])
    if unknown:
        print(f"left out, as the run has no such class: {', '.join(unknown)}", file=sys.stderr)
    names = adaptation or list(network.tails)
    rows = _records(network.accuracies(pictures, "test" if dataset else split, names, view, test_size))
    _say(json, {"run": str(network.folder), "left_out": unknown, "accuracies": rows}, *map(_accuracy, rows))


def _accuracy(row: dict[str, Any]) -> str:
    text = f"{row['adaptation']:13} {row['top1']:6.1%} ({row['top1_low']:.1%} to {row['top1_high']:.1%}, Wilson 95 %)"
    val = f", validation {row['val_top1']:.1%}" if "val_top1" in row else ""
    count = row.get("pictures", row.get("n_test"))
    return f"{text}, top-5 {row['top5']:.1%}, mean of classes {row['macro_accuracy']:.1%}{val}; {count} pictures"


@app.command(epilog="Example: fixres-poc predict dog.jpg holiday/ --sweep sweeps/demo.yml --top 3")
def predict(
    pictures: Annotated[list[Path], typer.Argument(help="pictures, or folders of them", show_default=False)],
    run: Annotated[str | None, typer.Option(help="a finished run's folder, runs/<sweep>/<run>")] = None,
    sweep: Annotated[str | None, typer.Option(help="a sweep's file or name; validation chooses the run")] = None,
    adaptation: Adaptation = None,
    view: Annotated[View | None, typer.Option(help="crops of a picture, averaged")] = None,
    top: Annotated[int, typer.Option(min=1, help="classes to name")] = 5,
    json: Json = False,
) -> None:
    """Name the classes of pictures, with probabilities.

    Without --run and --sweep it is the sweep of the newest finished pair. Of a sweep it takes the pair, adaptation and
    view that validation prefers. A picture that cannot be read is told after the others, with exit code 2.
    """
    from fixres_poc import finished

    if run and sweep:
        raise InputError("run and sweep: give one of the two; of a sweep validation chooses the run")
    choice: tuple[Path, str | None, View] = (Path(run), None, "center") if run else finished.chosen(sweep)
    network = finished.load(choice[0])
    adaptation, view = adaptation or choice[1] or network.best(), view or choice[2]
    print(f"{network.folder.parent.name}/{network.folder.name}, {adaptation}", file=sys.stderr)
    answers = network.classify(pictures, adaptation, view, top)
    named = [(each["picture"], each["classes"].items()) for each in answers if "classes" in each]
    lines = [f"{picture}: {', '.join(f'{name} {p:.1%}' for name, p in classes)}" for picture, classes in named]
    _say(json, {"run": str(network.folder), "adaptation": adaptation, "view": view, "answers": answers}, *lines)
    broken = [each["error"] for each in answers if "error" in each]
    for error in broken:
        print(f"error: {error}", file=sys.stderr)
    if broken:
        raise typer.Exit(2)


@app.command(epilog="Example: fixres-poc export runs/demo/train96_test144_seed0 --output dogs.onnx")
def export(
    run: Run,
    output: Annotated[Path, typer.Option(help="the file, .onnx or .pt2", show_default=False)],
    adaptation: Adaptation = None,
    format: Annotated[Literal["onnx", "torch"] | None, typer.Option(help="by default by the file's suffix")] = None,
    json: Json = False,
) -> None:
    """Write a finished run's network for other programs, checked against what the run predicted.

    ONNX needs `pip install fixres_poc[export]`; torch is a program of `torch.export`.
    """
    from fixres_poc import export as exporting
    from fixres_poc import finished

    network = finished.load(run)
    adaptation = adaptation or network.best()
    done = exporting.export(network, adaptation, output, format or ("torch" if output.suffix == ".pt2" else "onnx"))
    text = f"{done.file}: {adaptation} of {network.folder.name}; the same on {done.pictures} test pictures, to "
    text += f"{done.from_network:.1g} of the network and {done.from_run:.1g} of what the run stored"
    _say(json, {"adaptation": adaptation, **done._asdict(), "file": str(done.file)}, text)


@app.command(epilog="Example: fixres-poc report sweeps/demo.yml --format pdf")
def report(
    file: SweepFile,
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
    form: Annotated[Format, typer.Option("--format", help="pdf and slides come besides html")] = Format.html,
    json: Json = False,
) -> None:
    """Collect the runs of a sweep and render its report again, whatever exists."""
    from fixres_poc.engine import render
    from fixres_poc.report import export

    settings = _load(file, dataset=dataset, backbone=backbone, weights=weights)
    render(settings)
    page = export(settings.name, form)
    _say(json, {"report": str(page)}, f"report: {page}")


@app.command(epilog="Example: fixres-poc run runs/demo/train96_seed0/settings.json")
def run(
    settings_file: Annotated[Path, typer.Argument(help="runs/<sweep>/<run>/settings.json", show_default=False)],
    end_with_parent: Annotated[bool, typer.Option("--end-with-parent", hidden=True)] = False,
    time_limit: Annotated[int | None, typer.Option(min=1, help="most seconds it may take")] = None,
) -> None:
    """Run one notebook from its settings file; what a sweep calls for every run."""
    from fixres_poc import runner

    if end_with_parent:
        runner.end_with_parent()
    message = runner.execute(settings_file, time_limit)
    if message is not None:
        print(f"failed: {settings_file.parent.name}: {message}", file=sys.stderr)
        raise typer.Exit(1)

"""Commands about sweeps and datasets."""

import re
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from fixres_poc.cli.application import (
    Backbone,
    Dataset,
    Images,
    Json,
    Replace,
    SweepFile,
    Weights,
    answer,
    app,
    here,
    load,
    records,
    say,
)
from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DataSettings
from fixres_poc.config.validation import validate


def memory_bytes(text: str | None) -> int | None:
    """Bytes of a size such as "16GiB" or "16 GB"; both are GiB, as in the names of cards.

    Raises:
        InputError: it is no such size.
    """
    if not text:
        return None
    match = re.fullmatch(r"(?i)\s*(\d+(?:\.\d+)?)\s*(Gi?B?)?\s*", text)
    if not match or not float(match[1]):
        raise InputError(f"memory = {text!r}: allowed is a number of GiB, such as 16GiB")
    return int(float(match[1]) * 2**30)


@app.command(epilog="Example: fixres-poc sweep sweeps/images.yml --dataset /my/birds --cores 4")
def sweep(
    file: SweepFile,
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
    cores: Annotated[
        int | None, Option(min=1, envvar="FIXRES_CORES", help="processor cores, all by default")
    ] = None,
    profile: Annotated[
        Path | None,
        Option(
            envvar="FIXRES_PROFILE",
            callback=here,
            help="folder of a Snakemake profile; default: this machine",
        ),
    ] = None,
    replace: Replace = False,
) -> None:
    """Run all missing parts of a sweep: images, runs, report."""
    from fixres_poc.sweep.execution import run_sweep
    from fixres_poc.sweep.snakemake import LOCAL_PROFILE

    if profile and not (profile / "config.yaml").is_file():
        raise InputError(
            f"profile = {str(profile)!r}: no folder with a config.yaml; see profiles/slurm"
        )
    settings = load(file, dataset, backbone, weights)
    if not run_sweep(settings, cores, str(profile or LOCAL_PROFILE), replace):
        raise Exit(1)


@app.command(epilog="Example: accelerate launch -m fixres_poc train sweeps/stanford_dogs.yml")
def train(
    file: SweepFile,
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
    replace: Replace = False,
) -> None:
    """Run only the trainings of a sweep.

    `accelerate launch` runs them on several GPUs.
    """
    from fixres_poc.sweep.execution import train_all

    train_all(load(file, dataset, backbone, weights), replace)


@app.command(epilog="Example: fixres-poc plan sweeps/stanford_dogs.yml --memory 24GiB --tflops 20")
def plan(
    file: SweepFile,
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
    memory: Annotated[
        str | None, Option(envvar="FIXRES_MEMORY", help="of the card to plan for, such as 16GiB")
    ] = None,
    tflops: Annotated[
        float | None,
        Option(min=0.001, envvar="FIXRES_TFLOPS", help="10^12 FLOP/s that training achieves there"),
    ] = None,
    details: Annotated[
        bool, Option("--details", envvar="FIXRES_DETAILS", help="with a table of pairs")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how much time and memory a sweep will need.

    Nothing is drawn, downloaded or trained.
    """
    from fixres_poc.sweep import plan as planning

    settings = load(file, dataset, backbone, weights)
    tables = planning.plan(settings, memory_bytes(memory), tflops)
    record = {name: records(table) for name, table in tables.items()}
    answer(planning.text(settings, tables, details), record, as_json)


@app.command(epilog="Example: fixres-poc data sweeps/images.yml --dataset /my/birds")
def data(
    file: SweepFile, dataset: Dataset = None, backbone: Backbone = None, weights: Weights = None
) -> None:
    """Draw or check the images of a sweep, without any training."""
    from fixres_poc.sweep.execution import prepare_data

    settings = load(file, dataset, backbone, weights)
    fingerprint = prepare_data(settings)
    say(f"{settings.name}: the images of {settings.dataset} are ready, fingerprint {fingerprint}")


@app.command(epilog="Example: fixres-poc audit /my/birds --json")
def audit(
    images: Images,
    imagenet_list: Annotated[
        Path | None, Option(callback=here, help="ImageNet's training images, one a line")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for leaked test images and near duplicates.

    The network may know leaked images from its pre-training. Near duplicates are counted between
    parts of the split and between classes.
    """
    from fixres_poc.data.dataset import load_dataset
    from fixres_poc.data.leakage import check_leakage

    known, name = str(imagenet_list) if imagenet_list else None, None
    if images.endswith((".yml", ".yaml")):
        sweep = load(Path(images))
        settings, name = sweep.data_settings(), sweep.name
        known = known or sweep.imagenet_list
    else:
        settings = validate(DataSettings, {"dataset": images}, "audit")
    dataset = load_dataset(settings, name)
    say(*dataset.notes, error=True)
    leakage = check_leakage(dataset, known, settings.dataset == "synthetic")
    lines = [f"{result:>13}  {check}" for check, result in leakage.summary().to_numpy()]
    lines += [f"{image} ~ {twin} ({bits} bits)" for image, twin, bits in leakage.near.listed]
    answer([*lines, leakage.verdict().replace("**", "")], leakage.record(), as_json)


@app.command(epilog="Example: fixres-poc report sweeps/demo.yml")
def report(
    source: Annotated[
        Path,
        Argument(
            envvar=["FIXRES_FROM", "FIXRES_SWEEP"],
            callback=here,
            help="a sweep file, or the folder of a report",
        ),
    ],
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
) -> None:
    """Render a report again.

    The source is the runs of a sweep that exist, or the tables in a report's folder.
    """
    from fixres_poc.sweep import reporting
    from fixres_poc.sweep.execution import locked

    if source.is_dir():
        page = reporting.rebuild(source)
    else:
        settings = load(source, dataset, backbone, weights)
        with locked(settings.name):
            page = reporting.render(settings)
    say(f"report: {page}")


@app.command(epilog="Example: fixres-poc publish sweeps/demo.yml")
def publish(
    file: SweepFile, dataset: Dataset = None, backbone: Backbone = None, weights: Weights = None
) -> None:
    """Copy a report to docs/reports, where reports are committed."""
    from fixres_poc.sweep import reporting

    settings = load(file, dataset, backbone, weights)
    say(f"published: {reporting.publish(settings)}")


@app.command(epilog="Example: fixres-poc compare images-birds images-birds-resnet50")
def compare(
    names: Annotated[
        list[str], Argument(envvar="FIXRES_SWEEPS", help="names of sweeps that have a report")
    ],
) -> None:
    """Compare sweeps: networks, or datasets.

    Networks on the same images are compared image by image, on different images by their verdicts.
    """
    from fixres_poc.report import overview

    say(f"comparison: {overview.compare(names)}")


@app.command(epilog="Example: fixres-poc run runs/demo/train64_seed0/settings.json")
def run(
    settings_files: Annotated[list[Path], Argument(help="runs/<sweep>/<run>/settings.json")],
    time_limit: Annotated[int | None, Option(min=1, help="seconds, for each notebook")] = None,
    turn: Annotated[int, Option(hidden=True)] = 1,
    done: Annotated[Path | None, Option(hidden=True)] = None,
) -> None:
    """Run notebooks from their settings files, as a sweep does.

    They run one after another in one kernel.
    """
    from fixres_poc.sweep import notebook_run

    if done:  # a job of Snakemake, which ends with its parent
        notebook_run.end_with_parent()
    failures = notebook_run.run_job(settings_files, time_limit, done, turn)
    for name, failure in failures.items():
        say(f"failed: {name}: {failure.message}", error=True)
    # other jobs may wait for this one, whose failed pairs do not concern them
    raise Exit(bool(failures) and not (done and done.is_file()))

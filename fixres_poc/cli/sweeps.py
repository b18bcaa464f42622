"""Commands about sweeps and datasets."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fixres_poc.cli.application import (
    Backbone,
    Dataset,
    Json,
    Replace,
    SweepFile,
    Weights,
    app,
    dataset_here,
    here,
    load,
    records,
    say,
)
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.settings import DatasetSettings


@app.command(epilog="Example: fixres-poc sweep sweeps/images.yml --dataset /my/birds --cores 4")
def sweep(
    file: SweepFile,
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="processor cores to use, all by default")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="folder of a Snakemake profile; default: this machine")
    ] = None,
    replace: Replace = False,
) -> None:
    """Run all missing parts of a sweep: images, runs, report."""
    from fixres_poc.sweep.execution import run_sweep
    from fixres_poc.sweep.snakemake import LOCAL_PROFILE

    if profile and not (here(profile) / "config.yaml").is_file():
        raise InputError(
            f"profile = {str(here(profile))!r}: no folder with a config.yaml; see profiles/slurm"
        )
    settings = load(file, dataset=dataset, backbone=backbone, weights=weights)
    if not run_sweep(settings, cores, str(here(profile)) if profile else LOCAL_PROFILE, replace):
        raise typer.Exit(1)


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

    train_all(load(file, dataset=dataset, backbone=backbone, weights=weights), replace)


@app.command(epilog="Example: fixres-poc plan sweeps/stanford_dogs.yml --memory 24GiB --tflops 20")
def plan(
    file: SweepFile,
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
    memory: Annotated[
        str | None, typer.Option(help="of the card to plan for, such as 16GiB")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="10^12 FLOP/s that training achieves there")
    ] = None,
    json: Json = False,
) -> None:
    """Say how much memory and time a sweep will need.

    Nothing is drawn, downloaded or trained.
    """
    from fixres_poc.sweep import plan as planning

    settings = load(file, dataset=dataset, backbone=backbone, weights=weights)
    tables = planning.plan(settings, planning.memory_bytes(memory) if memory else None, tflops)
    answer = {name: records(table) for name, table in tables.items()}
    say(*planning.text(tables).split("\n"), json=json and answer)


@app.command(epilog="Example: fixres-poc data sweeps/images.yml --dataset /my/birds")
def data(file: SweepFile, dataset: Dataset = None) -> None:
    """Draw or check the images of a sweep, without any training."""
    from fixres_poc.sweep.execution import prepare_data

    settings = load(file, dataset=dataset)
    fingerprint = prepare_data(settings)
    say(f"{settings.name}: the images of {settings.dataset} are ready, fingerprint {fingerprint}")


@app.command(epilog="Example: fixres-poc audit /my/birds --json")
def audit(
    images: Annotated[
        str, typer.Argument(help="a sweep file, or a folder of class folders", show_default=False)
    ],
    imagenet_list: Annotated[
        str | None, typer.Option(help="ImageNet's training images, one a line")
    ] = None,
    json: Json = False,
) -> None:
    """Look for leaked test images and near duplicates.

    Leaked: the network may know them. Near duplicates are those in two parts of the split, or in
    two classes.
    """
    from fixres_poc.config.validation import validate
    from fixres_poc.data.dataset import load_dataset
    from fixres_poc.data.leakage import check_leakage

    if images.endswith((".yml", ".yaml")):
        given = load(Path(images), imagenet_list=imagenet_list)
        values = given.model_dump(include=set(DatasetSettings.model_fields))
    else:
        values = {
            "dataset": dataset_here(images),
            "imagenet_list": imagenet_list and str(here(imagenet_list)),
        }
    settings = validate(DatasetSettings, values, "audit")
    data = load_dataset(settings)
    for note in data.notes:
        print(printable(note), file=sys.stderr)
    found = check_leakage(data, settings.imagenet_list)
    twins = [f"{first} ~ {second} ({bits} bits)" for first, second, bits in found.near.listed]
    summary = [
        f"{result:>13}  {check}" for check, result in found.summary().itertuples(index=False)
    ]
    say(*summary, *twins, found.verdict().replace("**", ""), json=json and found.record())


@app.command(epilog="Example: fixres-poc report sweeps/demo.yml")
def report(
    source: Annotated[
        Path, typer.Argument(help="a sweep file, or the folder of a report", show_default=False)
    ],
    dataset: Dataset = None,
    backbone: Backbone = None,
    weights: Weights = None,
) -> None:
    """Render a report again.

    Of a sweep it is made from the runs that exist, of a folder from the tables in it.
    """
    from fixres_poc.sweep import reporting
    from fixres_poc.sweep.execution import locked

    if here(source).is_dir():
        page = reporting.rebuild(here(source))
    else:
        settings = load(source, dataset=dataset, backbone=backbone, weights=weights)
        with locked(settings.name):
            page = reporting.render(settings)
    say(f"report: {page}")


@app.command(epilog="Example: fixres-poc publish sweeps/demo.yml")
def publish(
    file: SweepFile, dataset: Dataset = None, backbone: Backbone = None, weights: Weights = None
) -> None:
    """Copy a report to docs/reports, where reports are committed."""
    from fixres_poc.sweep import reporting

    say(
        f"published: {reporting.publish(load(file, dataset=dataset, backbone=backbone, weights=weights).name)}"
    )


@app.command(epilog="Example: fixres-poc compare dogs10 dogs10-tf_efficientnet_lite2")
def compare(
    names: Annotated[
        list[str], typer.Argument(help="names of sweeps that have a report", show_default=False)
    ],
) -> None:
    """Put sweeps side by side: networks, or datasets.

    Networks on the same images are compared image by image. On different images, only verdicts are
    compared.
    """
    from fixres_poc.report import overview

    say(f"comparison: {overview.compare(names)}")


@app.command(epilog="Example: fixres-poc run runs/demo/train96_seed0/settings.json")
def run(
    settings_files: Annotated[
        list[Path], typer.Argument(help="runs/<sweep>/<run>/settings.json", show_default=False)
    ],
    end_with_parent: Annotated[bool, typer.Option("--end-with-parent", hidden=True)] = False,
    time_limit: Annotated[
        int | None, typer.Option(min=1, help="most seconds that each may take")
    ] = None,
    turn: Annotated[
        int,
        typer.Option(
            min=1, hidden=True, help="1 for the first try; others leave what fails by itself"
        ),
    ] = 1,
    done: Annotated[
        Path | None, typer.Option(hidden=True, help="file to make at the end; skips what is done")
    ] = None,
) -> None:
    """Run notebooks from their settings files, as a sweep does.

    They run one after another in one kernel.
    """
    from fixres_poc.config.validation import check_run
    from fixres_poc.sweep import notebook_run

    for file in settings_files:
        check_run(file)
    if end_with_parent:
        notebook_run.end_with_parent()
    raise typer.Exit(notebook_run.run_job(settings_files, time_limit, done, turn))

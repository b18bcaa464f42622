"""Commands that use a finished run, or a network of one's own."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fixres_poc.cli.application import (
    TEST_SIZE,
    Adaptation,
    Adaptations,
    Json,
    Run,
    app,
    dataset_here,
    here,
    records,
    say,
)
from fixres_poc.config.errors import InputError, printable
from fixres_poc.config.files import check_output
from fixres_poc.config.settings import View

Colour = tuple[float, float, float]


@app.command(epilog="Example: fixres-poc predict dog.jpg holiday/ --sweep sweeps/demo.yml --top 3")
def predict(
    images: Annotated[
        list[Path], typer.Argument(help="images, or folders of them", show_default=False)
    ],
    run: Annotated[
        str | None, typer.Option(help="a finished run's folder, runs/<sweep>/<run>")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="a sweep's file or name; validation chooses the run")
    ] = None,
    adaptation: Adaptation = None,
    view: Annotated[View | None, typer.Option(help="crops of an image, averaged")] = None,
    top: Annotated[int, typer.Option(min=1, help="classes to name")] = 5,
    json: Json = False,
) -> None:
    """Name the classes of images, with probabilities.

    The default is the sweep of the newest finished pair. In a sweep, the pair, adaptation and view
    are the best on validation. Unreadable images are listed after the others, with exit code 2.
    """
    from fixres_poc.inference import finished_run

    if run and sweep:
        raise InputError(
            "run and sweep: give one of the two; of a sweep validation chooses the run"
        )
    choice: tuple[Path, str | None, View] = (
        (Path(run), None, "center") if run else finished_run.chosen(sweep)
    )
    network = finished_run.load(choice[0])
    adaptation, view = adaptation or choice[1] or network.best(), view or choice[2]
    print(f"{network.folder.parent.name}/{network.folder.name}, {adaptation}", file=sys.stderr)
    answers = network.classify(images, adaptation, view, top)
    named = [(each["image"], each["classes"].items()) for each in answers if "classes" in each]
    lines = [
        f"{image}: {', '.join(f'{name} {p:.1%}' for name, p in classes)}"
        for image, classes in named
    ]
    answer = {
        "run": str(network.folder),
        "adaptation": adaptation,
        "view": view,
        "answers": answers,
    }
    say(*lines, json=json and answer)
    broken = [each["error"] for each in answers if "error" in each]
    for error in broken:
        print(f"error: {error}", file=sys.stderr)
    if broken:
        raise typer.Exit(2)


@app.command(
    epilog="Example: fixres-poc evaluate runs/demo/train96_test160_seed0 --dataset /other/images"
)
def evaluate(
    run: Run,
    split: Annotated[
        Literal["test", "val", "train"], typer.Option(help="of the run's own images")
    ] = "test",
    dataset: Annotated[
        str | None, typer.Option(help="other class folders; classes are matched by name")
    ] = None,
    view: Annotated[View, typer.Option(help="crops of an image, averaged")] = "center",
    test_size: Annotated[int | None, TEST_SIZE] = None,
    adaptation: Adaptations = None,
    json: Json = False,
) -> None:
    """Measure a finished run on other images, or at another size."""
    from fixres_poc.data.dataset import class_folders
    from fixres_poc.inference import finished_run

    network = finished_run.load(run)
    data, unknown = (
        class_folders(str(here(dataset)), network.classes) if dataset else (network.data(), [])
    )
    for note in data.notes:
        print(printable(note), file=sys.stderr)
    if unknown:
        print(
            printable(f"left out, as the run has no such class: {', '.join(unknown)}"),
            file=sys.stderr,
        )
    names = adaptation or list(network.tails)
    rows = records(network.accuracies(data, "test" if dataset else split, names, view, test_size))
    answer = {"run": str(network.folder), "left_out": unknown, "accuracies": rows}
    say(*map(_accuracy, rows), json=json and answer)


def _accuracy(row: dict[str, Any]) -> str:
    text = f"{row['adaptation']:13} {_interval(row)}"
    return f"{text}, top-5 {row['top5']:.1%}, mean of classes {row['macro_accuracy']:.1%}; {row['images']} images"


@app.command(epilog="Example: fixres-poc export runs/demo/train96_test160_seed0 --output dogs.onnx")
def export(
    run: Run,
    output: Annotated[Path, typer.Option(help="the file, .onnx", show_default=False)],
    adaptation: Adaptation = None,
) -> None:
    """Write a finished run's network as ONNX.

    The file is checked against the run's predictions. Needs `pip install fixres_poc[export]`.
    """
    from fixres_poc.inference import export as exporting
    from fixres_poc.inference import finished_run

    output = here(output)
    check_output(output, ".onnx")
    network = finished_run.load(run)
    adaptation = adaptation or network.best()
    done = exporting.export(network, adaptation, output)
    say(
        f"{done.file}: {adaptation} of {network.folder.name}; on {done.images} test images, probabilities "
        f"differ by at most {done.from_network:.1g} from the network and {done.from_run:.1g} from the stored run"
    )


@app.command(
    epilog="Example: fixres-poc adapt my_birds.pt resnet50 /my/birds --train-size 224 --test-size 288"
)
def adapt(
    weights: Annotated[
        Path, typer.Argument(help="a trained network: safetensors, or what torch.save wrote")
    ],
    architecture: Annotated[str, typer.Argument(help="its name in timm, such as resnet50")],
    dataset: Annotated[str, typer.Argument(help="folder of class folders")],
    train_size: Annotated[
        int, typer.Option(min=32, max=2048, help="side of the crop that it was trained on, px")
    ],
    test_size: Annotated[int, TEST_SIZE],
    output: Annotated[
        Path | None, typer.Option(help="safetensors file to write, for the same architecture")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="text file, a class a line, in the network's order")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the train part")] = 2,
    weights_key: Annotated[
        str | None, typer.Option(help="entry of the weights file, such as model_ema")
    ] = None,
    learning_rate: Annotated[
        float, typer.Option(help="at the first step; it falls to zero")
    ] = 0.01,
    mean: Annotated[
        Colour | None, typer.Option(help="that it was trained with, in [0, 1]; by default timm's")
    ] = None,
    std: Annotated[
        Colour | None, typer.Option(help="that it was trained with; given with --mean")
    ] = None,
) -> None:
    """Adapt a network that was trained elsewhere to a test resolution.

    Its classes are the sorted names of the folders, unless the file says otherwise (`classes`,
    `class_to_idx`).
    """
    from fixres_poc.inference import own_network

    if (mean is None) != (std is None):
        raise InputError("mean and std: give both, or neither")
    output = output and here(output)
    if output is not None:
        check_output(output, ".safetensors")
    network, names, source = own_network.read(
        here(weights), architecture, classes and here(classes), weights_key
    )
    how: dict[str, Any] = {"adapt_epochs": epochs, "adapt_learning_rate": learning_rate}
    how |= {"mean_std": mean and std and (mean, std), "source": source}
    done = own_network.adapt(network, dataset_here(dataset), train_size, test_size, names, **how)
    if output is not None:
        done.save(output)
    for row in records(done.accuracies):
        say(f"{row['test_size']} px, {row['adaptation']:13} {_interval(row)} on test")
    say(
        f"validation prefers {done.adaptation} at {test_size} px: {done.gain.points()} over none, on test"
    )
    if hint := done.near_chance():
        say(hint)


def _interval(row: dict[str, Any]) -> str:
    return f"{row['top1']:6.1%} ({row['top1_low']:.1%} to {row['top1_high']:.1%}, Wilson 95 %)"

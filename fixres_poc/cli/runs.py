"""Commands that use a finished run, or adapt a network that was trained elsewhere."""

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Exit, Option

from fixres_poc.cli.application import (
    Adaptation,
    Images,
    Json,
    Run,
    answer,
    app,
    here,
    records,
    say,
)
from fixres_poc.config.errors import InputError
from fixres_poc.config.files import check_output, read_lines
from fixres_poc.config.geometry import CROP_PCT
from fixres_poc.config.settings import View

Colour = Annotated[
    tuple[float, float, float] | None,
    Option(help="of the training, in [0, 1]; give both mean and std; default: timm's"),
]
Weights = Annotated[
    Path, Argument(callback=here, help="a trained network: safetensors, or what torch.save wrote")
]
Classes = Annotated[
    Path | None, Option(callback=here, help="text file, one class per line, in the network's order")
]
CropPcts = Annotated[
    list[float] | None, Option(help="crop / resized short side; several: validation chooses")
]
Tensors = Annotated[
    Path | None, Option(callback=here, help="safetensors file to write, for the same architecture")
]


@app.command(epilog="Example: fixres-poc predict dog.jpg holiday/ --sweep sweeps/demo.yml --top 3")
def predict(
    images: Annotated[list[Path], Argument(help="images, or folders of them")],
    run: Annotated[Path | None, Option(callback=here, help="a finished run's folder")] = None,
    sweep: Annotated[
        str | None, Option(help="a sweep's file or name; its report chooses the run")
    ] = None,
    adaptation: Adaptation = None,
    top: Annotated[int, Option(min=1, help="classes to name")] = 5,
    as_json: Json = False,
) -> None:
    """Name the classes of images, with probabilities.

    The default is the sweep of the newest finished pair. For a sweep it uses the arm that the
    report recommends. Unreadable images are listed after the others, with exit code 2.
    """
    from fixres_poc.inference import finished_run

    if run and sweep:
        raise InputError("run and sweep: give one of the two; validation chooses a sweep's run")
    network, adaptation, view = finished_run.load_best(run, sweep, adaptation)
    answers = network.classify(images, adaptation, view, top)
    place, crop_pct = network.folder, network.settings.crop_pct
    say(f"{place.parent.name}/{place.name}, {adaptation}, crop_pct {crop_pct}", error=True)
    lines, errors = list[str](), list[str]()
    for row in answers:
        if "error" in row:
            errors.append(f"error: {row['error']}")
        else:
            classes = [f"{name} {share:.1%}" for name, share in row["classes"].items()]
            lines.append(f"{row['image']}: {', '.join(classes)}")
    record = {
        "run": str(network.folder),
        "adaptation": adaptation,
        "view": view,
        "crop_pct": crop_pct,
        "answers": answers,
    }
    answer(lines, record, as_json)
    say(*errors, error=True)
    if errors:
        raise Exit(2)


@app.command(
    epilog="Example: fixres-poc evaluate runs/demo/train64_test80_seed0 --dataset /other/images"
)
def evaluate(
    run: Run,
    split: Annotated[
        Literal["test", "val", "train"], Option(help="of the run's own images")
    ] = "test",
    dataset: Annotated[
        Path | None, Option(callback=here, help="other class folders; classes are matched by name")
    ] = None,
    view: Annotated[View, Option(help="crops of an image, averaged")] = "center",
    test_size: Annotated[
        int | None, Option(min=32, max=2048, help="side of the test crop in px")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a finished run on other images, or at another size.

    The framing is the crop_pct that the run's validation prefers.
    """
    from fixres_poc.data.dataset import class_folders
    from fixres_poc.inference import finished_run

    network, _ = finished_run.load(run).best()
    unknown: list[str] = []
    if dataset:
        data, unknown = class_folders(str(dataset), network.classes)
        split = "test"
    else:
        data = network.data()
    say(*data.notes, error=True)
    if unknown:
        say(f"left out, as the run has no such class: {', '.join(unknown)}", error=True)
    rows = records(network.accuracies(data, split, view, test_size))
    record = {"run": str(network.folder), "left_out": unknown, "accuracies": rows}
    answer(map(_accuracy, rows), record, as_json)


def _accuracy(row: dict[str, Any]) -> str:
    return (
        f"{row['adaptation']:13} crop_pct {row['crop_pct']:<6g} {row['top1']:6.1%} "
        f"({row['top1_low']:.1%} to {row['top1_high']:.1%}, Wilson 95 %), top-5 {row['top5']:.1%}, "
        f"mean of classes {row['macro_accuracy']:.1%}; {row['images']} images"
    )


@app.command(epilog="Example: fixres-poc export runs/demo/train64_test80_seed0 --output dogs.onnx")
def export(
    run: Run,
    output: Annotated[Path, Option(callback=here, help="the file, .onnx")],
    adaptation: Adaptation = None,
) -> None:
    """Write a finished run's network as ONNX.

    The file is checked against the run's predictions. Needs `pip install fixres_poc[export]`.
    """
    from fixres_poc.inference import export as exporting
    from fixres_poc.inference import finished_run

    network, adaptation = finished_run.load(run).best(adaptation)
    exported = exporting.export(network, adaptation, output)
    say(
        f"{exported.file}: {adaptation} of {network.folder.name}, to be framed with crop_pct "
        f"{network.settings.crop_pct:g}; on {exported.images} test images, "
        f"probabilities differ by at most {exported.from_network:.1g} from the network and "
        f"{exported.from_run:.1g} from the stored run"
    )


@app.command(
    epilog="Example: fixres-poc adapt my_birds.pt resnet50 /my/birds "
    "--train-size 224 --test-size 288"
)
def adapt(
    weights: Weights,
    architecture: Annotated[str, Argument(help="its name in timm, such as resnet50")],
    dataset: Images,
    train_size: Annotated[int, Option(help="side of the crop it was trained on, px")],
    test_size: Annotated[int, Option(help="side of the test crop in px")],
    output: Tensors = None,
    classes: Classes = None,
    epochs: Annotated[int, Option(help="passes over the train part")] = 2,
    weights_key: Annotated[str | None, Option(help="entry of the file, such as model_ema")] = None,
    learning_rate: Annotated[float, Option(help="at the first step; it falls to zero")] = 0.01,
    crop_pct: CropPcts = None,
    mean: Colour = None,
    std: Colour = None,
) -> None:
    """Adapt a network that was trained elsewhere to a test resolution.

    Its classes are the sorted names of the folders, unless the file names them (`classes`,
    `class_to_idx`).
    """
    from fixres_poc.inference import own_network

    if (mean is None) != (std is None):
        raise InputError("mean and std: give both, or neither")
    if output is not None:
        check_output(output, ".safetensors")
    trained: dict[str, Any] = {"path": str(weights), "train_size": train_size}
    trained["architecture"] = f"timm:{architecture.removeprefix('timm:')}"
    trained["weights_key"] = weights_key
    trained["classes"] = read_lines(classes, "classes") if classes else None
    framings = crop_pct or [CROP_PCT]
    adapted = own_network.adapt_file(
        trained,
        dataset,
        test_size,
        adapt_epochs=epochs,
        adapt_learning_rate=learning_rate,
        mean_std=(mean, std) if mean else None,
        crop_pct=framings if framings[1:] else framings[0],
    )
    if output is not None:
        adapted.save(output)
    say(*map(_accuracy, records(adapted.accuracies.rename(columns={"n_test": "images"}))))
    say(*adapted.summary.replace("**", "").replace("`", "").splitlines())

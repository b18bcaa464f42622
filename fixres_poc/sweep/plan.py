"""What a sweep will need, before anything is downloaded, drawn or trained: memory and time."""

import subprocess
import sys
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from fixres_poc.config.files import REPOSITORY, read_record, sweep_folder
from fixres_poc.config.settings import (
    BASELINE_SIZE,
    CROPS,
    SPLITS,
    BaselineSettings,
    ModelSettings,
    PairSettings,
    several,
    stage1_passes,
)
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.config.validation import validate
from fixres_poc.data import synthetic
from fixres_poc.data.dataset import load_dataset
from fixres_poc.method.epochs import number_of_epochs
from fixres_poc.method.evaluation import transforms_for
from fixres_poc.model import backbones
from fixres_poc.model.device import accelerator_for, device_name, now, place, workers
from fixres_poc.model.memory_plan import (
    CARD_SHARE,
    adapting_bytes,
    budget_bytes,
    parameters_and_flops,
    step_plans,
)
from fixres_poc.report.tables import readable
from fixres_poc.sweep.progress import Forecast, amount, duration, last_end_s
from fixres_poc.sweep.snakemake import LOCAL_PROFILE, Shares, shares


class Images(NamedTuple):
    """How many images a sweep has in each part, and of how many classes."""

    train: int
    val: int
    test: int
    classes: int


EXPECTED = {
    "stanford_dogs": Images(10_200, 1_800, 8_580, 120),
    "oxford_pets": Images(3_128, 552, 3_669, 37),
    "flowers102": Images(1_020, 1_020, 6_149, 102),
    "fgvc_aircraft": Images(3_334, 3_333, 3_333, 100),
}
"""Images in train, val and test, and classes, by official split, or with 15 % of train as val."""
MEASURED_S, FEWEST_STEPS = 2, 5
USUAL_RATE = 1e13
"""FLOP/s where only proportions of times count."""
PHOTOGRAPH = Image.linear_gradient("L").resize((500, 375)).convert("RGB")  # of a usual size
NOTEBOOK_S, START_S = 4, 8
"""What a notebook takes for figures and files, and a job until its kernel is ready."""


def expected_images(sweep: SweepSettings) -> Images:
    """The images of a sweep, without drawing or downloading anything.

    Raises:
        InputError: as `load_dataset`, for a folder.
    """
    if sweep.dataset in EXPECTED:
        *parts, classes = EXPECTED[sweep.dataset]
        share = min(1.0, (sweep.image_limit or sum(parts)) / sum(parts))
        train, val, test = (int(share * number) for number in parts)
        return Images(train, val, test, classes)
    if sweep.dataset == "synthetic":
        drawn = pd.Series(synthetic.counts(sweep.image_limit)).groupby(level=0).sum()
        return Images(**{part: int(drawn[part]) for part in SPLITS}, classes=len(synthetic.CLASSES))
    data = load_dataset(sweep.data_settings())
    return Images(**{part: data.counts()[part] for part in SPLITS}, classes=len(data.classes))


def measured_speed(sweep: SweepSettings, threads: int) -> tuple[np.ndarray, str]:
    """Measure how fast short training steps are on this machine, in a few seconds.

    The sweep's own network with random weights, or a ResNeXt-50 where that has more than 100 M
    parameters. On a CPU each step also decodes and crops its images, which a GPU's workers do.

    Args:
        threads: as many as a job of the sweep has.

    Returns:
        FLOP/s (3,): the median of the steps, of a slow one (a tenth are slower), of a fast one (a
        tenth are faster); and what was measured.
    """
    name, size = sweep.backbone, min(BASELINE_SIZE, sweep.resolution_pairs()[0][0])
    if parameters_and_flops(name, 10, BASELINE_SIZE)[0] > 100e6:
        name = "timm:resnext50_32x4d"
    accelerator = accelerator_for(sweep.precision)
    batch = min(sweep.batch_size, 32 if accelerator.device.type == "cuda" else 8)
    settings = _pairs(sweep)[0].model_copy(update={"backbone": name})
    model = place(backbones.create(name, 10, pretrained=False), settings, accelerator).train()
    images = torch.rand(batch, 3, size, size, device=accelerator.device)
    labels = torch.zeros(batch, dtype=torch.long, device=accelerator.device)
    crop, photograph = transforms_for(settings, size, size)["train"], BytesIO()
    PHOTOGRAPH.save(photograph, "JPEG")
    before, marks = torch.get_num_threads(), [now(accelerator)]
    torch.set_num_threads(threads)
    while len(marks) < FEWEST_STEPS + 2 or marks[-1] - marks[0] < MEASURED_S:
        if not workers():
            images = torch.stack([crop(Image.open(photograph)) for _ in range(batch)])
        with accelerator.autocast():
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(now(accelerator))
    torch.set_num_threads(before)
    steps_s = np.diff(marks[1:])  # after a first one
    flops = 3 * batch * parameters_and_flops(name, 10, size)[1]
    speed = flops / np.quantile(steps_s, (0.5, 0.9, 0.1))
    return speed, f"median of {steps_s.size} steps of {name} on this machine"


def forecast(sweep: SweepSettings, shared: Shares) -> Forecast:
    """When a sweep that is laid out will be done.

    Of a cluster only proportions are known: there the first runs that end tell the time.
    """
    rate = None
    if shared.cards:  # in a process that ends: the memory of the GPU is the jobs'
        command = [sys.executable, "-m", __name__, str(sweep_folder(sweep.name) / "sweep.json")]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY).stdout
        rate = float(said or 0)
    elif shared.cores:
        rate = measured_speed(sweep, shared.threads)[0][0]
    seconds = run_seconds(sweep, expected_images(sweep), rate or USUAL_RATE)
    return Forecast(sweep, seconds, shared.jobs, measured=bool(rate))


def run_seconds(
    sweep: SweepSettings, images: Images, rate: float, recomputed: Collection[int] = ()
) -> dict[str, float]:
    """How long each notebook run takes, by its name.

    Args:
        rate: FLOP/s of training.
        recomputed: train resolutions at which activations are recomputed, for want of memory.
    """
    runs = sweep.runs()
    flops = {run.name: 0.0 for run in runs}
    for run in runs:
        if run.notebook == "02_baseline":
            flops[run.name] = _probe_flops(BaselineSettings(**run.parameters), images)
    for pair in _pairs(sweep):
        costs = _flops(pair, images, pair.train_size in recomputed)
        flops[pair.run_name] = costs["adapt"] + costs["eval"]
        flops[pair.train_settings().run_name] = costs["train"] + costs["tuning"]
    return {
        run.name: flops[run.name] / rate + NOTEBOOK_S + START_S * (run.name == run.job)
        for run in runs
    }


def _pairs(sweep: SweepSettings) -> list[PairSettings]:
    return [PairSettings(**run.parameters) for run in sweep.runs() if run.notebook == "04_fixres"]


def _image_flops(settings: ModelSettings, images: Images, size: int) -> int:
    """FLOPs of one image's forward pass."""
    return parameters_and_flops(settings.backbone, images.classes, size)[1]


def _probe_flops(probe: BaselineSettings, images: Images) -> float:
    """FLOPs of the linear probe: all images at each size, and in each further framing."""
    sizes = [*probe.test_sizes]
    for _ in several(probe.crop_pct)[1:]:
        sizes += probe.crop_pct_sizes or probe.test_sizes
    passed = images.train + images.val + images.test
    return passed * sum(_image_flops(probe, images, size) for size in sizes)


def _flops(pair: PairSettings, images: Images, recompute: bool) -> dict[str, float]:
    """FLOPs of a pair (adapt, eval), and of its training (tuning, train)."""
    train, test = (_image_flops(pair, images, s) for s in (pair.train_size, pair.test_size))
    with_full = "full" in pair.adaptations
    # passes of an image; one of the frozen trunk for the whole grid of stage 2
    counts = images._asdict()
    epochs = number_of_epochs(pair, counts)
    probe, whole = (stage1_passes(pair.head_start, done, counts) for done in (0, epochs))
    stage1 = whole - probe + epochs * recompute * images.train
    recipes = len(several(pair.learning_rate)) * len(several(pair.batch_norm))
    adapt = max(several(pair.adapt_epochs))
    tails = (adapt * images.train + images.val) * bool(pair.adapted)
    stage2 = tails + with_full * adapt * (3 * images.train + images.val)
    framings = len(several(pair.crop_pct))
    crops = sum(CROPS[view] for view in pair.views) * framings
    return {
        "tuning": (recipes - 1) * (pair.tuned_by is None) * stage1 * train,
        # the controls are adapted there
        "train": (stage1 + tails + probe) * train,
        # each framing has controls of its own
        "adapt": framings * stage2 * test + (framings - 1) * tails * train,
        "eval": (1 + with_full) * crops * (images.val + images.test) * test,
    }


def plan(
    sweep: SweepSettings, memory: int | None = None, tflops: float | None = None
) -> dict[str, pd.DataFrame]:
    """What a sweep will need, before anything is downloaded, drawn or trained.

    Args:
        memory: bytes of the card to plan for; None for this machine's GPU or memory.
        tflops: 10^12 FLOP/s of training there; None: measured here, or unknown with `memory`.

    Returns:
        "sweep": one row of facts and totals, also at the speed of a fast and of a slow step.
        "pairs": of the first seed, FLOPs of one image's forward pass, what is chosen, bytes and
        seconds.
    """
    backbones.check(sweep, traced=True)
    images = expected_images(sweep)
    budget = int(memory * CARD_SHARE) if memory else budget_bytes()
    (rate, slow, fast), source, jobs = _speed(sweep, memory, tflops)
    pairs = [pair for pair in _pairs(sweep) if pair.seed == sweep.seeds[0]]
    table = pd.DataFrame([_pair(each, images, budget, rate) for each in pairs])
    recomputed = set(table.loc[table["gradient_checkpointing"], "train_size"])
    total = last_end_s(sweep.jobs(), run_seconds(sweep, images, rate, recomputed), jobs)
    facts = {
        "backbone": sweep.backbone,
        "parameters": parameters_and_flops(sweep.backbone, images.classes, BASELINE_SIZE)[0],
        **images._asdict(),
        "budget_of": "--memory" if memory else device_name() or "this machine",
        "budget_bytes": budget,
        "batch_size": sweep.batch_size,
        "per_second_flops": rate,
        "rate_of": source,
        "total_s": total,
        "fast_s": total * rate / fast,
        "slow_s": total * rate / slow,
    }
    return {"sweep": pd.DataFrame([facts]), "pairs": table}


def _speed(
    sweep: SweepSettings, memory: int | None, tflops: float | None
) -> tuple[np.ndarray, str, int]:
    """How fast training is, where that is known from, and how many jobs are at work at once."""
    if tflops is not None or memory is not None:
        source = "--tflops" if tflops else "unknown"
        return np.full(3, tflops or np.nan) * 1e12, source, 1
    shared = shares(sweep, None, LOCAL_PROFILE)
    return *measured_speed(sweep, shared.threads), shared.jobs


def _pair(pair: PairSettings, images: Images, budget: int, rate: float) -> dict[str, Any]:
    sizes, classes = (pair.train_size, pair.test_size), images.classes
    train, test = (_image_flops(pair, images, size) for size in sizes)
    chosen, full = (next(step_plans(pair, size, classes, budget)) for size in sizes)
    test_bytes = adapting_bytes(pair, classes)
    if "full" in pair.adaptations:
        test_bytes = max(test_bytes, full.peak_bytes)
    flops = _flops(pair, images, chosen.gradient_checkpointing)
    return {
        "train_size": pair.train_size,
        "test_size": pair.test_size,
        "train_flops": train,
        "test_flops": test,
        "gradient_checkpointing": chosen.gradient_checkpointing,
        "micro_batch_size": chosen.micro_batch_size,
        "train_bytes": chosen.peak_bytes,
        "test_bytes": test_bytes,
        "fits": max(chosen.peak_bytes, test_bytes) <= budget,
        **{f"{part}_s": value / rate for part, value in flops.items()},
    }


def text(sweep: SweepSettings, tables: dict[str, pd.DataFrame], details: bool) -> list[str]:
    """What the command line prints: time, memory, whether it fits; with details, each pair."""
    (facts,) = tables["sweep"].to_dict("records")
    pairs = tables["pairs"]
    lines = [_time(sweep, facts), *_memory(sweep, facts, pairs)]
    return lines + readable(pairs).to_string(index=False).splitlines() * details


def _time(sweep: SweepSettings, facts: dict[Any, Any]) -> str:
    work = amount(sweep.runs())
    if np.isnan(facts["total_s"]):
        return f"time: unknown without --tflops; {work}"
    total, fast, slow = (duration(facts[name]) for name in ("total_s", "fast_s", "slow_s"))
    span = f" ({fast} to {slow})" if fast != slow else ""
    speed = f"{facts['per_second_flops'] / 1e9:.3g} GFLOP/s, {facts['rate_of']}"
    return f"time: about {total}{span}, {work}; {speed}"


def _memory(sweep: SweepSettings, facts: dict[Any, Any], pairs: pd.DataFrame) -> list[str]:
    used = pairs[["train_bytes", "test_bytes"]].to_numpy().max() / 2**30
    budget = f"{facts['budget_bytes'] / 2**30:.2f} GiB ({facts['budget_of']})"
    at_once, batch = pairs["micro_batch_size"].min(), sweep.batch_size
    fits = "yes"
    if not pairs["fits"].all():
        fits = "no; set a smaller batch_size or test resolution, or precision: bf16"
    elif at_once < batch and "train" in several(sweep.batch_norm):
        fits += f", with {at_once} of {batch} images at once, which changes batch norm; a smaller"
        fits += " batch_size or precision: bf16 avoids that"
    elif pairs["gradient_checkpointing"].any():
        fits += ", with activations recomputed: a third more work"
    return [f"memory: at most {used:.2f} of {budget}", f"fits: {fits}"]


if __name__ == "__main__":  # see `forecast`
    laid_out = validate(SweepSettings, read_record(Path(sys.argv[1])), sys.argv[1])
    print(measured_speed(laid_out, threads=1)[0][0])

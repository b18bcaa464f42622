"""Memory and time that a sweep needs, predicted before anything is downloaded or trained."""

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
    FEWEST_VAL,
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
    """Number of images in each part of a sweep's dataset, and of classes."""

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
"""Named datasets by their official split, or with 15 % of train as val."""
MEASURED_S, FEWEST_STEPS = 2, 5
USUAL_RATE = 1e13
"""FLOP/s to use where only proportions of times count."""
PHOTOGRAPH = Image.linear_gradient("L").resize((500, 375)).convert("RGB")  # a typical size
NOTEBOOK_S, START_S = 4, 8
"""Seconds of a notebook for figures and files, and of a job until its kernel is ready."""


def expected_images(sweep: SweepSettings) -> Images:
    """The images of a sweep, without drawing or downloading anything.

    Raises:
        InputError: as `load_dataset`, for a folder.
    """
    if sweep.dataset in EXPECTED:
        *parts, classes = EXPECTED[sweep.dataset]
        share = min(1.0, (sweep.image_limit or sum(parts)) / sum(parts))
        return Images._make([*(int(share * number) for number in parts), classes])
    if sweep.dataset == "synthetic":
        drawn = pd.Series(synthetic.counts(sweep.image_limit)).groupby(level=0).sum()
        return Images._make([*map(int, drawn[list(SPLITS)]), len(synthetic.CLASSES)])
    data = load_dataset(sweep.data_settings())
    return Images._make([*(data.counts()[split] for split in SPLITS), len(data.classes)])


def measured_speed(sweep: SweepSettings, threads: int) -> tuple[np.ndarray, str]:
    """Measure the speed of short training steps on this machine, in a few seconds.

    The network is the sweep's with random weights, or a ResNeXt-50 in place of one with more than
    100 M parameters. On a CPU each step also decodes and crops its images.

    Args:
        threads: of a job of the sweep.

    Returns:
        FLOP/s (3,): of the median step, of a slow one (a tenth are slower) and of a fast one (a
        tenth are faster); and a description of the measurement.
    """
    name = sweep.backbone
    size = min(BASELINE_SIZE, sweep.resolution_pairs()[0][0])
    if parameters_and_flops(name, 10, BASELINE_SIZE)[0] > 100e6:
        name = "timm:resnext50_32x4d"
    accelerator = accelerator_for(sweep.precision)
    batch = min(sweep.batch_size, 32 if accelerator.device.type == "cuda" else 8)
    settings = _pairs(sweep)[0].model_copy(update={"backbone": name})
    model = place(backbones.create(name, 10, pretrained=False), settings, accelerator).train()
    images = torch.rand(batch, 3, size, size, device=accelerator.device)
    labels = torch.zeros(batch, dtype=torch.long, device=accelerator.device)
    crop = transforms_for(settings, size, size)["train"]
    photograph = BytesIO()
    PHOTOGRAPH.save(photograph, "JPEG")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times = [now(accelerator)]
    while len(times) < FEWEST_STEPS + 2 or times[-1] - times[0] < MEASURED_S:
        if not workers():
            images = torch.stack([crop(Image.open(photograph)) for _ in range(batch)])
        with accelerator.autocast():
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        times.append(now(accelerator))
    torch.set_num_threads(threads_before)
    steps_s = np.diff(times[1:])  # without the first step, a warm-up
    flops = 3 * batch * parameters_and_flops(name, 10, size)[1]
    speed = flops / np.quantile(steps_s, (0.5, 0.9, 0.1))
    return speed, f"median of {steps_s.size} steps of {name} on this machine"


def forecast(sweep: SweepSettings, shared: Shares) -> Forecast:
    """Predict when a sweep ends; its sweep.json must be written.

    On a cluster only proportions are known, until the first training or pair ends.
    """
    rate = 0.0
    if shared.cards:  # measured in a process of its own, so that no GPU memory stays occupied
        command = [sys.executable, "-m", __name__, str(sweep_folder(sweep.name) / "sweep.json")]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY).stdout
        rate = float(output or 0)
    elif shared.cores:
        rate = measured_speed(sweep, shared.threads)[0][0]
    seconds = run_seconds(sweep, expected_images(sweep), rate or USUAL_RATE)
    return Forecast(sweep, seconds, shared.jobs, measured=bool(rate))


def run_seconds(
    sweep: SweepSettings, images: Images, rate: float, recomputed: Collection[int] = ()
) -> dict[str, float]:
    """Predicted seconds of each notebook run, by its name.

    Args:
        rate: FLOP/s of training.
        recomputed: train resolutions with gradient checkpointing.
    """
    runs = sweep.runs()
    flops = dict.fromkeys((run.name for run in runs), 0.0)
    for run in runs:
        if run.notebook == "02_baseline":
            flops[run.name] = _probe_flops(BaselineSettings(**run.parameters), images)
    for pair in _pairs(sweep):
        costs = _flops(pair, images, pair.train_size in recomputed)
        flops[pair.run_name] = costs["adapt"] + costs["eval"]
        flops[pair.train_settings().run_name] = costs["train"] + costs["tuning"]
    seconds = {name: count / rate + NOTEBOOK_S for name, count in flops.items()}
    for job in sweep.jobs():
        seconds[job] += START_S
    return seconds


def _pairs(sweep: SweepSettings) -> list[PairSettings]:
    return [PairSettings(**run.parameters) for run in sweep.runs() if run.notebook == "04_fixres"]


def _image_flops(settings: ModelSettings, images: Images, size: int) -> int:
    """FLOPs of one image's forward pass."""
    return parameters_and_flops(settings.backbone, images.classes, size)[1]


def _probe_flops(probe: BaselineSettings, images: Images) -> float:
    """FLOPs of the linear probe: all images at each size, and again in each further framing."""
    sizes = [*probe.test_sizes]
    for _ in several(probe.crop_pct)[1:]:
        sizes += probe.crop_pct_sizes or probe.test_sizes
    total = images.train + images.val + images.test
    return total * sum(_image_flops(probe, images, size) for size in sizes)


def _flops(pair: PairSettings, images: Images, recompute: bool) -> dict[str, float]:
    """FLOPs of a pair (adapt, eval), and of its training (tuning, train)."""
    train = _image_flops(pair, images, pair.train_size)
    test = _image_flops(pair, images, pair.test_size)
    full = "full" in pair.adaptations
    # the rest counts passes of an image; stage 2 passes the frozen trunk once for its whole grid
    counts = images._asdict()
    epochs = number_of_epochs(pair, counts)
    probe = stage1_passes(pair.head_start, 0, counts)
    stage1 = stage1_passes(pair.head_start, epochs, counts) - probe
    if recompute:
        stage1 += epochs * images.train
    recipes = len(several(pair.learning_rate)) * len(several(pair.batch_norm))
    adapt_epochs = max(several(pair.adapt_epochs))
    tails = adapt_epochs * images.train + images.val if pair.adapted else 0
    stage2 = tails
    if full:
        stage2 += adapt_epochs * (3 * images.train + images.val)
    framings = len(several(pair.crop_pct))
    crops = framings * sum(CROPS[view] for view in pair.views)
    networks = 2 if full else 1
    return {
        "tuning": (recipes - 1) * stage1 * train if pair.tuned_by is None else 0,
        # a training adapts its controls
        "train": (stage1 + tails + probe) * train,
        # each further framing has controls of its own
        "adapt": framings * stage2 * test + (framings - 1) * tails * train,
        "eval": networks * crops * (images.val + images.test) * test,
    }


def plan(
    sweep: SweepSettings, memory: int | None = None, tflops: float | None = None
) -> dict[str, pd.DataFrame]:
    """Predict time and memory of a sweep, before anything is downloaded, drawn or trained.

    Args:
        memory: bytes of the card to plan for; None for this machine's GPU or memory.
        tflops: 10^12 FLOP/s of training there; None: measured here, or unknown with `memory`.

    Returns:
        "sweep": one row of facts and totals, also at the speed of a fast and of a slow step.
        "pairs": one row per pair of the first seed: FLOPs of one image's forward pass, the plan of
        a step, bytes and seconds.
    """
    backbones.check(sweep, traced=True)
    images = expected_images(sweep)
    budget = int(memory * CARD_SHARE) if memory else budget_bytes()
    if tflops is None and memory is None:
        shared = shares(sweep, None, LOCAL_PROFILE)
        jobs = shared.jobs
        (rate, slow, fast), source = measured_speed(sweep, shared.threads)
    else:
        jobs = 1
        rate = slow = fast = (tflops or np.nan) * 1e12
        source = "--tflops" if tflops else "unknown"
    pairs = [pair for pair in _pairs(sweep) if pair.seed == sweep.seeds[0]]
    table = pd.DataFrame([_pair(pair, images, budget, rate) for pair in pairs])
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


def _pair(pair: PairSettings, images: Images, budget: int, rate: float) -> dict[str, Any]:
    train, test = (
        next(step_plans(pair, size, images.classes, budget))
        for size in (pair.train_size, pair.test_size)
    )
    test_bytes = adapting_bytes(pair, images.classes)
    if "full" in pair.adaptations:
        test_bytes = max(test_bytes, test.peak_bytes)
    flops = _flops(pair, images, train.gradient_checkpointing)
    return {
        "train_size": pair.train_size,
        "test_size": pair.test_size,
        "train_flops": _image_flops(pair, images, pair.train_size),
        "test_flops": _image_flops(pair, images, pair.test_size),
        "gradient_checkpointing": train.gradient_checkpointing,
        "micro_batch_size": train.micro_batch_size,
        "train_bytes": train.peak_bytes,
        "test_bytes": test_bytes,
        "fits": max(train.peak_bytes, test_bytes) <= budget,
        **{f"{part}_s": count / rate for part, count in flops.items()},
    }


def text(sweep: SweepSettings, tables: dict[str, pd.DataFrame], details: bool) -> list[str]:
    """Lines for the command line: time, memory, whether it fits; with `details` each pair."""
    (facts,) = tables["sweep"].to_dict("records")
    pairs = tables["pairs"]
    lines = [_time(sweep, facts), *_memory(sweep, facts, pairs)]
    if facts["val"] < FEWEST_VAL:
        few = f"validation: {facts['val']} images; below {FEWEST_VAL} the report recommends no"
        lines.append(f"{few} arm (question 5)")
    if details:
        lines += readable(pairs).to_string(index=False).splitlines()
    return lines


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
    micro_batch = pairs["micro_batch_size"].min()
    fits = "yes"
    if not pairs["fits"].all():
        fits = "no; set a smaller batch_size or test resolution, or precision: bf16"
    elif micro_batch < sweep.batch_size and "train" in several(sweep.batch_norm):
        fits = (
            f"yes, with {micro_batch} of {sweep.batch_size} images at once, which changes batch "
            "norm; a smaller batch_size or precision: bf16 avoids that"
        )
    elif pairs["gradient_checkpointing"].any():
        fits = "yes, with activations recomputed: a third more work"
    return [f"memory: at most {used:.2f} of {budget}", f"fits: {fits}"]


if __name__ == "__main__":  # see `forecast`
    settings = validate(SweepSettings, read_record(Path(sys.argv[1])), sys.argv[1])
    print(measured_speed(settings, threads=1)[0][0])

"""What a sweep will need, before anything is downloaded, drawn or trained: memory and time."""

import functools
import re
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import (
    BASELINE_SIZE,
    CROPS,
    SPLITS,
    ModelSettings,
    PairSettings,
    several,
)
from fixres_poc.config.sweep_settings import SweepSettings
from fixres_poc.data.dataset import load_dataset
from fixres_poc.data.synthetic import generator
from fixres_poc.method.epochs import number_of_epochs
from fixres_poc.model import backbones
from fixres_poc.model.device import accelerator_for, device_name, now, place
from fixres_poc.model.memory_plan import (
    CARD_SHARE,
    adapting_bytes,
    budget_bytes,
    parameters_and_flops,
    step_plans,
    step_table,
)
from fixres_poc.report.tables import readable

EXPECTED = {
    "stanford_dogs": (10_200, 1_800, 8_580, 120),
    "oxford_pets": (3_128, 552, 3_669, 37),
    "flowers102": (1_020, 1_020, 6_149, 102),
    "fgvc_aircraft": (3_334, 3_333, 3_333, 100),
}
"""Images in train, val and test, and classes, by official split, or with 15 % of train as val."""
MEASURED_S = 3


def memory_bytes(text: str) -> int:
    """Bytes of a size such as "16GiB" or "16 GB", both taken for GiB, as cards are named.

    Raises:
        InputError: anything else.
    """
    found = re.fullmatch(r"(?i)\s*(\d+(?:\.\d+)?)\s*(Gi?B?)?\s*", text)
    if not found:
        raise InputError(f"memory = {text!r}: allowed is a number of GiB, such as 16GiB")
    return int(float(found[1]) * 2**30)


def expected_images(sweep: SweepSettings) -> tuple[dict[str, int], int]:
    """Images per split, and the number of classes, without drawing or downloading anything.

    Raises:
        InputError: as `load_dataset`, for a folder.
    """
    if sweep.dataset == "synthetic":
        drawn = pd.Series(generator.counts(sweep.image_limit)).groupby(level=0).sum()
        return {part: int(drawn[part]) for part in SPLITS}, len(generator.CLASSES)
    if sweep.dataset in EXPECTED:
        *images, classes = EXPECTED[sweep.dataset]
        share = min(1.0, (sweep.image_limit or sum(images)) / sum(images))
        return {part: int(n * share) for part, n in zip(SPLITS, images, strict=True)}, classes
    data = load_dataset(sweep.data_settings())
    return data.counts(), len(data.classes)


def measured_rate(sweep: SweepSettings) -> tuple[float, str]:
    """FLOP/s of real training steps on this machine, measured in a few seconds.

    The sweep's own network with random weights, or a ResNeXt-50 where that has more than 100 M
    parameters.

    Returns:
        The rate, and what was measured.
    """
    name, size = sweep.backbone, min(BASELINE_SIZE, sweep.resolution_pairs()[0][0])
    if parameters_and_flops(name, 10, BASELINE_SIZE)[0] > 100e6:
        name = "timm:resnext50_32x4d"
    accelerator = accelerator_for(sweep.precision)
    device = accelerator.device
    batch = min(sweep.batch_size, 32 if device.type == "cuda" else 8)
    settings = ModelSettings(backbone=name, precision=sweep.precision)
    model = place(backbones.create(name, 10, pretrained=False), settings, accelerator).train()
    images = torch.rand(batch, 3, size, size, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    marks = [now(accelerator)]
    while len(marks) < 4 or marks[-1] - marks[0] < MEASURED_S:
        with accelerator.autocast():
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(now(accelerator))
    fastest_s = np.diff(marks[1:]).min()  # after a first one; others may be using this machine
    step_flops = 3 * batch * parameters_and_flops(name, 10, size)[1]
    return step_flops / fastest_s, f"steps of {name} on this machine"


def plan(
    sweep: SweepSettings, memory: int | None = None, tflops: float | None = None
) -> dict[str, pd.DataFrame]:
    """What a sweep will need, before anything is downloaded, drawn or trained.

    Args:
        memory: bytes of the card to plan for; None for the GPU of this machine, else for its
            memory.
        tflops: 10^12 FLOP/s that training achieves there; None to measure here, or to leave out
            with `memory`.

    Returns:
        "sweep": one row of facts and totals. "steps": peak bytes of a step of stage 1 by train
        resolution, precision, checkpointing and micro-batch. "pairs": FLOPs of one image's forward
        pass, what is chosen, bytes and seconds: of one seed, and `tuning_s` what lists of
        recipes cost on the first seed, without decoding of images.

    Raises:
        InputError: as `expected_images`, `backbones.check` and `accelerator_for`.
    """
    backbones.check(sweep, traced=True)
    counts, classes = expected_images(sweep)
    budget = budget_bytes() if memory is None else int(memory * CARD_SHARE)
    rate, source = _rate(sweep, memory, tflops)
    runs = [run.parameters for run in sweep.runs() if run.notebook == "04_fixres"]
    pairs = [PairSettings(**each) for each in runs if each["seed"] == sweep.seeds[0]]
    table = pd.DataFrame([_pair(each, counts, classes, budget, rate) for each in pairs])
    flops = functools.partial(parameters_and_flops, sweep.backbone, classes)
    framings = sorted((len(several(each.crop_pct)), each.test_size) for each in pairs)
    tried = {BASELINE_SIZE: 1} | {size: count for count, size in framings}  # the most at each size
    probed = sweep.pretrained * sum(count * flops(size)[1] for size, count in tried.items())
    facts = {
        "backbone": sweep.backbone,
        "parameters": flops(BASELINE_SIZE)[0],
        "classes": classes,
        **counts,
        "budget_of": "--memory" if memory is not None else device_name() or "this machine",
        "budget_bytes": budget,
        "batch_size": sweep.batch_size,
        "per_second_flops": rate,
        "rate_of": source,
        "total_s": sum(counts.values()) * probed / rate + _grid_s(table, len(sweep.seeds)),
    }
    by_size = {each.train_size: step_table(each, classes) for each in pairs}
    return {"sweep": pd.DataFrame([facts]), "steps": pd.concat(by_size.values()), "pairs": table}


def _rate(sweep: SweepSettings, memory: int | None, tflops: float | None) -> tuple[float, str]:
    """FLOP/s that training achieves, and where that is known from."""
    if tflops:
        return tflops * 1e12, "--tflops"
    return measured_rate(sweep) if memory is None else (np.nan, "unknown")


def _grid_s(pairs: pd.DataFrame, seeds: int) -> float:
    """Seconds of all trainings and pairs; recipes are tuned on the first seed alone."""
    trainings = pairs.drop_duplicates("train_size")
    seed_s = sum(trainings["train_s"]) + sum(pairs["adapt_s"] + pairs["eval_s"])
    return float(sum(trainings["tuning_s"]) + seeds * seed_s)


def _pair(
    pair: PairSettings, counts: dict[str, int], classes: int, budget: int, rate: float
) -> dict[str, Any]:
    sizes = (pair.train_size, pair.test_size)
    train, test = (parameters_and_flops(pair.backbone, classes, s)[1] for s in sizes)
    chosen, full = (
        next(step_plans(pair, size, classes, budget)) for size in (pair.train_size, pair.test_size)
    )
    test_bytes, with_full = adapting_bytes(pair, classes), "full" in pair.adaptations
    fits = max(chosen.peak_bytes, test_bytes, with_full * full.peak_bytes) <= budget
    trained, held_out = counts["train"], counts["val"]
    # passes of an image; one of the frozen trunk for the whole grid of stage 2
    stage1 = number_of_epochs(pair, counts) * (
        (3 + chosen.gradient_checkpointing) * trained + held_out
    )
    others = len(several(pair.learning_rate)) * len(several(pair.batch_norm)) - 1
    probe = (trained + held_out) * (pair.head_start == "probe")
    adapt = max(several(pair.adapt_epochs))
    tails = (adapt * trained + held_out) * bool(pair.adapted)
    stage2 = tails + with_full * adapt * (3 * trained + held_out)
    tested = sum(counts.values()) - trained
    framings = len(several(pair.crop_pct))
    crops = sum(CROPS[view] for view in pair.views) * framings
    return {
        "train_size": pair.train_size,
        "test_size": pair.test_size,
        "train_flops": train,
        "test_flops": test,
        "gradient_checkpointing": chosen.gradient_checkpointing,
        "micro_batch_size": chosen.micro_batch_size,
        "train_bytes": chosen.peak_bytes,
        "test_bytes": test_bytes,
        "fits": fits,
        "tuning_s": others * stage1 * train / rate,
        # the controls are adapted there
        "train_s": (stage1 + tails + probe) * train / rate,
        # each framing has controls of its own
        "adapt_s": (framings * stage2 * test + (framings - 1) * tails * train) / rate,
        "eval_s": (1 + with_full) * crops * tested * test / rate,
    }


def text(tables: dict[str, pd.DataFrame]) -> str:
    """The tables of `plan` as the command line prints them."""
    steps, pairs = (readable(tables[name]).to_string(index=False) for name in ("steps", "pairs"))
    return f"""{readable(tables["sweep"]).T.to_string(header=False)}

Stage 1, peak of a step by train resolution, precision, checkpointing and micro-batch:
{steps}

Pairs: FLOPs of a forward pass, how stage 1 is run, peaks, and time of a seed without decoding:
{pairs}"""

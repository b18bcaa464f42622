"""What a sweep will need, before anything is downloaded, drawn or trained: memory, FLOPs, time, and what fits where."""

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

GIB = 2**30
EXPECTED = {
    "stanford_dogs": (10_200, 1_800, 8_580, 120),
    "oxford_pets": (3_128, 552, 3_669, 37),
    "flowers102": (1_020, 1_020, 6_149, 102),
    "fgvc_aircraft": (3_334, 3_333, 3_333, 100),
}
"""Images in train, val and test, and classes, by official split; where it has no val, 15 % of train become it."""
MEASURED_S = 3


def memory_bytes(text: str) -> int:
    """Bytes of a size such as "16GiB" or "16 GB", both taken for GiB, as cards are named.

    Raises:
        InputError: anything else.
    """
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(Gi?B?)?", text.strip(), re.IGNORECASE)):
        raise InputError(f"memory = {text!r}: allowed is a number of GiB, such as 16GiB")
    return int(float(found[1]) * GIB)


def expected_images(sweep: SweepSettings) -> tuple[dict[str, int], int]:
    """Images per split, and the number of classes, without drawing or downloading anything.

    Raises:
        InputError: as `load_dataset`, for a folder.
    """
    if sweep.dataset == "synthetic":
        cells = generator.counts(sweep.image_limit)
        counts = {
            part: sum(n for (split, _), n in cells.items() if split == part) for part in SPLITS
        }
        return counts, len(generator.CLASSES)
    if sweep.dataset in EXPECTED:
        *images, classes = EXPECTED[sweep.dataset]
        share = min(1.0, (sweep.image_limit or sum(images)) / sum(images))
        return {part: int(n * share) for part, n in zip(SPLITS, images, strict=True)}, classes
    data = load_dataset(sweep.data_settings())
    return data.counts(), len(data.classes)


def measured_rate(sweep: SweepSettings) -> tuple[float, str]:
    """FLOP/s of real training steps on this machine, measured in a few seconds, and of which network.

    The sweep's own network with random weights, or a ResNeXt-50 where that has more than 100 M
    parameters.
    """
    small = parameters_and_flops(sweep.backbone, 10, BASELINE_SIZE)[0] <= 100e6
    name, size = (
        sweep.backbone if small else "timm:resnext50_32x4d",
        min(BASELINE_SIZE, sweep.resolution_pairs()[0][0]),
    )
    accelerator = accelerator_for(sweep.precision)
    batch = min(sweep.batch_size, 32 if accelerator.device.type == "cuda" else 8)
    settings = ModelSettings(backbone=name, precision=sweep.precision)
    model = place(backbones.create(name, 10, pretrained=False), settings, accelerator).train()
    images = torch.rand(batch, 3, size, size, device=accelerator.device)
    labels = torch.zeros(batch, dtype=torch.long, device=accelerator.device)
    begun = now(accelerator)
    marks: list[float] = []
    while len(marks) < 3 or marks[-1] - begun < MEASURED_S:
        with accelerator.autocast():
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(now(accelerator))
    fastest_s = np.diff(marks).min()  # others may be using this machine
    return 3 * batch * parameters_and_flops(name, 10, size)[
        1
    ] / fastest_s, f"steps of {name} on this machine"


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
        pass, what is chosen, bytes and seconds: of one seed, and `tuning_s` what lists of rates and
        epochs cost on the first seed, without decoding of images.

    Raises:
        InputError: as `expected_images`, `backbones.check` and `accelerator_for`.
    """
    backbones.check(sweep, traced=True)
    counts, classes = expected_images(sweep)
    budget = budget_bytes() if memory is None else int(memory * CARD_SHARE)
    rate, source = (
        (tflops * 1e12, "--tflops")
        if tflops
        else measured_rate(sweep)
        if memory is None
        else (np.nan, "unknown")
    )
    runs = [run.parameters for run in sweep.runs() if run.notebook == "04_fixres"]
    pairs = [PairSettings(**each) for each in runs if each["seed"] == sweep.seeds[0]]
    table = pd.DataFrame([_pair(each, counts, classes, budget, rate) for each in pairs])
    flops = functools.partial(parameters_and_flops, sweep.backbone, classes)
    sizes = {BASELINE_SIZE, *table["test_size"]}
    trainings = table.drop_duplicates("train_size")[["train_s", "tuning_s"]].sum(skipna=False)
    per_seed = trainings["train_s"] + table[["adapt_s", "eval_s"]].sum(skipna=False).sum(
        skipna=False
    )
    once = (
        sum(counts.values()) * sum(flops(size)[1] for size in sizes) / rate + trainings["tuning_s"]
    )
    total_s = once + len(sweep.seeds) * per_seed
    facts = {
        "backbone": sweep.backbone,
        "parameters": flops(BASELINE_SIZE)[0],
        "classes": classes,
        **counts,
    }
    facts |= {
        "budget_of": (device_name() or "this machine") if memory is None else "--memory",
        "budget_bytes": budget,
    }
    facts |= {
        "batch_size": sweep.batch_size,
        "per_second_flops": rate,
        "rate_of": source,
        "total_s": total_s,
    }
    by_size = [
        step_table(each, classes) for each in {each.train_size: each for each in pairs}.values()
    ]
    tables = {"sweep": pd.DataFrame([facts]), "steps": pd.concat(by_size), "pairs": table}
    return tables


def _pair(
    pair: PairSettings, counts: dict[str, int], classes: int, budget: int, rate: float
) -> dict[str, Any]:
    train, test = (
        parameters_and_flops(pair.backbone, classes, each)[1]
        for each in (pair.train_size, pair.test_size)
    )
    chosen, test_bytes = (
        next(step_plans(pair, pair.train_size, classes, budget)),
        adapting_bytes(pair, classes),
    )
    crops = sum(CROPS[view] for view in pair.views)
    full = "full" in pair.adaptations
    peaks = [chosen.peak_bytes, test_bytes]
    peaks += [next(step_plans(pair, pair.test_size, classes, budget)).peak_bytes] if full else []
    rates, adapt = several(pair.learning_rate), max(several(pair.adapt_epochs))
    epochs = pair.epochs * (max(rates) > 0)  # with the rate 0 nothing is trained
    one_rate = epochs * ((3 + chosen.gradient_checkpointing) * counts["train"] + counts["val"])
    probed = (counts["train"] + counts["val"]) * (pair.head_start == "probe")
    recipes = sum(each > 0 for each in rates) * len(several(pair.batch_norm))
    others = one_rate * max(recipes - 1, 0) * train
    tested = sum(counts.values()) - counts["train"]
    at_tuning = parameters_and_flops(pair.backbone, classes, pair.tuning_size or pair.train_size)[1]
    tuned = (adapt * counts["train"] + counts["val"]) * at_tuning
    return {
        "train_size": pair.train_size,
        "test_size": pair.test_size,
        "train_flops": train,
        "test_flops": test,
        "gradient_checkpointing": chosen.gradient_checkpointing,
        "micro_batch_size": chosen.micro_batch_size,
        "train_bytes": chosen.peak_bytes,
        "test_bytes": test_bytes,
        "fits": max(peaks) <= budget,
        "tuning_s": (others + tuned * pair.tuned) / rate,
        # the controls are adapted there
        "train_s": (one_rate + adapt * counts["train"] + probed) * train / rate,
        "adapt_s": adapt * ((1 + 3 * full) * counts["train"] + full * counts["val"]) * test / rate,
        "eval_s": (1 + full) * crops * tested * test / rate,
    }


def text(tables: dict[str, pd.DataFrame]) -> str:
    """The tables of `plan` as the command line prints them."""
    titles = {
        "steps": "Stage 1, peak of a step by train resolution, precision, checkpointing and micro-batch:",
        "pairs": "Pairs: FLOPs of one forward pass, how stage 1 is run, peaks, and time of one seed without decoding:",
    }
    parts = [readable(tables["sweep"]).T.to_string(header=False)]
    parts += [
        f"{title}\n{readable(tables[name]).to_string(index=False)}"
        for name, title in titles.items()
        if name in tables
    ]
    return "\n\n".join(parts)

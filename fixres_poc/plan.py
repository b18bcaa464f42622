"""What a sweep will need, before anything is downloaded, drawn or trained: memory, FLOPs, time, and what fits where."""

import functools
import re
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from fixres_poc import backbones, datasets
from fixres_poc.config import (
    BASELINE_SIZE,
    CROPS,
    InputError,
    ModelSettings,
    PairSettings,
    SweepSettings,
    TrainSettings,
)
from fixres_poc.datasets import synthetic
from fixres_poc.evaluation import accelerator, device_name, now, place
from fixres_poc.preflight import (
    CARD_SHARE,
    adapting_bytes,
    budget_bytes,
    can_recompute,
    fit,
    micro_batches,
    parameters_and_flops,
    training_bytes,
)

GIB = 2**30
CARDS = (16, 24, 40, 80)
STANFORD_DOGS = {"train": 10_200, "val": 1_800, "test": 8_580}
"""The official 12,000 train pictures, of which 15 of each class's 100 become validation, and the official test part."""
MEASURED_S = 3


def memory_bytes(text: str) -> int:
    """Bytes of a size such as "16GiB" or "16 GB", both taken for GiB, as cards are named.

    Raises:
        InputError: anything else.
    """
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(Gi?B?)?", text.strip(), re.IGNORECASE)):
        raise InputError(f"memory = {text!r}: allowed is a number of GiB, such as 16GiB")
    return int(float(found[1]) * GIB)


def expected_pictures(sweep: SweepSettings) -> tuple[dict[str, int], int]:
    """Pictures per split, and the number of classes, without drawing or downloading anything.

    Raises:
        InputError: as `datasets.load`, for a folder.
    """
    if sweep.dataset == "synthetic":
        cells = synthetic.counts(sweep.image_limit)
        counts = {part: sum(n for (split, _), n in cells.items() if split == part) for part in datasets.SPLITS}
        return counts, len(synthetic.CLASSES)
    if sweep.dataset == "stanford_dogs":
        share = min(1.0, (sweep.image_limit or 20_580) / 20_580)
        return {part: int(n * share) for part, n in STANFORD_DOGS.items()}, 120
    pictures = datasets.load(sweep.data_settings())
    return pictures.counts(), len(pictures.classes)


def measured_rate(sweep: SweepSettings) -> tuple[float, str]:
    """FLOP/s of real training steps on this machine, measured in a few seconds, and of which network.

    The sweep's own network with random weights, or a ResNeXt-50 where that has more than 100 M parameters.
    """
    small = parameters_and_flops(sweep.backbone, 10, BASELINE_SIZE)[0] <= 100e6
    name, size = sweep.backbone if small else "timm:resnext50_32x4d", min(BASELINE_SIZE, sweep.resolution_pairs()[0][0])
    engine = accelerator(sweep.precision)
    batch = min(sweep.batch_size, 32 if engine.device.type == "cuda" else 8)
    settings = ModelSettings(backbone=name, precision=sweep.precision)
    model = place(backbones.create(name, 10, pretrained=False), settings, engine).train()
    images = torch.rand(batch, 3, size, size, device=engine.device)
    labels = torch.zeros(batch, dtype=torch.long, device=engine.device)
    begun = now(engine)
    marks: list[float] = []
    while len(marks) < 3 or marks[-1] - begun < MEASURED_S:
        with engine.autocast():
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(now(engine))
    fastest_s = np.diff(marks).min()  # others may be using this machine
    return 3 * batch * parameters_and_flops(name, 10, size)[1] / fastest_s, f"steps of {name} on this machine"


def plan(sweep: SweepSettings, memory: int | None = None, tflops: float | None = None) -> dict[str, pd.DataFrame]:
    """What a sweep will need, before anything is downloaded, drawn or trained.

    Args:
        sweep: the sweep.
        memory: bytes of the card to plan for; None for the GPU of this machine, else for its memory.
        tflops: 10^12 FLOP/s that training achieves there; None to measure here, or to leave out with `memory`.

    Returns:
        "sweep": one row of facts and totals. "steps": peak bytes of a step of stage 1 by train size, precision,
        checkpointing and micro-batch. "pairs": FLOPs of one picture's forward pass, what is chosen, bytes and seconds.
        "cards", only without GPU and `memory`: how each pair fits on common cards. `_s` without decoding of pictures.

    Raises:
        InputError: as `expected_pictures` and `accelerator`.
    """
    counts, classes = expected_pictures(sweep)
    budget = budget_bytes() if memory is None else int(memory * CARD_SHARE)
    rate, source = (
        (tflops * 1e12, "--tflops") if tflops else measured_rate(sweep) if memory is None else (np.nan, "unknown")
    )
    runs = [run.parameters for run in sweep.runs() if run.notebook == "04_fixres"]
    pairs = [PairSettings(**each) for each in runs if each["seed"] == sweep.seeds[0]]
    table = pd.DataFrame([_pair(each, counts, classes, budget, rate) for each in pairs])
    flops = functools.partial(parameters_and_flops, sweep.backbone, classes)
    baseline_s = sum(counts.values()) * flops(BASELINE_SIZE)[1] / rate
    once = table.drop_duplicates("train_size")["train_s"].sum(skipna=False)
    total_s = baseline_s + len(sweep.seeds) * (once + table[["adapt_s", "eval_s"]].sum(skipna=False).sum(skipna=False))
    facts = {"backbone": sweep.backbone, "parameters": flops(BASELINE_SIZE)[0], "classes": classes, **counts}
    facts |= {"budget_of": (device_name() or "this machine") if memory is None else "--memory", "budget_bytes": budget}
    facts |= {"batch_size": sweep.batch_size, "per_second_flops": rate, "rate_of": source, "total_s": total_s}
    by_size = [steps(each, classes) for each in {each.train_size: each for each in pairs}.values()]
    tables = {"sweep": pd.DataFrame([facts]), "steps": pd.concat(by_size), "pairs": table}
    if memory is None and device_name() is None:
        tables["cards"] = pd.DataFrame([_cards(each, classes) for each in pairs])
    return tables


def _pair(pair: PairSettings, counts: dict[str, int], classes: int, budget: int, rate: float) -> dict[str, Any]:
    train, test = (parameters_and_flops(pair.backbone, classes, each)[1] for each in (pair.train_size, pair.test_size))
    chosen, test_bytes = fit(pair, classes, budget), adapting_bytes(pair, classes)
    crops = sum(CROPS[view] for view in pair.views)
    full = "full" in pair.adaptations
    passes = pair.epochs * (3 + chosen.gradient_checkpointing) + pair.adapt_epochs  # the last for the control
    return {
        "train_size": pair.train_size,
        "test_size": pair.test_size,
        "train_flops": train,
        "test_flops": test,
        "gradient_checkpointing": chosen.gradient_checkpointing,
        "micro_batch_size": chosen.micro_batch_size,
        "train_bytes": chosen.peak_bytes,
        "test_bytes": test_bytes,
        "fits": chosen.fits
        and test_bytes <= budget
        and (not full or fit(pair.model_copy(update={"train_size": pair.test_size}), classes, budget).fits),
        "train_s": (passes * counts["train"] + pair.epochs * counts["val"]) * train / rate,
        "adapt_s": pair.adapt_epochs * ((1 + 3 * full) * counts["train"] + full * counts["val"]) * test / rate,
        "eval_s": (1 + full) * crops * (counts["val"] + counts["test"]) * test / rate,
    }


def steps(settings: TrainSettings, classes: int) -> pd.DataFrame:
    """Predicted peak bytes of a step of stage 1, by precision and checkpointing, for the batch and its parts.

    Returns:
        Columns train_size, precision, checkpointing and micro_<pictures at once>_bytes.
    """
    rows = []
    for precision in ("fp32", "bf16"):
        for recompute in (False, True) if can_recompute(settings.backbone) else (False,):
            each = settings.model_copy(update={"precision": precision})
            row: dict[str, Any] = {"train_size": settings.train_size, "precision": precision}
            row["checkpointing"] = recompute
            for micro in micro_batches(settings.batch_size):
                row[f"micro_{micro}_bytes"] = training_bytes(each, classes, micro, recompute)
            rows.append(row)
    return pd.DataFrame(rows)


def _cards(pair: PairSettings, classes: int) -> dict[str, Any]:
    row: dict[str, Any] = {"train_size": pair.train_size, "test_size": pair.test_size}
    for gib in CARDS:
        budget = int(gib * GIB * CARD_SHARE)
        way = fit(pair, classes, budget)
        text = "whole batch" if way.micro_batch_size == pair.batch_size else f"{way.micro_batch_size} at once"
        text += ", checkpointing" if way.gradient_checkpointing else ""
        text = text if adapting_bytes(pair, classes) <= budget else "not stage 2"
        row[f"{gib} GB"] = text if way.fits else "no"
    return row


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `plan` for people: GiB, GFLOP, minutes or hours, yes and no; what is not known is "unknown"."""
    units = {"bytes": ("GiB", GIB), "flops": ("GFLOP", 1e9), "s": ("min", 60)}
    shown: dict[str, pd.Series[Any]] = {}
    for name, values in table.items():
        stem, _, end = str(name).rpartition("_")
        if end in units and stem:
            unit, divisor = ("h", 3600) if end == "s" and values.max() > 7200 else units[end]
            shown[f"{stem} {unit}".replace("_", " ")] = (
                (values / divisor).map("{:.2f}".format).replace("nan", "unknown")
            )
        else:
            words = values.map({True: "yes", False: "no"}) if values.dtype == bool else values
            shown[str(name).replace("_", " ")] = words
    return pd.DataFrame(shown)


def text(tables: dict[str, pd.DataFrame]) -> str:
    """The tables of `plan` as the command line prints them."""
    titles = {
        "steps": "Stage 1, peak of a step by train size, precision, checkpointing and micro-batch:",
        "pairs": "Pairs: FLOPs of one forward pass, how stage 1 is run, peaks, and time of one seed without decoding:",
        "cards": f"How pairs fit on cards ({CARD_SHARE:.0%} of their GiB):",
    }
    parts = [readable(tables["sweep"]).T.to_string(header=False)]
    parts += [
        f"{title}\n{readable(tables[name]).to_string(index=False)}" for name, title in titles.items() if name in tables
    ]
    return "\n\n".join(parts)

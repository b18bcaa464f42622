"""docs/bench.md from the seconds that were measured."""

import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import exponent, ratios
from fixres_poc.config.files import write_atomically
from fixres_poc.config.provenance import environment

Result = dict[str, Any]
FILES = "JPEG files to predictions at 224 px"
TABLE = (  # row, what, against, slow and fast (or part and whole), reach
    ("predictions", FILES, "the usual loop", "usual : own", "≥ 2"),
    (
        "network_alone",
        "the same files to predictions",
        "reading them, then the network alone",
        "bound : own",
        "≥ 0.97",
    ),
    (
        "train_step",
        "stage 1 at 128 px, JPEG files to updated weights",
        "the usual loop",
        "usual : own",
        "≥ 1.4",
    ),
    (
        "several_sizes",
        "evaluation at 128, 160, 192 and 224 px",
        "four passes of the usual loop",
        "usual : own",
        "≥ 3",
    ),
    (
        "grid",
        "2 x 4 pairs, all results",
        "eight independent runs of the usual loop",
        "usual : own",
        "≥ 8",
    ),
    ("peers_evaluation", FILES, "fastai", "fastai : own", "≥ 1.5"),
    ("peers_epoch", "an epoch of stage 1 at 128 px", "fastai", "fastai : own", "≥ 1.2"),
    (
        "peers_grid",
        "2 x 4 pairs with three adaptations and two controls",
        "fastai",
        "fastai : own",
        "≥ 4",
    ),
    ("drawing", "drawing 1,000 images", "one thread", "one : own", "≥ 1.85"),
    (
        "grid",
        "one more test resolution in a finished sweep",
        "a sweep of that pair alone",
        "one_more : one_pair",
        "≤ 0.25",
    ),
    ("memory", "peak memory with 2,000 images, cache off", "with 200", "many : few", "≤ 1.1"),
)
START_UP = {
    "pair": ("a pair beyond its images and its network, seconds of a core", "≤ 1"),
    "predict": ("`fixres-poc predict`, one image, seconds of a core", "≤ 3"),
    "second_call": ("the second call of a finished sweep, seconds", "≤ 1.5"),
}
WAYS = ("own", "usual", "fastai", "alone", "reading", "one")
MADE = "Made by `make bench`. Ratios of seconds, repeat by repeat: median (smallest to largest)."


def write(file: Path, found: dict[str, Result]) -> None:
    """Write the page.

    Args:
        file: of the page.
        found: by row, what `bench` has measured; rows that are not there are left out.
    """
    rows = [_ratio(found[row], *rest) for row, *rest in TABLE if row in found]
    ratio_columns = "what | against | ratio | reach | reached | repeats | seconds (median)"
    lines = ["# Speed", "", MADE, "", *_table(ratio_columns, rows)]
    measured = found.get("start_up", {})
    rows = [_value(measured[name], *row) for name, row in START_UP.items() if name in measured]
    value_columns = "what | median (smallest to largest) | reach | reached | repeats"
    lines += ["", "## Start-up", "", *_table(value_columns, rows)] if rows else []
    lines += ["", *_facts(found)]
    rows = [_growth(*each) for each in found.get("growth", {}).items() if each[0] != "data"]
    growth_columns = "seconds against | at | median seconds | exponent"
    lines += ["", "## Growth", "", *_table(growth_columns, rows)] if rows else []
    asked = dict.fromkeys([*(row for row, *_ in TABLE), "start_up", "growth"])
    if missing := [row for row in asked if row not in found]:
        lines += ["", f"Not measured for this version: {', '.join(missing)}."]
    write_atomically(file, "\n".join(lines) + "\n")


def _table(columns: str, rows: list[list[str]]) -> list[str]:
    rule = "|" + "---|" * len(columns.split(" | "))
    return [f"| {columns} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _reached(middle: float, reach: str) -> str:
    sign, bound = reach.split()
    good = middle >= float(bound) if sign == "≥" else middle <= float(bound)
    return "yes" if good else "**no**"


def _ratio(result: Result, what: str, against: str, ways: str, reach: str) -> list[str]:
    first, second = (result[name] for name in ways.split(" : "))
    middle, low, high = ratios(first, second)
    spread, count = f"{middle:.2f} ({low:.2f}–{high:.2f})", str(len(first))
    amounts = f"{_amount(first)} : {_amount(second)}"
    return [what, against, spread, reach, _reached(middle, reach), count, amounts]


def _value(values: list[float], what: str, reach: str) -> list[str]:
    middle = statistics.median(values)
    spread = f"{middle:.1f} ({min(values):.1f}–{max(values):.1f})"
    return [what, spread, reach, _reached(middle, reach), str(len(values))]


def _growth(what: str, result: dict[str, list[float]]) -> list[str]:
    amounts = [float(key) for key in result]
    seconds = [statistics.median(values) for values in result.values()]
    at = ", ".join(f"{amount:,.0f}" for amount in amounts)
    took = ", ".join(f"{each:.2f}" for each in seconds)
    return [what, at, took, f"{exponent(amounts, seconds):.2f}"]


def _amount(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle / 2**20:,.0f} MiB" if middle > 1e6 else f"{middle:.1f}"


def _facts(found: dict[str, Result]) -> list[str]:
    here = environment()
    hardware, versions = here["hardware"], here["versions"]
    packages = ("python", "torch", "torchvision", "timm")
    named = ", ".join(f"{name} {versions[name]}" for name in packages if name in versions)
    lines = [
        f"Machine: {hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['memory_bytes'] / 2**30:.0f} GiB, GPU: {hardware['gpu'] or 'none'}; "
        f"{torch.get_num_threads()} threads. {named}."
    ]
    for name, result in found.items():
        if isinstance(result.get("images"), int):
            medians = {way: statistics.median(result[way]) for way in WAYS if way in result}
            rates = [f"{way} {result['images'] / each:.0f}" for way, each in medians.items()]
            images = f"{result['images']} {result['data']}"
            images += f", the usual loop's batch is {result['batch']}" if "batch" in result else ""
            lines.append(f"`{name}`: {images}; images/s: {', '.join(rates)}.")
    if grid := found.get("peers_grid"):
        top1 = grid["top1"]
        means = [
            f"`{name}` {own:.1%} and {top1['fastai'][name]:.1%}"
            for name, own in top1["own"].items()
        ]
        what = "mean top-1 on test over its pairs, here and there"
        lines.append(f"`peers_grid`: {what}: {', '.join(means)}.")
    return lines

"""docs/bench.md from the seconds that were measured."""

import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import exponent, ratios
from fixres_poc.config.files import write_atomically
from fixres_poc.config.provenance import environment

Result = dict[str, Any]
TABLE = (  # row, what, against, slow, fast, reach
    ("predictions", "JPEG files to predictions at 224 px", "the usual loop", "usual", "own", 2.0),
    (
        "network_alone",
        "the same files to predictions",
        "reading them, then the network alone",
        "bound",
        "own",
        0.97,
    ),
    (
        "train_step",
        "stage 1 at 128 px, JPEG files to updated weights",
        "the usual loop",
        "usual",
        "own",
        1.4,
    ),
    (
        "several_sizes",
        "evaluation at 128, 160, 192 and 224 px",
        "four passes of the usual loop",
        "usual",
        "own",
        1.5,
    ),
    (
        "grid",
        "2 x 4 pairs, all results",
        "eight independent runs of the usual loop",
        "usual",
        "own",
        5.5,
    ),
    ("peers_evaluation", "JPEG files to predictions at 224 px", "fastai", "fastai", "own", 1.5),
    ("peers_epoch", "an epoch of stage 1 at 128 px", "fastai", "fastai", "own", 1.2),
    (
        "peers_grid",
        "2 x 4 pairs with three adaptations and two controls",
        "fastai",
        "fastai",
        "own",
        4.0,
    ),
    ("drawing", "drawing 1,000 images", "one process", "one", "own", 1.85),
)
SHARES = (  # row, what, against, part, whole, at most
    (
        "grid",
        "one more test resolution in a finished sweep",
        "a sweep of that pair alone",
        "one_more",
        "one_pair",
        0.30,
    ),
    ("memory", "peak memory with 2,000 images", "with 200", "many", "few", 1.1),
)
START_UP = (  # what, of which, at most
    ("pair", "a pair beyond its images and its network, seconds of a core", 2.5),
    ("predict", "`fixres-poc predict`, one image, seconds of a core", 3.0),
    ("second_call", "the second call of a finished sweep, seconds", 1.5),
)
UNITS = {"images": "images", "pixels": "pixels", "pairs": "pairs"}


def write(file: Path, found: dict[str, Result]) -> None:
    """Write the page.

    Args:
        file: of the page.
        found: by row, what `bench` has measured; rows that are not there are left out.
    """
    lines = [
        "# Speed",
        "",
        "Made by `make bench`. Ratios of seconds, repeat by repeat: median (smallest to largest).",
    ]
    lines += [
        "",
        "| what | against | ratio | reach | reached | repeats | seconds (median) |",
        "|---|---|---|---|---|---|---|",
    ]
    for table, sign in ((TABLE, "≥"), (SHARES, "≤")):
        for row, what, against, first, second, reach in table:
            if row in found:
                lines.append(_line(found[row], what, against, first, second, reach, sign))
    lines += [
        "",
        *_start_up(found.get("start_up", {})),
        *_facts(found),
        "",
        *_growth(found.get("growth", {})),
    ]
    write_atomically(file, "\n".join(lines).rstrip() + "\n")


def _line(
    result: Result, what: str, against: str, first: str, second: str, reach: float, sign: str
) -> str:
    middle, low, high = ratios(result[first], result[second])
    reached = middle >= reach if sign == "≥" else middle <= reach
    slow, fast = (_amount(result[name]) for name in (first, second))
    count = len(result[first])
    return (
        f"| {what} | {against} | {middle:.2f} ({low:.2f}–{high:.2f}) | {sign} {reach:g} | "
        f"{'yes' if reached else '**no**'} | {count} | {slow} : {fast} |"
    )


def _start_up(result: Result) -> list[str]:
    lines: list[str] = []
    for name, what, most in [each for each in START_UP if each[0] in result]:
        if not lines:
            lines += [
                "## Start-up",
                "",
                "| what | median (smallest to largest) | reach | reached | repeats |",
                "|---|---|---|---|---|",
            ]
        middle, low, high = (each(result[name]) for each in (statistics.median, min, max))
        reached = "yes" if middle <= most else "**no**"
        lines.append(
            f"| {what} | {middle:.1f} ({low:.1f}–{high:.1f}) | ≤ {most:g} | {reached} | {len(result[name])} |"
        )
    return [*lines, ""] if lines else []


def _amount(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle / 2**20:,.0f} MiB" if middle > 1e6 else f"{middle:.1f}"


def _facts(found: dict[str, Result]) -> list[str]:
    here = environment()
    hardware, versions = here["hardware"], here["versions"]
    named = ", ".join(
        f"{name} {versions[name]}"
        for name in ("python", "torch", "torchvision", "timm")
        if name in versions
    )
    lines = [
        f"Machine: {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_bytes'] / 2**30:.0f} GiB, "
        f"GPU: {hardware['gpu'] or 'none'}; {torch.get_num_threads()} threads. {named}."
    ]
    rates = {
        name: result["images"] / statistics.median(result["own"])
        for name, result in found.items()
        if name in ("predictions", "train_step")
    }
    for name, rate in rates.items():
        result = found[name]
        other = result["images"] / statistics.median(result["usual"])
        lines.append(
            f"`{name}`: {rate:.0f} images/s against {other:.0f}, {result['images']} {result['data']}; the usual "
            f"loop's batch is {result['batch']}."
        )
    for name in ("peers_evaluation", "peers_epoch"):
        if name in found:
            middle, low, high = ratios(found[name]["usual"], found[name]["own"])
            lines.append(
                f"`{name}`: the usual loop beside it takes {middle:.2f} ({low:.2f}–{high:.2f}) of our time."
            )
    if grid := found.get("peers_grid"):
        means = [
            f"`{name}` {own:.1%} and {grid['top1']['fastai'][name]:.1%}"
            for name, own in grid["top1"]["own"].items()
        ]
        lines.append(
            f"`peers_grid`: mean top-1 on test over its pairs, here and there: {', '.join(means)}."
        )
    if alone := found.get("network_alone"):
        share, _, _ = ratios(alone["alone"], alone["own"])
        lines.append(
            f"The network alone on ready tensors takes {share:.2f} of the time from files to predictions."
        )
    return lines


def _growth(result: Result) -> list[str]:
    lines: list[str] = []
    for name in [each for each in UNITS if each in result]:
        amounts = [float(key) for key in result[name]]
        seconds = [statistics.median(values) for values in result[name].values()]
        if not lines:
            lines += [
                "## Growth",
                "",
                "| seconds against | at | median seconds | exponent |",
                "|---|---|---|---|",
            ]
        at = ", ".join(f"{amount:,.0f}" for amount in amounts)
        took = ", ".join(f"{each:.2f}" for each in seconds)
        lines.append(f"| {UNITS[name]} | {at} | {took} | {exponent(amounts, seconds):.2f} |")
    return lines

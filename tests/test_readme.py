"""README's results are those of the committed reports that it links."""

import json
import re
from itertools import permutations

import pytest

from fixres_poc.analysis.cells import keys
from fixres_poc.analysis.results import load_results
from fixres_poc.config.files import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PARAGRAPHS = re.split(r"\n(?=- )|\n\n", README.split("## Results")[1].split("\n## ")[0])
REPORT = re.compile(r"\((docs/reports/[\w-]+)/index\.html\)")
NUMBER = r"[+−]?\d+\.\d"
INTERVAL = re.compile(rf"({NUMBER}) \(({NUMBER}) to ({NUMBER})\)")
LINKED = [text for text in PARAGRAPHS if REPORT.search(text)]
assert LINKED


def differences(report: str) -> set[tuple[float, ...]]:
    """Estimate, low and high in points: the answers', and of any two cells in the usual crop."""
    results = load_results(report)
    cells = keys(results.usual[results.usual["seeds"] > 0])
    pairs = [(one, two) for one, two in permutations(cells, 2) if related(one, two)]
    own = [results.difference(*pair) for pair in pairs]
    answers = json.loads((REPOSITORY / report / "answers.json").read_text(encoding="utf-8"))
    rows = [row for answer in answers["answers"] for row in answer["rows"]]
    numbers = [each[:3] for each in own if each]
    numbers += [(row["estimate"], row["low"], row["high"]) for row in rows if row["estimate"]]
    return {tuple(round(value * 100, 1) for value in each) for each in numbers}


def related(one: tuple[object, ...], two: tuple[object, ...]) -> bool:
    """Of one train or test resolution."""
    return one[0] == two[0] or one[1] == two[1]


@pytest.mark.parametrize("text", LINKED, ids=lambda text: text[:30])
def test_intervals_are_those_of_the_linked_reports(text: str) -> None:
    known = set().union(*(differences(report) for report in REPORT.findall(text)))
    # a loss may be told without its sign: "lose 23.1 (21.1 to 25.1)"
    known |= {(-estimate, -high, -low) for estimate, low, high in known}
    told = {tuple(float(n.replace("−", "-")) for n in each) for each in INTERVAL.findall(text)}
    assert told
    assert told <= known


@pytest.mark.parametrize("text", LINKED, ids=lambda text: text[:30])
def test_counts_are_those_of_the_linked_reports(text: str) -> None:
    counts = [load_results(report).sweep["images"].values() for report in REPORT.findall(text)]
    told = re.findall(r"([\d,]+) (?:test|validation|unseen) images|validation \(([\d,]+)", text)
    assert {"".join(number) for number in told} <= {f"{n:,}" for own in counts for n in own}

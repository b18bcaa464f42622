"""The page over all sweeps: a line each, with what its report says, and a link to it."""

import json
import re
from pathlib import Path

import small_run
from made_up import grid, same

from fixres_poc.analysis import answers
from fixres_poc.report import overview


def test_a_line_says_what_the_report_says() -> None:
    found = grid({(64, 64): same(0.6), (64, 96): same(0.7), (96, 96): same(0.9)}, photos=0.5)
    said = overview.line(found)
    size = answers(found.on("photos"))[0].difference
    assert said["size"] == f"gain: {size.estimate * 100:+.1f} ({size.low * 100:+.1f} to {size.high * 100:+.1f})"
    assert said["claim"] == "does not hold"
    assert (said["best pair"], said["gain of the best pair"]) == ("96/96 none", "n/a")
    assert said["on"].endswith("photos images")


def test_every_report_has_its_line_and_link(own_home: Path) -> None:
    small_run.make()
    other = own_home / "reports" / "older"
    other.mkdir()
    page = overview.write("tiny")
    line = json.loads((page.parent / "tiny" / overview.LINE).read_text())
    (other / overview.LINE).write_text(json.dumps(line | {"sweep": "older", "date": "2000-01-01", "dataset": "<b>&"}))
    text = overview.write("tiny").read_text(encoding="utf-8")
    assert re.findall(r'<td><a href="(\w+)/index.html">(\w+)</a></td>', text) == [("tiny", "tiny"), ("older", "older")]
    assert "<b>&" not in text
    assert str(own_home) not in text

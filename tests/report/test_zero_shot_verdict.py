"""What the report says of the backbone's own ImageNet classifier."""

from typing import Any

import pandas as pd
import pytest

from fixres_poc.method.zero_shot import ZeroShot
from fixres_poc.report.run_text import zero_shot_verdict

TARGETS = [0] * 4 + [1] * 4 + [2] * 4
NAMES = [f"{index}.png" for index in range(12)]
TEST = pd.DataFrame({"image": NAMES, "split": "test", "test_size": 224, "target": TARGETS})


@pytest.mark.parametrize(
    ("top1", "expected"),
    [
        (TEST["target"].replace(1, 0), "is right on 50.0% of the same, not told apart from that (-50.0 points"),
        (-1, "is right on 0.0% of the same, less (-100.0 points"),
    ],
)
def test_verdict_compares_on_the_images_of_both(top1: Any, expected: str) -> None:
    mapped = TEST[TEST["target"] < 2]
    tables = [mapped.assign(top1=-1, test_size=96), mapped.assign(top1=mapped["target"])]
    known = ZeroShot(pd.concat(tables), {"Goldfish": "goldfish", "Snoopy": "beagle"}, 3)
    verdict = zero_shot_verdict(known, pd.concat([TEST.assign(top1=2, test_size=96), TEST.assign(top1=top1)]))
    assert "the 2 of 3 classes that it has by name, is right at 224 px on **100.0%** of their 8 test images" in verdict
    assert expected in verdict


def test_where_there_was_nothing_to_ask_nothing_is_said() -> None:
    assert zero_shot_verdict(ZeroShot(TEST.iloc[:0], {}, 3, obstacle="none"), TEST.assign(top1=0)) == ""

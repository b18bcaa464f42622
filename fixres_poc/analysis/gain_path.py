"""Where a pair's accuracy comes from: its steps from the linear probe on, on the same images."""

from typing import Any

import pandas as pd

from fixres_poc.analysis.cells import KEY, Cell
from fixres_poc.analysis.results import Results
from fixres_poc.config.settings import ADAPTED, CONTROL


def gain_path(results: Results, chosen: Cell) -> pd.DataFrame:
    """A trained cell's gain over the linear probe, split into steps on the same images.

    Returns:
        One row per step: step, the columns of a cell, top1, against (the last step before it that
        was run), gain, gain_low and gain_high (paired, 95 %); nan where a step was not run. Over
        several seeds these are means.
    """
    start, train, test = chosen.same_size(), chosen.train_size, chosen.test_size
    one_crop = chosen._replace(view="center")
    plain = one_crop._replace(adaptation="none")
    steps = {f"linear probe at {train}": results.once("probe", start.test_size)}
    steps[f"stage 1 at {train}, tested there"] = start
    if train != test:
        steps[f"tested at {test} instead"] = plain
        if chosen.adaptation in ADAPTED:
            steps[f"control: adapted at {train}"] = plain._replace(
                adaptation=CONTROL + chosen.adaptation
            )
    if chosen.adaptation != "none":
        steps[f"adapted at {test} ({chosen.adaptation})"] = one_crop
    if chosen != one_crop:
        steps[f"{chosen.view} instead of one crop"] = chosen
    rows, last = [], ""
    for step, cell in steps.items():
        row: dict[str, Any] = {"step": step, **cell._asdict()}
        if results.seeds(cell):
            row["top1"] = results.accuracy(cell).estimate
            if last and (gain := results.difference(cell, steps[last])):
                values = zip(["gain", "gain_low", "gain_high"], gain[:3], strict=True)
                row |= {"against": last, **dict(values)}
            last = step
        rows.append(row)
    columns = ["step", *KEY, "top1", "against", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=columns)

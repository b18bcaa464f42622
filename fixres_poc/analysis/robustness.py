"""Do the primary rows stand on other sets of the same test images?"""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from fixres_poc.analysis.questions import Plan, answers
from fixres_poc.analysis.results import Results


def variants(results: Results) -> Mapping[str, Results]:
    """The same results without images that were looked at before, and by near-duplicate groups.

    Returns:
        By name what applies to these images: with neither nothing.
    """
    found = {}
    images = results.images[results.images["split"] == results.part]
    if images.get("looked_at", pd.Series(dtype=bool)).any():
        seen = images.loc[images["looked_at"], "image"]
        rest = results.predictions[~results.predictions["image"].isin(seen)]
        name = f"the {len(images) - len(seen):,} not looked at before"
        found[name] = replace(results, predictions=rest)
    groups = ((results.sweep["leakage"] or {}).get("near") or {}).get("groups") or ()
    members = {image: group[0] for group in groups for image in group}
    alike = images["image"].map(members).dropna()
    if alike.duplicated().any():
        name = f"{len(images) - len(alike) + alike.nunique():,} groups of near duplicates"
        found[name] = replace(results, groups=members)
    return found


def primary_rows(results: Results) -> pd.DataFrame:
    """The primary rows on all images of the part and on its `variants`.

    Returns:
        By comparison a column for each set of images, with difference, interval and verdict in
        words; empty without variants.
    """
    others = variants(results)
    rows: dict[str, dict[str, str]] = {}
    for name, own in {"all": results, **others}.items() if others else ():
        for answer in answers(Plan(own)):
            for row in answer.primary.rows if answer.primary else ():
                question = f"{answer.number}: {row.cell.against(row.reference)}"
                told = f"{row.difference.points(brief=True)}, {row.verdict}"
                rows.setdefault(question, {})[name] = told
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("question").reset_index()

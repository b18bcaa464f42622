"""What the report says around its answers, in HTML and Markdown.

Accuracies are means over the training seeds. Differences are in points of top-1 accuracy on the
same images, with 95 % intervals over trainings and images.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from fixres_poc.analysis.cells import PAIR, cell_of
from fixres_poc.analysis.comparisons import best_sizes
from fixres_poc.analysis.results import Results
from fixres_poc.analysis.statistics import Difference
from fixres_poc.data import named_datasets

SYNTHETIC = "Synthetic images: this proves nothing about photographs."
Answers = Mapping[str, Any]
"""The content of answers.json."""


def rows_of(answers: Answers) -> list[dict[str, Any]]:
    """The rows of answers.json, each with its `question` and its comparison in words, `label`."""
    return [
        {"question": each["id"], "label": cell_of(row).against(cell_of(row["reference"])), **row}
        for each in answers["answers"]
        for row in each["rows"]
    ]


def deciding(answers: Answers, part: str) -> dict[int, dict[str, Any]]:
    """By question the row of answers.json that decides its verdict on a test part."""
    own = (row for row in rows_of(answers) if row["part"] == part and row["decides"])
    return {row["question"]: row for row in own}


def head(results: Results, answers: Answers) -> str:
    """The first screen's words, in HTML: title, facts, sentences, and chips that lead to sections.

    Args:
        results: about the leading part.
    """
    settings, part = results.settings, results.part
    network = settings["backbone"].removeprefix("timm:")
    facts = [network, f"{results.sweep['images'][part]:,} {part} images", _seeds(results)]
    facts += [results.sweep.get("date", "")]
    sentences = "".join(
        f"<li>{html.escape(each)}</li>" for each in [*answers["sentences"], *_still(answers)]
    )
    chosen = chips(results, answers)
    links = "".join(f'<a href="#{at}">{html.escape(text)}</a> ' for at, text in chosen.items())
    banner = f' <span class="banner">{SYNTHETIC}</span>' * (settings["dataset"] == "synthetic")
    return (
        f"<h1>{html.escape(answers['title'])}</h1>"
        f'<p class="facts">{html.escape(" · ".join(filter(None, facts)))}{banner}</p>'
        f'<ul class="sentences">{sentences}</ul><p class="chips">{links}</p>'
    )


def _still(answers: Answers) -> list[str]:
    sizes = " and ".join(map(str, answers["did_nothing"]))
    return [f"Stage 1 did nothing at {sizes} px: it predicts what the linear probe does."] * bool(
        sizes
    )


def _seeds(results: Results) -> str:
    asked, done = len(results.settings["seeds"]), int(results.cells["seeds"].max())
    return f"{done}{f' of {asked}' if done < asked else ''} seed{'s' if asked > 1 else ''}"


def chips(results: Results, answers: Answers) -> dict[str, str]:
    """Four facts that limit the answers' reliability, by the section that tells more."""
    flagged = (results.sweep.get("leakage") or {}).get("flagged") or {}
    words = {True: "flagged", False: "none found", None: "not checked"}
    parts = {results.part: flagged.get(results.part), "validation": flagged.get("val")}
    leaks = ", ".join(f"{part} {words[value]}" for part, value in parts.items())
    use = answers["answers"][4]
    share = f"choice wins {use['share_of_draws'] * 100:.0f} % of resampled validations"
    detected = power(answers)
    least = f"{min(detected.values()) * 100:.1f} points" if detected else "not known"
    return {
        "Leakage": f"leakage: {leaks}",
        "Seeds": _seeds(results),
        "Selection": share if use["use"] else "no arm recommended",
        "Power": f"smallest detectable difference: {least}",
    }


def power(answers: Answers) -> dict[int, float]:
    """By question the smallest true difference that its primary row detects with 80 % power."""
    return {
        number: row["detectable"]
        for number, row in deciding(answers, answers["leading_part"]).items()
        if row["detectable"] is not None
    }


def budget(answers: Answers) -> str:
    """What stands beside the recommended arm: validation's best, common practice, stability."""
    found = answers["answers"][4]
    if not found["use"]:
        return f"No arm is recommended: {found['asked']}."
    lines = [f"**{found['sentence']}** {found['means']}"]
    told = {
        "best_minus_use": "Validation's best has {} more.",
        "use_minus_common_practice": "Over common practice (the largest train resolution tested at "
        "itself, unadapted, in the usual crop) the recommended arm gains {}.",
    }
    for name, form in told.items():
        if found[name]:
            lines.append(form.format(Difference(**found[name]).points()))
    return "\n".join(f"- {line}" for line in lines)


def geometry(results: Results) -> str:
    """By train resolution: the test resolution of equal apparent size, and the best one."""
    lines = []
    for near, best, gain in best_sizes(results):
        text = (
            f"Trained at {near['train_size']} px, objects look most nearly as large at "
            f"{near['test_size']} px (ratio {near['size_ratio']:.2f})"
        )
        if gain is None:
            lines.append(f"{text}, which is also the best on validation.")
            continue
        verdict = gain.told("against the theory", "as the theory has it", "not against the theory")
        lines.append(
            f"{text}; the best on validation is {best['test_size']} px ({best['size_ratio']:.2f}), "
            f"by {gain.points()} on {results.part}: {verdict}."
        )
    return "\n".join(f"- {line}" for line in lines)


def trust(results: Results, answers: Answers) -> str:
    """Leakage with examples, seeds, selection and power: sections that the chips lead to."""
    sections = {
        "Leakage": _leakage(results),
        "Seeds": _trainings(results),
        "Selection": _selection(results),
        "Power": _power(answers),
    }
    return "\n\n".join(f"### {name}\n\n{' '.join(lines)}" for name, lines in sections.items())


def _leakage(results: Results) -> Sequence[str]:
    found = results.sweep.get("leakage") or {}
    lines = [found.get("verdict", "The leakage check was not run.")]
    near = (found.get("near") or {}).get("listed") or []
    if near:
        pairs = "; ".join(f"`{first}` and `{second}`" for first, second, *_ in near[:3])
        lines.append(f"Near duplicates, for example: {pairs}.")
    if results.settings["head_start"] == "file":
        lines.append("The network was trained elsewhere; it may have seen test images there.")
    return [*lines, named_datasets.about(results.settings["dataset"])]


def _trainings(results: Results) -> Sequence[str]:
    table = results.table
    several = results.cells["seeds"].max() > 1
    lines = [f"{_seeds(results)} of training."]
    lines.append(
        "Accuracies are means over them, and intervals are over trainings and images."
        if several
        else "The spread between trainings is not known: intervals are over images alone."
    )
    done = (table["status"] == "done").groupby([table[name] for name in PAIR], dropna=False).mean()
    if missing := int((done < 1).sum()):
        lines.append(f"{missing} of {len(done)} pairs (with probes) lack results of some seeds.")
    if left_out := results.sweep.get("unreadable"):
        few = ", ".join(f"`{name}`" for name in list(left_out)[:3])
        lines.append(f"Unreadable images left out: {len(left_out)}, such as {few}.")
    return lines


def _selection(results: Results) -> Sequence[str]:
    images = f"{results.sweep['images']['val']:,} validation images"
    return [
        f"All choices are made on {images}, none on a test part.",
        "The best of a grid is partly luck, so its validation accuracy is optimistic.",
    ]


def _power(answers: Answers) -> Sequence[str]:
    return [
        f"Question {number}: a true difference of {least * 100:.1f} points has 80 % power."
        for number, least in power(answers).items()
    ] or ["Nothing was compared."]

"""The report's text around its answers, in HTML and Markdown.

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
        {"question": answer["id"], "label": cell_of(row).against(cell_of(row["reference"])), **row}
        for answer in answers["answers"]
        for row in answer["rows"]
    ]


def deciding(answers: Answers, part: str) -> dict[int, dict[str, Any]]:
    """By question the row of answers.json that decides its verdict on a test part."""
    rows = rows_of(answers)
    return {row["question"]: row for row in rows if row["part"] == part and row["decides"]}


def head(results: Results, answers: Answers) -> str:
    """The first screen's words, in HTML: title, facts, sentences, and chips that lead to sections.

    Args:
        results: about the leading part.
    """
    settings, part = results.settings, results.part
    network = settings["backbone"].removeprefix("timm:")
    facts = [network, f"{results.sweep['images'][part]:,} {part} images", _seeds(results)]
    facts += [results.sweep.get("date", "")]
    sentences = list(answers["sentences"])
    if sizes := " and ".join(map(str, answers["did_nothing"])):
        effect = "it predicts what the linear probe does"
        sentences.append(f"Stage 1 did nothing at {sizes} px: {effect}.")
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    links = "".join(
        f'<a href="#{section}">{html.escape(fact)}</a> '
        for section, fact in chips(results, answers).items()
    )
    synthetic = settings["dataset"] == "synthetic"
    banner = f' <span class="banner">{SYNTHETIC}</span>' if synthetic else ""
    return (
        f"<h1>{html.escape(answers['title'])}</h1>"
        f'<p class="facts">{html.escape(" · ".join(filter(None, facts)))}{banner}</p>'
        f'<ul class="sentences">{items}</ul><p class="chips">{links}</p>'
    )


def _seeds(results: Results) -> str:
    planned, done = len(results.settings["seeds"]), int(results.cells["seeds"].max())
    number = f"{done} of {planned}" if done < planned else str(done)
    return f"{number} seed" if planned == 1 else f"{number} seeds"


def chips(results: Results, answers: Answers) -> dict[str, str]:
    """Four facts that limit the answers' reliability, by the section that says more."""
    flagged = (results.sweep.get("leakage") or {}).get("flagged") or {}
    words = {True: "flagged", False: "none found", None: "not checked"}
    on_part, on_validation = (words[flagged.get(name)] for name in (results.part, "val"))
    leaks = f"{results.part} {on_part}, validation {on_validation}"
    if on_part == on_validation:
        leaks = "not checked against ImageNet" if on_part == words[None] else on_part
    use = answers["answers"][4]
    share = f"recommended by {use['share_of_draws'] * 100:.0f} % of resampled validations"
    detectable = power(answers)
    decisive = detectable.get(2, max(detectable.values(), default=None))
    least = "not known" if decisive is None else f"{decisive * 100:.1f} points"
    return {
        "Leakage": f"leakage: {leaks}",
        "Seeds": _seeds(results),
        "Selection": share if use["use"] else "no arm recommended",
        "Power": f"smallest detectable difference: {least}",
    }


def power(answers: Answers) -> dict[int, float]:
    """By question the smallest true difference that its primary row detects with 80 % power."""
    detectable: dict[int, float] = {}
    for row in rows_of(answers):
        if row["primary"] and row["part"] == answers["leading_part"] and row["detectable"]:
            number = row["question"]  # with two references both must be detected
            detectable[number] = max(row["detectable"], detectable.get(number, 0.0))
    return detectable


def budget(answers: Answers) -> str:
    """The recommended arm beside validation's best and common practice, with its stability."""
    use = answers["answers"][4]
    if not use["use"]:
        return f"No arm is recommended: {use['asked']}."
    lines = [f"**{use['sentence']}** {use['means']}"]
    forms = {
        "best_minus_use": "Validation's best has {} more.",
        "use_minus_common_practice": "Over common practice (the largest train resolution tested at "
        "itself, unadapted, in the usual crop) the recommended arm gains {}.",
    }
    for name, form in forms.items():
        if use[name]:
            lines.append(form.format(Difference(**use[name]).points()))
    return "\n".join(f"- {line}" for line in lines)


def geometry(results: Results) -> str:
    """Per train resolution the test resolution of equal apparent size, and the best one."""
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
    """Leakage with examples, seeds, selection and power: the sections of the chips."""
    powers = [
        f"Question {number}: a true difference of {least * 100:.1f} points has 80 % power."
        for number, least in power(answers).items()
    ]
    sections = {
        "Leakage": _leakage(results),
        "Seeds": _trainings(results),
        "Selection": [
            f"All choices are made on {results.sweep['images']['val']:,} validation images, none "
            "on a test part.",
            "The best of a grid is partly luck, so its validation accuracy is optimistic.",
        ],
        "Power": powers or ["Nothing was compared."],
    }
    return "\n\n".join(f"### {name}\n\n{' '.join(lines)}" for name, lines in sections.items())


def _leakage(results: Results) -> Sequence[str]:
    leakage = results.sweep.get("leakage") or {}
    lines = [leakage.get("verdict", "The leakage check was not run.")]
    duplicates = (leakage.get("near") or {}).get("listed") or []
    if duplicates:
        pairs = "; ".join(f"`{image}` and `{double}`" for image, double, *_ in duplicates[:3])
        lines.append(f"Near duplicates, for example: {pairs}.")
    if results.settings["head_start"] == "file":
        lines.append("The network was trained elsewhere; it may have seen test images there.")
    return [*lines, named_datasets.about(results.settings["dataset"])]


def _trainings(results: Results) -> Sequence[str]:
    spread = "The spread between trainings is not known: intervals are over images alone."
    if results.cells["seeds"].max() > 1:
        spread = "Accuracies are means over them, and intervals are over trainings and images."
    lines = [f"{_seeds(results)} of training.", spread]
    table = results.table.assign(done=results.table["status"] == "done")
    done = table.groupby(PAIR, dropna=False)["done"].all()
    if missing := int((~done).sum()):
        lines.append(f"{missing} of {len(done)} pairs (with probes) lack results of some seeds.")
    if left_out := results.sweep.get("unreadable"):
        few = ", ".join(f"`{name}`" for name in list(left_out)[:3])
        lines.append(f"Unreadable images left out: {len(left_out)}, such as {few}.")
    return lines

"""What of a notebook comes into its page, and in which form."""

from typing import Any

from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fixres_poc.report import pages


def test_checks_and_sections_that_do_not_apply_are_left_out() -> None:
    def cell(text: str, tag: str = "", shown: str = "") -> Any:
        made = new_code_cell(text) if shown or text == "code" else new_markdown_cell(text)  # type: ignore[no-untyped-call]
        made.metadata["tags"] = [tag] if tag else []
        if shown:
            made.outputs = [new_output("stream", name="stdout", text=shown)]  # type: ignore[no-untyped-call]
        return made

    cells = [cell("# Title"), cell("## Boxes", "optional"), cell("code", "optional")]
    cells += [
        cell("## Pairs", "optional"),
        cell("code", "optional", "two pairs"),
        cell("the first", "optional"),
    ]
    cells += [
        cell("code", "optional"),
        cell("## Check", "check"),
        cell("code", "check", "the band holds"),
        cell("code"),
    ]
    html = BeautifulSoup(pages.render_content(new_notebook(cells=cells), {}), "html.parser")  # type: ignore[no-untyped-call]
    assert [each.text.removesuffix("#") for each in html("h2")] == ["Pairs"]
    assert [link.text for link in html.select("nav.rail a")] == ["Pairs"]
    assert "two pairs" in html.text
    assert not [words for words in ("Boxes", "the first", "band") if words in html.text]
    assert len(html.select("div.code")) == 2


def test_tables_scroll_and_keep_no_style_text() -> None:
    cleaned = pages.clean("<style scoped>td {color: red}</style><table><tr><th>a</th></tr></table>")
    assert cleaned.startswith('<div class="scroll"><table>')
    assert '<th scope="row">a</th>' in cleaned
    assert "color" not in cleaned


def test_the_first_screen_is_one_block_with_the_title_of_its_own() -> None:
    def cell(shown: str, *tags: str) -> Any:
        made = new_code_cell("x", metadata={"tags": [*tags]})  # type: ignore[no-untyped-call]
        made.outputs = [new_output("display_data", {"text/html": shown})]  # type: ignore[no-untyped-call]
        return made

    cells = [new_markdown_cell("# Plain", metadata={"tags": ["navigation"]}), cell("<p>0</p>")]  # type: ignore[no-untyped-call]
    cells += [cell("<h1>Does it? Yes</h1>", "first"), cell("<p>1</p>", "first")]
    cells += [new_markdown_cell("## Why"), cell("<p>2</p>")]  # type: ignore[no-untyped-call]
    html = BeautifulSoup(pages.render_content(new_notebook(cells=cells), {}), "html.parser")  # type: ignore[no-untyped-call]
    assert html.title is not None
    assert html.title.text == "Does it? Yes"
    (first,) = html.select("main > div.first")
    assert [each.text for each in first.select("div.output")] == ["Does it? Yes", "1"]
    after = first.find_next_sibling()
    assert after is not None
    assert after["class"] == ["contents"]
    assert len(html.select("#show-code")) == 1


def test_of_the_parameters_a_page_shows_the_first_group_and_what_the_run_was_given() -> None:
    defaults = (
        "# Choose\na = 1  # a count\nb = 2\n# Training\nepochs = 30\n# Set by sweeps: leave\nc = 3"
    )
    given = "# Parameters\nepochs = 70\nc = 4"
    cells = [
        new_code_cell(source, metadata={"tags": [tag]})  # type: ignore[no-untyped-call]
        for source, tag in ((defaults, "parameters"), (given, "injected-parameters"))
    ]
    notebook = new_notebook(cells=cells)  # type: ignore[no-untyped-call]
    html = BeautifulSoup(pages.render_content(notebook, {}), "html.parser")
    first, second = (code.get_text().strip() for code in html.select("div.code"))
    assert first == "# Choose\na = 1  # a count\nb = 2"
    assert second == given
    assert notebook.cells[0].source == defaults

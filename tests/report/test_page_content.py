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
    assert [link.text for link in html.select("nav a")] == ["Pairs"]
    assert "two pairs" in html.text
    assert not [words for words in ("Boxes", "the first", "band") if words in html.text]
    assert len(html.select("details.code")) == 2


def test_tables_scroll_and_keep_no_style_text() -> None:
    cleaned = pages.clean("<style scoped>td {color: red}</style><table><tr><th>a</th></tr></table>")
    assert cleaned.startswith('<div class="scroll"><table>')
    assert '<th scope="row">a</th>' in cleaned
    assert "color" not in cleaned

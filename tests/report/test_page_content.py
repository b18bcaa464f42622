"""What of a notebook comes into its page, and in which form."""

from paged import code, display, page, printed, text

from fixres_poc.report import pages


def test_checks_and_sections_that_do_not_apply_are_left_out() -> None:
    html = page(
        text("# Title"),
        text("## Boxes", "optional"),
        code("code", "optional"),
        text("## Pairs", "optional"),
        code("code", "optional", outputs=[printed("two pairs")]),
        text("the first", "optional"),
        code("code", "optional"),
        text("## Check", "check"),
        code("code", "check", outputs=[printed("the band holds")]),
        code("code"),
    )
    assert [heading.text.removesuffix("#") for heading in html("h2")] == ["Pairs"]
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
    plain, title, one, two = (
        [display({"text/html": html})]
        for html in ("<p>0</p>", "<h1>Does it? Yes</h1>", "<p>1</p>", "<p>2</p>")
    )
    html = page(
        text("# Plain", "navigation"),
        code("x", outputs=plain),
        code("x", "first", outputs=title),
        code("x", "first", outputs=one),
        text("## Why"),
        code("x", outputs=two),
    )
    assert html.title is not None
    assert html.title.text == "Does it? Yes"
    (first,) = html.select("main > div.first")
    assert [shown.text for shown in first.select("div.output")] == ["Does it? Yes", "1"]
    assert first.find_next_sibling() == html.select("div.first + .contents")[0]
    assert len(html.select("#show-code")) == 1

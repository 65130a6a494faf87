"""HTML from Python: what is escaped, what is not."""

from __future__ import annotations

from infalign.page.markup import Html, document, figure, html, join, table, tag


def test_texts_are_escaped_once_and_elements_never() -> None:
    assert tag("p", 'a <b> & "c"') == "<p>a &lt;b&gt; &amp; &quot;c&quot;</p>"
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert html(html("<")) == "&lt;"
    assert join(["<", Html("<br>")], " ") == "&lt; <br>"


def test_attributes_are_escaped_and_named_as_html_names_them() -> None:
    made = tag("a", "x", href='"><script>', class_="k", aria_label="l", title=None)
    assert made == '<a href="&quot;&gt;&lt;script&gt;" class="k" aria-label="l">x</a>'
    assert tag("meta", name="viewport") == '<meta name="viewport">'


def test_a_table_names_its_rows_and_columns() -> None:
    made = table(["policy", "n"], [["<a>", "1"]], "what & why")
    assert '<th scope="col" style="text-align: left">policy</th><th scope="col">n</th>' in made
    assert '<th scope="row" style="text-align: left">&lt;a&gt;</th><td>1</td>' in made
    assert 'aria-label="what &amp; why"' in made


def test_the_values_of_a_figure_cannot_end_their_script() -> None:
    made = figure("t", Html("<svg></svg>"), {"name": "</script><b>"})
    assert made.count("</script>") == 1
    assert "\\u003c/script>\\u003cb>" in made


def test_a_page_has_no_line_that_ends_in_a_blank() -> None:
    page = document("t", Html("a  \n"), [])
    assert page.startswith("<!doctype html>\n<html")
    assert all(line == line.rstrip() for line in page.splitlines())

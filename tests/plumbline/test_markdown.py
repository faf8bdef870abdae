"""Text as Markdown, and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plumbline.markdown import literal, plain


@given(st.text(alphabet=st.sampled_from("\\`*<>[]!|~#a_ ")))
def test_the_text_comes_back_in_one_line(text: str) -> None:
    assert plain(literal(text)) == " ".join(text.split())


def test_what_would_be_an_image_a_link_or_html_is_not() -> None:
    assert literal("![i](http://a)\n# <b>") == r"\!\[i\](http://a) \# \<b\>"

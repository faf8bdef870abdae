"""The text of a sample, in turns."""

from __future__ import annotations

from typing import Any

import pytest

from plumbline.raw_corpus.document import Document
from plumbline.sample_page.turns import Turn, turns_of
from tests.helpers.tokenizer import make_tokenizer

CHAT = ({"role": "user", "content": " Why? "}, {"role": "assistant", "content": "Because: why?"})
TEXT = "<|user|> Why? </s><|assistant|>Because: why?</s>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def ids(tokenizer: Any, text: str) -> list[int]:
    encoded: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return encoded


def chat(messages: tuple[dict[str, str], ...] = CHAT) -> Document:
    return Document("talk", "own/chats.jsonl", 3, messages=messages)


def test_a_chat_is_shown_in_turns_with_the_markup_between(tokenizer: Any) -> None:
    turns = turns_of(tokenizer, ids(tokenizer, TEXT), [chat()], None)
    assert turns == (
        Turn("", "<|user|> "),
        Turn("user", "Why?"),
        Turn("", " </s><|assistant|>"),
        Turn("assistant", "Because: why?"),
        Turn("", "</s>"),
    )


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (10, 30), (26, 40), (14, len(TEXT)), (46, 48)])
def test_a_window_shows_its_part_of_the_chat(tokenizer: Any, start: int, stop: int) -> None:
    """Every cut between tokens; each is one character or one control token."""
    tokens = ids(tokenizer, TEXT)
    stop = min(stop, len(tokens))
    start = min(start, stop - 1)
    turns = turns_of(tokenizer, tokens[start:stop], [chat()], None)
    assert "".join(turn.text for turn in turns) == tokenizer.decode(tokens[start:stop])
    for turn in turns:
        if turn.role:
            whole = {"user": "Why?", "assistant": "Because: why?"}[turn.role]
            assert turn.text in whole
    # the begin token that further windows get is no part of the chat
    begun = turns_of(tokenizer, [0, *tokens[start:stop]], [chat()], None)
    assert begun == (Turn("", "<s>"), *turns)


def test_without_a_rendered_chat_the_assistants_tokens_are_its_turns(tokenizer: Any) -> None:
    tokens = ids(tokenizer, "ab</s>cd")
    assert turns_of(tokenizer, tokens, [], [3, 5]) == (Turn("", "ab</s>"), Turn("assistant", "cd"))
    assert turns_of(tokenizer, tokens, [chat()], [0, 2, 3, 5]) == (
        Turn("assistant", "ab"),
        Turn("", "</s>"),
        Turn("assistant", "cd"),
    )


def test_a_text_is_one_part(tokenizer: Any) -> None:
    for spans in (None, []):
        assert turns_of(tokenizer, ids(tokenizer, "a <b>\n"), [], spans) == (Turn("", "a <b>\n"),)


def test_a_template_that_fails_is_no_reason_to_show_nothing() -> None:
    tokenizer = make_tokenizer(template="{{ raise_exception('no') }}")
    assert turns_of(tokenizer, ids(tokenizer, "xyz"), [chat()], None) == (Turn("", "xyz"),)

"""The text of a sample in parts: the turns of a chat with their roles, and the template's markup between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from plumbline.raw_corpus.document import Document
from plumbline.tokenized_samples.assistant import ROLE
from plumbline.tokenized_samples.encode import as_served


@dataclass(frozen=True)
class Turn:
    """A part of a sample's text."""

    role: str
    """Who wrote it, as the chat names the role; empty for a text and for the template's markup."""
    text: str


def turns_of(
    tokenizer: Any, input_ids: Sequence[int], documents: Sequence[Document], spans: Sequence[int] | None
) -> tuple[Turn, ...]:
    """The text of a sample, with special tokens, in turns if it is (a window of) one chat.

    A chat is rendered again, and the sample's text looked up in it. Where that fails (the template gives another text
    than when the corpus was tokenized, or the sample was joined), the tokens that the assistant wrote are its turns.

    Args:
        documents: those of the sample, as far as the corpus has them.
        spans: [start, stop, ...], the tokens that the assistant wrote; None: it is not known.
    """
    text = _decoded(tokenizer, input_ids)
    if len(documents) == 1 and documents[0].messages is not None:
        rendered = _rendered(tokenizer, documents[0])
        begin = tokenizer.bos_token or ""
        for prefix in ("", begin):  # a further window begins with the begin token, which stands once in the chat
            start = rendered.find(text.removeprefix(prefix).strip("\ufffd")) if text.startswith(prefix) else -1
            if start >= 0:
                inner = text.removeprefix(prefix).strip("\ufffd")
                places = _places(rendered, documents[0].messages)
                parts = _within(rendered, places, start, start + len(inner))
                return (*([Turn("", prefix)] if prefix else []), *parts)
    if not spans:
        return (Turn("", text),)
    edges = [0, *spans, len(input_ids)]
    parts = (
        Turn(ROLE if number % 2 else "", _decoded(tokenizer, input_ids[start:stop]))
        for number, (start, stop) in enumerate(pairwise(edges))
    )
    return tuple(part for part in parts if part.text)


def _decoded(tokenizer: Any, input_ids: Sequence[int]) -> str:
    ids = np.asarray(input_ids).tolist()
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _rendered(tokenizer: Any, document: Document) -> str:
    messages, tools = as_served(document)
    try:
        return str(tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False))
    except Exception:  # a template may raise anything; without it, the caller has the tokens
        return ""


def _places(rendered: str, messages: Sequence[dict[str, str]]) -> Iterator[tuple[str, int, int]]:
    """Role, start and stop of every message that the rendered chat holds as it was written."""
    place = 0
    for message in messages:
        content = message["content"].strip()
        start = rendered.find(content, place) if content else -1
        if start >= 0:
            place = start + len(content)
            yield message["role"], start, place


def _within(rendered: str, places: Iterator[tuple[str, int, int]], first: int, last: int) -> Iterator[Turn]:
    """The characters `first` to `last` of the rendered chat, in turns."""
    place = first
    for role, start, stop in places:
        start, stop = max(start, place), min(stop, last)
        if start >= stop:
            continue
        if start > place:
            yield Turn("", rendered[place:start])
        yield Turn(role, rendered[start:stop])
        place = stop
    if place < last:
        yield Turn("", rendered[place:last])

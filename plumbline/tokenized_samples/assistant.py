"""The tokens of a chat that the assistant wrote, which a model in production generates.

Spans are flat int32 arrays [start, stop, start, stop, ...] of token positions, ascending and apart from each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Spans = NDArray[np.int32]
Messages = Sequence[dict[str, Any]]
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The marker of transformers with which a template marks the assistant's text."""
ROLE = "assistant"


def assistant_spans(
    tokenizer: Any,
    template: str,
    messages: Messages,
    text: str,
    ids: NDArray[np.int32],
    tools: Sequence[Any] = (),
) -> Spans | None:
    """The tokens of a rendered chat that its assistant wrote.

    A template with transformers' `{% generation %}` marks them. For others they are derived, see `written_characters`.

    Args:
        text: the whole chat as the template renders it.
        ids: int32 (t,), its tokens.
        tools: definitions of tools, as the template takes them.

    Returns:
        Spans within `ids`, empty if no message is the assistant's; None if they cannot be determined.
    """
    if GENERATION.search(template):
        return _marked(tokenizer, template, messages, ids, tools)
    if not any(message.get("role") == ROLE for message in messages):
        return np.empty(0, np.int32)

    def render(part: Messages, prompt: bool) -> str | None:
        if not part:
            return ""
        try:
            text: str = tokenizer.apply_chat_template(
                list(part),
                tools=list(tools) or None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception:  # a template may raise anything on a partial chat
            return None
        return text

    characters = written_characters(messages, text, render)
    return None if characters is None else _tokens(tokenizer, text, ids, characters)


def written_characters(
    messages: Messages, text: str, render: Callable[[Messages, bool], str | None]
) -> list[tuple[int, int]] | None:
    """The characters of a rendered chat that its assistant wrote, derived by rendering partial chats.

    The text of a message is what it adds to the rendered chat. The chat up to it must be a prefix of the whole; that is
    checked, as templates that rewrite earlier turns (to strip reasoning) violate it. The assistant's part begins after
    the generation prompt, or with the message's content if the template has none. It ends with the message, including
    the end-of-turn token but not the white space after it.

    Args:
        render: (messages, whether to add the generation prompt) -> text; None if the template fails.

    Returns:
        (start, stop) per message of the assistant; None if they cannot be determined.
    """
    spans = []
    for number, message in enumerate(messages):
        if message.get("role") != ROLE:
            continue
        before, after = render(messages[:number], False), render(messages[: number + 1], False)
        if before is None or after is None or not text.startswith(after) or not after.startswith(before):
            return None
        content = message["content"].strip()
        prompted = render(messages[:number], True)
        if prompted is not None and len(prompted) > len(before) and after.startswith(prompted):
            start = len(prompted)
            if content not in after[start:]:
                return None
        elif content and after.count(content, len(before)) == 1:
            start = after.index(content, len(before))
        else:
            return None
        spans.append((start, max(start, len(after.rstrip()))))
    return spans


def cut(spans: Spans, start: int, stop: int, shift: int = 0) -> Spans:
    """The parts of the spans in [start, stop), relative to `start` and moved by `shift`."""
    pairs = np.clip(spans.reshape(-1, 2), start, stop) - start + shift
    return pairs[pairs[:, 0] < pairs[:, 1]].reshape(-1).astype(np.int32)


def joined_spans(parts: Sequence[tuple[Spans | None, int, int]]) -> Spans | None:
    """Spans of a sample that is joined of pieces of other samples.

    Args:
        parts: (spans of the sample that the piece is from, its start there, its stop); spans None: all of it counts.

    Returns:
        Spans within the joined sample, with adjacent ones merged; None if every piece counts as a whole.
    """
    if all(spans is None for spans, _, _ in parts):
        return None
    written = np.zeros(sum(stop - start for _, start, stop in parts), bool)
    offset = 0
    for spans, start, stop in parts:
        whole = np.array([0, stop - start], np.int32)
        for a, b in (whole if spans is None else cut(spans, start, stop)).reshape(-1, 2):
            written[offset + a : offset + b] = True
        offset += stop - start
    return _spans(written)


def _tokens(tokenizer: Any, text: str, ids: NDArray[np.int32], characters: list[tuple[int, int]]) -> Spans | None:
    """Token spans of character spans; a token that overlaps a span belongs to it."""
    if not tokenizer.is_fast:  # gives no character offsets of tokens
        return None
    encoding = tokenizer(
        text, add_special_tokens=False, truncation=False, padding=False, return_offsets_mapping=True, verbose=False
    )
    if not np.array_equal(encoding["input_ids"], ids):
        return None
    offsets = np.asarray(encoding["offset_mapping"], np.int64).reshape(-1, 2)
    written = np.zeros(len(ids), bool)
    for start, stop in characters:
        touched = np.flatnonzero((offsets[:, 0] < stop) & (offsets[:, 1] > start))
        if len(touched):  # includes tokens without characters in between
            written[touched[0] : touched[-1] + 1] = True
    return _spans(written)


def _marked(
    tokenizer: Any, template: str, messages: Messages, ids: NDArray[np.int32], tools: Sequence[Any]
) -> Spans | None:
    if not tokenizer.is_fast:
        return None
    encoding = tokenizer.apply_chat_template(
        list(messages),
        tools=list(tools) or None,
        chat_template=template,
        tokenize=True,
        truncation=False,
        padding=False,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    if not np.array_equal(encoding["input_ids"], ids):
        return None
    return _spans(np.asarray(encoding["assistant_masks"], bool))


def _spans(written: NDArray[np.bool_]) -> Spans:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], written, [False]])))
    return edges.astype(np.int32)

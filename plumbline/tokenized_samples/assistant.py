"""Which tokens of a chat the assistant wrote: what a model in production generates, unlike what it is given to read.

Spans are flat int32 arrays [start, stop, start, stop, ...] of token positions, ascending and apart from each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Spans = NDArray[np.int32]
Messages = Sequence[dict[str, str]]
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The mark of transformers by which a template itself says what the assistant writes."""
ROLE = "assistant"


def assistant_spans(
    tokenizer: Any, template: str, messages: Messages, text: str, ids: NDArray[np.int32]
) -> Spans | None:
    """The tokens of a rendered chat that its assistant wrote.

    A template with transformers' `{% generation %}` says it itself. Of another one it is derived, see
    `written_characters`.

    Args:
        text: the whole chat as the template renders it.
        ids: int32 (t,), its tokens.

    Returns:
        Spans within `ids`, none where no message is the assistant's; None where they cannot be told for certain.
    """
    if GENERATION.search(template):
        return _marked(tokenizer, template, messages, ids)
    if not any(message.get("role") == ROLE for message in messages):
        return np.empty(0, np.int32)

    def render(part: Messages, prompt: bool) -> str | None:
        if not part:
            return ""
        try:
            text: str = tokenizer.apply_chat_template(
                list(part), chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
        except Exception:  # whatever a template raises on a chat that ends here
            return None
        return text

    characters = written_characters(messages, text, render)
    return None if characters is None else _tokens(tokenizer, text, ids, characters)


def written_characters(
    messages: Messages, text: str, render: Callable[[Messages, bool], str | None]
) -> list[tuple[int, int]] | None:
    """The characters of a rendered chat that its assistant wrote, derived by rendering its beginnings.

    A message is what the text gains by it; that the chat up to it is a beginning of the whole is looked at, not
    assumed (templates that rewrite earlier turns, as those that strip reasoning do, are not). The assistant's part
    begins behind the generation prompt, where the template has one, else with the message's content, and ends with the
    message: its end-of-turn token is the assistant's, white space behind that is the template's.

    Args:
        render: (messages, whether the generation prompt is added) -> text; None where the template refuses.

    Returns:
        (start, stop) per message of the assistant; None where it cannot be told for certain.
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
    """What of the spans lies in [start, stop), counted from `start` and moved by `shift`."""
    pairs = np.clip(spans.reshape(-1, 2), start, stop) - start + shift
    return pairs[pairs[:, 0] < pairs[:, 1]].reshape(-1).astype(np.int32)


def joined_spans(parts: Sequence[tuple[Spans | None, int, int]]) -> Spans | None:
    """Spans of a sample that is joined of pieces of others.

    Args:
        parts: (spans of the sample that the piece is from, its start there, its stop); spans None: all of it counts.

    Returns:
        Spans within the joined sample, those that meet made one; None where all of it counts because every piece does.
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
    """Token spans of spans of characters; a token that is partly within one belongs to it."""
    if not tokenizer.is_fast:  # does not say where its tokens come from
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
        if len(touched):  # tokens without characters of their own in between included
            written[touched[0] : touched[-1] + 1] = True
    return _spans(written)


def _marked(tokenizer: Any, template: str, messages: Messages, ids: NDArray[np.int32]) -> Spans | None:
    if not tokenizer.is_fast:
        return None
    encoding = tokenizer.apply_chat_template(
        list(messages),
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

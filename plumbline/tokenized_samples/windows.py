"""How a document's tokens become samples: which windows, with which special tokens, and what is lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plumbline.tokenized_samples.params import TokenizeParams

LOST = {
    "too_long": "documents over max_length under long_documents: drop",
    "truncated": "the rest of documents over max_length under long_documents: truncate",
    "too_short": "samples and last windows under min_tokens",
    "duplicate": "samples whose token ids an earlier sample has",
    "chat_template_error": "chats that the tokenizer's chat template refuses (they have no tokens to count)",
}


@dataclass(frozen=True)
class Window:
    """A sample in the making: `content[start:stop]` of a document, and the special tokens around it."""

    index: int
    start: int
    input_ids: np.ndarray
    """int32 (n_tokens,)."""
    special: int
    """How many of `input_ids` the tokenizer added; the rest is content."""


def windows(
    content: np.ndarray, prefix: np.ndarray, suffix: np.ndarray, params: TokenizeParams
) -> tuple[list[Window], dict[str, tuple[int, int]]]:
    """Cut a document into samples of at most `params.max_length` tokens.

    A document that fits is one sample, exactly as the tokenizer gives it. Else, by `params.long_documents`: *window*
    cuts the content into consecutive pieces; each begins with the prefix (the begin-of-text token in front of every
    text the model has seen), the last ends with the suffix, because only there the text ends. *truncate* is what the
    tokenizer's own truncation gives: prefix, the first tokens, suffix. *drop* leaves the document out.

    Args:
        content: int32 (t,), the document without special tokens.
        prefix, suffix: int32, the special tokens that the tokenizer puts around every text.

    Returns:
        The samples, and by reason (samples, content tokens) that are lost. Content tokens add up: `len(content)` is
        those of the samples and those lost.

    Raises:
        ValueError: max_length leaves no room beside the special tokens.
    """
    room = params.max_length - len(prefix) - len(suffix)
    if room < 1:
        raise ValueError(
            f"tokenize.max_length is {params.max_length}, but the tokenizer adds {len(prefix) + len(suffix)} special "
            f"tokens to every sample; raise max_length in params.yaml"
        )
    lost: dict[str, tuple[int, int]] = {}
    stop = len(content)
    if stop > room and params.long_documents == "drop":
        return [], {"too_long": (1, stop)}
    if stop > room and params.long_documents == "truncate":
        lost["truncated"] = (0, stop - room)
        stop = room
    samples: list[Window] = []
    for index, start in enumerate(range(0, max(stop, 1), room)):
        piece = content[start : min(start + room, stop)]
        end = suffix if start + len(piece) >= stop else suffix[:0]
        # A full window is never too short, also where the suffix that it leaves out would have made up the length.
        if len(prefix) + len(piece) + len(suffix) < params.min_tokens or not len(piece):
            lost["too_short"] = (1, len(piece))  # so this can only be the last one
        else:
            input_ids = np.concatenate([prefix, piece, end])
            samples.append(Window(index, start, input_ids, len(input_ids) - len(piece)))
    return samples, lost

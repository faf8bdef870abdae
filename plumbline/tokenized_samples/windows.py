"""From a document's tokens to samples: windows, special tokens and losses."""

from __future__ import annotations

import sys
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
    """A window `content[start:stop]` of a document with the special tokens around it."""

    index: int
    start: int
    input_ids: np.ndarray
    """int32 (n_tokens,)."""
    special: int
    """Number of `input_ids` that the tokenizer added; the rest is content."""


def windows(
    content: np.ndarray, prefix: np.ndarray, suffix: np.ndarray, params: TokenizeParams
) -> tuple[list[Window], dict[str, tuple[int, int]]]:
    """Cut a document into samples of at most `params.max_length` tokens.

    A document that fits is one sample, as the tokenizer encodes it. Otherwise, by `params.long_documents`: *window*
    cuts the content into consecutive pieces; each begins with the prefix (begin-of-text), and the last ends with the
    suffix, as only there the text ends. *truncate* equals the tokenizer's truncation: prefix, first tokens, suffix.
    *drop* leaves the document out.

    Args:
        content: int32 (t,), the document without special tokens.
        prefix, suffix: int32, the special tokens that the tokenizer puts around every text.

    Returns:
        The samples, and the losses by reason, (samples, content tokens). `len(content)` is the sum of the content
        tokens of samples and losses.

    Raises:
        ValueError: max_length leaves no room beside the special tokens.
    """
    longest = sys.maxsize if params.max_length is None else params.max_length
    room = longest - len(prefix) - len(suffix)
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
        # count the suffix, so that a full window without it is never too short
        if len(prefix) + len(piece) + len(suffix) < params.min_tokens or not len(piece):
            lost["too_short"] = (1, len(piece))  # only the last window can be too short
        else:
            input_ids = np.concatenate([prefix, piece, end])
            samples.append(Window(index, start, input_ids, len(input_ids) - len(piece)))
    return samples, lost

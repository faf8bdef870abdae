"""Control tokens that documents spell themselves: `<s>` in a text, a chat that was rendered beforehand.

Such a text is tokenized as the tokenizer does it in production: the literal becomes the control token, and a text that
begins with the begin-of-text gets another one in front. It is counted, because the model then sees the end of a turn or
of a text that nobody wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONTROL = ("documents", "tokens", "begin_twice")
"""What is counted: documents, the control tokens in them, and texts with two begin-of-texts."""


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The special tokens that a text can spell, text -> id; not the one for unknown characters."""
    added = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {text: i for text, i in {**added, **named}.items() if text and i != tokenizer.unk_token_id}


def sentence(accounting: Mapping[str, Any]) -> str | None:
    """How many documents spell control tokens, and how they are tokenized; None: no document does."""
    counts = accounting["control_tokens"]
    if not counts["documents"]:
        return None
    twice = f", and {counts['begin_twice']} begin with two begin-of-texts" if counts["begin_twice"] else ""
    return (
        f"{counts['documents']} of {accounting['documents_in']} documents spell {counts['tokens']} control tokens, as "
        f"chats that were rendered beforehand do; each is tokenized as the control token, as in production{twice}. "
        "Give chats as messages, which the template renders, or remove the literals"
    )

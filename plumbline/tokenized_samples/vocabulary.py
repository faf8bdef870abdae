"""Whether the base model has an embedding for every token of its tokenizer."""

from __future__ import annotations

import logging
from typing import Any

from plumbline.base_model.checkpoint import BaseCheckpoint

log = logging.getLogger(__name__)


def require_embeddings(base: BaseCheckpoint, tokenizer: Any) -> None:
    """Refuse a tokenizer that may give the model a token it has no embedding for.

    Special tokens beyond the embedding that no sample begins or ends with are allowed, with a warning: fine-tuned
    models often add one for padding, some classes of tokenizers add their own, and only a text that spells it holds it.

    Raises:
        ValueError: such a token exists; names the number of tokens, that of embeddings, and the first such token.
    """
    embeddings = base.vocabulary()
    if embeddings is None:
        return
    ids = tokenizer.get_vocab()
    beyond = sorted((number, token) for token, number in ids.items() if number >= embeddings)
    numbers = (
        f"its tokenizer has {max(ids.values()) + 1} tokens, its embedding {embeddings} (vocab_size in config.json)"
    )
    around = set(tokenizer("a")["input_ids"])
    idle = {token for token in tokenizer.all_special_tokens if ids.get(token) not in around}
    rest = [(number, token) for number, token in beyond if token not in idle]
    if rest:
        number, token = rest[0]
        raise ValueError(
            f"{base.name}: {numbers}; {len(rest)} tokens have no embedding, first {token!r} ({number}). Put the "
            "model's own tokenizer into its folder, or add embeddings (resize_token_embeddings) and save the model"
        )
    if beyond:
        names = ", ".join(repr(token) for _, token in beyond)
        log.warning(
            "%s: %s; special tokens beyond, which only a text that spells them holds: %s", base.name, numbers, names
        )

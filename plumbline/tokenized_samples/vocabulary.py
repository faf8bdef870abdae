"""Whether the base model has an embedding for every token of its tokenizer."""

from __future__ import annotations

import logging
from typing import Any

from plumbline.base_model.checkpoint import BaseCheckpoint

log = logging.getLogger(__name__)


def require_embeddings(base: BaseCheckpoint, tokenizer: Any) -> None:
    """Refuse a tokenizer that may give the model a token it has no embedding for.

    A padding token beyond the embedding is allowed, with a warning: fine-tuned models often add one, and no sample
    holds it.

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
    rest = [(number, token) for number, token in beyond if token != tokenizer.pad_token]
    if rest:
        number, token = rest[0]
        raise ValueError(
            f"{base.name}: {numbers}; {len(rest)} tokens have no embedding, first {token!r} ({number}). Put the "
            "model's own tokenizer into its folder, or add embeddings (resize_token_embeddings) and save the model"
        )
    if beyond:
        log.warning("%s: %s; only its padding token %r is beyond", base.name, numbers, tokenizer.pad_token)

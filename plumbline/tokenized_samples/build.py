"""tokenized_samples: reads raw_corpus and the base model's tokenizer; writes shards of samples and accounting.json."""

from __future__ import annotations

import logging
from pathlib import Path

from plumbline.artifact import write_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.context import context_length
from plumbline.tokenized_samples.control_tokens import sentence
from plumbline.tokenized_samples.encode import Encoder
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.splits import split_of
from plumbline.tokenized_samples.tokenize import account, policy_in_force, require_complete, write_shards
from plumbline.tokenized_samples.vocabulary import require_embeddings

log = logging.getLogger(__name__)


def build_tokenized_samples(
    params: TokenizeParams, base: BaseCheckpoint, corpus: Path, out: Path, previous: Path | None = None
) -> None:
    """Tokenize raw_corpus into the empty folder `out`.

    Args:
        base: the base model, whose tokenizer and chat template are used.
        previous: an earlier tokenized_samples of the same code; shards of the same documents are linked where
            fingerprint and policy are the same.

    Raises:
        ValueError: a token without an embedding, a chat without a chat template, too many chats that the template
            refuses, no room beside the special tokens, samples longer than the model reads, bad split shares, or no
            sample is left.
    """
    split_of("", params.splits.tuning, params.splits.report)  # fail before the work, not after
    params = params.within(context_length(base.folder))
    encoder = Encoder(base, params)
    require_embeddings(base, encoder.tokenizer)
    shards = write_shards(params, base, encoder, corpus, out, previous)
    accounting = {
        "fingerprint": encoder.fingerprint,
        "fingerprint_parts": encoder.parts,
        "policy": policy_in_force(params),
        "max_length": params.max_length,
        "shards": shards,
        **account(shards, out),
    }
    require_complete(accounting, params, out)
    if (warning := sentence(accounting)) is not None:
        log.warning(warning)
    write_json(out / "accounting.json", accounting)

"""The fingerprint of a tokenization by content: equal for folders that turn every text into the same samples."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import sha256_files, sha256_json
from plumbline.tokenized_samples.params import TokenizeParams

POLICY = ("max_length", "long_documents", "add_special_tokens")
"""The parts that are settings, not the tokenizer's content."""


def tokenizer_fingerprint(tokenizer: Any, params: TokenizeParams) -> tuple[str, dict[str, Any]]:
    """The fingerprint and its parts, so that an error can name the part that differs.

    Args:
        tokenizer: a Hugging Face tokenizer. Its folder, a round trip through `save_pretrained`, and enabled truncation
            or padding have no effect.

    Returns:
        SHA-256 (hex) of the parts, and the parts: `backend` (digest of vocabulary, merges, normalizer, pre- and
        post-processor), `special_tokens`, `chat_template` (digest, None without one), `add_special_tokens`,
        `max_length`, `long_documents`. `min_tokens` and the splits are not among them: they decide which samples are
        used, not their tokens, so statistics of two such corpora can be merged.
    """
    template = tokenizer.chat_template
    parts = {
        "backend": _backend_digest(tokenizer),
        "special_tokens": {name: _plain(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "chat_template": None if template is None else sha256_json(template),
        "add_special_tokens": params.add_special_tokens,
        "max_length": params.max_length,
        "long_documents": params.long_documents,
    }
    return sha256_json(parts), parts


def policy_of(parts: Mapping[str, Any]) -> TokenizeParams:
    """The settings in a fingerprint's parts, to fingerprint another tokenizer with the same settings."""
    return TokenizeParams.model_validate({name: parts[name] for name in POLICY})


def _backend_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        # state of the last call, which calibration tools sometimes save by accident
        content["truncation"] = content["padding"] = None
        return sha256_json(content)
    with tempfile.TemporaryDirectory() as folder:  # a tokenizer written in Python has no backend: hash what it saves
        tokenizer.save_vocabulary(folder)
        files = sha256_files(Path(folder), [p.name for p in Path(folder).iterdir()])
    added = {str(i): _plain(token) for i, token in tokenizer.added_tokens_decoder.items()}
    return sha256_json([type(tokenizer).__name__, files, added])


def _plain(token: Any) -> Any:
    return [str(t) for t in token] if isinstance(token, list | tuple) else str(token)

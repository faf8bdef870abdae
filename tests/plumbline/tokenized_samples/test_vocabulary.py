"""Tokens without an embedding are reported before anything is tokenized, with both numbers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from plumbline.tokenized_samples.build import build_tokenized_samples
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.vocabulary import require_embeddings
from tests.helpers.checkpoint import checkpoint
from tests.helpers.multimodal import CONFIGS
from tests.helpers.tokenizer import write_byte_tokenizer

TOKENS = 257
"""A begin token and one per byte."""


def base_with(folder: Path, config: dict[str, Any], *added: str, pad: str | None = None) -> Any:
    """A base model's tokenizer with further tokens, and its config.json."""
    write_byte_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = checkpoint(folder.name, folder.parent).tokenizer()
    tokenizer.add_tokens(list(added))
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(folder)
    base = checkpoint(folder.name, folder.parent)
    return base, base.tokenizer()


@pytest.mark.parametrize("embeddings", [TOKENS, TOKENS + 63])
def test_an_embedding_of_at_least_the_tokens_is_enough(tmp_path: Path, embeddings: int) -> None:
    require_embeddings(*base_with(tmp_path / "base", {"model_type": "llama", "vocab_size": embeddings}))


@pytest.mark.parametrize("part", [None, "text_config"])
def test_tokens_beyond_the_embedding_are_refused(tmp_path: Path, part: str | None) -> None:
    text = {"model_type": "llama", "vocab_size": TOKENS + 1}
    config = text if part is None else {"model_type": "llava", part: text}
    base, tokenizer = base_with(tmp_path / "base", config, " the", " of", " and")
    with pytest.raises(
        ValueError, match=r"base: its tokenizer has 260 tokens, its embedding 258 .* 2 tokens .*' of' \(258\)"
    ):
        require_embeddings(base, tokenizer)


def test_it_is_said_before_anything_is_tokenized(tmp_path: Path) -> None:
    base, _ = base_with(tmp_path / "base", {"model_type": "llama", "vocab_size": TOKENS}, " the")
    with pytest.raises(ValueError, match="its tokenizer has 258 tokens, its embedding 257"):
        build_tokenized_samples(TokenizeParams(max_length=64), base, tmp_path / "no corpus", tmp_path / "out")


def test_a_padding_token_beyond_is_said_and_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {"model_type": "llama", "vocab_size": TOKENS}
    with caplog.at_level(logging.WARNING):
        require_embeddings(*base_with(tmp_path / "base", config, pad="[PAD]"))
    assert "its tokenizer has 258 tokens, its embedding 257" in caplog.text and "'[PAD]'" in caplog.text


def test_a_special_token_that_every_sample_begins_with_is_refused(tmp_path: Path) -> None:
    """The begin token of this tokenizer is 0: a model of no embedding at all has none for it."""
    with pytest.raises(ValueError, match="its embedding 0"):
        require_embeddings(*base_with(tmp_path / "base", {"model_type": "llama", "vocab_size": 0}))


def test_a_special_token_that_no_sample_holds_is_said_and_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, tokenizer = base_with(tmp_path / "base", {"model_type": "llama", "vocab_size": TOKENS})
    tokenizer.add_special_tokens({"unk_token": "<|endoftext|>"})
    with caplog.at_level(logging.WARNING):
        require_embeddings(base, tokenizer)
    assert "'<|endoftext|>'" in caplog.text


def test_a_multimodal_model_is_asked_for_its_text_vocabulary(tmp_path: Path) -> None:
    for name, config in CONFIGS.items():
        config.save_pretrained(tmp_path / name)
        assert checkpoint(name, tmp_path).vocabulary() == 50

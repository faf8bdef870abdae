"""A tiny embedder and a tiny tokenizer of our own, and real tokenized_samples made from a few texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoint import checkpoint
from tests.helpers.tiny_models import make_base_model
from tests.helpers.tokenizer import write_byte_tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,:;()=-"


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with mean pooling, in the folder layout of sentence-transformers."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("embedder")
    letters = [*ALPHABET, *(f"##{letter}" for letter in ALPHABET)]
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1000))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    BertModel(config).save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model's tokenizer: one token per byte, with a begin token."""
    return write_byte_tokenizer(tmp_path_factory.mktemp("model"), "<s>")


@pytest.fixture
def tokenized(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., Path]:
    """tokenized({"file": [text, ...]}) -> a tokenized_samples artifact, one shard per file."""
    from plumbline.raw_corpus.build import build_raw_corpus
    from plumbline.raw_corpus.params import CorpusParams
    from plumbline.tokenized_samples.build import build_tokenized_samples
    from plumbline.tokenized_samples.params import TokenizeParams

    count = 0

    def make(files: dict[str, list[str]]) -> Path:
        nonlocal count
        count += 1
        root, corpus, out = (tmp_path / f"{name}{count}" for name in ("root", "corpus", "samples"))
        for folder in (root / "docs", corpus, out):
            folder.mkdir(parents=True)
        for name, texts in files.items():
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (root / "docs" / f"{name}.jsonl").write_text(lines)
        params: dict[str, Any] = {"sources": {"docs": {"kind": "directory", "path": "docs", "domain": "letters"}}}
        build_raw_corpus(CorpusParams.model_validate(params), root, corpus)
        policy = TokenizeParams.model_validate({"max_length": 60, "min_tokens": 4, "workers": 1})
        build_tokenized_samples(policy, checkpoint(tokenizer_folder), corpus, out)
        return out

    return make


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama in bfloat16 that reads 64 tokens, with the tokenizer of `tokenizer_folder`."""
    return make_base_model(tmp_path_factory.mktemp("llama"), "bfloat16")

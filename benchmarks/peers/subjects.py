"""The models that are quantized, their calibration samples, and held-out text.

The bundled model is calibrated on windows of its training documents and evaluated on documents of the report split. The
two random Llamas are bfloat16, with a vocabulary of 4,096 tokens and heads of 64 channels. Their samples are random
tokens, so only their times are meaningful. articles.py has the real model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifact import write_json, write_table
from plumbline.base_model.folder import BUNDLED
from plumbline.calibration_set.reader import SCHEMA, set_digest
from plumbline.calibration_set.strategies.base import sample_id
from plumbline.evaluation.held_out import HeldOut
from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.windows import windows

VOCABULARY = 4096
RANDOM_LLAMAS = {
    "random-6M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6},
    "random-51M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4},
}
BUNDLED_NAME = "bundled-6M"
SUBJECTS = (BUNDLED_NAME, *RANDOM_LLAMAS)
HEAD = 64
FINGERPRINT = "0" * 64
"""Placeholder for the tokenization fingerprint; these samples come from no corpus."""
HELD_OUT_TOKENS = 24_576
"""Tokens evaluated per domain of the report documents (bundled model)."""
RANDOM_HELD_OUT = 8


@dataclass(frozen=True)
class Subject:
    """A model's folder, its calibration_set artifact, and what it is evaluated on."""

    name: str
    model: Path
    samples: Path
    held_out: HeldOut
    group_size: int = 128
    """Input channels per scale; divides every width of the model."""

    @property
    def says_something(self) -> bool:
        """Whether its KL means anything: random tokens do not."""
        return self.name not in RANDOM_LLAMAS


def subject(name: str, samples: int, length: int, work: Path, dtype: str = "bfloat16") -> Subject:
    """A subject, created in `work` unless it exists there; deterministic.

    Args:
        dtype: dtype of the model, "bfloat16" or "float32"; the weights are the same.
    """
    folder = work / name
    calibration = folder / f"samples-{samples}x{length}"
    evaluated = folder / f"held-out-{length}.parquet"
    model = BUNDLED if name == BUNDLED_NAME else folder / "model"
    if not (calibration / "manifest.json").is_file() or not evaluated.is_file():
        _write_subject(name, samples, length, model, calibration, evaluated)
    if dtype != "bfloat16":
        model = recast(model, folder / f"model-{dtype}", dtype)
    return Subject(name, model, calibration, _read_held_out(evaluated))


def recast(model: Path, folder: Path, dtype: str) -> Path:
    """The model with its tokenizer, stored in another dtype."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        AutoModelForCausalLM.from_pretrained(model, dtype=dtype).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def _write_subject(name: str, samples: int, length: int, model: Path, calibration: Path, evaluated: Path) -> None:
    if name == BUNDLED_NAME:
        ids, held_out = _document_windows(samples, length), _report_documents(length)
    else:
        if not (model / "config.json").is_file():
            _random_llama(name, model)
        shape = (samples + RANDOM_HELD_OUT, length)
        drawn = np.random.default_rng(1).integers(3, VOCABULARY, size=shape, dtype=np.int32)
        ids = list(drawn[:samples])
        rest = drawn[samples:].astype(np.int64)
        held_out = [("random", f"random-{row}", tokens) for row, tokens in enumerate(rest)]
    calibration.mkdir(parents=True, exist_ok=True)
    write_set(calibration, name, ids)
    domains, documents, tokens_of = zip(*held_out, strict=True)
    columns = {"domain": list(domains), "doc_id": list(documents), "input_ids": list(tokens_of)}
    write_table(evaluated, pa.table(columns))


def _read_held_out(file: Path) -> HeldOut:
    table = pq.read_table(file)
    tokens = [np.array(ids, np.int64) for ids in table["input_ids"].to_pylist()]
    return held_out_of(table["domain"].to_pylist(), table["doc_id"].to_pylist(), tokens)


def held_out_of(domains: list[str], documents: list[str], tokens: list[np.ndarray]) -> HeldOut:
    """Held-out samples of token ids (int64), each with its domain and document."""
    return HeldOut([sample_id(ids) for ids in tokens], documents, domains, tokens, {})


def write_set(folder: Path, name: str, samples: Sequence[np.ndarray]) -> None:
    """Write a calibration_set artifact of samples (int32 token ids), with the parts that statistics and models read."""
    names = [sample_id(ids) for ids in samples]
    columns = {
        "position": range(len(samples)),
        "sample_id": names,
        "doc_ids": [[] for _ in samples],
        "domain": [name] * len(samples),
        "source": [name] * len(samples),
        "n_tokens": [len(ids) for ids in samples],
        "input_ids": list(samples),
        "reason": ["{}"] * len(samples),
        "parents": [[] for _ in samples],
    }
    nulls = [None] * len(samples)
    table = pa.table(
        {field.name: pa.array(columns.get(field.name, nulls), field.type) for field in SCHEMA}, schema=SCHEMA
    )
    write_table(folder / "samples.parquet", table)
    manifest = {
        "choice": {"name": name, "strategy": "benchmark", "n": len(samples), "seed": 0},
        "digest": set_digest(names, FINGERPRINT),
        "fingerprint": FINGERPRINT,
        "fingerprint_parts": {},
        "samples": len(samples),
        "tokens": sum(len(ids) for ids in samples),
    }
    write_json(folder / "manifest.json", manifest)


def _random_llama(name: str, folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = RANDOM_LLAMAS[name]
    config = LlamaConfig(
        **shape,
        vocab_size=VOCABULARY,
        num_attention_heads=shape["hidden_size"] // HEAD,
        num_key_value_heads=shape["hidden_size"] // HEAD,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = {f"<{i}>": i for i in range(VOCABULARY)}  # both contenders load a tokenizer; neither uses it
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<0>", pad_token="<2>").save_pretrained(folder)


def _windows(split: str, length: int) -> Iterator[tuple[str, str, list[np.ndarray]]]:
    """(domain, name, windows as production would cut them) of every document of a split."""
    from benchmarks.bundled_model.train import documents
    from plumbline.base_model.load import load_tokenizer

    tokenizer = load_tokenizer(BUNDLED)
    params = TokenizeParams(max_length=length)
    prefix, suffix = np.array([tokenizer.bos_token_id], np.int32), np.array([], np.int32)
    for number, (domain, _, text) in enumerate(documents(split)):
        content = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
        document_windows, _ = windows(content, prefix, suffix, params)
        if document_windows:
            yield domain, f"{split}-{number}", [window.input_ids for window in document_windows]


def _document_windows(samples: int, length: int) -> list[np.ndarray]:
    """Full windows drawn from the pool's documents without replacement."""
    full = [ids for _, _, cut in _windows("pool", length) for ids in cut if len(ids) == length]
    unique = list({sample_id(ids): ids for ids in full}.values())
    drawn = np.random.default_rng(0).choice(len(unique), size=samples, replace=False)
    return [unique[row] for row in drawn]


def _report_documents(length: int) -> list[tuple[str, str, np.ndarray]]:
    """(domain, document, window) of the report split, documents in random order until a domain has enough tokens."""
    by_domain: dict[str, list[tuple[str, list[np.ndarray]]]] = {}
    for domain, name, cut in _windows("report", length):
        by_domain.setdefault(domain, []).append((name, cut))
    chosen: list[tuple[str, str, np.ndarray]] = []
    for domain, documents in sorted(by_domain.items()):
        tokens = 0
        for row in np.random.default_rng(0).permutation(len(documents)):
            name, cut = documents[row]
            first_windows = cut[:4]  # few windows per document, for more documents
            chosen += [(domain, name, ids.astype(np.int64)) for ids in first_windows]
            tokens += sum(map(len, first_windows))
            if tokens >= HELD_OUT_TOKENS:
                break
    return chosen

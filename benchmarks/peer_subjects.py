"""What the contenders of benchmarks/peers.py quantize: three models, their calibration samples, held-out text.

The bundled model reads windows of documents that it was trained on, and is evaluated on documents of the report split.
The two random Llamas are those of the project's first table, bfloat16 with 4,096 tokens in the vocabulary and heads of
64 channels; their samples are random tokens, so of them only the times mean something.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifact import write_json, write_table
from plumbline.base_model.load import BUNDLED
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
"""Of the tokenization; the samples here come from no corpus."""
HELD_OUT_TOKENS = 24_576
"""Evaluated per domain of the bundled model's report documents."""
RANDOM_HELD_OUT = 8


@dataclass(frozen=True)
class Subject:
    """A model's folder, its calibration_set artifact, and what it is evaluated on."""

    name: str
    model: Path
    samples: Path
    held_out: HeldOut


def subject(name: str, samples: int, length: int, work: Path, dtype: str = "bfloat16") -> Subject:
    """Make a subject in `work`, or take the one that is there; the same seed gives the same bytes.

    Args:
        dtype: of the model: "bfloat16", or "float32", which represents the same weights.
    """
    folder = work / name
    calibration = folder / f"samples-{samples}x{length}"
    evaluated = folder / f"held-out-{length}.parquet"
    model = BUNDLED if name == BUNDLED_NAME else folder / "model"
    if not (calibration / "manifest.json").is_file() or not evaluated.is_file():
        _write_subject(name, samples, length, model, calibration, evaluated)
    if dtype != "bfloat16":
        model = _recast(model, folder / f"model-{dtype}", dtype)
    return Subject(name, model, calibration, _read_held_out(evaluated))


def _recast(model: Path, folder: Path, dtype: str) -> Path:
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
    domains, documents = table["domain"].to_pylist(), table["doc_id"].to_pylist()
    return HeldOut([sample_id(ids) for ids in tokens], documents, domains, tokens, {})


def write_set(folder: Path, name: str, samples: Sequence[np.ndarray]) -> None:
    """A calibration_set artifact of these samples (int32 token ids), as far as statistics and models read it."""
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
    nothing = [None] * len(samples)
    table = pa.table(
        {field.name: pa.array(columns.get(field.name, nothing), field.type) for field in SCHEMA}, schema=SCHEMA
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
    words = {f"<{i}>": i for i in range(VOCABULARY)}  # both contenders want a tokenizer to lie there; neither asks it
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
        found, _ = windows(content, prefix, suffix, params)
        if found:
            yield domain, f"{split}-{number}", [window.input_ids for window in found]


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
    for domain, found in sorted(by_domain.items()):
        tokens = 0
        for at in np.random.default_rng(0).permutation(len(found)):
            name, cut = found[at]
            few = cut[:4]  # of a long document its first windows: more documents tell more
            chosen += [(domain, name, ids.astype(np.int64)) for ids in few]
            tokens += sum(map(len, few))
            if tokens >= HELD_OUT_TOKENS:
                break
    return chosen

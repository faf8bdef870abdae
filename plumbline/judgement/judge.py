"""Judges checkpoints: texts, the base model's answers, each checkpoint against them, and what may be said of it."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from plumbline.artifact import write_json, write_table
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.context import context_length
from plumbline.evaluation.held_out import HeldOut
from plumbline.evaluation.params import EvaluationParams
from plumbline.judgement.checkpoint_formats import JudgedCheckpoint, checkpoints, load
from plumbline.judgement.measured import documents, measure_checkpoint, summary
from plumbline.judgement.reference import Reference, ReferenceKey, write_reference
from plumbline.judgement.texts import JudgedTexts, read_texts, tokenized
from plumbline.judgement.verdicts import verdicts
from plumbline.judgement.wording import headline, sentences

LONGEST = 2048
"""Tokens of a sample, if the base model reads as many."""


@dataclass(frozen=True)
class JudgeOptions:
    """How much is compared, and where."""

    max_length: int | None = None
    """Tokens of a sample; None: `LONGEST`, or what the base model reads."""
    tokens_per_domain: int | None = 16384
    windows_per_document: int | None = 1
    batch_tokens: int = 4096
    confidence: float = 0.95
    reference_logits: Path | None = None
    """File for the base model's answers, read if it is there; None: a temporary one."""


@dataclass(frozen=True)
class Judgement:
    """The result."""

    content: dict[str, Any]
    """JSON-able: base model, texts, models with figures and verdicts, sentences."""
    tables: dict[str, pa.Table]
    """Sums per document by checkpoint."""

    def write(self, out: Path) -> None:
        """Write judgement.json and documents.parquet, a row per checkpoint and document."""
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "judgement.json", self.content)
        parts = [
            table.add_column(0, "model", pa.array([name] * table.num_rows, pa.string()))
            for name, table in self.tables.items()
        ]
        write_table(out / "documents.parquet", pa.concat_tables(parts))


def judge_checkpoints(
    base: BaseCheckpoint,
    paths: Sequence[Path],
    texts: Sequence[Path],
    against: Path | None = None,
    options: JudgeOptions = JudgeOptions(),  # frozen
) -> Judgement:
    """Compare checkpoints with their base model on texts, and with each other.

    Args:
        paths: folders of Hugging Face, or GGUF files.
        against: the checkpoint to compare the others with; None: the first of several, or none of one.

    Raises:
        FileNotFoundError: a path is not there, or holds no model.
        ValueError: a checkpoint cannot be read here, the texts give no sample, or the reference file is of others.
    """
    every = checkpoints([*([against] if against else []), *(path for path in paths if path != against)])
    baseline = every[0].name if len(every) > 1 else None
    corpus = read_texts(texts)
    context = context_length(base.folder)
    length = options.max_length or min(LONGEST, context or LONGEST)
    if context is not None and length > context:
        raise ValueError(f"--max-length: found {length}, but the base model reads at most {context} tokens at once")
    held_out, fingerprint, refused = tokenized(
        corpus, base, length, options.tokens_per_domain, options.windows_per_document
    )
    key = ReferenceKey(base.digest(), fingerprint, held_out.digest)
    tables: dict[str, pa.Table] = {}
    models: list[dict[str, Any]] = []
    with _reference(base, key, held_out, options) as reference:
        for checkpoint in every:
            figures, tables[checkpoint.name] = _measured(checkpoint, reference, held_out, base, options)
            models.append(figures)
    judged = verdicts(tables, baseline, options.confidence)
    for model in models:
        model["verdicts"] = judged[model["name"]]
    content = {
        "base_model": {"name": base.name, "revision": base.revision, "digest": key.base_model},
        "against": baseline,
        "confidence": options.confidence,
        "texts": _about(corpus, held_out, refused, length, fingerprint),
        "models": models,
        "headline": headline(models, baseline),
        "sentences": sentences(models, baseline),
    }
    return Judgement(content, tables)


@contextmanager
def _reference(
    base: BaseCheckpoint, key: ReferenceKey, held_out: HeldOut, options: JudgeOptions
) -> Iterator[Reference]:
    """The base model's answers; the base model is loaded only if no file has them, and is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = options.reference_logits or Path(folder) / "reference.safetensors"
        if not path.is_file():
            model = base.load()
            with _progress(f"base model {base.name}", held_out) as advance:
                write_reference(path, key, held_out, options.batch_tokens, model, advance)
            del model
            _free()
        yield Reference(path, key, held_out, options.batch_tokens)


def _measured(
    checkpoint: JudgedCheckpoint, reference: Reference, held_out: HeldOut, base: BaseCheckpoint, options: JudgeOptions
) -> tuple[dict[str, Any], pa.Table]:
    model = load(checkpoint, base.device, base.trust_remote_code)
    with _progress(checkpoint.name, held_out) as advance:
        measured = measure_checkpoint(reference, model, advance)
    del model
    _free()
    ends = EvaluationParams().length_buckets
    about = {"name": checkpoint.name, "method": checkpoint.method, "weights_bytes": checkpoint.bytes()}
    return {**about, **summary(measured, held_out, ends)}, documents(measured, held_out)


@contextmanager
def _progress(what: str, held_out: HeldOut) -> Iterator[Any]:
    from plumbline.progress import Bar

    total = sum(len(ids) - 1 for ids in held_out.tokens)
    with Bar(total=total, desc=what, unit="token", unit_scale=True) as bar:
        yield bar.update


def _free() -> None:
    """Give the memory of a dropped model back, before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _about(
    texts: JudgedTexts, held_out: HeldOut, refused: dict[str, int], length: int, fingerprint: str
) -> dict[str, Any]:
    return {
        "documents": len(set(held_out.doc_ids)),
        "documents_available": len(texts.documents),
        "samples": len(held_out.sample_ids),
        "tokens": sum(len(ids) for ids in held_out.tokens),
        "max_length": length,
        "digest": held_out.digest,
        "fingerprint": fingerprint,
        "by_domain": held_out.choice,
        "rejected": texts.rejected,
        "first_rejected": texts.first_rejected,
        "refused_chats": dict(refused),
    }

"""sample_features: reads tokenized_samples, the embedder and the base model; writes embeddings and signatures."""

from __future__ import annotations

from pathlib import Path

from plumbline.artifact import write_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.execution.params import ExecutionParams
from plumbline.sample_features.embed import SPLITS, settings_of, write_embeddings
from plumbline.sample_features.embedder import embedder_folder
from plumbline.sample_features.engine import Engine
from plumbline.sample_features.params import FeatureParams
from plumbline.sample_features.sign import write_signatures
from plumbline.tokenized_samples.reader import fingerprint_of


def build_sample_features(
    params: FeatureParams,
    base: BaseCheckpoint,
    samples: Path,
    out: Path,
    previous: Path | None = None,
    root: Path = Path(),
    execution: ExecutionParams | None = None,
) -> None:
    """Write length and embedding of every pool, tuning and production sample into the existing empty folder `out`, and
    the activation signatures of those that `params.signatures` asks for.

    The text of a sample is what the base model's tokenizer decodes it to, special tokens left out; the embedder reads
    its first `params.max_tokens` tokens. Shards stream: memory is bounded by the sample ids and `BUFFER` texts.

    Args:
        base: the base model, whose tokenizer the samples were made with.
        samples: a tokenized_samples artifact.
        previous: an earlier sample_features; embeddings of samples that are in it are taken over where embedder,
            settings and tokenization are the same. Where all are, no embedder is imported or loaded.
        root: the workspace; a relative path of an embedder starts there.
        execution: who embeds; None: this process.

    Raises:
        FileNotFoundError: no such embedder.
        ValueError: the tokenizer is not the one the samples were made with, or there is no sample.
    """
    fingerprint = fingerprint_of(samples)
    folder = embedder_folder(params, root)
    settings = settings_of(params, folder, fingerprint)
    embeddings = write_embeddings(settings, Engine(params, folder, base, samples), samples, out, previous, execution)
    signatures = None
    if params.signatures is not None:
        signatures = write_signatures(params.signatures, SPLITS, base, samples, fingerprint, out, previous)
    write_json(out / "manifest.json", {**settings, **embeddings, "signatures": signatures})

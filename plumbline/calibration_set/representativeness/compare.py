"""Compare sets with production: read pool and production once per process, then judge each set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.calibration_set.pool import Sources
from plumbline.calibration_set.representativeness.activations import Activations
from plumbline.calibration_set.representativeness.null import rounded
from plumbline.calibration_set.representativeness.panel import Panel
from plumbline.calibration_set.representativeness.part import Part, one_hot, part, part_of
from plumbline.calibration_set.strategies.base import Pool, Samples, Selection
from plumbline.sample_features.reader import read_manifest
from plumbline.sample_features.signature_reader import read_magnitudes
from plumbline.sample_features.signatures import Signatures, joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMPTY = "not measured: the tuning split is empty; raise tokenize.splits.tuning in params.yaml or add documents"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pool and its references, read once for the choices of a process."""

    panels: tuple[Panel, ...]
    """The first is what a set should represent: the production sample, or the tuning split if there is none."""
    domains: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase


def representativeness(sources: Sources, pool: Pool, selection: Selection, rows: pa.Table) -> dict[str, Any]:
    """Compare a set with the tuning split and with the production sample, if there is one.

    Args:
        pool: what the set was chosen from, perhaps filtered by domain; `rows`: the set as stored.

    Returns:
        JSON-able: `samples`; `primary`, what the set should represent; `references`: per reference the result of
        `Panel.judge`; `verdict`, `flagged`, `p_value` of the primary one; `sentences`: the verdicts, the flagged
        metrics, then the rest.
    """
    everything = prepared(sources)
    if not everything.panels:
        return {"samples": rows.num_rows, "primary": None, "references": {}, "sentences": [EMPTY]}
    chosen, missing = _part_of_set(sources, everything, pool, selection, rows)
    with threadpool_limits(1):  # for many small products, threads cost more than they save, and they change last bits
        blocks = {panel.name: panel.judge(chosen, missing) for panel in everything.panels}
    return {"samples": rows.num_rows, **summary(blocks)}


def distances(sources: Sources, pool: Pool, selection: Selection, rows: pa.Table) -> dict[str, float]:
    """Every metric of a set against what it should represent, without the null, to compare sets of one size.

    Args:
        pool, selection, rows: as for `representativeness`.

    Returns:
        By name of the metric, to nine digits, without those that cannot be measured. Empty without a reference.
    """
    everything = prepared(sources)
    if not everything.panels:
        return {}
    chosen, _ = _part_of_set(sources, everything, pool, selection, rows)
    with threadpool_limits(1):  # as in `representativeness`
        return {name: rounded(value) for name, value in everything.panels[0].measure(chosen).items()}


def summary(blocks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Combine the results of all references; verdict, flags and p-value are those of the first."""
    primary, *others = blocks
    first = blocks[primary]
    sentences = [first["verdict"], *(blocks[name]["verdict"] for name in others), *first["sentences"]]
    for name in others:
        flagged = blocks[name]["sentences"][: len(blocks[name]["flagged"])]
        sentences += [f"Against the {name} split: {sentence}" for sentence in flagged]
    head = {key: first[key] for key in ("verdict", "flagged", "p_value")}
    return {"primary": primary, "references": blocks, **head, "sentences": sentences}


def prepared(sources: Sources) -> Prepared:
    """Prepare the panels of `sources`, or return those of the last call if the content is the same."""
    pool = sources.pool()
    digest = hashlib.sha256()
    for samples in (pool, pool.tuning, *([] if pool.production is None else [pool.production])):
        digest.update(_bytes(samples.table.select(["sample_id", "doc_id", "domain"])))
    if sources.features is not None:
        digest.update((sources.features / "manifest.json").read_bytes())
    return _prepared(digest.hexdigest(), sources.samples, sources.features, sources.base)


@lru_cache(maxsize=1)
def _prepared(digest: str, samples_folder: Path, features: Path | None, base: BaseCheckpoint) -> Prepared:
    sources = Sources(samples_folder, features, base)
    pool, tokenizer = sources.pool(), sources.load_tokenizer()
    splits = {"production": pool.production, "tuning": pool.tuning}
    references = {name: samples for name, samples in splits.items() if samples is not None and len(samples)}
    domains = tuple(sorted({*pool.domains, *(name for samples in references.values() for name in samples.domains)}))
    unmeasured, signatures = _signatures_of_pool(sources, pool)
    embedded = features is not None
    population = part_of(pool, domains, embedded)

    def panel(name: str, reference: Samples) -> Panel:
        activations, why = None, unmeasured
        if features is not None and signatures is not None:
            try:
                of_production = reference.signatures(reference.signed)
                activations = Activations.prepare(signatures, of_production, read_magnitudes(features, name))
            except ValueError as error:
                why = {"activations": str(error)}
        production = part_of(reference, domains, embedded)
        return Panel.prepare(
            name,
            population,
            production,
            [int(number) for number in tokenizer.all_special_ids],
            _name_of(tokenizer),
            domains,
            pool_samples=len(pool),
            production_samples=len(reference),
            activations=activations,
            unmeasured=why,
        )

    with threadpool_limits(1):  # as in `representativeness`
        panels = tuple(panel(name, samples) for name, samples in references.items())
        return Prepared(panels, domains, tokenizer)


def _signatures_of_pool(sources: Sources, pool: Pool) -> tuple[dict[str, str], Signatures | None]:
    """The aspects that cannot be measured, with the reason, and the stored signatures of the pool."""
    if sources.features is None:
        why = "there are no features; run sample_features"
        return {"embeddings": why, "activations": why}, None
    try:
        return {}, pool.signatures(pool.signed)
    except ValueError as error:
        return {"activations": str(error)}, None


def _part_of_set(
    sources: Sources, everything: Prepared, pool: Pool, selection: Selection, rows: pa.Table
) -> tuple[Part, dict[str, str]]:
    """The set, and the reason if it has no embeddings or no signatures."""
    input_ids = [np.array(ids.values, dtype=np.int32) for ids in rows["input_ids"].combine_chunks()]
    names, parents = rows["sample_id"].to_pylist(), rows["doc_ids"].to_pylist()
    documents = [doc_ids[0] if doc_ids else name for doc_ids, name in zip(parents, names, strict=True)]
    by_domain = tokens_by_domain(pool, selection, everything.domains)
    fresh = sorted({*selection.pieces, *selection.written})
    whole = [position for position in range(len(names)) if position not in set(fresh)]
    order = np.argsort([*whole, *fresh])
    embeddings, signatures, unmeasured = None, None, {}
    if sources.features is not None:
        try:
            parts = [sources.readers.embeddings(rows["sample_id"].take(pa.array(whole))).take()] if whole else []
            if fresh:
                parts.append(_embed(sources, everything.tokenizer, [input_ids[position] for position in fresh]))
            embeddings = np.concatenate(parts)[order]
        except (FileNotFoundError, ValueError) as error:
            unmeasured["embeddings"] = str(error)
    if any(isinstance(aspect, Activations) for panel in everything.panels for aspect in panel.aspects):
        try:
            groups = [sources.readers.signatures([names[position] for position in whole])] if whole else []
            if fresh:
                groups.append(sources.measure({names[position]: input_ids[position] for position in fresh}))
            signatures = joined(groups).take(order)
        except ValueError as error:
            unmeasured["activations"] = str(error)
    return part(input_ids, by_domain, documents, embeddings, signatures), unmeasured


def tokens_by_domain(pool: Pool, selection: Selection, domains: Sequence[str]) -> NDArray[np.int64]:
    """Tokens per domain of each sample of a selection, int64 (n, D); the model's own tokens have no domain."""
    domain_of, lengths = pool.domains, pool.lengths
    tokens = np.zeros((len(selection.indices), len(domains)), dtype=np.int64)
    for position, row in enumerate(selection.indices.tolist()):
        if position in selection.written:
            continue
        parts = selection.pieces.get(position)
        cut = [(piece.row, piece.stop - piece.start) for piece in parts] if parts else [(row, int(lengths[row]))]
        tokens[position] = one_hot([domain_of[at] for at, _ in cut], np.array([n for _, n in cut]), domains).sum(axis=0)
    return tokens


def _embed(
    sources: Sources, tokenizer: PreTrainedTokenizerBase, input_ids: list[NDArray[np.int32]]
) -> NDArray[np.float16]:
    """Embeddings of samples that were cut, joined or written, computed as sample_features does."""
    from plumbline.sample_features.embedder import embed, embedder_digest, embedder_folder
    from plumbline.sample_features.params import FeatureParams

    assert sources.features is not None
    manifest = read_manifest(sources.features)
    params = FeatureParams(**{name: manifest[name] for name in ("embedder", "max_tokens", "matmul_precision")})
    folder = embedder_folder(params, sources.base.root)
    if (digest := embedder_digest(folder)) != manifest["embedder_digest"]:
        raise ValueError(
            f"the embedder {params.embedder} has digest {digest[:12]}, sample_features was made with "
            f"{manifest['embedder_digest'][:12]}; run sample_features again"
        )
    embeddings_of_texts = np.empty((len(input_ids), manifest["dimension"]), dtype=np.float16)
    texts = tokenizer.batch_decode(input_ids, skip_special_tokens=True)
    model = _embedder(folder, params.max_tokens, params.matmul_precision)
    for positions, embeddings in embed(model, texts, params.batch_size):
        embeddings_of_texts[positions] = embeddings
    return embeddings_of_texts


@lru_cache(maxsize=1)
def _embedder(folder: Path, max_tokens: int, precision: Literal["highest", "medium"]) -> Any:
    from plumbline.sample_features.embedder import load

    return load(folder, max_tokens, precision)


def _name_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    def name(token_id: int) -> str:
        text = tokenizer.decode([token_id]) if 0 <= token_id < len(tokenizer) else ""
        return repr(text) if text else f"token {token_id}"

    return name


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()

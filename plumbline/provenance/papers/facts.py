"""What the papers say of a model, from its record, its files and the artifacts that the audit verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.provenance import data_links
from plumbline.provenance.audit import CHECKS
from plumbline.provenance.cache_recovery import CORPUS, chain_hashes
from plumbline.provenance.decision_links import artifact_bytes, artifact_json, evaluation, evaluation_path
from plumbline.provenance.link import AuditResult, Case, dig
from plumbline.provenance.model_files import CONFIG, plain_file, read_object, samples_of
from plumbline.provenance.papers.intervals import Interval, intervals, intervals_by_domain
from plumbline.provenance.papers.licences import declared_in_card
from plumbline.provenance.restore import used_parameters
from plumbline.provenance.root_digest import file_digests

CHAIN = (*(name for name, _ in CHECKS), "texts", "evaluation")
"""The links that bear on what the papers say, in order. The registry and its history may change under a model."""
READ_BY_FILE = ("directory", "inbox")
"""Kinds of sources whose files have their own SHA-256 in the corpus."""


@dataclass
class TextSource:
    """A source of documents, as far as the calibration set has texts of it."""

    name: str
    kind: str | None = None
    """`kind` in params.yaml; `inbox` for the inbox; None if the parameters are not on record."""
    location: str | None = None
    """Name of a dataset of the hub; None otherwise: a path says nothing elsewhere."""
    revision: str | None = None
    licence: str | None = None
    """As params.yaml declares it."""
    samples: int = 0
    documents: set[str] = field(default_factory=set)
    files: dict[str, str | None] = field(default_factory=dict)
    """Path within the source -> SHA-256 of the file, None if it is not on record."""


@dataclass(frozen=True)
class EvaluatedModel:
    """The evaluation of the model."""

    metrics: Mapping[str, Any]
    intervals: Mapping[str, Interval]
    by_domain: Mapping[str, Mapping[str, Interval]]
    """Intervals per domain."""


@dataclass(frozen=True)
class PaperFacts:
    """The facts about one model; every part may lack what is not on record."""

    record: Mapping[str, Any]
    """calibration.json."""
    config: Mapping[str, Any]
    """config.json."""
    summary: Mapping[str, Any]
    """`calibration_set` of `quantization_config.calibration`: samples and tokens."""
    files: Mapping[str, str]
    """SHA-256 of every file of the folder."""
    dvc_md5: str
    base_licence: str | None
    sources: Sequence[TextSource]
    evaluated: EvaluatedModel | None
    statuses: Mapping[str, str]
    """Status per link of `CHAIN`."""

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The samples of the calibration set, in order."""
        return samples_of(self.record)

    def documents(self) -> dict[str, dict[str, Any]]:
        """Domain and source of the first sample of each document, by document id, sorted."""
        rows: dict[str, dict[str, Any]] = {}
        for sample in self.samples:
            for document in sample.get("doc_ids") or []:
                rows.setdefault(str(document), {key: str(sample.get(key)) for key in ("domain", "source")})
        return dict(sorted(rows.items()))


def gather(case: Case, result: AuditResult) -> PaperFacts:
    """Collect the facts about an audited model.

    Args:
        case: a case whose record has been read.
        result: its audit.

    Raises:
        ValueError: a link of the audit is tampered, so the record cannot be relied on.
    """
    if result.verdict == "tampered":
        names = ", ".join(link.name for link in result.links if link.status == "tampered")
        raise ValueError(f"the audit found {names} tampered, so the record cannot be relied on")
    statuses = {link.name: link.status for link in result.links if link.name in CHAIN}
    return PaperFacts(
        record=case.record,
        config=_config(case),
        summary=dig(case.summary, "calibration_set") or {},
        files=file_digests(case.model),
        dvc_md5=case.digest,
        base_licence=_base_licence(case) if statuses.get("base model") == "verified" else None,
        sources=sources_of(case),
        evaluated=_evaluated(case) if statuses.get("evaluation") == "verified" else None,
        statuses={name: statuses[name] for name in CHAIN if name in statuses},
    )


def _config(case: Case) -> dict[str, Any]:
    return read_object(plain_file(case.model, CONFIG))


def _base_licence(case: Case) -> str | None:
    folder = data_links.base_folder(case, case.claims("base_model", "name"))
    return None if folder is None else declared_in_card(folder)


def _evaluated(case: Case) -> EvaluatedModel | None:
    link = evaluation(case)
    metrics = None if link is None else artifact_json(case, evaluation_path(case), link.expected, "metrics.json")
    if link is None or metrics is None:
        return None
    data = artifact_bytes(case, evaluation_path(case), link.expected, "documents.parquet")
    if data is None:
        return EvaluatedModel(metrics, {}, {})
    documents = pq.read_table(pa.BufferReader(data))
    return EvaluatedModel(metrics, intervals(documents), intervals_by_domain(documents))


# ---------------------------------------------------------------------------------------------------------------------
# Sources


def sources_of(case: Case) -> list[TextSource]:
    """The sources of the calibration set's documents, by name, with parameters and digests where they are on record."""
    sources: dict[str, TextSource] = {}
    for sample in samples_of(case.record):
        listed = [str(document) for document in sample.get("doc_ids") or []]
        names = set()
        for name, file in _origins(sample):
            source = sources.setdefault(name, TextSource(name))
            source.files.setdefault(file)
            names.add(name)
        for name in names:
            sources[name].samples += 1
            if len(names) == 1:  # a sample joined of several sources does not say which document is of which
                sources[name].documents |= set(listed)
    parameters = dig(used_parameters(case)[0], "corpus", "sources")
    digests = _file_digests(case)
    for source in sources.values():
        entry = dig(parameters, source.name)
        source.kind = "inbox" if source.name == "inbox" else _text(dig(entry, "kind"))
        source.licence = _text(dig(entry, "license"))
        if source.kind == "huggingface":
            source.location, source.revision = _text(dig(entry, "name")), _text(dig(entry, "revision"))
        if source.kind in READ_BY_FILE:
            source.files = {file: digests.get((source.name, file)) for file in sorted(source.files)}
    return [sources[name] for name in sorted(sources)]


def _origins(sample: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Source and file of each document of a sample; nothing if the base model wrote it."""
    listed, label = sample.get("doc_ids") or [], str(sample.get("source"))
    if listed:
        for origin in label.split(" + ") if len(listed) > 1 else [label]:
            name, _, file = origin.partition("/")
            yield name, file


def _file_digests(case: Case) -> dict[tuple[str, str], str]:
    """SHA-256 of the corpus' source files, by source and path, from the manifest of the corpus that was read."""
    md5 = chain_hashes(case).get(CORPUS) or case.recorded(CORPUS)
    manifest = None if md5 is None else artifact_json(case, CORPUS, md5, "manifest.json")
    shards = dig(manifest, "shards")
    return {
        (str(shard.get("source")), str(shard.get("file"))): shard["sha256"]
        for shard in (shards if isinstance(shards, list) else [])
        if isinstance(shard, dict) and isinstance(shard.get("sha256"), str)
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def domains_of(samples: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Samples per domain, by name."""
    return dict(sorted(Counter(str(sample.get("domain")) for sample in samples).items()))

"""Croissant 1.1 of a calibration set: the Parquet file by its SHA-256, its columns, and where its samples are from.

No text and no token is in the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import sha256_file
from plumbline.provenance.link import dig
from plumbline.provenance.papers.croissant_context import CONTEXT
from plumbline.provenance.papers.facts import PaperFacts, TextSource, domains_of
from plumbline.provenance.papers.licences import for_croissant

CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
FILE = "samples.parquet"
PARQUET = "application/x-parquet"
COLUMNS: dict[str, tuple[str, bool, str]] = {
    "position": ("cr:Int64", False, "Place of the sample in the set, from 0."),
    "sample_id": ("sc:Text", False, "SHA-256 (hex) of the token ids as little-endian int32."),
    "doc_ids": ("sc:Text", True, "Ids of the documents whose text is in the sample; none if the base model wrote it."),
    "domain": ("sc:Text", False, "Domain of the documents."),
    "source": ("sc:Text", False, "File of the documents, as source/path."),
    "n_tokens": ("cr:Int64", False, "Number of tokens."),
    "input_ids": ("cr:Int32", True, "Token ids, unpadded."),
    "reason": ("sc:Text", False, "Why the strategy picked the sample, as JSON."),
    "parents": ("sc:Text", True, "Ids of the pool's samples that this one was cut or joined from."),
    "assistant_spans": (
        "cr:Int32",
        True,
        "Start and stop of what a chat's assistant wrote; null if every token counts.",
    ),
}
"""Column of samples.parquet -> Croissant's type, whether it is a list, and its meaning."""
DOCUMENT_COLUMNS = {
    "id": "SHA-256 (hex) of the document's content.",
    "domain": "Domain of the first sample with its text.",
    "source": "File of the first sample with its text, as source/path.",
}


def croissant(facts: PaperFacts, manifest: Mapping[str, Any], samples: Path) -> dict[str, Any]:
    """The document. `contentUrl` is the bare file name: it is read beside the document, or by a `mapping`.

    Args:
        manifest: manifest.json of the calibration set.
        samples: its samples.parquet.
    """
    choice, digest = manifest["choice"], manifest["digest"]
    documents = facts.documents()
    domains = ", ".join(f"{count} {domain}" for domain, count in domains_of(facts.samples).items())
    content: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": str(choice["name"]),
        "description": (
            f"{manifest['samples']:,} samples ({manifest['tokens']:,} tokens) of {len(documents):,} documents, chosen "
            f"by {choice['strategy']} with seed {choice['seed']} from {manifest['pool_samples']:,} samples "
            f"to calibrate quantization of a language model. By domain: {domains}."
        ),
        "version": f"1.0.0+{digest}",
        "identifier": f"plumbline.calibration_set:{digest}",
        "distribution": [_file(samples)],
        "recordSet": [_samples(), *([_documents(documents)] if documents else [])],
        "prov:wasDerivedFrom": [_entity(source) for source in facts.sources],
        "prov:wasGeneratedBy": _activity(facts, manifest),
        "rai:dataUseCases": ["Calibration of post-training quantization."],
        "rai:dataPreprocessingProtocol": [_preprocessing(facts)],
    }
    licences = [source.licence for source in facts.sources]
    known = list(dict.fromkeys(for_croissant(licence) for licence in licences if licence is not None))
    if known and None not in licences:  # the licence of a part is not that of the whole
        content["license"] = known
    return {key: value for key, value in content.items() if value not in ([], {})}


def _file(samples: Path) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": FILE,
        "name": FILE,
        "contentUrl": FILE,
        "contentSize": f"{samples.stat().st_size} B",
        "encodingFormat": PARQUET,
        "sha256": sha256_file(samples),
    }


def _samples() -> dict[str, Any]:
    fields = []
    for name, (kind, is_list, meaning) in COLUMNS.items():
        field: dict[str, Any] = {"@type": "cr:Field", "@id": f"samples/{name}", "name": name, "description": meaning}
        field |= {"dataType": kind, "source": {"fileObject": {"@id": FILE}, "extract": {"column": name}}}
        fields.append(field | ({"isArray": True, "arrayShape": "-1"} if is_list else {}))
    head = {"@type": "cr:RecordSet", "@id": "samples", "name": "samples", "description": "A row per sample, in order."}
    return {**head, "key": {"@id": "samples/position"}, "field": fields}


def _documents(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"documents/{name}",
            "name": name,
            "description": meaning,
            "dataType": "sc:Text",
        }
        for name, meaning in DOCUMENT_COLUMNS.items()
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": "documents",
        "name": "documents",
        "description": "A row per document whose text is in a sample.",
        "key": {"@id": "documents/id"},
        "field": fields,
        "data": [
            {"documents/id": key, "documents/domain": row["domain"], "documents/source": row["source"]}
            for key, row in documents.items()
        ],
    }


def _entity(source: TextSource) -> dict[str, Any]:
    """A source, as an entity of PROV, with its files where their SHA-256 is on record."""
    entity: dict[str, Any] = {"@type": "prov:Entity", "prov:label": source.name}
    if source.location is not None:
        entity["@id"] = f"https://huggingface.co/datasets/{source.location}"
    facts = {"version": source.revision, "license": None if source.licence is None else for_croissant(source.licence)}
    entity |= {key: value for key, value in facts.items() if value is not None}
    parts = [
        {"@type": "sc:MediaObject", "name": file, "sha256": digest}
        for file, digest in source.files.items()
        if digest is not None
    ]
    return {**entity, "hasPart": parts} if parts else entity


def _activity(facts: PaperFacts, manifest: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        **{f"choice.{key}": value for key, value in sorted(manifest["choice"].items())},
        **{f"counts.{key}": value for key, value in sorted(manifest["counts"].items())},
        "tokenization": manifest["fingerprint"],
    }
    return {
        "@type": "prov:Activity",
        "prov:label": "Plumbline's calibration_set",
        "additionalProperty": [
            {"@type": "sc:PropertyValue", "name": key, "value": value}
            for key, value in values.items()
            if isinstance(value, str | int | float)
        ],
    }


def _preprocessing(facts: PaperFacts) -> str:
    base = dig(facts.record, "base_model", "name")
    return f"Tokenized by the tokenizer of {base}, under the fingerprint {facts.record.get('fingerprint')}."

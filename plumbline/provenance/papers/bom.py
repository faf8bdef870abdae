"""A CycloneDX 1.7 bill of materials of a quantized model (ML-BOM), as JSON.

cyclonedx-python-lib has no model card yet, so the document is built here; its validator reads it in the tests.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from plumbline.artifact import sha256_json
from plumbline.distribution import NAME, version
from plumbline.provenance.link import dig
from plumbline.provenance.papers.facts import PaperFacts, TextSource
from plumbline.provenance.papers.licences import for_cyclonedx
from plumbline.provenance.papers.model_card import model_card, properties
from plumbline.provenance.root_digest import root_digest

SPEC = "1.7"
SCHEMA = f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:plumbline:bom:1")
MODEL, BASE, SET, HELD_OUT = "model", "base-model", "calibration-set", "evaluation-texts"
"""`bom-ref`s of the components."""


def bill_of_materials(facts: PaperFacts) -> dict[str, Any]:
    """The document: the model with its files and card, its base model, its calibration set and the sources of that.

    Its serial number is a UUID (version 5) of the rest of the document, so that equal models have equal bytes; it has
    no timestamp.
    """
    datasets = [SET, *([HELD_OUT] if facts.evaluated is not None else [])]
    sources = [_source(source) for source in facts.sources]
    components = [_base_model(facts), _calibration_set(facts), *sources]
    if facts.evaluated is not None:
        components.append(_evaluation_texts(facts.evaluated.metrics))
    bom: dict[str, Any] = {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "post-build"}],
            "tools": {"components": [_tool()]},
            "component": _model(facts, datasets),
        },
        "components": components,
        "dependencies": [
            {"ref": MODEL, "dependsOn": [BASE, SET]},
            {"ref": SET, "dependsOn": [source["bom-ref"] for source in sources]},
            {"ref": BASE},
        ],
        "compositions": [{"aggregate": "complete", "assemblies": [MODEL]}],
    }
    return {**bom, "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, sha256_json(bom))}"}


def _tool() -> dict[str, str]:
    known = {} if version() == "unknown" else {"version": version()}
    return {"type": "application", "name": NAME, **known}


def _model(facts: PaperFacts, datasets: list[str]) -> dict[str, Any]:
    record, base = facts.record, facts.record.get("base_model") or {}
    scheme, choice = dig(record, "scheme", "name"), dig(record, "calibration_set", "choice", "name")
    root = root_digest(facts.files)
    checked: dict[str, list[str]] = {}
    for name, status in facts.statuses.items():
        checked.setdefault(status, []).append(name)
    ancestor = {key: value for key, value in _base_model(facts).items() if key != "bom-ref"}
    return {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": f"{choice}-{scheme}",
        "version": root,
        "description": f"{base.get('name')}, quantized under {scheme} from activations on the set {choice}.",
        "components": [
            {"type": "file", "bom-ref": f"{MODEL}/{name}", "name": name, "hashes": [_sha256(digest)]}
            for name, digest in facts.files.items()
        ],
        "pedigree": {"ancestors": [ancestor], "notes": "Weights rounded after training; nothing was trained."},
        "modelCard": model_card(facts, datasets),
        "properties": properties(
            {
                "model_signing.root_digest": f"sha256:{root}",
                "dvc.md5": facts.dvc_md5,
                "tokenization": record.get("fingerprint"),
                "activation_statistics": dig(record, "statistics", "digest"),
                "code_version": record.get("code_version"),
                "audit.verified": ", ".join(checked.get("verified", [])),
                "audit.not_checked": ", ".join(checked.get("missing", [])),
            }
        ),
    }


def _base_model(facts: PaperFacts) -> dict[str, Any]:
    base = facts.record.get("base_model") or {}
    name, revision = str(base.get("name")), base.get("revision")
    component: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": BASE, "name": name}
    if revision:
        component["version"] = str(revision)
        component["purl"] = f"pkg:huggingface/{name}@{revision}"
        component["externalReferences"] = [
            {"type": "distribution", "url": f"https://huggingface.co/{name}/tree/{revision}"}
        ]
    if facts.base_licence is not None:
        component["licenses"] = for_cyclonedx(facts.base_licence)
    named = {"base_model": base.get("digest"), "dequantized_from": base.get("dequantized_from")}
    return {**component, "properties": properties(named)}


def _calibration_set(facts: PaperFacts) -> dict[str, Any]:
    choice = dig(facts.record, "calibration_set", "choice") or {}
    documents = facts.documents()
    counts = {"samples": len(facts.samples), "documents": len(documents), "tokens": facts.summary.get("tokens")}
    written = sum(not sample.get("doc_ids") for sample in facts.samples)
    size = ", ".join(f"{count:,} {name}" for name, count in counts.items() if isinstance(count, int))
    values = {
        **{f"choice.{key}": value for key, value in sorted(choice.items())},
        **counts,
        "samples_written_by_the_base_model": written or None,
    }
    return {
        "type": "data",
        "bom-ref": SET,
        "name": str(choice.get("name")),
        "version": str(dig(facts.record, "calibration_set", "digest")),
        "data": [
            {
                "type": "dataset",
                "name": str(choice.get("name")),
                "description": f"{size}; calibration.json in the model lists every sample with its documents.",
            }
        ],
        "components": [
            {"type": "data", "bom-ref": f"document/{key}", "name": row["source"], "version": key}
            for key, row in documents.items()
        ],
        "properties": properties(values),
    }


def _source(source: TextSource) -> dict[str, Any]:
    """A source of documents; its files have hashes where the corpus has their SHA-256."""
    component: dict[str, Any] = {"type": "data", "bom-ref": f"source/{source.name}", "name": source.name}
    if source.location is not None:
        component["name"] = source.location
        component["externalReferences"] = [
            {"type": "distribution", "url": f"https://huggingface.co/datasets/{source.location}"}
        ]
    if source.revision is not None:
        component["version"] = source.revision
    if source.licence is not None:
        component["licenses"] = for_cyclonedx(source.licence)
    files = [
        {"type": "file", "bom-ref": f"source/{source.name}/{file}", "name": file, "hashes": [_sha256(digest)]}
        for file, digest in source.files.items()
        if digest is not None
    ]
    if files:
        component["components"] = files
    values = {"kind": source.kind, "samples": source.samples, "documents": len(source.documents)}
    return {**component, "data": [{"type": "dataset"}], "properties": properties(values)}


def _evaluation_texts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: metrics.get(name) for name in ("documents", "samples", "tokens")}
    component = {"type": "data", "bom-ref": HELD_OUT, "name": "held-out texts of the evaluation"}
    if isinstance(digest := metrics.get("samples_digest"), str):
        component["version"] = digest
    description = "Documents of the report split; no calibration set has a document of it."
    return {
        **component,
        "data": [{"type": "dataset", "description": description}],
        "properties": properties(counts),
    }


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}

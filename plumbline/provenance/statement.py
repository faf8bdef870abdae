"""The chain as an in-toto statement with SLSA provenance, for other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from plumbline.distribution import version
from plumbline.provenance.cache_recovery import chain_hashes
from plumbline.provenance.decision_links import pair_of
from plumbline.provenance.history_link import newest_promotion
from plumbline.provenance.link import Case, dig
from plumbline.provenance.model_files import samples_of
from plumbline.provenance.root_digest import file_digests, root_digest

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:plumbline:quantized-model:1"
BUILDER = "urn:plumbline"
PROMOTIONS, PROMOTION = "promotion history", "plumbline.promotion"
"""Name of the dependency on the history of champions, and of its digest: that of the newest entry."""


def statement(case: Case) -> dict[str, Any]:
    """Return the statement: the model and each file of its folder as subjects, a dependency per link of its chain.

    The first subject is the model by its root digest, by which a signature of model signing names it, too; its name is
    not that of the folder, which may be renamed. Any other digest that is not the SHA-256 of a file is named after its
    subject (`plumbline.calibration_set`), so that it is not mistaken for one. DVC's hashes are included if DVC has the
    run on record, those of the evaluation and the newest promotion if there are any.

    Raises:
        ImportError: in-toto-attestation is not installed.
    """
    from google.protobuf.json_format import MessageToDict
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    record = case.record if isinstance(case.record, dict) else {}

    def descriptor(name: str, digest: dict[str, Any], annotations: Mapping[str, Any] | None = None) -> Any:
        text_annotations = {key: str(value) for key, value in (annotations or {}).items() if value is not None}
        return ResourceDescriptor(
            name=name, digest={k: str(v) for k, v in digest.items()}, annotations=text_annotations
        ).pb

    files = file_digests(case.model)
    subjects = [
        descriptor(name, {"sha256": digest}) for name, digest in {pair_of(case): root_digest(files), **files}.items()
    ]
    base = dig(record, "base_model") or {}
    hashes = chain_hashes(case)
    statistics = dig(record, "statistics", "files") or {}
    calibration_set = dig(record, "calibration_set") or {}
    documents: dict[str, dict[str, Any]] = {}
    for sample in samples_of(record):
        for document in sample.get("doc_ids") or []:
            documents.setdefault(str(document), {key: sample.get(key) for key in ("domain", "source")})
    provenance = provenance_pb2.Provenance()
    build = provenance.build_definition
    build.build_type = BUILD_TYPE
    build.external_parameters.update({"choice": calibration_set.get("choice"), "scheme": record.get("scheme")})
    build.internal_parameters.update({"code_version": str(record.get("code_version"))})
    base_annotations = {"name": base.get("name"), "revision": base.get("revision")}
    build.resolved_dependencies.extend(
        [
            descriptor("base model", {"plumbline.base_model": base.get("digest")}, base_annotations),
            descriptor("tokenizer", {"plumbline.tokenization": record.get("fingerprint")}),
            *(descriptor(f"activation statistics/{file}", {"sha256": statistics[file]}) for file in sorted(statistics)),
            descriptor("calibration set", {"plumbline.calibration_set": calibration_set.get("digest")}),
            *(descriptor(path, {"dvc": hashes[path]}) for path in sorted(hashes) if hashes[path] != case.digest),
            *(descriptor(path, {"dvc": md5}) for path, md5 in sorted(_evaluation(case).items())),
            *(descriptor(PROMOTIONS, {PROMOTION: digest}) for _, digest in filter(None, [newest_promotion(case)])),
            *(descriptor("document", {"plumbline.document": key}, documents[key]) for key in sorted(documents)),
        ]
    )
    provenance.run_details.builder.id = BUILDER
    provenance.run_details.builder.version.update({"plumbline": version()})
    signable = Statement(subjects, PREDICATE, MessageToDict(provenance))
    signable.validate()
    return dict(MessageToDict(signable.pb))


def _evaluation(case: Case) -> dict[str, str]:
    """Path -> DVC hash of the model's evaluation in dvc.lock."""
    entries = (entry for entry in case.lock.values() if entry.asset == "evaluation")
    return {path: md5 for e in entries if case.identity in e.deps.values() for path, md5 in e.outs.items()}


def payload(content: dict[str, Any]) -> bytes:
    """The bytes to sign; equal for equal statements."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False).encode()

"""Reading a calibration set and checking its digest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifact import read_json, sha256_json

SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("sample_id", pa.string()),
        ("doc_ids", pa.list_(pa.string())),
        ("domain", pa.string()),
        ("source", pa.string()),
        ("n_tokens", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("reason", pa.string()),
        ("parents", pa.list_(pa.string())),
        ("assistant_spans", pa.list_(pa.int32())),
    ]
)
"""Schema of samples.parquet. `doc_ids`: the documents whose text is in the sample; several if documents were joined,
none if the base model wrote it. `reason` is JSON. `parents`: the samples of the pool that a sample was cut or joined
from; empty if it is one of the pool. `assistant_spans`: [start, stop, ...], the tokens that a chat's assistant wrote;
null if every token counts, because no part is a chat or the spans are not known (see assistant.py)."""


def set_digest(sample_ids: Sequence[str], fingerprint: str) -> str:
    """The digest of a calibration set: SHA-256 (hex) over its sample ids in order and the tokenization fingerprint.

    The ids are digests of the token ids, so this digest covers every token of the set.
    """
    return sha256_json([list(sample_ids), fingerprint])


def read_manifest(path: Path) -> dict[str, Any]:
    """`manifest.json` of a calibration set."""
    manifest: dict[str, Any] = read_json(path / "manifest.json")
    return manifest


def read_calibration_set(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The samples of a calibration set in order, with the columns of `SCHEMA` (or those named).

    Raises:
        FileNotFoundError: `path` is not a calibration set.
        ValueError: the sample ids do not match the manifest's digest.
    """
    file = path / "samples.parquet"
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no samples.parquet: expected a folder data/calibration_set/<choice>")
    manifest = read_manifest(path)
    ids = pq.read_table(file, columns=["sample_id"])["sample_id"].to_pylist()
    digest = set_digest(ids, manifest["fingerprint"])
    if digest != manifest["digest"]:
        raise ValueError(
            f"{file}: its samples have digest {digest[:12]}, expected {manifest['digest'][:12]} (manifest.json); one "
            f"of the two was altered: restore both with `dvc checkout --force {path}`"
        )
    return pq.read_table(file, columns=None if columns is None else list(columns))

"""Every version of every calibration set and model in the workspace and in DVC's cache, and cached corpora."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.provenance.model_files import RECORD, parse_object
from plumbline.versioning.cache import cached, cached_bytes, cached_folders, cached_listing
from plumbline.versioning.lock import read_lock

COLUMNS = ["sample_id", "doc_ids", "domain", "source", "n_tokens"]


@dataclass(frozen=True)
class RecordedVersion:
    """A version of a calibration set or of a model."""

    name: str
    """Name of the calibration choice, or CALIBRATION-SCHEME."""
    md5: str
    """DVC hash of its folder; empty if dvc.lock does not list the folder."""
    now: bool
    """Whether it is the current version in the workspace."""
    record: dict[str, Any]
    """manifest.json, or calibration.json."""
    samples: tuple[dict[str, Any], ...]
    """Per sample: sample_id, doc_ids, domain, source and, for a set, n_tokens."""

    @property
    def shown(self) -> str:
        """The name; for an earlier version also the hash."""
        return self.name if self.now else f"{self.name} (earlier version {self.md5[:8]})"


def set_versions(root: Path) -> Iterator[RecordedVersion]:
    """Every version of every calibration set: first the workspace's, then those only in DVC's cache."""
    seen = set()
    recorded = _recorded(root)
    for folder in sorted((root / "data/calibration_set").glob("*")):
        path = folder.relative_to(root).as_posix()
        with suppress(OSError, ValueError, KeyError, pa.ArrowException):
            manifest = parse_object((folder / "manifest.json").read_bytes())
            rows = pq.read_table(folder / "samples.parquet", columns=COLUMNS).to_pylist()
            seen.add(recorded.get(path, ""))
            yield RecordedVersion(folder.name, recorded.get(path, ""), True, manifest, tuple(rows))
    for md5, files in cached_folders(root):
        if md5 in seen or not {"samples.parquet", "manifest.json"} <= files.keys():
            continue
        with suppress(OSError, ValueError, KeyError, pa.ArrowException):
            manifest = parse_object(cached_bytes(root, files["manifest.json"]) or b"")
            samples = io.BytesIO(cached_bytes(root, files["samples.parquet"]) or b"")
            rows = pq.read_table(samples, columns=COLUMNS).to_pylist()
            name = (manifest.get("choice") or {}).get("name", "?")
            yield RecordedVersion(str(name), md5, False, manifest, tuple(rows))


def model_versions(root: Path) -> Iterator[RecordedVersion]:
    """Every version of every model: first the workspace's, then those only in DVC's cache."""
    seen = set()
    recorded = _recorded(root)
    for folder in sorted((root / "data/quantized_model").glob("*")):
        path = folder.relative_to(root).as_posix()
        with suppress(OSError, ValueError):
            record = parse_object((folder / RECORD).read_bytes())
            seen.add(recorded.get(path, ""))
            yield _model(folder.name, recorded.get(path, ""), True, record)
    for md5, files in cached_folders(root):
        if md5 in seen or not {RECORD, "config.json"} <= files.keys():
            continue
        with suppress(OSError, ValueError):
            yield _model("", md5, False, parse_object(cached_bytes(root, files[RECORD]) or b""))


def _model(name: str, md5: str, now: bool, record: dict[str, Any]) -> RecordedVersion:
    from plumbline.provenance.link import dig
    from plumbline.provenance.model_files import samples_of

    pair = f"{dig(record, 'calibration_set', 'choice', 'name')}-{dig(record, 'scheme', 'name')}"
    return RecordedVersion(name or pair, md5, now, record, tuple(samples_of(record)))


def _recorded(root: Path) -> dict[str, str]:
    with suppress(ValueError):
        return {path: md5 for entry in read_lock(root).values() for path, md5 in entry.outs.items()}
    return {}


@lru_cache(maxsize=64)
def documents_in_cache(root: Path, md5: str) -> frozenset[str]:
    """Ids of the documents of a corpus in DVC's cache; missing shards are skipped."""
    ids: set[str] = set()
    for name, file_md5 in (cached_listing(root, md5) or {}).items():
        path = cached(root, file_md5)
        if name.startswith("shards/") and path:
            with suppress(OSError, ValueError, KeyError, pa.ArrowException):
                ids.update(pq.read_table(path, columns=["doc_id"])["doc_id"].to_pylist())
    return frozenset(ids)

"""Finds the upstream artifacts of a model by hash, also after the workspace has changed, and audits them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from plumbline.provenance import data_links, document_links, stage_links
from plumbline.provenance.link import Case, Link, dig
from plumbline.provenance.model_files import documents_of, parse_object
from plumbline.versioning.cache import cached_bytes, cached_folders
from plumbline.versioning.digest import Hasher
from plumbline.versioning.lock import read_lock
from plumbline.versioning.object_store import Store
from plumbline.versioning.run_history import ARTIFACT

SET, STATS, CORPUS = "data/calibration_set", "data/activation_stats", "data/raw_corpus"
RECOVERABLE: dict[str, tuple[str, Callable[[Case], Link | None]]] = {
    "statistics": (STATS, data_links.statistics),
    "calibration set": (SET, data_links.calibration_set),
    "calibration choice": (stage_links.CHOICES, stage_links.calibration_choice),
    "documents": (CORPUS, document_links.documents),
}


def chain_hashes(case: Case) -> dict[str, str]:
    """DVC hashes of the model's upstream artifacts, by path in the workspace.

    They come from the runs that DVC has on record. A set or statistics without a recorded run are searched in DVC's
    cache by the digests in the model's record.
    """
    run = case.made_by
    hashes: dict[str, str] = {}
    if run is not None:
        for path, entry in case.history.ancestry(next(iter(run.outs.values())), next(iter(run.outs))).items():
            hashes |= {dep: md5 for dep, md5 in entry.deps.items() if ARTIFACT.fullmatch(dep)}
            hashes[path] = entry.outs[path]
        hashes |= {dep: md5 for dep, md5 in run.deps.items() if ARTIFACT.fullmatch(dep)}
    kinds = {path.rsplit("/", 1)[0] if path.count("/") > 1 else path for path in hashes}
    if {SET, STATS} <= kinds:
        return hashes
    for path, md5 in _by_content(case).items():
        if hashes.setdefault(path, md5) == md5:
            for upstream, entry in case.history.ancestry(md5, path).items():
                hashes.setdefault(upstream, entry.outs[upstream])
    return hashes


def _by_content(case: Case) -> dict[str, str]:
    """DVC hashes of the set and the statistics in DVC's cache whose digests the model records."""
    names = case.claims("calibration_set", "choice", "name") + case.claims("calibration_set", "name")
    digests = case.claims("calibration_set", "digest")
    header = dig(case.record, "statistics", "files", "header.json")
    hashes: dict[str, str] = {}
    if not names or not data_links.NAME.fullmatch(names[0]):
        return hashes
    for md5, files in cached_folders(case.root):
        if {"samples.parquet", "manifest.json"} <= files.keys():
            data = cached_bytes(case.root, files["manifest.json"])
            if data and dig(parse_object(data), "digest") in digests:
                hashes[f"{SET}/{names[0]}"] = md5
        elif "header.json" in files and "stats.safetensors" in files:
            data = cached_bytes(case.root, files["header.json"])
            if data and sha256(data).hexdigest() == header:
                hashes[f"{STATS}/{names[0]}"] = md5
    return hashes


def recover(case: Case, links: tuple[Link, ...]) -> tuple[Link, ...]:
    """Check missing links again with artifacts from DVC's cache; returns all links."""
    wanting = {link.name for link in links if link.status == "missing"} & RECOVERABLE.keys()
    if not wanting or case.record is None:
        return links
    hashes = chain_hashes(case)
    return tuple(_recheck(case, link, hashes) if link.name in wanting else link for link in links)


def _recheck(case: Case, link: Link, hashes: Mapping[str, str]) -> Link:
    asset, check = RECOVERABLE[link.name]
    candidates = [(path, md5) for path, md5 in hashes.items() if path == asset or path.startswith(f"{asset}/")]
    if asset == CORPUS and not candidates:
        candidates = [(CORPUS, md5) for md5 in _corpora(case)]
    for path, md5 in candidates:
        if not Store(case.root).has(md5):
            continue
        with tempfile.TemporaryDirectory(prefix="plumbline-audit-") as scratch:
            root = Path(scratch)
            try:
                Store(case.root).place(md5, root / path)
            except (OSError, ValueError):
                continue  # a damaged object; keep the link
            restored = replace(case, root=root, lock={}, hasher=Hasher())  # a hasher caches by inode
            restored.__dict__["made_by"] = None  # no lookup: the hash was checked when the content was placed
            rechecked = check(restored)
        if rechecked is not None and rechecked.status == "verified":
            case.samples = case.samples or restored.samples
            case.documents = case.documents or restored.documents
            return replace(rechecked, meaning=f"{rechecked.meaning}; from DVC's cache, the workspace has changed since")
    return link


def _corpora(case: Case) -> list[str]:
    """Corpora in DVC's cache that contain all of the model's documents; the one in dvc.lock first."""
    from plumbline.provenance.version_index import documents_in_cache

    wanted = documents_of(case.record)
    current = {entry.outs.get(CORPUS) for entry in read_lock(case.root).values()}
    corpora = [md5 for md5, files in cached_folders(case.root) if any(name.startswith("shards/") for name in files)]
    return [
        md5
        for md5 in sorted(corpora, key=lambda md5: md5 not in current)
        if wanted <= documents_in_cache(case.root, md5)
    ]


def parameters(case: Case) -> dict[str, Any]:
    """Parameters, code version, dependencies and outputs of every run of the chain, by stage.

    Empty if DVC has no run of this model on record.
    """
    run = case.made_by
    if run is None:
        return {}
    ancestry = case.history.ancestry(next(iter(run.outs.values())), next(iter(run.outs)))
    return {
        entry.name: {
            "params": entry.params,
            "deps": entry.deps,
            "outs": entry.outs,
            "code_version": entry.code_version,
        }
        for entry in ancestry.values()
    }

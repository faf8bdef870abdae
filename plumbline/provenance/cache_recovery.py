"""The chain by hash: what a model was made from, whatever the workspace holds by now, and bringing that back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from plumbline.provenance import data_links
from plumbline.provenance.link import Case, Link, dig
from plumbline.provenance.model_links import documents_of, parse_object
from plumbline.versioning.cache import cached_bytes, cached_folders
from plumbline.versioning.digest import Hasher
from plumbline.versioning.lock import read_lock
from plumbline.versioning.object_store import Store
from plumbline.versioning.run_history import ARTIFACT

SET, STATS, CORPUS = "data/calibration_set", "data/activation_stats", "data/raw_corpus"
RECOVERABLE: dict[str, tuple[str, Callable[[Case], Link]]] = {
    "statistics": (STATS, data_links.statistics),
    "calibration set": (SET, data_links.calibration_set),
    "documents": (CORPUS, data_links.documents),
}


def chain_hashes(case: Case) -> dict[str, str]:
    """DVC hash of everything that the model rests on, by its path in the workspace.

    From the runs that DVC remembers; a set or statistics that no remembered run leads to are looked for in DVC's cache
    by the digests that the model carries.
    """
    made = case.made_by
    found: dict[str, str] = {}
    if made is not None:
        for path, entry in case.history.ancestry(next(iter(made.outs.values())), next(iter(made.outs))).items():
            found |= {dep: md5 for dep, md5 in entry.deps.items() if ARTIFACT.fullmatch(dep)}
            found[path] = entry.outs[path]
        found |= {dep: md5 for dep, md5 in made.deps.items() if ARTIFACT.fullmatch(dep)}
    kinds = {path.rsplit("/", 1)[0] if path.count("/") > 1 else path for path in found}
    if {SET, STATS} <= kinds:
        return found
    for path, md5 in _by_content(case).items():
        if found.setdefault(path, md5) == md5:
            for upstream, entry in case.history.ancestry(md5, path).items():
                found.setdefault(upstream, entry.outs[upstream])
    return found


def _by_content(case: Case) -> dict[str, str]:
    """The set and the statistics in DVC's cache that the model's own digests name."""
    names = case.claims("calibration_set", "choice", "name") + case.claims("calibration_set", "name")
    digests = case.claims("calibration_set", "digest")
    header = dig(case.record, "statistics", "files", "header.json")
    found: dict[str, str] = {}
    if not names or not data_links.NAME.fullmatch(names[0]):
        return found
    for md5, files in cached_folders(case.root):
        if {"samples.parquet", "manifest.json"} <= files.keys():
            data = cached_bytes(case.root, files["manifest.json"])
            if data and dig(parse_object(data), "digest") in digests:
                found[f"{SET}/{names[0]}"] = md5
        elif "header.json" in files and "stats.safetensors" in files:
            data = cached_bytes(case.root, files["header.json"])
            if data and sha256(data).hexdigest() == header:
                found[f"{STATS}/{names[0]}"] = md5
    return found


def recover(case: Case, links: tuple[Link, ...]) -> tuple[Link, ...]:
    """The links anew, where something was missing from the workspace that DVC's cache has under its hash."""
    wanting = {link.name for link in links if link.status == "missing"} & RECOVERABLE.keys()
    if not wanting or case.record is None:
        return links
    hashes = chain_hashes(case)
    return tuple(_again(case, link, hashes) if link.name in wanting else link for link in links)


def _again(case: Case, link: Link, hashes: Mapping[str, str]) -> Link:
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
                continue  # a damaged object; what is said about the workspace stands
            elsewhere = replace(case, root=root, lock={}, hasher=Hasher())  # it remembers by inode
            elsewhere.__dict__["made_by"] = None  # the content is what counts: its hash was checked as it was placed
            found = check(elsewhere)
        if found.status == "verified":
            return replace(found, meaning=f"{found.meaning}; from DVC's cache, the workspace has moved on")
    return link


def _corpora(case: Case) -> list[str]:
    """Corpora in DVC's cache that hold all of the model's documents; the newest of dvc.lock first."""
    from plumbline.provenance.version_index import documents_in_cache

    wanted = documents_of(case.record)
    now = {entry.outs.get(CORPUS) for entry in read_lock(case.root).values()}
    found = [md5 for md5, files in cached_folders(case.root) if any(name.startswith("shards/") for name in files)]
    return [
        md5 for md5 in sorted(found, key=lambda md5: md5 not in now) if wanted <= documents_in_cache(case.root, md5)
    ]


def parameters(case: Case) -> dict[str, Any]:
    """What every run of the chain was given, by stage: parameters, code version, and the hashes of what it read.

    Empty where DVC remembers no run of this model.
    """
    made = case.made_by
    if made is None:
        return {}
    ancestry = case.history.ancestry(next(iter(made.outs.values())), next(iter(made.outs)))
    return {
        entry.name: {
            "params": entry.params,
            "deps": entry.deps,
            "outs": entry.outs,
            "code_version": entry.code_version,
        }
        for entry in ancestry.values()
    }

"""The result of an audit, and the data that its checks share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from plumbline.provenance.model_files import irregular
from plumbline.provenance.resaved import Resaved
from plumbline.raw_corpus.document import Document
from plumbline.tracking.model_version import ModelVersion
from plumbline.tracking.registry import Registry, open_registry
from plumbline.tracking.store import NoStore
from plumbline.versioning.cache import cached, damaged
from plumbline.versioning.digest import Hasher, dvc_digest
from plumbline.versioning.lock import Entry
from plumbline.versioning.run_history import History

Status = Literal["verified", "missing", "tampered"]


@dataclass(frozen=True)
class Link:
    """One link of the chain from a model to its documents."""

    name: str
    status: Status
    meaning: str
    """The result of the comparison, in a sentence."""
    expected: str = ""
    """Digest on record."""
    found: str = ""
    """Digest recomputed."""
    fix: str = ""
    """What to do; empty when verified."""


@dataclass(frozen=True)
class AuditResult:
    """The chain of one model."""

    model: str
    """The audited folder."""
    links: tuple[Link, ...]
    """Ordered from the model to the documents."""
    about: dict[str, Any] = field(default_factory=dict)
    """The model's own description: choice, scheme, counts. Only as trustworthy as the link `record`."""
    origin: str = ""
    """Where the folder is from; empty if the reference was a folder."""

    @property
    def verified(self) -> bool:
        """Whether every link is verified."""
        return all(link.status == "verified" for link in self.links)

    @property
    def verdict(self) -> Status:
        """`tampered` if any link is, else `missing` if any link is, else `verified`."""
        states = {link.status for link in self.links}
        return "tampered" if "tampered" in states else "missing" if "missing" in states else "verified"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        links = [asdict(link) for link in self.links]
        head = {"model": self.model, "origin": self.origin} if self.origin else {"model": self.model}
        return {**head, "verdict": self.verdict, "about": self.about, "links": links}


@dataclass
class Case:
    """The state that the checks share. Values in `record` and `summary` may have any type."""

    model: Path
    root: Path
    lock: dict[str, Entry]
    record: Any = None
    """calibration.json; None if it cannot be read."""
    summary: Any = None
    """`quantization_config.calibration` of config.json."""
    record_holds: bool = False
    """Whether the record is the one whose digest is in config.json."""
    tokenizer_holds: bool = False
    """Whether the tokenizer has the fingerprint that the model records."""
    hasher: Hasher = field(default_factory=Hasher)
    resaved: Resaved | None = None
    """The recorded model that this one is a rewritten copy of, with the differences."""
    original: str = ""
    """DVC hash of the folder that `save_pretrained` rewrote, if this is a faithful copy of it."""
    version: ModelVersion | None = None
    """The registered version that was asked for, if one was."""
    samples: list[dict[str, Any]] | None = None
    """Rows of samples.parquet, `input_ids` int32 (n_tokens,), once the link `calibration set` is verified."""
    documents: dict[str, list[Document]] = field(default_factory=dict)
    """Rows of the corpus by document id, once the link `documents` is verified."""

    def claims(self, *keys: str) -> list[str]:
        """The values under a key in record and summary: one, two if they differ, or none."""
        values = [dig(source, *keys) for source in (self.record, self.summary)]
        return list(dict.fromkeys(value for value in values if isinstance(value, str)))

    @cached_property
    def digest(self) -> str:
        """DVC's hash of the model's folder; empty unless it is a folder of regular files."""
        try:
            if not self.model.is_dir() or irregular(self.model):
                return ""
            return dvc_digest(self.model, self.hasher)
        except (OSError, ValueError):
            return ""

    @cached_property
    def in_cache(self) -> bool:
        """Whether DVC's cache lists the model's folder."""
        return cached(self.root, self.digest) is not None

    @cached_property
    def registry(self) -> Registry | None:
        """The registered model of the workspace; None if nothing was registered here.

        Raises:
            TrackingError: the store cannot be read.
        """
        try:
            return open_registry(self.root, read_only=True)
        except NoStore:
            return None

    @cached_property
    def versions(self) -> list[ModelVersion]:
        """The registered versions of this model: that which was asked for, and those of its hash or its place.

        Raises:
            TrackingError: MLflow does not answer.
        """
        listed = self.registry.versions() if self.registry else []
        about = [version for version in listed if self.identity in (version.model, version.named_in(self.place))]
        about += [version for version in listed if not version.model and version.path == (self.place or "-")]
        asked = [self.version] if self.version else []
        return list({(version.name, version.version): version for version in [*asked, *about]}.values())

    @property
    def identity(self) -> str:
        """DVC hash under which the model is on record: its folder's, or that of the folder it was re-saved from."""
        return self.original or self.digest

    @cached_property
    def place(self) -> str:
        """The model's path relative to the workspace; empty if it is outside."""
        model, root = self.model.resolve(), self.root.resolve()
        return model.relative_to(root).as_posix() if model.is_relative_to(root) else ""

    @cached_property
    def entry(self) -> Entry | None:
        """The dvc.lock entry of this model: an output with the same path or the same content."""
        for entry in self.lock.values():
            if self.place in entry.outs or self.identity in entry.outs.values():
                return entry
        return None

    @cached_property
    def history(self) -> History:
        """Every run that DVC has on record in this workspace."""
        return History(self.root)

    @cached_property
    def made_by(self) -> Entry | None:
        """The run that made this model, also if dvc.lock has a later run by now."""
        return self.entry or (self.history.maker(self.identity) if self.identity else None)

    @cached_property
    def runs(self) -> dict[str, Entry]:
        """The recorded runs of the model and of everything upstream of it, by the path of their output."""
        if self.made_by is None:
            return {}
        path, md5 = next(iter(self.made_by.outs.items()))
        return self.history.ancestry(md5, path)

    def recorded(self, path: str) -> str | None:
        """DVC hash of an output in the current dvc.lock."""
        return next((entry.outs[path] for entry in self.lock.values() if path in entry.outs), None)

    def wanted(self, path: str) -> str | None:
        """DVC hash of `path` as the model's run, or the runs upstream of it, read it; None if it is not on record."""
        direct = self.made_by.deps.get(path) if self.made_by else None
        return direct or next((run.deps[path] for run in self.runs.values() if path in run.deps), None)


def dig(value: Any, *keys: str) -> Any:
    """`value[k1][k2]...`; None if a value is not a mapping or lacks the key."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def how_to_restore(case: Case, path: str) -> str:
    """The command that restores the content that the model was made from."""
    wanted, recorded = case.wanted(path), case.recorded(path)
    if wanted is None and recorded is None:
        return f"audit inside the workspace that made the model, or copy its {path} here"
    if wanted is None or wanted == recorded:
        if bad := damaged(case.root, str(recorded), case.hasher):
            remove = f"rm -f {' '.join(bad[:3])}"
            return f"DVC's cache is altered, too: {remove}, then dvc pull --force {path}, or make it again"
        there = cached(case.root, str(recorded)) is not None
        return f"dvc {'checkout --force' if there else 'pull --force'} {path}"
    where = "DVC's cache has it" if cached(case.root, wanted) else "DVC's cache lacks it (try `dvc pull`)"
    return (
        f"dvc.lock no longer names {wanted}; {where}: `git log -S {wanted} -- dvc.lock` names the commit, then "
        f"`git checkout COMMIT -- dvc.lock && dvc checkout --force {path}`"
    )

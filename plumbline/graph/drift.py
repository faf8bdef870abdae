"""Drift of current production texts from the champion's calibration set.

The drift sensor launches the measurement as a separate run, because it tokenizes and embeds new texts. The result and
the key of what was measured are stored in `.plumbline/drift.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json, replace_text, sha256_json
from plumbline.params import load_params
from plumbline.raw_corpus.params import Directory
from plumbline.tracking.model_version import ModelVersion
from plumbline.tracking.registry import Registry, open_registry
from plumbline.versioning.lock import read_lock
from plumbline.versioning.object_store import Store
from plumbline.versioning.scratch import scratch as scratch_folder
from plumbline.workspace import workspace_root

RESULT = Path(".plumbline") / "drift.json"


@dataclass(frozen=True)
class DriftSubject:
    """The two sides of the comparison: a state of the production folder, and a champion."""

    production: str
    """Digest of names, sizes and modification times of its files."""
    champion: ModelVersion

    @property
    def key(self) -> str:
        return sha256_json([self.production, self.champion.model, self.champion.calibration_set])[:32]


def subject(root: Path, registry: Registry) -> DriftSubject | str:
    """Return the subject of the next measurement, or the reason why there is none."""
    source = load_params(root).corpus.production
    if not isinstance(source, Directory):
        return "no folder of production texts: corpus.production in params.yaml is not a directory"
    from plumbline.raw_corpus.file_hashes import stamp
    from plumbline.raw_corpus.sources.names import file_names

    folder = root / Path(source.path).expanduser()
    names = sorted(file_names(folder)) if folder.is_dir() else []
    if not names:
        return f"no production texts in {source.path}"
    champion = registry.champion()
    if champion is None:
        return "no champion yet"
    shown = [(name.encode("utf-8", "backslashreplace").decode(), folder / name) for name in names]
    return DriftSubject(sha256_json([[name, *stamp(path)] for name, path in shown if path.is_file()]), champion)


def result(root: Path, subject: DriftSubject) -> dict[str, Any] | None:
    """Return the last measurement if it was of this subject, else None."""
    path = root / RESULT
    try:
        drift = read_json(path)
    except (OSError, ValueError):
        return None
    return drift if isinstance(drift, dict) and drift.get("key") == subject.key else None


def measure() -> dict[str, Any]:
    """Measure the drift of current production texts, and store the result for the sensor.

    Corpus, samples and features are built in a scratch folder as `ingest` would build them. Existing parts are reused,
    so only new production texts are tokenized and embedded.

    Raises:
        ValueError: there is nothing to compare, or the champion's calibration set cannot be found.
    """
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.calibration_set.pool import Sources
    from plumbline.production_drift.measure import measure_drift
    from plumbline.raw_corpus.build import build_raw_corpus
    from plumbline.raw_corpus.intake import INTAKE, read_intake
    from plumbline.sample_features.build import build_sample_features
    from plumbline.tokenized_samples.build import build_tokenized_samples

    root = workspace_root()
    params = load_params(root)
    measured = subject(root, open_registry(root))
    if isinstance(measured, str):
        raise ValueError(f"production_drift: {measured}")
    data = root / "data"
    with scratch_folder(root, "drift") as scratch:
        corpus, samples, features = (scratch / name for name in ("raw_corpus", "tokenized_samples", "sample_features"))
        for folder in (corpus, samples, features):
            folder.mkdir()
        base = BaseCheckpoint.of(params.model, root)
        build_raw_corpus(params.corpus, root, corpus, data / corpus.name, intake=read_intake(root / INTAKE))
        build_tokenized_samples(params.tokenize, base, corpus, samples, data / samples.name)
        build_sample_features(params.features, base, samples, features, data / features.name, root)
        sources = Sources(samples, features, base)
        drift = measure_drift(_calibration_set(root, measured.champion, scratch), sources, params.drift)
    drift |= {"key": measured.key, "champion": measured.champion.pair}
    replace_text(root / RESULT, json.dumps(drift, sort_keys=True))
    return drift


def _calibration_set(root: Path, champion: ModelVersion, scratch: Path) -> Path:
    """The champion's calibration set: from the workspace if it is unchanged, else from DVC's cache."""
    for entry in read_lock(root).values():
        for path, md5 in entry.outs.items():
            if md5 == champion.calibration_set and (root / path).is_dir():
                return root / path
    Store(root).place(champion.calibration_set, scratch / "champion")
    return scratch / "champion"

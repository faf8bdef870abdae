"""The champion, as a candidate is measured against it: brought back by its hash, evaluated on today's report split."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from plumbline.artifact import sha256_json
from plumbline.deployed_model.promote import Champion
from plumbline.params import load_params
from plumbline.tracking.model_version import Version
from plumbline.tracking.promotion import Registry
from plumbline.versioning.code import code_versions
from plumbline.versioning.lock import read_lock, stage_name
from plumbline.versioning.object_store import Store
from plumbline.versioning.recording import Step
from plumbline.versioning.recording import scratch as scratch_folder

Evaluate = Callable[[Path, Path], object]
"""(a quantized model's folder, an empty folder for its evaluation)"""


def champion_of(step: Step, registry: Registry, evaluate: Evaluate) -> Champion | None:
    """Who carries the alias, with an evaluation on the documents that a candidate is evaluated on.

    That is the graph's own where the graph still holds this model; else the folder is brought back from DVC's cache by
    its hash and evaluated, once per champion and report split (kept in `.plumbline/champion`).
    """
    version = registry.champion()
    if version is None:
        return None
    for pair, model in models(step.root).items():
        evaluation = step.root / "data" / "evaluation" / pair
        if model == version.model and evaluation.is_dir():
            return Champion(pair, model, evaluation)
    return _evaluated(step, version, evaluate)


def models(root: Path) -> dict[str, str]:
    """DVC hash of every pair's model, as dvc.lock has it."""
    lock = read_lock(root)
    entries = {pair: lock.get(stage_name("quantized_model", pair)) for pair in load_params(root).pairs()}
    return {pair: entry.md5 for pair, entry in entries.items() if entry is not None}


def _evaluated(step: Step, version: Version, evaluate: Evaluate) -> Champion:
    code = code_versions(step.root, ["evaluation"])
    conditions = [step.inputs["data/tokenized_samples"], step.params["evaluation"], step.params["model"], code]
    kept = step.root / ".plumbline" / "champion" / sha256_json([version.model, *conditions])[:32]
    if kept.is_dir():
        return Champion(version.pair, version.model, kept)
    try:
        with scratch_folder(step.root, "champion-evaluation") as scratch:
            model, out = scratch / version.pair, scratch / "evaluation"
            out.mkdir()
            Store(step.root).place(version.model, model)
            evaluate(model, out)
            shutil.rmtree(kept.parent, ignore_errors=True)  # of the champion or the report split before
            kept.parent.mkdir(parents=True)
            out.rename(kept)
    except (ValueError, OSError) as error:
        why = f"The champion {version.pair} cannot be evaluated on today's report split: {error}"
        return Champion(version.pair, version.model, None, why)
    return Champion(version.pair, version.model, kept)

"""The champion in the graph: what a candidate is measured against, its promotion, and what Dagster shows of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json, sha256_json
from plumbline.deployed_model.promote import Champion
from plumbline.params import load_params
from plumbline.tracking.model_version import ModelUri, ModelVersion
from plumbline.tracking.promotion import MACHINE, history, promote
from plumbline.tracking.registry import ALIAS, Registry, open_registry
from plumbline.versioning import recording as versioning
from plumbline.versioning.object_store import Store
from plumbline.versioning.recording import Step

Evaluate = Callable[[Path, Path], object]
"""(a quantized model's folder, an empty folder for its evaluation)"""


def champion_of(step: Step, registry: Registry, evaluate: Evaluate) -> Champion | None:
    """The model that carries the alias, with an evaluation on the documents that a candidate is evaluated on.

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
    lock = versioning.lock_entries(root)
    entries = {pair: lock.get(versioning.stage_name("quantized_model", pair)) for pair in load_params(root).pairs()}
    return {pair: str(entry["outs"][0]["md5"]) for pair, entry in entries.items() if entry is not None}


def promote_candidate(step: Step) -> dict[str, Any]:
    """Move the alias to the candidate if promotion.json says that it was promoted.

    Returns:
        Metadata: as `champion_metadata`.
    """
    decision = read_json(step.out / "promotion.json")
    registry = open_registry(step.root)
    if decision["decision"] == "promoted":
        version = registry.of_model(decision["model"]).version
        promote(registry, step.root, version, MACHINE, decision["why"])
    return champion_metadata(registry)


def champion_metadata(registry: Registry) -> dict[str, Any]:
    """The champion, its version, who put it there and why, and the command that audits it."""
    champion = registry.champion()
    if champion is None:
        return {"champion": "none"}
    last = history(registry).entries[-1:]
    reason = {"promoted_by": last[0].who, "promoted_because": last[0].why} if last else {}
    uri = ModelUri(registry.name, alias=ALIAS)
    return {
        "champion": champion.pair,
        "registry": f"{uri} (version {champion.version})",
        "audit": f"plumbline audit {uri}",
        **reason,
    }


def _evaluated(step: Step, version: ModelVersion, evaluate: Evaluate) -> Champion:
    conditions = [step.inputs["data/tokenized_samples"], step.params["evaluation"], step.params["model"], step.code]
    evaluation = step.root / ".plumbline" / "champion" / sha256_json([version.model, *conditions])[:32]
    if evaluation.is_dir():
        return Champion(version.pair, version.model, evaluation)
    try:
        with versioning.scratch(step.root, "champion-evaluation") as scratch:
            model, out = scratch / version.pair, scratch / "evaluation"
            out.mkdir()
            Store(step.root).place(version.model, model)
            evaluate(model, out)
            shutil.rmtree(evaluation.parent, ignore_errors=True)  # of the champion or the report split before
            evaluation.parent.mkdir(parents=True)
            out.rename(evaluation)
    except (ValueError, OSError) as error:
        why = f"The champion {version.pair} cannot be evaluated on today's report split: {error}"
        return Champion(version.pair, version.model, None, why)
    return Champion(version.pair, version.model, evaluation)

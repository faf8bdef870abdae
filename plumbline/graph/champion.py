"""The champion in the graph: its evaluation, the promotion of a candidate, and the metadata for Dagster."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json, sha256_json
from plumbline.deployed_model.promotion import Champion
from plumbline.evaluation.params import EvaluationParams
from plumbline.graph.step import base_model
from plumbline.params import load_params
from plumbline.tracking.model_version import ModelUri, ModelVersion
from plumbline.tracking.promotion import MACHINE, history, promote
from plumbline.tracking.registry import ALIAS, Registry, open_registry
from plumbline.versioning.code import code_versions
from plumbline.versioning.lock import read_lock, stage_name
from plumbline.versioning.object_store import Store
from plumbline.versioning.recording import Step
from plumbline.versioning.scratch import keep_acted_on
from plumbline.versioning.scratch import scratch as scratch_folder


def champion_of(step: Step, registry: Registry) -> Champion | None:
    """Return the champion with an evaluation on the same documents as the candidate's; None if there is no champion.

    If the workspace still has this model, its evaluation in the graph is used. Otherwise the model is restored from
    DVC's cache by its hash and evaluated, once per champion and report split (cached in `.plumbline/champion`).
    """
    version = registry.champion()
    if version is None:
        return None
    for pair, model in models(step.root).items():
        evaluation = step.root / "data" / "evaluation" / pair
        if model == version.model and evaluation.is_dir():
            return Champion(pair, model, evaluation)
    return _evaluated(step, version)


def models(root: Path) -> dict[str, str]:
    """DVC hash of the model of every pair, from dvc.lock."""
    lock = read_lock(root)
    entries = {pair: lock.get(stage_name("quantized_model", pair)) for pair in load_params(root).pairs()}
    return {pair: entry.md5 for pair, entry in entries.items() if entry is not None}


def promote_candidate(step: Step) -> dict[str, Any]:
    """Move the alias to the candidate if promotion.json says so.

    Returns:
        Metadata: as `champion_metadata`.
    """
    decision = read_json(step.out / "promotion.json")
    registry = open_registry(step.root)
    if decision["decision"] == "promoted":
        version = registry.of_model(decision["model"]).version
        keep_acted_on(step.root, step.name, step.code_version, step.out)
        promote(registry, step.root, version, MACHINE, decision["why"])
    return champion_metadata(registry, said=decision["why"])


def champion_metadata(registry: Registry, said: str = "") -> dict[str, Any]:
    """Dagster metadata: the champion, its version, who promoted it and why, and the command that audits it.

    Args:
        said: a reason that the page shows already; it is not repeated.
    """
    champion = registry.champion()
    if champion is None:
        return {"champion": "none"}
    last = history(registry).entries[-1:]
    reason = {"promoted_by": last[0].who, "promoted_because": last[0].why} if last else {}
    if reason.get("promoted_because") == said:
        del reason["promoted_because"]
    uri = ModelUri(registry.name, alias=ALIAS)
    return {
        "champion": champion.pair,
        "registry": f"{uri} (version {champion.version})",
        "audit": f"plumbline audit {uri}",
        **reason,
    }


def _evaluated(step: Step, version: ModelVersion) -> Champion:
    from plumbline.evaluation.build import build_evaluation

    params, samples = EvaluationParams.model_validate(step.params["evaluation"]), step.input("tokenized_samples")
    code = code_versions(step.root, ["evaluation"])
    conditions = [step.inputs["data/tokenized_samples"], step.params["evaluation"], step.params["model"], code]
    evaluation = step.root / ".plumbline" / "champion" / sha256_json([version.model, *conditions])[:32]
    if evaluation.is_dir():
        return Champion(version.pair, version.model, evaluation)
    try:
        with scratch_folder(step.root, "champion-evaluation") as scratch:
            model, out = scratch / version.pair, scratch / "evaluation"
            out.mkdir()
            Store(step.root).place(version.model, model)
            build_evaluation(params, base_model(step), model, samples, out, load_params(step.root).execution)
            shutil.rmtree(evaluation.parent, ignore_errors=True)  # evaluations of earlier champions or report splits
            evaluation.parent.mkdir(parents=True)
            out.rename(evaluation)
    except (ValueError, OSError) as error:
        why = f"The champion {version.pair} cannot be evaluated on today's report split: {error}"
        return Champion(version.pair, version.model, None, why)
    return Champion(version.pair, version.model, evaluation)

"""The stages that are out of date, and why."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.versioning.code import VERSIONS
from plumbline.versioning.current_facts import current, facts_in_use, link_inputs
from plumbline.versioning.digest_memo import DigestMemo
from plumbline.versioning.facts import NAMED_OUTPUTS, STAGES
from plumbline.versioning.lock import Entry, read_lock
from plumbline.versioning.pipeline import Stage, on_request, plain, resolved


def unfinished_mark(root: Path, name: str) -> Path:
    """Path of a mark that exists while a stage's output is published and the steps after it are unfinished."""
    return root / ".plumbline" / "unfinished" / name


def changed_stages(root: Path, *assets: str) -> dict[str, list[str]]:
    """Stage -> why its recorded inputs, parameters, code or output differ from the current ones.

    The result has direct changes only, like `dvc status`; stages downstream of a change are not in it. Facts, such as
    code versions, are the current ones, not those in their files.

    Args:
        assets: only stages of these assets. Without any: all stages but those that run on request.
    """
    left_alone = on_request(root)
    with contextlib.suppress(OSError):  # a read-only workspace
        link_inputs(root)
    facts = {file: current(root, file) for file in facts_in_use(root)}
    lock, digests, changed = read_lock(root), DigestMemo(root), {}
    for name, stage in resolved(root).items():
        if name in STAGES or (stage.asset not in assets if assets else stage.asset in left_alone):
            continue
        reasons = _reasons(stage, lock.get(name), facts, digests)
        if unfinished_mark(root, name).exists():
            reasons.append("it was killed before MLflow knew of it")
        if reasons:
            changed[name] = reasons
    digests.save()
    return changed


def _reasons(
    stage: Stage, entry: Entry | None, facts: Mapping[str, Mapping[str, Any]], digests: DigestMemo
) -> list[str]:
    """The reasons why a stage is out of date; empty if it is current."""
    if entry is None:
        return ["never run"]
    reasons = [] if entry.cmd == stage.cmd else ["the command changed"]
    for file, keys in stage.facts.items():
        for key in keys:
            before, now = entry.facts.get(file, {}).get(key), facts.get(file, {}).get(key)
            reasons += _fact_changes(file, key, before, now) if before != now else []
    for path in stage.deps:
        reasons += _difference(path, entry.deps.get(path), digests.get(path))
    for file, now in stage.params.items():
        reasons += [f"{file}: {key} changed" for key in sorted(now) if plain(entry.params.get(key)) != now[key]]
    for path in stage.outs:
        reasons += _difference(path, entry.outs.get(path), digests.get(path))
    return reasons


def _fact_changes(file: str, key: str, before: Any, now: Any) -> list[str]:
    if file == VERSIONS:
        return ["the code changed"]
    if file != NAMED_OUTPUTS:
        return [f"the base model's {key} changed"]
    before, now = before or {}, now or {}
    gone = [f"{path}: no longer in the grid, or missing" for path in before if path not in now]
    return gone + [f"{path}: {'changed' if path in before else 'new'}" for path in now if before.get(path) != now[path]]


def _difference(path: str, before: str | None, now: str | None) -> list[str]:
    return [] if now == before and now else [f"{path}: {'missing' if now is None else 'changed'}"]


def leftovers(root: Path) -> list[str]:
    """Outputs of entries that params.yaml no longer has, sorted. No stage reads them."""
    outs = {path for stage in resolved(root).values() for path in stage.outs}
    assets = {Path(path).parent for path in outs} - {Path("data")}
    names = (path.relative_to(root).as_posix() for asset in assets for path in (root / asset).glob("*"))
    return sorted(name for name in names if name not in outs and (root / name).is_dir())

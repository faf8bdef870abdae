"""The stages that are out of date, and why."""

from __future__ import annotations

from pathlib import Path

from plumbline.versioning.code import STAGE, code_versions
from plumbline.versioning.digest_memo import DigestMemo
from plumbline.versioning.lock import Entry, read_lock
from plumbline.versioning.pipeline import Stage, assets_with_code, on_request, plain, resolved


def unfinished_mark(root: Path, name: str) -> Path:
    """Path of a mark that exists while a stage's output is published and the steps after it are unfinished."""
    return root / ".plumbline" / "unfinished" / name


def changed_stages(root: Path, *assets: str) -> dict[str, list[str]]:
    """Stage -> why its recorded inputs, parameters, code or output differ from the current ones.

    The result has direct changes only, like `dvc status`; stages downstream of a change are not in it. Code versions
    are those of the installed library, not of data/code_versions.yaml.

    Args:
        assets: only stages of these assets. Without any: all stages but those that run on request.
    """
    left_alone = on_request(root)
    versions = code_versions(root, assets_with_code(root))
    lock, digests, changed = read_lock(root), DigestMemo(root), {}
    for name, stage in resolved(root).items():
        if name == STAGE or (stage.asset not in assets if assets else stage.asset in left_alone):
            continue
        reasons = _reasons(stage, lock.get(name), versions.get(stage.asset, ""), digests)
        if unfinished_mark(root, name).exists():
            reasons.append("it was killed before MLflow knew of it")
        if reasons:
            changed[name] = reasons
    digests.save()
    return changed


def _reasons(stage: Stage, entry: Entry | None, code_version: str, digests: DigestMemo) -> list[str]:
    """The reasons why a stage is out of date; empty if it is current."""
    if entry is None:
        return ["never run"]
    reasons = [] if entry.cmd == stage.cmd else ["the command changed"]
    if stage.has_code and entry.code_version != code_version:
        reasons.append("the code changed")
    for path in stage.deps:
        reasons += _difference(path, entry.deps.get(path), digests.get(path))
    for file, now in stage.params.items():
        reasons += [f"{file}: {key} changed" for key in sorted(now) if plain(entry.params.get(key)) != now[key]]
    for path in stage.outs:
        reasons += _difference(path, entry.outs.get(path), digests.get(path))
    return reasons


def _difference(path: str, before: str | None, now: str | None) -> list[str]:
    return [] if now == before and now else [f"{path}: {'missing' if now is None else 'changed'}"]

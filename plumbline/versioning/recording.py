"""Run a stage: hash its inputs, publish its output, and record both in dvc.lock."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from plumbline.base_model.params import ModelParams
from plumbline.versioning.cache_users import note_use
from plumbline.versioning.code import VERSIONS
from plumbline.versioning.current_facts import base_model_digests, current, facts_in_use, link_inputs
from plumbline.versioning.digest import TRUSTING, dvc_digest
from plumbline.versioning.digest_memo import DigestMemo
from plumbline.versioning.dvc_locks import busy_in_words
from plumbline.versioning.facts import BASE_MODEL, FACTS, NAMED_OUTPUTS, STAGES
from plumbline.versioning.lock import dump, read_lock, write_entry
from plumbline.versioning.pipeline import pipeline, plain, resolved
from plumbline.versioning.scratch import acted_on, aside_of, parts_of, remove, scratch, sweep
from plumbline.versioning.status import changed_stages

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

DVC_STAGE = "DVC_STAGE"
"""Environment variable with the stage's name; `dvc repro` sets it for the stage's command."""


class InputsChanged(RuntimeError):
    """An input differs from what its own stage recorded, or changed while the stage ran."""


@dataclass
class Step:
    """One run of one stage: its inputs, parameters and output."""

    name: str
    root: Path
    inputs: dict[str, str]
    """Path of a dependency, relative to the root -> DVC hash when the step began."""
    code_version: str
    params: dict[str, Any]
    """Dotted name in params.yaml -> value, launch overrides included."""
    out: Path
    previous: Path | None
    """The last good output if the same code produced it, for the reuse of unchanged parts; or what `acted_on` has."""
    md5: str = ""
    """DVC hash of the output, set once it is published."""
    seconds: float = 0.0
    """Duration of the step, set once its output is published."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File of facts.py -> key -> value when the step began."""
    reads: list[Any] = field(default_factory=list, repr=False)
    expected: str = ""
    """DVC hash of what a worker wrote; empty if this process computes the output."""
    is_current: bool = False
    """Another process brought the output up to date while this one waited for it: there is nothing to do."""

    def input(self, asset: str, key: str | None = None) -> Path:
        """Folder of an upstream artifact.

        Raises:
            KeyError: dvc.yaml does not declare it among the stage's deps.
        """
        path = f"data/{asset}/{key}" if key else f"data/{asset}"
        named = {*self.inputs, *(str(Path(part).parent) for part in self.inputs if part.startswith("data/"))}
        if path not in named and str(Path(path).parent) not in self.inputs:
            raise KeyError(f"{path} is not among the deps of {self.name} in dvc.yaml: {sorted(self.inputs)}")
        return self.root / path


# ---------------------------------------------------------------------------------------------------------------------
# Facts


def refresh_facts(root: Path, files: Iterable[str] | None = None) -> None:
    """Update files of facts and their records in dvc.lock to the current values.

    Do nothing for those that are up to date, or whose stage dvc.yaml lacks.

    Args:
        files: None: all whose inputs exist.

    Raises:
        ValueError: params.yaml is invalid.
    """
    with contextlib.suppress(OSError):  # a read-only workspace
        link_inputs(root)
    for file in facts_in_use(root):
        if files is None or file in files:
            _refresh(root, file, must=files is not None)


def _refresh(root: Path, file: str, must: bool) -> None:
    text, stage = dump(current(root, file)), FACTS[file]
    if _is_recorded(root, file, text):
        return
    if not must and not all((root / path).exists() for path in resolved(root)[stage].deps):
        return
    with scratch(root, stage) as folder:
        if _is_recorded(root, file, text):  # another process has updated it meanwhile
            return
        step, draft = _begin(root, stage, {}), folder / Path(file).name
        draft.write_text(text, encoding="utf-8")
        _publish(step, draft, overridden=False)


def _is_recorded(root: Path, file: str, text: str) -> bool:
    entry, path, digests = read_lock(root).get(FACTS[file]), root / file, DigestMemo(root)
    stage = resolved(root)[FACTS[file]]
    recorded = (
        entry is not None
        and path.is_file()
        and path.read_text(encoding="utf-8") == text
        and entry.cmd == stage.cmd
        and entry.outs.get(file) == digests.get(file)
        and all(entry.deps.get(dep) == digests.get(dep) for dep in stage.deps)
        and all(plain(entry.params.get(key)) == now for values in stage.params.values() for key, now in values.items())
    )
    digests.save()
    return recorded


def _require_current_facts(root: Path, name: str) -> None:
    """Raise InputsChanged unless the files of the facts that a stage reads have the current values.

    `dvc repro` has already run the stages that write them, and dvc.lock must not change under it.
    """
    for file, keys in resolved(root)[name].facts.items() if name in resolved(root) else ():
        path = root / file
        recorded = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}
        now = current(root, file)
        if stale := [key for key in keys if recorded.get(key) != now.get(key)]:
            raise InputsChanged(f"{file} does not have the current values of {stale}: run `dvc repro {FACTS[file]}`")


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _begin(root: Path, name: str, overrides: Mapping[str, Any]) -> Step:
    stage = pipeline(root).stage(name)
    with contextlib.chdir(root):
        for dependency in stage.deps:
            dependency.save()  # hashes it; writes nothing
        record = _record_of_reads(stage)
        reads = [(item.def_path, item.hash_info) for item in stage.deps]
        out = root / stage.outs[0].def_path
    files = dict(record.get("params", {}))
    facts = {file: files.pop(file, {}) for file in FACTS}
    inputs = {item["path"]: item["md5"] for item in record.get("deps", [])}
    for outputs in facts[NAMED_OUTPUTS].values():
        inputs |= outputs
    if name not in STAGES:
        _check_recorded(root, name, inputs)
    code_version = str(facts[VERSIONS].get(name.split("@")[0], ""))
    params: dict[str, Any] = {}
    for values in files.values():
        params |= {key: ({**value, **overrides} if overrides else value) for key, value in values.items()}
    last = read_lock(root).get(name)
    acted = acted_on(root, name, code_version)
    previous = out if last is not None and last.code_version == code_version and out.is_dir() else None
    previous = acted if previous is None and acted.is_dir() else previous
    return Step(name, root, inputs, code_version, params, out, previous, facts=facts, reads=reads)


def _check_recorded(root: Path, name: str, inputs: Mapping[str, str]) -> None:
    """Raise InputsChanged unless every input has the hash that its own stage recorded."""
    recorded = {path: md5 for entry in read_lock(root).values() for path, md5 in entry.outs.items()}
    for path, md5 in inputs.items():
        held = {path: md5} if path in recorded else {}
        if path not in recorded:  # a folder of partitions, each the output of a stage
            partitions = [out for out in recorded if Path(path) in Path(out).parents and (root / out).exists()]
            held = {out: dvc_digest(root / out, TRUSTING) for out in partitions}
        for out, now in held.items():
            if recorded[out] != now:
                raise InputsChanged(
                    f"{name} reads {out}, which holds {now}, but dvc.lock recorded {recorded[out]}: somebody changed "
                    f"it. Bring it back with `dvc checkout --force {out}`, or make it anew with `plumbline run`."
                )


# ---------------------------------------------------------------------------------------------------------------------
# Publishing


def planned(root: Path, name: str) -> Step:
    """The step that `recording` would run now, without running it.

    Raises:
        InputsChanged: an input differs from what its stage recorded.
    """
    if os.environ.get(DVC_STAGE):
        _require_current_facts(root, name)
    else:
        refresh_facts(root, resolved(root)[name].facts)
    return _begin(root, name, {})


@contextlib.contextmanager
def recording(root: Path, name: str, overrides: Mapping[str, Any] | None = None) -> Iterator[tuple[Step, Path]]:
    """Run one stage: yields (step, empty folder); on success the folder becomes the output and dvc.lock records it.

    If another process did so while this one waited for the lock, `step.is_current` is set and nothing is published.

    A file lock allows one writer per output, under `dvc repro` as well. DVC's own lock is not held while the body runs.
    After a failure, here or in DVC, the last good output and its entry are unchanged.

    Raises:
        InputsChanged: an input differs from what its stage recorded, or changed while the body ran.
    """
    sweep(root)  # what killed steps left, of whichever command
    if os.environ.get(DVC_STAGE):
        _require_current_facts(root, name)
    elif name in resolved(root):
        refresh_facts(root, resolved(root)[name].facts)
    before = read_lock(root).get(name)
    with scratch(root, name) as folder:
        step = _begin(root, name, overrides or {})
        entry = read_lock(root).get(name)
        if entry is not None and entry != before and not overrides and name not in changed_stages(root, entry.asset):
            step.is_current, step.md5 = True, entry.md5
        yield step, folder
        if not step.is_current:
            _publish(step, folder, overridden=bool(overrides))
            remove(parts_of(root, name))


def _publish(step: Step, made: Path, overridden: bool) -> None:
    """Replace the stage's output with a new folder or file, and record it."""
    dvc = pipeline(step.root)
    stage = dvc.stage(step.name)
    with busy_in_words(), contextlib.chdir(step.root), dvc.repo.lock:
        for dependency in stage.deps:
            dependency.save()
        _require_unchanged(step, stage)
        aside = aside_of(made)
        step.out.parent.mkdir(parents=True, exist_ok=True)
        if step.out.exists():
            step.out.rename(aside)
        made.rename(step.out)
        try:
            step.md5 = _commit(dvc.repo, stage, step, overridden)
        except BaseException:
            remove(step.out)
            if aside.exists():
                aside.rename(step.out)
            raise
        remove(aside)
    note_use(step.root)


def _require_unchanged(step: Step, stage: PipelineStage) -> None:
    """Raise InputsChanged if an input differs from what it was when the step began; DVC has hashed the files anew.

    A parameter may differ: it was read once, and is recorded as it was read. But `dvc repro` records what params.yaml
    says at the end.
    """
    declared = {item["path"]: item["md5"] for item in _record_of_reads(stage).get("deps", [])}
    now = {path: declared[path] if path in declared else _digest_now(step.root / path) for path in step.inputs}
    changed = [path for path, md5 in step.inputs.items() if now[path] != md5]
    changed += [*_changed_facts(step), *(_changed_params(step, stage) if os.environ.get(DVC_STAGE) else ())]
    if changed:
        raise InputsChanged(f"{', '.join(changed)} changed while {step.name} ran: run it again")


def _changed_facts(step: Step) -> Iterator[str]:
    """What differs of the code and the base model. What `grid:` names is an input, and compared as such."""
    for file, what in ((VERSIONS, "the code of"), (BASE_MODEL, "the base model's")):
        if facts := step.facts[file]:
            model = step.params.get("model")
            if file == BASE_MODEL and model is not None:  # params.yaml may name another model by now
                now = base_model_digests(step.root, ModelParams.model_validate(model))
            else:
                now = current(step.root, file)
            yield from (f"{what} {key}" for key, value in facts.items() if now.get(key) != value)


def _changed_params(step: Step, stage: PipelineStage) -> Iterator[str]:
    from dvc.dependency.param import ParamsDependency

    read = dict(step.reads)
    for item in stage.deps:
        if isinstance(item, ParamsDependency):
            then, now = read[item.def_path].value, item.hash_info.value
            yield from (f"{key} in {item.def_path}" for key in now if now[key] != then.get(key))


def _digest_now(path: Path) -> str | None:
    return dvc_digest(path, TRUSTING) if path.exists() else None


def _record_of_reads(stage: PipelineStage) -> dict[str, Any]:
    """The record of what a stage reads; its output may be absent."""
    outs, stage.outs = stage.outs, []
    try:
        return _record(stage)
    finally:
        stage.outs = outs


def _record(stage: PipelineStage) -> dict[str, Any]:
    from dvc.stage.serialize import to_single_stage_lockfile

    return plain(to_single_stage_lockfile(stage))


def _require_undamaged(step: Step, md5: str) -> None:
    if step.expected and step.expected != md5:
        raise InputsChanged(
            f"{step.name}: a worker wrote {step.expected}, and {md5} arrived: the file system changed something on the "
            "way; run it again"
        )


def _commit(repo: Repo, stage: PipelineStage, step: Step, overridden: bool) -> str:
    """Add the output to DVC's cache and its entry to dvc.lock, and return its hash."""
    from dvc.dependency.param import ParamsDependency
    from dvc_data.hashfile.hash_info import HashInfo

    stage.save_outs()
    _require_undamaged(step, str(stage.outs[0].hash_info.value))
    if os.environ.get(DVC_STAGE) == stage.addressing:
        return str(stage.outs[0].hash_info.value)  # `dvc repro` holds the output's lock and commits
    read = dict(step.reads)
    for dependency in stage.deps:
        # Record the inputs at the step's start, so that later edits of params.yaml or the code show as modified.
        dependency.hash_info = read.get(dependency.def_path, dependency.hash_info)
        if overridden and isinstance(dependency, ParamsDependency) and dependency.def_path not in FACTS:
            dependency.hash_info = HashInfo("params", {key: step.params[key] for key in dependency.hash_info.value})
    repo.stage_cache.save(stage)
    stage.commit()
    stage.ignore_outs()
    record = _record(stage)
    write_entry(step.root, step.name, record)
    return str(record["outs"][0]["md5"])

"""The only module that knows DVC: what a stage read, publishing what it made, and recording both in dvc.lock.

DVC's `Repo` class is not a documented API, so everything that touches it is here, and dvc is pinned.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from plumbline.params import REQUESTED
from plumbline.versioning.digest import content_md5

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

CODE = ("plumbline",)
"""Dependencies below these folders are code; what no stage makes and is not code is source data."""


class InputsChanged(RuntimeError):
    """What a stage reads is not what its own stage recorded, or moved while the stage ran."""


@dataclass
class Step:
    """One run of one stage: what it reads, with which parameters, and where its output goes."""

    name: str
    root: Path
    inputs: dict[str, str]
    """Data dependencies: path relative to the root -> DVC hash when the step began."""
    code: dict[str, str]
    params: dict[str, Any]
    """Parameters by their dotted name in params.yaml, launch overrides included."""
    out: Path
    previous: Path | None
    """The last good output if the same code made it, for reuse of unchanged parts."""
    md5: str = ""
    """DVC hash of the output once it is published."""
    seconds: float = 0.0
    """What the step took, once it is published."""
    reads: list[Any] = field(default_factory=list, repr=False)

    @property
    def code_version(self) -> str:
        return _code_version(self.code)

    def input(self, asset: str, key: str | None = None) -> Path:
        """Folder of an upstream artifact; declared in dvc.yaml, or this raises KeyError."""
        path = f"data/{asset}/{key}" if key else f"data/{asset}"
        if path not in self.inputs and str(Path(path).parent) not in self.inputs:
            raise KeyError(f"{path} is not among the deps of {self.name} in dvc.yaml: {sorted(self.inputs)}")
        return self.root / path


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def stage_name(asset: str, key: str | None = None) -> str:
    """Name of the DVC stage that makes a partition of an asset."""
    return f"{asset}@{key}" if key else asset


@lru_cache(maxsize=4)
def _parse(path: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader) or {}


def _stages(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    return _parse(path, *_stamp(path)).get("stages") or {}


def lock_entries(root: Path) -> dict[str, dict[str, Any]]:
    """The stages of dvc.lock by name."""
    return _stages(root / "dvc.lock")


def upstream(root: Path, name: str) -> dict[str, str]:
    """Path -> DVC hash of a stage's output and of every artifact that it was made from, as dvc.lock has them."""
    lock = lock_entries(root)
    maker = {out["path"]: stage for stage, entry in lock.items() for out in entry.get("outs", [])}
    found: dict[str, str] = {}
    todo = [name]
    while todo:
        entry = lock.get(todo.pop(), {})
        for item in (*entry.get("outs", []), *entry.get("deps", [])):
            if item["path"] in maker and item["path"] not in found:
                found[item["path"]] = str(item["md5"])
                todo.append(maker[item["path"]])
    return found


def code_version_of(entry: Mapping[str, Any]) -> str:
    """Code version of a dvc.lock entry: of the code that made the output, which need not be today's."""
    return _code_version({d["path"]: d["md5"] for d in entry.get("deps", []) if _is_code(d["path"])})


def code_version(root: Path, asset: str) -> str:
    """Code version of an asset as the files are now, computed without starting DVC."""
    stage = _stages(root / "dvc.yaml")[asset]
    deps = stage.get("do", stage)["deps"]
    return _code_version({path: content_md5(root / path) for path in deps if _is_code(path)})


def _code_version(code: Mapping[str, str]) -> str:
    return hashlib.md5(json.dumps(dict(code), sort_keys=True).encode()).hexdigest()[:12]


def _is_code(path: str) -> bool:
    return Path(path).parts[0] in CODE


# ---------------------------------------------------------------------------------------------------------------------
# Publishing


class _Pipeline:
    """DVC's repository and its stages, resolved once for a dvc.yaml and a params.yaml.

    DVC's own way, an index per command, parses dvc.yaml, params.yaml and dvc.lock in pure Python each time: over a
    second per step, more than most steps take.
    """

    def __init__(self, root: Path) -> None:
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.ERROR)  # "Updating lock file", "inbox is empty": nothing to act on
        with contextlib.chdir(root):
            # Without waiting, contention ends in a LockError after three seconds.
            self.repo: Repo = Repo(str(root), _wait_for_lock=True)
            self.stages: dict[str, PipelineStage] = {
                stage.name: stage for stage in self.repo.index.stages if hasattr(stage, "name")
            }

    def stage(self, name: str) -> PipelineStage:
        if name not in self.stages:
            raise KeyError(
                f"dvc.yaml has no stage {name!r}; it has {sorted(self.stages)}. "
                "A new choice is also named under `grid:`."
            )
        return self.stages[name]


def _pipeline(root: Path) -> _Pipeline:
    files = [root / name for name in ("dvc.yaml", "params.yaml", REQUESTED)]
    return _resolved(root, tuple(_stamp(path) for path in files if path.is_file()))


@lru_cache(maxsize=1)
def _resolved(root: Path, stamps: tuple[tuple[int, int], ...]) -> _Pipeline:
    return _Pipeline(root)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _entry(stage: PipelineStage) -> dict[str, Any]:
    from dvc.stage.serialize import to_single_stage_lockfile

    return _plain(to_single_stage_lockfile(stage))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _begin(root: Path, name: str, overrides: Mapping[str, Any]) -> Step:
    stage = _pipeline(root).stage(name)
    with contextlib.chdir(root):
        for dependency in stage.deps:
            dependency.save()  # hashes it; writes nothing
        entry = _read_entry(stage)
        reads = [(d.def_path, d.hash_info) for d in stage.deps]
        out = root / stage.outs[0].def_path
    hashes = {d["path"]: d["md5"] for d in entry.get("deps", [])}
    inputs = {path: md5 for path, md5 in hashes.items() if not _is_code(path)}
    code = {path: md5 for path, md5 in hashes.items() if _is_code(path)}
    _check_recorded(root, name, inputs)
    params: dict[str, Any] = {}
    for values in entry.get("params", {}).values():
        params |= {key: ({**value, **overrides} if overrides else value) for key, value in values.items()}
    locked = lock_entries(root).get(name)
    same_code = locked is not None and code_version_of(locked) == _code_version(code)
    previous = out if same_code and out.is_dir() else None
    return Step(name, root, inputs, code, params, out, previous, reads=reads)


def _check_recorded(root: Path, name: str, inputs: Mapping[str, str]) -> None:
    """Every input must hold what the stage that makes it recorded."""
    recorded = {o["path"]: o["md5"] for e in lock_entries(root).values() for o in e.get("outs", [])}
    for path, md5 in inputs.items():
        found = {path: md5} if path in recorded else {}
        if path not in recorded:  # a folder of partitions: each is somebody's output
            for out in (o for o in recorded if Path(path) in Path(o).parents and (root / o).exists()):
                found[out] = content_md5(root / out)
        for out, now in found.items():
            if recorded[out] != now:
                raise InputsChanged(
                    f"{name} reads {out}, which holds {now}, but dvc.lock recorded {recorded[out]}: somebody changed "
                    f"it. Bring it back with `dvc checkout --force {out}`, or make it anew with `plumbline run`."
                )


@contextlib.contextmanager
def recording(root: Path, name: str, overrides: Mapping[str, Any] | None = None) -> Iterator[tuple[Step, Path]]:
    """Run one stage: yields (step, empty folder); on success the folder becomes the output and dvc.lock records it.

    One writer per output through either door (a file lock); DVC's own lock is held only at both ends. A failure, here
    or in DVC, leaves the last good output and its entry as they were.

    Raises:
        InputsChanged: an input is not what its stage recorded, or changed while the body ran.
    """
    with scratch(root, name) as folder:
        step = _begin(root, name, overrides or {})
        yield step, folder
        _publish(step, folder, bool(overrides))


@contextlib.contextmanager
def scratch(root: Path, name: str) -> Iterator[Path]:
    """An empty folder for one process at a time, on the file system of the outputs; gone at the end, if it is there."""
    from filelock import FileLock

    locks, place = root / ".plumbline" / "locks", root / "data" / ".tmp"
    locks.mkdir(parents=True, exist_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{name}.lock"):
        folder = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=place))
        folder.chmod(0o755)  # mkdtemp gives 0700, which would travel with an artifact
        try:
            yield folder
        finally:
            _remove(folder)


def _publish(step: Step, folder: Path, overridden: bool) -> None:
    pipeline = _pipeline(step.root)
    stage = pipeline.stage(step.name)
    with contextlib.chdir(step.root), pipeline.repo.lock:
        for dependency in stage.deps:
            dependency.save()
        now = {d["path"]: d["md5"] for d in _read_entry(stage).get("deps", [])}
        for path, md5 in step.inputs.items():
            if now.get(path) != md5:
                raise InputsChanged(f"{path} changed while {step.name} ran ({md5} -> {now.get(path)}): run it again")
        aside = folder.with_name(f"{folder.name}.old")
        step.out.parent.mkdir(parents=True, exist_ok=True)
        if step.out.exists():
            step.out.rename(aside)
        folder.rename(step.out)
        try:
            step.md5 = _commit(pipeline.repo, stage, step, overridden)
        except BaseException:
            _remove(step.out)
            if aside.exists():
                aside.rename(step.out)
            raise
        _remove(aside)


def _read_entry(stage: PipelineStage) -> dict[str, Any]:
    """The lock entry of what a stage reads, whether or not its output is there."""
    from dvc.stage.serialize import to_single_stage_lockfile

    outs, stage.outs = stage.outs, []
    try:
        return _plain(to_single_stage_lockfile(stage))
    finally:
        stage.outs = outs


def _commit(repo: Repo, stage: PipelineStage, step: Step, overridden: bool) -> str:
    """Put the output into DVC's cache and its entry into dvc.lock; returns its hash."""
    from dvc.dependency.param import ParamsDependency
    from dvc_data.hashfile.hash_info import HashInfo

    stage.save_outs()
    if os.environ.get("DVC_STAGE") == stage.addressing:
        return str(stage.outs[0].hash_info.value)  # under `dvc repro`, which holds the output's lock and commits itself
    read = dict(step.reads)
    for dependency in stage.deps:
        # Recorded is what the step began with: an edit of params.yaml or of the code meanwhile shows as modified.
        dependency.hash_info = read.get(dependency.def_path, dependency.hash_info)
        if overridden and isinstance(dependency, ParamsDependency):
            dependency.hash_info = HashInfo("params", {key: step.params[key] for key in dependency.hash_info.value})
    repo.stage_cache.save(stage)
    stage.commit()
    stage.ignore_outs()
    entry = _entry(stage)
    _write_lock_entry(step.root, step.name, entry)
    return str(entry["outs"][0]["md5"])


def _write_lock_entry(root: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Set one entry of dvc.lock, whose format is public, under DVC's repository lock; the file is replaced whole."""
    from plumbline.artifact import replace_text  # with pyarrow, which not every command needs

    path = root / "dvc.lock"
    lock = {"schema": "2.0", "stages": {**lock_entries(root), name: entry}}
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    replace_text(path, yaml.dump(lock, Dumper=dumper, sort_keys=False, allow_unicode=True))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------
# Status


def stage_names(root: Path) -> list[str]:
    """The stages of dvc.yaml in its order, without their partitions."""
    return list(_stages(root / "dvc.yaml"))


def on_request(root: Path) -> set[str]:
    """Assets that run when somebody asks for them and are left alone otherwise: `meta: {on_request: true}` in dvc.yaml.

    Their stages are listed in requested.yaml, none by default: a stage that is there and was never run would fail
    `dvc pull`, and show as out of date for ever.
    """
    stages = _stages(root / "dvc.yaml")
    return {name for name, stage in stages.items() if (stage.get("do", stage).get("meta") or {}).get("on_request")}


def unfinished_mark(root: Path, name: str) -> Path:
    """A file that is there while a stage's output is published and what comes after that is not done."""
    return root / ".plumbline" / "unfinished" / name


def changed_stages(root: Path, asset: str | None = None) -> dict[str, list[str]]:
    """Stages whose recorded inputs, parameters, code or output differ from what is there, each with the reasons.

    Direct changes only, as `dvc status` has them: what lies downstream of one is not in the result.

    Args:
        asset: ask about the stages of this asset only. None: about all but those that run on request.
    """
    left_alone = on_request(root)
    lock = lock_entries(root)
    hashes: dict[str, str | None] = {}
    changed = {}
    with contextlib.chdir(root):
        for name, stage in _pipeline(root).stages.items():
            of = name.split("@")[0]
            asked = of == asset if asset else of not in left_alone
            reasons = _changes(stage, lock.get(name), hashes) if asked else []
            if asked and unfinished_mark(root, name).exists():
                reasons.append("it was killed before MLflow knew of it")
            if reasons:
                changed[name] = reasons
    return changed


def _changes(stage: PipelineStage, entry: Mapping[str, Any] | None, hashes: dict[str, str | None]) -> list[str]:
    """Why a stage is out of date; `hashes` remembers paths that several stages share."""
    from dvc.dependency.param import ParamsDependency

    if entry is None:
        return ["never run"]
    reasons = [] if entry["cmd"] == stage.cmd else ["the command changed"]
    recorded = {d["path"]: d["md5"] for d in [*entry.get("deps", []), *entry.get("outs", [])]}
    for item in [*stage.deps, *stage.outs]:
        if isinstance(item, ParamsDependency):
            then, now = entry.get("params", {}).get(item.def_path, {}), _plain(item.read_params())
            reasons += [
                f"{item.def_path}: {key} changed" for key in sorted({*then, *now}) if then.get(key) != now.get(key)
            ]
            continue
        path = item.def_path
        if path not in hashes:
            hashes[path] = str(item.get_hash().value) if item.exists else None
        if hashes[path] != recorded.get(path):
            reasons.append(f"{path}: {'missing' if hashes[path] is None else 'changed'}")
    return reasons


def sweep(root: Path) -> int:
    """Remove what killed runs left in the scratch folder; returns how many folders. Skips steps that still run."""
    from filelock import FileLock, Timeout

    removed = 0
    for folder in sorted((root / "data" / ".tmp").glob("*")):
        name = folder.name.removesuffix(".old").rsplit(".", 1)[0]
        with contextlib.suppress(Timeout), FileLock(root / ".plumbline" / "locks" / f"{name}.lock", timeout=0):
            _remove(folder)
            removed += 1
    return removed

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

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

CODE = ("assets",)
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
    status = path.stat()
    return _parse(path, status.st_mtime_ns, status.st_size).get("stages") or {}


def lock_entries(root: Path) -> dict[str, dict[str, Any]]:
    """The stages of dvc.lock by name."""
    return _stages(root / "dvc.lock")


def code_version_of(entry: Mapping[str, Any]) -> str:
    """Code version of a dvc.lock entry: of the code that made the output, which need not be today's."""
    return _code_version({d["path"]: d["md5"] for d in entry.get("deps", []) if _is_code(d["path"])})


def code_version(root: Path, asset: str) -> str:
    """Code version of an asset as the files are now, computed without starting DVC."""
    stage = _stages(root / "dvc.yaml")[asset]
    deps = stage.get("do", stage)["deps"]
    return _code_version({path: content_md5(root / path) for path in deps if _is_code(path)})


def content_md5(path: Path) -> str:
    """DVC's hash of a file, or of a folder (`....dir`): MD5 of the JSON list of its files' MD5s and relative paths.

    Compiled Python is left out, as .dvcignore has it.
    """
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest()
    entries = []
    for file in path.rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            entries.append({"md5": content_md5(file), "relpath": file.relative_to(path).as_posix()})
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def _code_version(code: Mapping[str, str]) -> str:
    return hashlib.md5(json.dumps(dict(code), sort_keys=True).encode()).hexdigest()[:12]


def _is_code(path: str) -> bool:
    return Path(path).parts[0] in CODE


# ---------------------------------------------------------------------------------------------------------------------
# Publishing


@contextlib.contextmanager
def _repository(root: Path) -> Iterator[Repo]:
    """DVC's repository, locked; waits for whoever holds it."""
    from dvc.repo import lock_repo

    with contextlib.chdir(root):  # the API resolves dvc.yaml against the working directory
        repo = _open(root)
        with lock_repo(repo):
            yield repo


@lru_cache(maxsize=1)
def _open(root: Path) -> Repo:
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # "Updating lock file" at every step says nothing
    # Without waiting, contention ends in a LockError after three seconds.
    return Repo(str(root), _wait_for_lock=True)


def _find(repo: Repo, name: str) -> PipelineStage:
    for stage in repo.index.stages:
        if getattr(stage, "name", None) == name:
            return stage
    known = sorted(s.name for s in repo.index.stages)
    raise KeyError(f"dvc.yaml has no stage {name!r}; it has {known}. A new choice is also named under `grid:`.")


def _entry(stage: PipelineStage) -> dict[str, Any]:
    from dvc.stage.serialize import to_single_stage_lockfile

    return to_single_stage_lockfile(stage)


def _begin(root: Path, name: str, overrides: Mapping[str, Any]) -> Step:
    with _repository(root) as repo:
        stage = _find(repo, name)
        for dependency in stage.deps:
            dependency.save()  # hashes it; writes nothing
        entry = _entry(stage)
        reads = [(d.def_path, d.hash_info) for d in stage.deps]
        out = root / str(stage.outs[0])
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
    from filelock import FileLock

    locks = root / ".plumbline" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    scratch = root / "data" / ".tmp"  # on the file system of the outputs, so that publishing is a rename
    scratch.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{name}.lock"):
        step = _begin(root, name, overrides or {})
        folder = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=scratch))
        folder.chmod(0o755)  # mkdtemp gives 0700, which would travel with the artifact
        try:
            yield step, folder
            with _repository(root) as repo:
                _publish(repo, step, folder, bool(overrides))
        finally:
            _remove(folder)


def _publish(repo: Repo, step: Step, folder: Path, overridden: bool) -> None:
    stage = _find(repo, step.name)
    for dependency in stage.deps:
        dependency.save()
    now = {d["path"]: d["md5"] for d in _entry(stage).get("deps", [])}
    for path, md5 in step.inputs.items():
        if now.get(path) != md5:
            raise InputsChanged(f"{path} changed while {step.name} ran ({md5} -> {now.get(path)}): run it again")
    aside = folder.with_name(f"{folder.name}.old")
    step.out.parent.mkdir(parents=True, exist_ok=True)
    if step.out.exists():
        step.out.rename(aside)
    folder.rename(step.out)
    try:
        _commit(repo, stage, step, overridden)
    except BaseException:
        _remove(step.out)
        if aside.exists():
            aside.rename(step.out)
        raise
    _remove(aside)
    step.md5 = _entry(stage)["outs"][0]["md5"]


def _commit(repo: Repo, stage: PipelineStage, step: Step, overridden: bool) -> None:
    from dvc.dependency.param import ParamsDependency
    from dvc_data.hashfile.hash_info import HashInfo

    stage.save(run_cache=False)
    if os.environ.get("DVC_STAGE") == stage.addressing:
        return  # under `dvc repro`, which holds the output's lock and commits by itself
    read = dict(step.reads)
    for dependency in stage.deps:
        # Recorded is what the step began with: an edit of params.yaml or of the code meanwhile shows as modified.
        dependency.hash_info = read.get(dependency.def_path, dependency.hash_info)
        if overridden and isinstance(dependency, ParamsDependency):
            dependency.hash_info = HashInfo("params", {key: step.params[key] for key in dependency.hash_info.value})
    stage.md5 = stage.compute_md5()
    repo.stage_cache.save(stage)
    stage.commit()
    stage.dump(update_pipeline=False)
    stage.ignore_outs()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------
# Status


def changed_stages(root: Path, asset: str | None = None) -> dict[str, list[str]]:
    """Stages whose recorded inputs, parameters, code or output differ from what is there, each with the reasons.

    Direct changes only: what lies downstream of one is not in the result.

    Args:
        asset: ask about the stages of this asset only.
    """
    with _repository(root) as repo:
        status = repo.status([asset] if asset else None)
    return {name.split(":")[-1]: [_reason(r) for r in reasons] for name, reasons in status.items()}


def _reason(reason: Any) -> str:
    if isinstance(reason, str):
        return reason
    [(kind, what)] = reason.items()
    return f"{kind}: " + ", ".join(f"{k} {v if isinstance(v, str) else 'modified'}" for k, v in what.items())


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

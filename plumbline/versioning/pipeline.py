"""dvc.yaml: its stages as DVC resolves them, and DVC's objects for them.

DVC's `Repo` class is not a documented API, so the version of dvc is pinned.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from plumbline.artifact import replace_text
from plumbline.collector import collector_paused
from plumbline.versioning.code import STAGE, VERSIONS
from plumbline.versioning.config import require_git_or_no_scm
from plumbline.versioning.facts import FACTS
from plumbline.versioning.lock import read_lock
from plumbline.versioning.parameter_files import read_once
from plumbline.versioning.settings import settings
from plumbline.yaml_file import read_yaml

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

FILE = "dvc.yaml"
RESOLVED = ".plumbline/stages.json"


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml with its variables resolved."""

    name: str
    cmd: str
    deps: list[str]
    """Paths that the stage reads, without parameters."""
    outs: list[str]
    params: dict[str, dict[str, Any]]
    """File -> dotted name -> current value, without facts."""
    facts: dict[str, list[str]]
    """File of facts.py -> the keys that the stage depends on."""

    @property
    def asset(self) -> str:
        """The asset whose output, or partition, the stage produces."""
        return self.name.split("@")[0]


# ---------------------------------------------------------------------------------------------------------------------
# dvc.yaml, read without DVC


def stage_names(root: Path) -> list[str]:
    """Names of the stages of dvc.yaml in its order, without partitions.

    Raises:
        ValueError: dvc.yaml is invalid.
    """
    return list(definitions(root))


def on_request(root: Path) -> set[str]:
    """Assets that run only on request: those with `meta: {on_request: true}` in dvc.yaml.

    requested.yaml lists their stages, none by default. A stage that never ran would fail `dvc pull` and would always
    be out of date.
    """
    return {name for name, stage in definitions(root).items() if (stage.get("meta") or {}).get("on_request")}


def assets_with_code(root: Path) -> list[str]:
    """The assets whose stages depend on their code version; empty if dvc.yaml has no stage `code_versions`."""
    stages = definitions(root)
    if STAGE not in stages:
        return []
    named = [item[VERSIONS] for stage in stages.values() for item in stage.get("params") or () if _names_code(item)]
    return sorted({asset for assets in named for asset in assets})


def _names_code(item: Any) -> bool:
    return isinstance(item, dict) and VERSIONS in item


def definitions(root: Path) -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml by name, as it has them; for a partitioned stage, the content of `do`.

    Raises:
        ValueError: dvc.yaml is invalid.
    """
    stages = _content(root).get("stages") or {}
    return {str(name): stage.get("do", stage) for name, stage in stages.items() if isinstance(stage, dict)}


def _content(root: Path) -> dict[str, Any]:
    path = root / FILE
    if not path.is_file():
        return {}
    status = path.stat()
    return _parse(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _parse(path: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError):
        content = read_yaml(path).content  # slower, and says what is wrong
    stages = content.get("stages") if isinstance(content, dict) else content
    if not isinstance(content or {}, dict) or not isinstance(stages or {}, dict):
        raise ValueError(f"{path}: expected `stages:` with a stage per asset, found {content!r:.80}; correct it")
    return content or {}


# ---------------------------------------------------------------------------------------------------------------------
# dvc.yaml, resolved by DVC


def resolved(root: Path) -> dict[str, Stage]:
    """The stages of dvc.yaml by name, in its order.

    DVC's result is cached in the workspace, with the digests of all files that DVC read. Most commands then run
    without DVC.
    """
    path = root / RESOLVED
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or corrupt: ask DVC
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["by"] == _resolver() and content["files"] == _hashes(root, content["files"]):
            return {stage["name"]: Stage(**stage) for stage in content["stages"]}
    stages = {name: _plain_stage(stage) for name, stage in pipeline(root).stages.items()}
    files = {FILE, "params.yaml", *_variables(root), *(file for stage in stages.values() for file in stage.params)}
    content = {
        "by": _resolver(),
        "files": _hashes(root, files),
        "stages": [asdict(stage) for stage in stages.values()],
    }
    with contextlib.suppress(OSError):  # a read-only workspace
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(content, default=str))
    return stages


def _resolver() -> str:
    return f"dvc {version('dvc')}, {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}"


def _hashes(root: Path, names: Any) -> dict[str, str]:
    files = ((name, root / name) for name in sorted(names))
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for name, path in files}


def _variables(root: Path) -> set[str]:
    """Files that dvc.yaml names under `vars`, at the top level and in stages."""
    blocks = [_content(root).get("vars"), *(stage.get("vars") for stage in definitions(root).values())]
    return {item.split(":")[0] for block in blocks for item in block or () if isinstance(item, str)}


def _plain_stage(stage: PipelineStage) -> Stage:
    from dvc.dependency.param import ParamsDependency

    paths = [item.def_path for item in stage.deps if not isinstance(item, ParamsDependency)]
    params = [item for item in stage.deps if isinstance(item, ParamsDependency)]
    return Stage(
        stage.name,
        str(stage.cmd),
        paths,
        [out.def_path for out in stage.outs],
        {item.def_path: _values(item) for item in params if item.def_path not in FACTS},
        {item.def_path: list(item.params) for item in params if item.def_path in FACTS},
    )


def _values(item: Any) -> dict[str, Any]:
    """Current values of the parameters that a stage names, or of all if it names none. An absent one is None."""
    values = plain(item.read_params())
    return {key: values.get(key) for key in item.params or values}


def plain(value: Any) -> Any:
    """A YAML value as plain dictionaries and lists, with strings as keys."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# ---------------------------------------------------------------------------------------------------------------------
# DVC's objects


class Pipeline:
    """DVC's repository and its stages, resolved once per content of dvc.yaml and params.yaml.

    DVC itself builds an index per command. It parses dvc.yaml, params.yaml and dvc.lock in pure Python each time, which
    takes over a second per step: longer than most steps.
    """

    def __init__(self, root: Path) -> None:
        """Load the stages.

        Raises:
            ValueError: the folder is no DVC project, or DVC cannot read its configuration, dvc.yaml or params.yaml.
        """
        from dvc.exceptions import DvcException, NotDvcRepoError

        try:
            self._load(root)
        except NotDvcRepoError as error:
            raise ValueError(
                f"{root} is no DVC project, because it has no .dvc: bring that folder back, or make one there with "
                "`dvc init` (without git: `dvc init --no-scm`)"
            ) from error
        except DvcException as error:
            settings(root)  # raises if it is .dvc/config that DVC cannot read
            read_lock(root)  # or dvc.lock
            raise ValueError(f"DVC cannot read {root / FILE}: {_sentences(error)}") from error

    def _load(self, root: Path) -> None:
        with collector_paused():
            from dvc.dependency.param import ParamsDependency
            from dvc.repo import Repo

        require_git_or_no_scm(root)
        read_once()
        logging.getLogger("dvc").setLevel(logging.ERROR)  # hides "Updating lock file", "inbox is empty"
        self.root = root
        with contextlib.chdir(root):
            # Without _wait_for_lock, contention raises a LockError after three seconds.
            self.repo: Repo = Repo(str(root), _wait_for_lock=True)
            loaded = self.repo.stage.load_all(FILE) if (root / FILE).is_file() else []
            self.stages: dict[str, PipelineStage] = {stage.name: stage for stage in loaded}
        items = (item for stage in loaded for item in (*stage.deps, *stage.outs))
        # A file of facts is an output and, in other stages, parameters, whose hash is not that of the file.
        self._paths = {item.def_path: item for item in items if not isinstance(item, ParamsDependency)}

    def stage(self, name: str) -> PipelineStage:
        """DVC's object for a stage.

        Raises:
            KeyError: dvc.yaml has no such stage.
        """
        if name not in self.stages:
            raise KeyError(
                f"dvc.yaml has no stage {name!r}; it has {sorted(self.stages)}. "
                "A new choice is also named under `grid:`."
            )
        return self.stages[name]

    def digest(self, path: str) -> str | None:
        """DVC's current hash of a path that a stage reads or writes; None if the path is absent."""
        item = self._paths[path]
        with contextlib.chdir(self.root):
            return str(item.get_hash().value) if item.exists else None


def _sentences(error: BaseException) -> str:
    """The messages of an error and its causes, in one line."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(messages) < 5:
        messages.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    return ": ".join(dict.fromkeys(message for message in messages if message))


def pipeline(root: Path) -> Pipeline:
    """DVC's objects for the stages of the current dvc.yaml and params.yaml."""
    files = [path for name in (FILE, "params.yaml", ".dvcignore", *_variables(root)) if (path := root / name).is_file()]
    return _pipeline(root, tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in files))


@lru_cache(maxsize=1)
def _pipeline(root: Path, stamps: tuple[tuple[int, int], ...]) -> Pipeline:
    return Pipeline(root)

"""`plumbline audit --reproduce`: the chain run again in a clean place; are the bytes the same?"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from plumbline.provenance.cache_recovery import CORPUS
from plumbline.provenance.link import Case, dig
from plumbline.provenance.restore import used_parameters
from plumbline.versioning.cache import cached_listing
from plumbline.versioning.code import LIBRARY, PACKAGE, Library, code_version
from plumbline.versioning.config import new_project
from plumbline.versioning.digest import Hasher, differences, dvc_digest
from plumbline.versioning.lock import Entry
from plumbline.versioning.object_store import Store

ORDER = (
    "raw_corpus",
    "tokenized_samples",
    "sample_features",
    "calibration_choice",
    "calibration_set",
    "activation_stats",
    "quantized_model",
)
WORKSPACE = (
    "assets",
    "orchestration",
    "dvc.yaml",
    "requested.yaml",
    "pyproject.toml",
    ".dvcignore",
    ".dagster/dagster.yaml",
)


@dataclass(frozen=True)
class Remade:
    """One artifact of the chain, made again."""

    path: str
    same: bool
    expected: str
    """DVC hash on record."""
    found: str
    detail: str = ""
    """Which files differ."""


@dataclass(frozen=True)
class Reproduction:
    """The chain, made again."""

    artifacts: tuple[Remade, ...]
    """Upstream first."""
    code: str
    """Which code ran, in words."""
    start: str
    """What it was made from, in words."""
    error: str = ""
    """Why it ended early; empty if it did not."""

    @property
    def same(self) -> bool:
        """Every artifact has the bytes on record."""
        return not self.error and bool(self.artifacts) and all(made.same for made in self.artifacts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"same": self.same, **asdict(self)}


def reproduce(case: Case, announce: Callable[[str], None]) -> Reproduction:
    """Run every step from the sources to the model again, with the code and the parameters of then.

    It happens in a temporary workspace with a cache of its own, so that nothing is reused and nothing here is changed.

    Args:
        announce: is told what is going on, a line at a time.

    Raises:
        ValueError: DVC remembers no run that made this model.
    """
    made = case.made_by
    if made is None:
        raise ValueError(
            "DVC remembers no run that made this model, so there is nothing to run again: `dvc pull --run-cache`, or "
            "reproduce inside the workspace that made it"
        )
    path = next(iter(made.outs))
    ancestry = case.history.ancestry(made.outs[path], path)
    with tempfile.TemporaryDirectory(prefix="plumbline-reproduce-") as scratch:
        place = Path(scratch) / "workspace"
        place.mkdir()
        library, code = _lay_out_code(case, ancestry, place)
        start, assets = _lay_out_sources(case, ancestry, place)
        _write_params(case, made, place)
        announce(f"reproducing {path} in a clean place: {code}; {start}")
        error = _run(place, library, assets, announce)
        return Reproduction(_compare(case, ancestry, place, assets), code, start, error)


def _lay_out_code(case: Case, ancestry: Mapping[str, Entry], place: Path) -> tuple[Path, str]:
    """The workspace's own code in the clean place; returns the library to run, and in words which code that is.

    That is the installed library if it has the recorded versions; else the one in the commit that recorded the model,
    where that commit holds the library.
    """
    recorded = {entry.asset: entry.code_version for entry in ancestry.values()}
    others = _other_versions(Library(), recorded)
    commit = case.history.commit_of(case.digest) if others else ""
    if commit and case.history.holds(commit, PACKAGE) and _extract(case.root, commit, place):
        library = place / PACKAGE
        for compiled in LIBRARY.rglob("*.so"):  # without them, sums end in other bits
            copy = library / compiled.relative_to(LIBRARY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(compiled, copy)
        others, words = _other_versions(Library(library), recorded), f"commit {commit[:12]}, which recorded the model"
    else:
        library, words = LIBRARY, "the installed library"
        _copy_workspace(case.root, place)
    new_project(place)
    if not others:
        return library, f"the recorded code, that of {words}"
    return library, f"other code than recorded for {', '.join(others)}, that of {words}"


def _other_versions(library: Library, recorded: Mapping[str, str]) -> list[str]:
    """The assets of which a library has not the recorded code, in order."""

    def version(asset: str) -> str:
        try:
            return code_version(asset, library)
        except (ValueError, SyntaxError):  # a library of another time may have no such module
            return ""

    return [asset for asset in ORDER if asset in recorded and version(asset) != recorded[asset]]


def _extract(root: Path, commit: str, place: Path) -> bool:
    """Write the workspace as a commit has it to an empty folder; whether git could."""
    command = ["git", "-C", str(root), "archive", "--format=tar", commit]
    archive = subprocess.run(command, capture_output=True)
    if archive.returncode:
        return False
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(place, filter="data")
    shutil.rmtree(place / ".dvc", ignore_errors=True)
    return True


def _copy_workspace(root: Path, place: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in WORKSPACE:
        source, target = root / name, place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, target)


def _holds(path: Path, md5: str) -> bool:
    return path.exists() and dvc_digest(path) == md5


def _inside(path: str) -> bool:
    """A relative path that does not lead out of the folder it is relative to."""
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def _lay_out_sources(case: Case, ancestry: Mapping[str, Entry], place: Path) -> tuple[str, list[str]]:
    """What the first step reads; where the sources have moved on, the corpus itself out of DVC's cache."""
    assets = [asset for asset in ORDER if any(path.split("/")[1] == asset for path in ancestry)]
    used, _ = used_parameters(case)
    corpus = ancestry.get(CORPUS)
    moved = []
    deps = {} if corpus is None else corpus.deps
    for dep, md5 in deps.items():
        if Path(dep).is_absolute() and _holds(Path(dep), md5):
            continue  # read from where it is
        if not _inside(dep) or not _holds(case.root / dep, md5):
            moved.append(dep)
        elif (case.root / dep).is_dir():
            shutil.copytree(case.root / dep, place / dep, dirs_exist_ok=True)
        else:
            shutil.copyfile(case.root / dep, place / dep)
    for folder in _named_folders(used):  # what params.yaml names and DVC does not hash
        if _inside(folder) and (case.root / folder).is_dir() and not (place / folder).exists():
            (place / folder).parent.mkdir(parents=True, exist_ok=True)
            (place / folder).symlink_to((case.root / folder).resolve())
    if corpus is not None and not moved:
        return "from the sources on", assets
    wanted = next((e.deps[CORPUS] for e in ancestry.values() if CORPUS in e.deps), "")
    Store(case.root, fetch=True).place(wanted, place / CORPUS)
    why = f"the sources have moved on: {', '.join(moved)}" if moved else "DVC remembers no run that made the corpus"
    return f"from the corpus in DVC's cache on ({why})", [asset for asset in assets if asset != "raw_corpus"]


def _named_folders(used: dict[str, Any]) -> list[str]:
    """Folders that the parameters name: the base model, the inbox, the sources."""
    corpus = used.get("corpus") or {}
    sources = [*(corpus.get("sources") or {}).values(), corpus.get("production"), corpus.get("out_of_domain")]
    named = [(used.get("model") or {}).get("name"), corpus.get("inbox"), *(dig(source, "path") for source in sources)]
    return [name for name in named if isinstance(name, str) and name]


def _write_params(case: Case, made: Entry, place: Path) -> None:
    """The parameters of then over those of now, and a grid of this one model."""
    now: dict[str, Any] = {}
    for folder in (place, case.root):
        if (folder / "params.yaml").is_file():
            now = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
            break
    used, _ = used_parameters(case)
    choice = next(Path(dep).name for dep in made.deps if dep.startswith("data/calibration_set/"))
    [scheme] = used["schemes"]
    merged = {**now, **used, "studies": {}, "tracking": {}}
    merged["calibrations"] = used.get("calibrations") or {choice: now["calibrations"][choice]}
    merged["grid"], merged["deployment"] = {"calibrations": [choice], "schemes": [scheme]}, {"scheme": scheme}
    merged["report"] = {**(now.get("report") or {}), "baseline": None}
    if isinstance(merged.get("model"), dict):
        # A record of DVC's may not switch on what params.yaml does not: code that comes with a model.
        trusted = bool((now.get("model") or {}).get("trust_remote_code"))
        merged["model"] = {**merged["model"], "trust_remote_code": trusted}
    (place / "params.yaml").write_text(yaml.safe_dump(merged, sort_keys=False, allow_unicode=True), encoding="utf-8")
    requested = place / "requested.yaml"
    requested.write_text("requested: []\n", encoding="utf-8")


def _run(place: Path, library: Path, assets: list[str], announce: Callable[[str], None]) -> str:
    """Run the assets with a copy of the library; returns what went wrong, or nothing."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment |= {
        "PLUMBLINE_ROOT": str(place),
        "DAGSTER_HOME": str(place / ".dagster"),
        "PYTHONPATH": f"{library.parent}{os.pathsep}{place}",
        "PYTHONUNBUFFERED": "1",
    }
    only = [argument for asset in assets for argument in ("--only", asset)]
    command = [sys.executable, "-m", "plumbline", "run", *only]
    with subprocess.Popen(
        command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("▸"):
                announce(f"  {line.rstrip()}")
        errors = process.stderr.read()
    if process.returncode == 0:
        return ""
    said = [line for line in errors.splitlines() if line.strip()]
    return f"the run ended with {process.returncode}: {' '.join(said[-3:])[-400:]}"


def _compare(case: Case, ancestry: Mapping[str, Entry], place: Path, assets: list[str]) -> tuple[Remade, ...]:
    remade = []
    for path, entry in sorted(ancestry.items(), key=lambda item: ORDER.index(item[0].split("/")[1])):
        if path.split("/")[1] not in assets:
            continue
        expected, hasher = entry.outs[path], Hasher()
        found = dvc_digest(place / path, hasher) if (place / path).exists() else ""
        before = cached_listing(case.root, expected) if found and found != expected else None
        changed = differences(before, hasher.files(place / path)) if before else []
        detail = ", ".join(changed[:4]) or ("" if found else "it was not made")
        remade.append(Remade(path, found == expected, expected, found, detail))
    return tuple(remade)

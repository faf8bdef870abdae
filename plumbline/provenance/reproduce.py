"""`plumbline audit --reproduce`: reruns the chain in a clean workspace and compares the bytes."""

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
from plumbline.yaml_file import read_yaml

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
    """Which code ran, for display."""
    start: str
    """What the rerun started from, for display."""
    error: str = ""
    """Why the rerun failed; empty if it succeeded."""

    @property
    def same(self) -> bool:
        """Whether every artifact has the recorded bytes."""
        return not self.error and bool(self.artifacts) and all(artifact.same for artifact in self.artifacts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"same": self.same, **asdict(self)}


def reproduce(case: Case, announce: Callable[[str], None]) -> Reproduction:
    """Rerun every step from the sources to the model, with the recorded code and parameters.

    The rerun uses a temporary workspace with its own cache: nothing is reused, and this workspace does not change.

    Args:
        announce: receives progress messages.

    Raises:
        ValueError: DVC has no run on record that made this model.
    """
    run = case.made_by
    if run is None:
        raise ValueError(
            "DVC has no run on record that made this model, so there is nothing to rerun: `dvc pull --run-cache`, or "
            "reproduce inside the workspace that made it"
        )
    path = next(iter(run.outs))
    ancestry = case.history.ancestry(run.outs[path], path)
    with tempfile.TemporaryDirectory(prefix="plumbline-reproduce-") as scratch:
        place = Path(scratch) / "workspace"
        place.mkdir()
        library, code = _lay_out_code(case, ancestry, place)
        start, assets = _lay_out_sources(case, ancestry, place)
        _write_params(case, run, place)
        announce(f"reproducing {path} in a clean workspace: {code}; {start}")
        error = _run(place, library, assets, announce)
        return Reproduction(_compare(case, ancestry, place, assets), code, start, error)


def _lay_out_code(case: Case, ancestry: Mapping[str, Entry], place: Path) -> tuple[Path, str]:
    """Copy the workspace's code to the clean workspace; returns the library to run and a description of it.

    That is the installed library if it has the recorded versions, else the one in the commit that recorded the model,
    if that commit contains the library.
    """
    recorded = {entry.asset: entry.code_version for entry in ancestry.values()}
    others = _other_versions(Library(), recorded)
    commit = case.history.commit_of(case.digest) if others else ""
    if commit and case.history.holds(commit, PACKAGE) and _extract(case.root, commit, place):
        library = place / PACKAGE
        for compiled in LIBRARY.rglob("*.so"):  # without them, sums differ in their last bits
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
    """The assets whose code version in a library differs from the recorded one, in order."""

    def version(asset: str) -> str:
        try:
            return code_version(asset, library)
        except (ValueError, SyntaxError):  # a library of another version may lack the module
            return ""

    return [asset for asset in ORDER if asset in recorded and version(asset) != recorded[asset]]


def _extract(root: Path, commit: str, place: Path) -> bool:
    """Extract the workspace of a commit into an empty folder; returns whether git succeeded."""
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
    """Whether a path is relative and does not lead out of its folder."""
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def _lay_out_sources(case: Case, ancestry: Mapping[str, Entry], place: Path) -> tuple[str, list[str]]:
    """Copy what the first step reads; if the sources have changed since, place the corpus from DVC's cache instead."""
    assets = [asset for asset in ORDER if any(path.split("/")[1] == asset for path in ancestry)]
    used, _ = used_parameters(case)
    corpus = ancestry.get(CORPUS)
    moved = []
    deps = {} if corpus is None else corpus.deps
    for dep, md5 in deps.items():
        if Path(dep).is_absolute() and _holds(Path(dep), md5):
            continue  # read in place
        if not _inside(dep) or not _holds(case.root / dep, md5):
            moved.append(dep)
        elif (case.root / dep).is_dir():
            shutil.copytree(case.root / dep, place / dep, dirs_exist_ok=True)
        else:
            shutil.copyfile(case.root / dep, place / dep)
    for folder in _named_folders(used):  # folders in params.yaml that are no DVC dependencies
        if _inside(folder) and (case.root / folder).exists() and not (place / folder).exists():
            (place / folder).parent.mkdir(parents=True, exist_ok=True)
            (place / folder).symlink_to((case.root / folder).resolve())
    if corpus is not None and not moved:
        return "from the sources on", assets
    wanted = next((e.deps[CORPUS] for e in ancestry.values() if CORPUS in e.deps), "")
    Store(case.root, fetch=True).place(wanted, place / CORPUS)
    why = (
        f"the sources have changed since: {', '.join(moved)}"
        if moved
        else "DVC has no run on record that made the corpus"
    )
    return f"from the corpus in DVC's cache on ({why})", [asset for asset in assets if asset != "raw_corpus"]


def _named_folders(used: dict[str, Any]) -> list[str]:
    """Folders and files in the parameters: the base model and its chat template, the inbox, the sources."""
    corpus = used.get("corpus") or {}
    sources = [*(corpus.get("sources") or {}).values(), corpus.get("production"), corpus.get("out_of_domain")]
    model = used.get("model") or {}
    named = [model.get("name"), model.get("chat_template"), corpus.get("inbox")]
    named += [dig(source, "path") for source in sources]
    return [name for name in named if isinstance(name, str) and name]


def _write_params(case: Case, run: Entry, place: Path) -> None:
    """Write params.yaml: the recorded parameters over the current ones, and a grid with only this model."""
    current: dict[str, Any] = {}
    for folder in (place, case.root):
        if (folder / "params.yaml").is_file():
            current = read_yaml(folder / "params.yaml").content
            break
    used, _ = used_parameters(case)
    choice = next(Path(dep).name for dep in run.deps if dep.startswith("data/calibration_set/"))
    [scheme] = used["schemes"]
    merged = {**current, **used, "studies": {}, "tracking": {}, "storage": {}}
    merged["calibrations"] = used.get("calibrations") or {choice: current["calibrations"][choice]}
    merged["grid"], merged["deployment"] = {"calibrations": [choice], "schemes": [scheme]}, {"scheme": scheme}
    merged["report"] = {**(current.get("report") or {}), "baseline": None}
    if isinstance(merged.get("model"), dict):
        # Only the current params.yaml may enable code that comes with a model; a record in DVC's cache may be forged.
        trusted = bool((current.get("model") or {}).get("trust_remote_code"))
        merged["model"] = {**merged["model"], "trust_remote_code": trusted}
    (place / "params.yaml").write_text(yaml.safe_dump(merged, sort_keys=False, allow_unicode=True), encoding="utf-8")
    requested = place / "requested.yaml"
    requested.write_text("requested: []\n", encoding="utf-8")


def _run(place: Path, library: Path, assets: list[str], announce: Callable[[str], None]) -> str:
    """Run the assets with a library; returns the error, or an empty string."""
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
    lines = [line for line in errors.splitlines() if line.strip()]
    return f"the run ended with {process.returncode}: {' '.join(lines[-3:])[-400:]}"


def _compare(case: Case, ancestry: Mapping[str, Entry], place: Path, assets: list[str]) -> tuple[Remade, ...]:
    remade = []
    for path, entry in sorted(ancestry.items(), key=lambda item: ORDER.index(item[0].split("/")[1])):
        if path.split("/")[1] not in assets:
            continue
        expected, hasher = entry.outs[path], Hasher()
        digest = dvc_digest(place / path, hasher) if (place / path).exists() else ""
        before = cached_listing(case.root, expected) if digest and digest != expected else None
        changed = differences(before, hasher.files(place / path)) if before else []
        detail = ", ".join(changed[:4]) or ("" if digest else "it was not made")
        remade.append(Remade(path, digest == expected, expected, digest, detail))
    return tuple(remade)

"""What `models:/NAME/VERSION` loads: the logged model behind a version, where its files are, and the files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from plumbline.provenance.link import Case, dig
from plumbline.tracking.details import READY, Details, LoggedModel, VersionDetails
from plumbline.tracking.location import artifact_location, local_folder
from plumbline.tracking.model_version import CALIBRATION, EVALUATION, MODEL, ModelUri, ModelVersion
from plumbline.versioning.cache import cached_listing
from plumbline.versioning.digest import differences, folder_digest

LOGGED = re.compile(r"models:/(m-\w+)")
COPIES = 8
"""Longest chain of copies that MLflow's `copy_model_version` made."""
BESIDE = frozenset(
    {"MLmodel", "requirements.txt", "python_env.yaml", "input_example.json", "serving_input_example.json"}
)
"""Files that Plumbline writes beside the model's folder and its tokenizer."""
PACKAGES = re.compile(r"(mlflow|transformers|torch|compressed-tensors)==[\w.+!-]+")
FLAVORS: Mapping[str, Mapping[str, Any]] = {
    "transformers": {"code": None, "model_binary": "model", "components": ["tokenizer"]},
    "python_function": {"code": None, "data": None, "model_code_path": None, "loader_module": "mlflow.transformers"},
}
"""Entries of MLmodel that decide which files are loaded and which code runs."""


def wrong_model(case: Case, store: Details, version: ModelVersion) -> Iterator[str]:
    """Where the version loads something else than the model that its tags name."""
    shown = store.version(version.name, version.version)
    if shown is None:
        yield "MLflow no longer has it"
        return
    if shown.status != READY:
        yield f"its status is {shown.status or 'empty'}: MLflow loads only what is {READY}"
    original = _original(store, shown)
    match = LOGGED.fullmatch(original.source) if original else None
    if match is None:
        yield f"its source is {shown.source[:120]!r}, not the logged model that its evaluation registered"
        return
    logged = store.logged_model(match[1])
    if logged is None:
        yield f"its source {shown.source} does not exist"
        return
    if not _same(shown.location, logged.location):
        yield f"it is loaded from {shown.location[:120]}, its logged model is at {logged.location[:120]}"
    yield from _wrong_logged_model(version, logged)
    yield from _wrong_files(case, version, logged)


def within(location: str, experiment: str, name: str) -> bool:
    """Whether a location is the one of the run or model with this id among the files of its experiment."""
    folder = experiment.rstrip("/")
    inside = location.startswith(f"{folder}/") and ".." not in unquote(location).split("/")
    return inside and name in location[len(folder) :].split("/")


def here(case: Case, location: str, experiment: str) -> Path | None:
    """The folder of a location on this machine; None: it is not here.

    The recorded location of a moved or copied workspace may name the old place until something is written; MLflow's
    files are beside its database.
    """
    database = case.registry.tracking.database if case.registry else None
    old = local_folder(experiment)
    if database is not None and old is not None and old.name == local_folder_name(database):
        location = artifact_location(database) + location[len(experiment.rstrip("/")) :]
    folder = local_folder(location)
    return folder if folder is not None and folder.is_dir() else None


def local_folder_name(database: Path) -> str:
    """Name of the folder beside a SQLite store that has its files."""
    folder = local_folder(artifact_location(database))
    assert folder is not None
    return folder.name


def _original(store: Details, shown: VersionDetails) -> VersionDetails | None:
    """The version that MLflow's `copy_model_version` copied; the version itself if it is no copy."""
    for _ in range(COPIES):
        try:
            copied = ModelUri.parse(shown.source)
        except ValueError:
            return shown
        before = store.version(copied.name, copied.version) if copied.version else None
        if before is None or not _same(before.location, shown.location):
            return None
        shown = before
    return None


def _wrong_logged_model(version: ModelVersion, logged: LoggedModel) -> Iterator[str]:
    keys = {MODEL, EVALUATION, CALIBRATION, *(key for key in version.tags if key.startswith("hash."))}
    other = sorted(key for key in keys if logged.tags.get(key) != version.tags.get(key))
    if other:
        yield f"its logged model has other {', '.join(other[:3])}"
    if logged.run_id != version.run_id:
        yield "its logged model is of another run"
    if logged.status != READY:
        yield f"the status of its logged model is {logged.status}"
    if logged.name != re.sub(r"[/:.%\"']", "-", version.pair):
        yield f"its logged model is called {logged.name[:80]!r}"
    if not within(logged.location, logged.experiment_location, logged.model_id):
        yield f"the files of its logged model are at {logged.location[:120]}, outside its experiment"


def _wrong_files(case: Case, version: ModelVersion, logged: LoggedModel) -> Iterator[str]:
    """Where the files at the logged model's place are not those of the version, if they are on this machine."""
    folder = here(case, logged.location, logged.experiment_location)
    if folder is None or not (folder / "MLmodel").is_file():  # a champion's only, and maybe on a server
        return
    at = f"MLflow's files of {version.shown}"
    files = case.hasher.files(folder)
    model = {name.removeprefix("model/"): md5 for name, md5 in files.items() if name.startswith("model/")}
    if folder_digest(model) != version.model:
        before = cached_listing(case.root, version.model)
        what = differences(before, model) if before else ["they have another hash"]
        yield f"{at} are not the model: {', '.join(what[:3])}"
    tokenizer = "components/tokenizer/"
    for name, md5 in files.items():
        if name.startswith("model/") or name in BESIDE:
            continue
        if not name.startswith(tokenizer) or model.get(name.removeprefix(tokenizer)) != md5:
            yield f"{at}: {name} is not of the model"
    yield from (f"{at}: {what}" for what in _wrong_loading(folder))


def _wrong_loading(folder: Path) -> Iterator[str]:
    """Where the files that say how to load the model name other files, other code or other packages."""
    try:
        content = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        flavors = content["flavors"]
        if unknown := sorted(set(flavors) - set(FLAVORS)):
            yield f"MLmodel has the flavor {', '.join(unknown)}"
        for flavor, entries in FLAVORS.items():
            for key, value in entries.items():
                if flavor in flavors and dig(flavors, flavor, key) != value:
                    yield f"MLmodel has another {flavor}.{key}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
        yield "MLmodel cannot be read"
    for name, accepted in (("requirements.txt", _plain_requirements), ("python_env.yaml", _plain_environment)):
        path = folder / name
        if path.is_file() and not accepted(path):
            yield f"{name} names other packages"


def _plain_requirements(path: Path) -> bool:
    lines = path.read_text(encoding="utf-8", errors="replace").split()
    return all(PACKAGES.fullmatch(line) for line in lines)


def _plain_environment(path: Path) -> bool:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return isinstance(content, dict) and content.get("dependencies") in (None, ["-r requirements.txt"])
    except (ValueError, RecursionError, yaml.YAMLError):
        return False


def _same(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/")

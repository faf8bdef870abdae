"""What MLflow says about a model, for the audit: read only, and nothing is made where there is nothing."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from plumbline.provenance.link import Case, Link, dig
from plumbline.tracking.model_version import Version
from plumbline.tracking.store import mlflow_error

if TYPE_CHECKING:
    from plumbline.tracking.client import Tracking

URI = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>.+)|/(?P<version>\d+))")
TAGS = {
    "hash.calibration_set": ("calibration_set", "digest"),
    "hash.statistics": ("statistics", "digest"),
    "hash.base_model": ("base_model", "digest"),
    "hash.tokenizer_fingerprint": ("fingerprint",),
}
"""Tags of a registered version, and where the model's own record says the same."""


class NoRegistry(ValueError):
    """MLflow cannot be asked; the message says why and what to do."""


def tracking_of(root: Path, registered_model: str = "") -> Tracking:
    """MLflow as params.yaml has it.

    Raises:
        NoRegistry: there is none yet. (Opening a SQLite store that is not there would make one.)
    """
    from plumbline.params import TrackingParams
    from plumbline.tracking.client import Tracking

    section: Any = None
    with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        section = dig(yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")), "tracking")
    try:
        params = TrackingParams.model_validate(section or {})
    except ValueError as error:
        raise NoRegistry(f"params.yaml, tracking: {error}") from error
    uri = params.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise NoRegistry(f"no model is registered here: {uri} is not there; `plumbline run` makes it")
    return Tracking(uri, params.experiment, registered_model or params.registered_model)


def version_of(root: Path, uri: str) -> Version:
    """The version that `models:/name@alias` or `models:/name/version` names.

    Raises:
        NoRegistry: MLflow has no such version, or does not answer.
    """
    match = URI.fullmatch(uri)
    if match is None:
        raise NoRegistry(f"{uri!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION, such as models:/plumbline/3")
    name, alias, version = match["name"], match["alias"], match["version"]
    with asking(root, name) as (tracking, client):
        try:
            if alias:
                version = str(client.get_model_version_by_alias(name, alias).version)
            return Version.of(client.get_model_version(name, version))
        except mlflow_error() as error:
            raise NoRegistry(
                f"{uri}: MLflow at {tracking.uri} says {str(error)[:200]}; `plumbline log` lists"
            ) from error


def version_of_run(root: Path, run_id: str) -> Version:
    """The version that a run registered.

    Raises:
        NoRegistry: there is no such run, or it registered no model.
    """
    with asking(root) as (tracking, client):
        try:
            run = client.get_run(run_id)
        except mlflow_error() as error:
            raise NoRegistry(f"MLflow at {tracking.uri} has no run {run_id}: {str(error)[:200]}") from error
        name = tracking.registered_model
        found = client.search_model_versions(f"name = '{name}' and run_id = '{run.info.run_id}'")
        if not found:
            raise NoRegistry(f"run {run_id} ({run.info.run_name}) registered no version of {name!r}: not an evaluation")
        return Version.of(client.get_model_version(name, str(max(found, key=lambda v: int(v.version)).version)))


def versions(root: Path) -> list[Version]:
    """Every registered version, oldest first; none where there is no registry."""
    try:
        with asking(root) as (tracking, client):
            name = tracking.registered_model
            try:
                aliases = client.get_registered_model(name).aliases
            except mlflow_error():
                return []
            by_version: dict[str, list[str]] = {}
            for alias, version in aliases.items():
                by_version.setdefault(str(version), []).append(alias)
            found = client.search_model_versions(f"name = '{name}'", max_results=10_000)
            read = [Version.of(v, by_version.get(str(v.version), [])) for v in found]
            return sorted(read, key=lambda v: int(v.version))
    except NoRegistry:
        return []


def figures_of(root: Path, run_id: str) -> dict[str, float]:
    """The metrics of a run; empty if it cannot be asked."""
    try:
        with asking(root) as (_, client):
            return dict(client.get_run(run_id).data.metrics)
    except (NoRegistry, mlflow_error()):
        return {}


def registry_link(version: Version, case: Case) -> Link:
    """The audited folder is the registered one, and the version's tags say what the model's record says."""
    name, wrong = "registry", []
    if case.digest != version.model:
        wrong.append("the folder is not the one that was registered")
    for tag, keys in TAGS.items():
        claims = case.claims(*keys)
        if tag in version.tags and claims and version.tags[tag] not in claims:
            wrong.append(f"its tag {tag} is not what the model's record says")
    chosen = case.claims("calibration_set", "choice", "name") or case.claims("calibration_set", "name")
    wanted = case.wanted(f"data/calibration_set/{chosen[0]}") if chosen else None
    if wanted and version.tags.get("calibration.md5", wanted) != wanted:
        wrong.append("its tag calibration.md5 names another calibration set than the model was made from")
    if wrong:
        fix = "find out who changed the folder or the registry; `plumbline log` has the history of champions"
        return Link(name, "tampered", f"{version.shown}: {'; '.join(wrong)}", version.model, case.digest, fix)
    return Link(name, "verified", f"{version.shown} is this folder, and its tags agree", version.model, case.digest)


@contextlib.contextmanager
def asking(root: Path, name: str = "") -> Any:
    from plumbline.tracking.client import TrackingError

    try:
        tracking = tracking_of(root, name)
        with tracking.client() as client:
            yield tracking, client
    except TrackingError as error:
        raise NoRegistry(str(error)) from error

"""`plumbline gc` deletes nothing that it cannot know to be unused, and nothing before it is asked to."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from dvc.repo import Repo

from plumbline.cli.main import main
from plumbline.tracking import readiness
from plumbline.tracking.client import Tracking
from plumbline.tracking.model_version import MODEL, RESTS_ON
from plumbline.tracking.store import opened
from plumbline.versioning.cache import cache_folder, cached, cached_listing
from plumbline.versioning.cache_users import note_use
from plumbline.versioning.config import new_project
from plumbline.versioning.digest import dvc_digest
from tests.helpers.paths import PROJECT

Workspaces = Callable[..., tuple[Path, dict[str, str]]]
NAMES = ("registered", "elsewhere", "forgotten", "current")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without models; MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    with Tracking(f"sqlite:///{path}").client():
        return path


@pytest.fixture
def workspace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Workspaces:
    """Makes workspaces whose model was made four times; `current` is on disk."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for level in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"DVC_{level}_CONFIG_DIR", str(tmp_path / level))

    def make(name: str = "workspace", cache: Path | None = None, store: bool = True) -> tuple[Path, dict[str, str]]:
        root = tmp_path / name
        root.mkdir()
        new_project(root, cache)
        (root / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
        (root / "dvc.yaml").write_text("stages: {}\n")
        hashes = {}
        with monkeypatch.context() as patched, Repo(str(root)) as repo:
            patched.chdir(root)
            for version in NAMES:
                shutil.rmtree(root / "model", ignore_errors=True)
                (root / "model").mkdir()
                (root / "model/weights").write_text(f"{version} of {name}")
                repo.add("model")
                hashes[version] = dvc_digest(root / "model")
        if store:
            shutil.copyfile(empty_store, root / "mlflow.db")
            register(root / "mlflow.db", hashes["registered"])
        return root, hashes

    return make


def register(store: Path, md5: str, name: str = "plumbline", **tags: str) -> None:
    with Tracking(f"sqlite:///{store}").client() as client:
        client.create_registered_model(name)
        chain = {MODEL: md5, RESTS_ON: json.dumps({"data/quantized_model/x": md5})}
        client.create_model_version(name, "s3://bucket/model", tags=tags or chain)


def whole(root: Path, hashes: dict[str, str]) -> set[str]:
    def kept(md5: str) -> bool:
        listing = cached_listing(root, md5)
        return listing is not None and all(cached(root, of) for of in listing.values())

    return {name for name, md5 in hashes.items() if kept(md5)}


def gc(root: Path, *arguments: str, answer: str = "", **environment: str) -> Result:
    result = CliRunner().invoke(
        main, ["gc", *arguments], input=answer, env={"PLUMBLINE_ROOT": str(root), **environment}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(result: Result, said: str) -> None:
    assert result.exit_code == 1 and said in result.output and "Nothing was deleted" in result.output, result.output


def test_it_shows_what_it_would_free_and_asks(workspace: Workspaces) -> None:
    root, hashes = workspace()
    shown = gc(root, "--dry")
    assert shown.exit_code == 0 and "would delete: 4 objects, 0.0 MB" in shown.output
    for answer in ("", "n\n"):
        asked = gc(root, answer=answer)
        assert asked.exit_code == 1 and "to delete: 4 objects" in asked.output and "[y/N]" in asked.output
    assert whole(root, hashes) == set(NAMES)
    assert gc(root, answer="y\n").exit_code == 0
    assert whole(root, hashes) == {"registered", "current"}
    assert "nothing to delete" in gc(root, "--yes").output


@pytest.mark.parametrize("level", ["system", "global", "repo", "local"])
def test_the_cache_is_the_one_that_dvc_uses_at_whatever_level_it_is_set(
    level: str, workspace: Workspaces, tmp_path: Path
) -> None:
    """Set for the user or the machine, it was overlooked once, and the champion deleted from it."""
    shared, settings = tmp_path / "shared", f"[cache]\n    dir = {tmp_path / 'shared'}\n"
    places = {
        "system": tmp_path / "SYSTEM/config",
        "global": tmp_path / "GLOBAL/config",
        "repo": tmp_path / "workspace/.dvc/config",
        "local": tmp_path / "workspace/.dvc/config.local",
    }
    root, hashes = workspace(cache=shared)
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    places[level].parent.mkdir(exist_ok=True)
    with places[level].open("a") as file:
        file.write(settings)
    assert cache_folder(root) == shared / "files/md5"
    assert gc(root, "--yes", "--alone").exit_code == 0
    assert whole(root, hashes) == {"registered", "current"}


def test_a_cache_that_others_use_is_left_alone_until_they_are_named(workspace: Workspaces, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (first, of_first), (second, of_second) = workspace("first", shared), workspace("second", shared)
    refused(gc(first, "--yes"), "--alone")
    note_use(first)
    note_use(second)
    for options in ((), ("--alone",), ("--projects", str(first))):
        refused(gc(first, "--yes", *options), f"--projects {second}")
    assert gc(first, "--yes", "--projects", str(second)).exit_code == 0
    assert whole(first, of_first) == whole(second, of_second) == {"registered", "current"}
    shutil.rmtree(second)
    assert gc(first, "--yes", "--alone").exit_code == 0
    assert whole(first, of_first) == {"registered", "current"} and whole(first, of_second) == set()


def test_a_remote_is_left_alone_until_its_other_users_are_named(workspace: Workspaces) -> None:
    root, hashes = workspace()
    refused(gc(root, "--yes", "--cloud"), "DVC's remote may serve other projects")
    assert whole(root, hashes) == set(NAMES)


@pytest.mark.parametrize("place", ["tracking.uri", "MLFLOW_TRACKING_URI"])
def test_versions_of_every_known_store_and_name_are_kept(
    place: str, workspace: Workspaces, empty_store: Path, tmp_path: Path
) -> None:
    root, hashes = workspace()
    store = tmp_path / "another.db"
    shutil.copyfile(empty_store, store)
    register(store, hashes["elsewhere"], "of-the-team")
    register(store, hashes["forgotten"], "not-ours", flavour="sklearn")
    uri = f"sqlite:///{store}"
    if place == "tracking.uri":
        set_params(root, tracking={"uri": uri, "registered_model": "renamed"})
    assert gc(root, "--yes", **({} if place == "tracking.uri" else {place: uri})).exit_code == 0
    assert whole(root, hashes) == {"registered", "elsewhere", "current"}


def test_it_makes_no_store_and_refuses_where_a_deployed_model_is_registered_nowhere(
    workspace: Workspaces, tmp_path: Path
) -> None:
    root, hashes = workspace(store=False)
    elsewhere = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'new.db'}"}
    record = root / "data/deployed_model/promotion.json"
    record.parent.mkdir(parents=True)
    before = {"model": hashes["elsewhere"]}
    record.write_text(json.dumps({"decision": "promoted", "model": hashes["registered"], "champion_before": before}))
    refused(gc(root, "--yes"), "no version of it is registered in the known MLflow stores (none")
    refused(gc(root, "--yes", **elsewhere), "--unregistered")
    assert gc(root, "--yes", "--unregistered", **elsewhere).exit_code == 0
    assert whole(root, hashes) == {"registered", "elsewhere", "current"}
    assert not (tmp_path / "new.db").exists() and not (root / "mlflow.db").exists()


def test_a_store_that_lacks_the_deployed_model_is_the_wrong_one(workspace: Workspaces) -> None:
    root, hashes = workspace()
    record = root / "data/deployed_model/promotion.json"
    record.parent.mkdir(parents=True)
    rejected = {"decision": "rejected", "model": hashes["forgotten"], "champion_before": {"model": hashes["elsewhere"]}}
    record.write_text(json.dumps(rejected))
    refused(gc(root, "--yes"), f"says that {hashes['elsewhere']} was deployed")
    assert whole(root, hashes) == set(NAMES)


def test_a_record_of_deployment_that_is_absent_is_missed(workspace: Workspaces) -> None:
    root, _ = workspace()
    out = {"path": "data/deployed_model", "md5": "0" * 32 + ".dir"}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"deployed_model": {"outs": [out]}}}))
    refused(gc(root, "--yes"), "dvc checkout data/deployed_model")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda store: store.write_bytes(b"no database" * 100), "is not a SQLite database"),
        (lambda store: execute(store, f"UPDATE model_version_tags SET value = '[' WHERE key = '{RESTS_ON}'"), RESTS_ON),
    ],
)
def test_a_store_that_cannot_be_read_stops_it(damage: Callable[[Path], None], said: str, workspace: Workspaces) -> None:
    root, hashes = workspace()
    opened.cache_clear()
    damage(root / "mlflow.db")
    result = gc(root, "--yes")
    assert result.exit_code == 1 and said in result.output, result.output
    assert whole(root, hashes) == set(NAMES)


def execute(store: Path, statement: str) -> None:
    with sqlite3.connect(store) as database:
        database.execute(statement)


def set_params(root: Path, **sections: object) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    (root / "params.yaml").write_text(yaml.safe_dump({**params, **sections}))


@pytest.mark.parametrize("answers", [False, True])
def test_a_silent_server_is_given_up_after_seconds_and_nothing_is_deleted(
    answers: bool, workspace: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes the connection and says nothing; and one that does so after it called itself healthy."""
    root, hashes = workspace(store=False)
    monkeypatch.setattr(readiness, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if answers:
            monkeypatch.setattr("plumbline.tracking.retained.server_problem", lambda _: "")
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        quick = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        result = gc(root, "--yes", MLFLOW_TRACKING_URI=uri, **quick)
    assert result.exit_code == 1 and "does not answer" in result.output and uri in result.output, result.output
    assert whole(root, hashes) == set(NAMES)

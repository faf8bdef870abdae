"""The same records over http: a real `mlflow server` on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline.tracking.client import Tracking
from plumbline.tracking.model_version import ModelUri
from plumbline.tracking.promotion import history, promote
from plumbline.tracking.reading import ClientReader
from plumbline.tracking.registry import Registry
from plumbline.tracking.store import TrackingError
from tests.helpers.processes import PATIENCE
from tests.helpers.small_chain import MODEL as FOLDER
from tests.helpers.small_chain import chain, register, second
from tests.helpers.tracking import evaluation, log_evaluation, mlflow_client

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("mlflow_server")]
MODEL, CALIBRATION = f"{1:032x}.dir", f"{2:032x}.dir"
PNG = b"\x89PNG\r\n\x1a\n"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", port, "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=folder, env=environment, start_new_session=True
        )
    try:
        while not healthy(f"http://{address}/health"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=0.2)
                pytest.fail(f"mlflow server ended with {code}:\n{log.read_text()[-2000:]}")
        yield f"http://{address}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_record_find_again_promote_and_trace(server: str, tmp_path: Path) -> None:
    tracking = Tracking(server)
    plot = tmp_path / "kl_histogram.png"
    plot.write_bytes(PNG)
    hashes = {"model_md5": MODEL, "calibration_md5": CALIBRATION}
    logged = log_evaluation(tracking, plots=[plot], **hashes)
    assert log_evaluation(tracking, plots=[plot], **hashes) == logged
    registry = Registry(tracking, ClientReader(tracking, page=1))
    assert promote(registry, tmp_path, registry.of_model(MODEL).version, "Ada", "the first")
    assert [entry.who for entry in history(registry).entries] == ["Ada"]
    second = log_evaluation(tracking, pair="another", **hashes)
    assert [version.version for version in registry.versions()] == [logged.version, second.version]
    champion = registry.resolve(ModelUri("plumbline", alias="champion"))
    assert champion == registry.champion() == registry.of_run(logged.run_id)
    assert (champion.version, champion.run_id, champion.aliases) == (logged.version, logged.run_id, ("champion",))
    assert registry.run(logged.run_id).metrics["kl_mean/prose"] == 0.25
    with pytest.raises(TrackingError, match="no such version"):
        registry.version("99")
    from mlflow import MlflowClient

    downloaded = MlflowClient(server, server).download_artifacts(logged.run_id, "plots/kl_histogram.png", str(tmp_path))
    assert Path(downloaded).read_bytes() == PNG
    assert logged.url.startswith(f"{server}/#/experiments/")
    with urllib.request.urlopen(server, timeout=PATIENCE) as page:
        assert b"<title>MLflow</title>" in page.read()


def test_a_server_that_is_down_is_named_soon() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TrackingError, match=f"{address} does not answer.*tracking.uri"):
        Registry(Tracking(address)).of_model(MODEL)
    with pytest.raises(TrackingError, match=f"{address} does not answer.*tracking.uri"):
        log_evaluation(Tracking(address))


def test_two_workspaces_that_log_the_same_share_one_version(server: str, tmp_path: Path) -> None:
    """Neither can tell whether a process of the other lives, so an unfinished run of the other is left alone."""
    one, two = (Tracking(server, "shared", "shared", tmp_path / name) for name in ("one", "two"))
    with one.writing() as recorder, one.client() as client:
        tags = {**evaluation().as_run().identity, "recorder": recorder}
        running = client.create_run(one.experiment_id(client), tags=tags).info.run_id
    logged = log_evaluation(two)
    client = mlflow_client(one)
    assert client.get_run(running).info.status == "RUNNING"
    assert log_evaluation(one) == logged
    assert [str(v.version) for v in client.search_model_versions("name = 'shared'")] == [logged.version]
    client.set_terminated(logged.run_id, "FAILED")  # as if the other had died before it finished
    assert log_evaluation(one) == logged and client.get_run(logged.run_id).info.status == "FINISHED"
    client.delete_run(logged.run_id)
    again = log_evaluation(one)
    assert again.version == logged.version and client.get_run(running).info.status == "KILLED"


def test_a_champion_is_uploaded_once_and_loads_by_its_uri(server: str, tmp_path: Path) -> None:
    """Where the store is elsewhere, its files have to be there, too: the workspace may be out of reach."""
    import mlflow
    import mlflow.transformers

    root = chain(tmp_path / "workspace", "random")
    second(root)
    register(root, server, name="uploaded")  # promotes version 1
    client = mlflow_client(Tracking(server))
    version = client.get_model_version_by_alias("uploaded", "champion")
    place = client.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    assert place.startswith("mlflow-artifacts:")
    weights = (root / FOLDER / "model.safetensors").read_bytes()
    root.rename(tmp_path / "gone")
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    try:
        mlflow.set_tracking_uri(server)
        mlflow.set_registry_uri(server)
        pipeline = mlflow.transformers.load_model("models:/uploaded@champion")
        [answer] = pipeline("the quick model", max_new_tokens=5, do_sample=False)
        assert answer["generated_text"].startswith("the quick model") and len(answer["generated_text"]) > 15
        there = Path(mlflow.artifacts.download_artifacts("models:/uploaded@champion", dst_path=str(tmp_path / "got")))
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
    assert (there / "model/model.safetensors").read_bytes() == weights
    root = (tmp_path / "gone").rename(root)
    registry, uploads = Registry(Tracking(server, "uploaded", "uploaded")), []
    promote(registry, root, "2", "Ben", "another")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mlflow.MlflowClient.log_model_artifacts", lambda *_: uploads.append(1))
        promote(registry, root, str(version.version), "Ada", "back")
    assert not uploads, "a rollback uploads nothing again"
    description = client.get_model_version("uploaded", version.version).description
    assert "## Promotions" in description and "replaced by version 2" in description and "Ada: back" in description

"""New data leads to one run, exactly once: over restarts, crashes, two daemons, half-written files, copies, returns."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from orchestration import sensors
from plumbline.graph import intake as taking
from plumbline.graph import sensor_ticks
from plumbline.raw_corpus.intake import INTAKE, read_intake
from plumbline.versioning.digest import dvc_digest
from plumbline.versioning.lock import Entry
from tests.helpers.paths import PROJECT

HUB = {"kind": "huggingface", "name": "ours/data", "revision": "0" * 40, "follow": "main"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sensor_ticks, "workspace_root", lambda: tmp_path)
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["corpus"]["sources"]["hub"] = HUB
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "README.md").write_text("not part of the corpus")
    return tmp_path


class Daemon:
    """Ticks the sensor as the daemon does. Runs end at once, and leave in dvc.lock what they read."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch, self.clock = root, monkeypatch, 1000.0
        self.instance = dg.DagsterInstance.ephemeral()
        self.read: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.reads = True
        settled, request = taking.take_in_settled, taking.request
        monkeypatch.setattr(taking, "take_in_settled", lambda root: settled(root, lambda: self.clock))
        monkeypatch.setattr(taking, "request", lambda root, launched: request(root, launched, lambda: self.clock))
        monkeypatch.setattr(taking, "read_lock", lambda _: self.lock())

    def lock(self) -> dict[str, Entry]:
        if not self.read:
            return {}
        return {"raw_corpus": Entry("raw_corpus", "", {}, {INTAKE: self.read[-1]["md5"]}, {}, "")}

    def tick(self, sensor: Any = sensors.inbox_sensor, killed: str = "", seconds: float = 5.0) -> int:
        """Runs launched. Killed before it launched what it was asked, or before it noted that it had."""
        self.clock += seconds
        result = sensor(dg.build_sensor_context(instance=self.instance))
        if not isinstance(result, dg.SensorResult) or killed == "before":
            return 0
        [request] = result.run_requests or []
        if self.instance.get_runs_count(dg.RunsFilter(tags={"dagster/run_key": str(request.run_key)})):
            return 0  # Dagster's own rule
        tags = {**request.tags, "dagster/run_key": str(request.run_key)}
        status = dg.DagsterRunStatus.SUCCESS if self.reads else dg.DagsterRunStatus.FAILURE
        self.instance.add_run(dg.DagsterRun(job_name="ingest", tags=tags, status=status))
        if self.reads:
            listed = read_intake(self.root / INTAKE)
            self.read.append({"md5": dvc_digest(self.root / INTAKE), "names": list(listed.files)})
        self.events += [] if killed else [{k: v.value for k, v in e.metadata.items()} for e in result.asset_events]
        return 1

    def ticks(self, n: int) -> int:
        return sum(self.tick() for _ in range(n))


@pytest.fixture
def daemon(root: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return Daemon(root, monkeypatch)


def drop(root: Path, name: str, text: str) -> None:
    (root / "inbox" / name).write_text(text)


def test_a_new_file_leads_to_one_run_and_no_other_waits_for_one_that_grows(root: Path, daemon: Daemon) -> None:
    assert daemon.ticks(3) == 0
    drop(root, "log.txt", "it grows")
    drop(root, "a.txt", "alpha")
    assert daemon.tick() == 0 and daemon.tick(seconds=1) == 0
    drop(root, "log.txt", "it grows and grows")
    assert daemon.tick() == 1 and daemon.read[-1]["names"] == ["a.txt"]
    drop(root, "log.txt", "it grows and grows and grows")
    assert daemon.tick() == 0
    assert [daemon.tick() for _ in range(4)] == [1, 0, 0, 0]
    assert daemon.read[-1]["names"] == ["a.txt", "log.txt"]
    assert daemon.events == [{"added": ["a.txt"], "waiting": ["log.txt"]}, {"added": ["log.txt"]}]


def test_the_same_content_again_leads_to_no_run_and_deletion_is_recorded(root: Path, daemon: Daemon) -> None:
    drop(root, "a.txt", "alpha")
    assert daemon.ticks(3) == 1
    drop(root, "a.txt", "alpha")  # uploaded again
    drop(root, "copy.txt", "alpha")
    assert daemon.ticks(4) == 0
    (root / "inbox/a.txt").unlink()  # its copy is there: nothing is lost
    assert daemon.ticks(3) == 0
    (root / "inbox/copy.txt").unlink()
    assert daemon.ticks(3) == 1 and daemon.events[-1] == {"removed": ["a.txt"]}
    drop(root, "a.txt", "alpha")  # content that comes back runs again
    assert daemon.ticks(3) == 1
    assert daemon.instance.get_runs_count() == 3


def test_a_file_that_ends_too_early_is_waited_for(root: Path, daemon: Daemon) -> None:
    drop(root, "a.jsonl", '{"text": "a"}\n{"te')
    assert daemon.ticks(10) == 0
    drop(root, "a.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    assert daemon.ticks(2) == 1
    drop(root, "b.jsonl", '{"text": "a"}\n{"te')  # in the end it is taken as it is
    assert daemon.ticks(16) == 1


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_daemon_killed_at_the_launch_launches_once(root: Path, daemon: Daemon, killed: str) -> None:
    drop(root, "a.txt", "alpha")
    daemon.tick()
    assert daemon.tick(killed=killed) == (killed == "after")
    restarted = daemon.ticks(4)
    assert restarted == (killed == "before") and daemon.instance.get_runs_count() == 1


def test_of_two_daemons_one_launches(root: Path, daemon: Daemon) -> None:
    drop(root, "a.txt", "alpha")
    daemon.tick()
    daemon.clock += 5
    taking.take_in_settled(root)  # the other one took it in,
    state = root / ".plumbline/intake.json"
    asked = taking.request(root, lambda _: False)
    assert asked is not None  # asked for its run,
    state.write_text(
        json.dumps({**json.loads(state.read_text()), "claim": {**json.loads(state.read_text())["claim"], "pid": 1}})
    )
    assert daemon.ticks(3) == 0  # and lives
    daemon.clock += taking.CLAIM
    assert taking.request(root, lambda _: False) == asked  # or does not come to it


def test_of_two_daemons_that_ask_one_code_location_one_launches(root: Path, daemon: Daemon) -> None:
    """Both sensors run in its process, and neither daemon has launched when the other asks: two runs read one drop."""
    drop(root, "a.txt", "alpha")
    daemon.tick()
    daemon.clock += 5
    taking.take_in_settled(root)
    asked = taking.request(root, lambda _: False)
    assert asked is not None and taking.request(root, lambda _: False) is None
    daemon.clock += taking.LAUNCH
    assert taking.request(root, lambda _: False) == asked  # the first one died before it launched


def test_the_status_names_what_waits(root: Path, daemon: Daemon) -> None:
    drop(root, "a.txt", "alpha")
    assert taking.waiting(root).as_dict() == {"waiting": ["a.txt"]}
    daemon.ticks(2)
    drop(root, "b.txt", "beta")
    assert taking.waiting(root).as_dict() == {"waiting": ["b.txt"]}
    (root / "inbox/a.txt").unlink(), (root / "inbox/b.txt").unlink()
    assert taking.waiting(root).as_dict() == {"removed": ["a.txt"]}


def test_what_came_together_is_one_run_also_where_some_of_it_is_refused(root: Path, daemon: Daemon) -> None:
    for name in ("a.txt", "program.exe"):
        drop(root, name, name)
    assert [daemon.tick() for _ in range(4)] == [0, 1, 0, 0]
    assert daemon.events == [{"added": ["a.txt"], "refused": ["program.exe"]}]


def test_a_run_that_failed_is_not_tried_again_but_the_next_change_is(root: Path, daemon: Daemon) -> None:
    drop(root, "a.txt", "alpha")
    daemon.reads = False
    assert daemon.ticks(5) == 1
    daemon.reads = True
    drop(root, "b.txt", "beta")
    assert daemon.ticks(3) == 1 and daemon.read[-1]["names"] == ["a.txt", "b.txt"]


def test_nothing_is_taken_in_while_a_run_reads(root: Path, daemon: Daemon) -> None:
    run = dg.DagsterRun(job_name="ingest", status=dg.DagsterRunStatus.STARTED)
    daemon.instance.add_run(run)
    drop(root, "a.txt", "alpha")
    assert daemon.ticks(3) == 0 and not (root / INTAKE).exists()
    daemon.instance.delete_run(run.run_id)
    assert daemon.ticks(3) == 1


def test_a_new_revision_of_a_dataset_that_is_followed_leads_to_one_run(
    root: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {"main": "0" * 40}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.startswith("/api/datasets/ours/data/revision/main")
            body = json.dumps({"id": "ours/data", "sha": commits["main"], "siblings": []} if found else {}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ask, endpoint = taking.hub_commit, f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(taking, "hub_commit", lambda name, branch: ask(name, branch, endpoint))
    try:
        assert daemon.tick(sensors.hub_sensor) == 0
        commits["main"] = "a" * 40
        assert daemon.tick(sensors.hub_sensor) == 1 and daemon.tick(sensors.hub_sensor) == 0
        assert read_intake(root / INTAKE).revisions == {"hub": "a" * 40}
        assert daemon.events == [{"revisions": [f"hub: {'a' * 40}"]}]
    finally:
        server.shutdown()
        server.server_close()
    assert daemon.tick(sensors.hub_sensor) == 0  # the hub does not answer: nothing breaks

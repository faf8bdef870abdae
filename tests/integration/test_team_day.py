"""A team's day on the servers of deploy/: drops into a bucket, while daemons, the database and the store die."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import dagster as dg
import pytest
from mlflow import MlflowClient

from benchmarks.peers.articles import pieces
from plumbline.artifact import read_json
from plumbline.graph.intake import unread
from plumbline.provenance import dvc_digest
from tests.helpers.processes import PATIENCE
from tests.helpers.s3_server import KEY
from tests.helpers.team import Server, Team, postgres_programs, running_team
from tests.helpers.without_dvc import BLOCKED
from tests.helpers.workspace import SMALL_FEATURES, Workspace, make_workspace

pytestmark = pytest.mark.integration

STARTED, SUCCESS = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    missing = [] if postgres_programs() else ["PostgreSQL (apt-get install postgresql)"]
    for module in ("dagster_postgres", "psycopg2", "s3fs", "dvc_s3", "moto"):
        if importlib.util.find_spec(module) is None:
            missing.append(f"{module} (pip install -c constraints.txt -e '.[team]' 'moto[server]')")
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs " + ", ".join(missing))
    with running_team(tmp_path) as servers:
        for name, value in servers.environment.items():
            monkeypatch.setenv(name, value)
        yield servers


@pytest.fixture
def history(team: Team) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(team.home)) as instance:
        yield instance


def write_workspace(root: Path, team: Team, shared: Path) -> Workspace:
    """stories260K, sixty stories, one choice and one scheme. Of the team's servers it names two addresses."""
    workspace = make_workspace(
        root,
        model={"name": str(shared / "models/stories260K"), "revision": None},
        corpus={
            "sources": {"texts": {"kind": "directory", "path": "texts"}},
            "inbox": "s3://inbox/drops",
            "max_file_bytes": 200_000,
        },
        tokenize={"max_length": 128, "long_documents": "window", "splits": {"tuning": 0.2, "report": 0.2}},
        features=SMALL_FEATURES,
        calibrations={"random-8": {"strategy": "random", "n": 8, "seed": 0}},
        schemes={"w4a16-rtn": {"method": "rtn", "weight_bits": 4, "group_size": 32}},
        grid={"calibrations": ["random-8"], "schemes": ["w4a16-rtn"]},
        evaluation={"tokens_per_domain": 512},
        report={"resamples": 100, "confidence": 0.95},
        deployment={"scheme": "w4a16-rtn"},
        studies={},
        tracking={"uri": team.tracking},
        storage={"remote": "s3://dvc/team"},
    )
    stories = pieces((shared / "corpora/tinystories/tinystories_train_head.txt").read_text(encoding="utf-8"), 1200)
    folder = root / "texts/stories"
    folder.mkdir(parents=True)
    rows = [json.dumps({"text": text.strip()}) for text in stories if text.strip()][:60]
    (folder / "stories.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return workspace


def story(number: int) -> str:
    """Some 300 words that no other story has in this order."""
    words = ["once", "upon", "a", "time", "there", "was", "little", "girl", "dog", "tree", "happy", "ran"]
    return " ".join(f"{words[(i * i * number + i) % len(words)]} {i * number % 53}" for i in range(150))


class Day:
    """The drops of a day, the servers that read them, and what Dagster's history says of both."""

    def __init__(self, workspace: Workspace, team: Team, history: dg.DagsterInstance) -> None:
        import s3fs

        self.workspace, self.team, self.history = workspace, team, history
        self.code = team.code(workspace.root)
        self.daemons = [team.daemon(workspace.root, name) for name in ("first", "second")]
        address = {"endpoint_url": team.environment["AWS_ENDPOINT_URL"]}
        self.files = s3fs.S3FileSystem(key=KEY, secret=KEY, client_kwargs=address, skip_instance_cache=True)

    def drop(self, name: str, content: str | bytes) -> None:
        self.files.pipe(f"inbox/drops/{name}", content.encode() if isinstance(content, str) else content)

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.workspace.root,
            env=self.team.of(self.workspace.root),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def start(self) -> None:
        self.code.start()
        self.command("dagster", "sensor", "stop", "automation", "-w", str(self.team.home / "workspace.yaml"))
        for daemon in self.daemons:
            daemon.start()

    def stop(self) -> None:
        for server in (*self.daemons, self.code):
            server.kill()

    def runs(self) -> list[dg.DagsterRun]:
        """The runs of the inbox, oldest first."""
        return self.history.get_runs(dg.RunsFilter(tags={"plumbline/trigger": "inbox"}))[::-1]

    def until(self, ask: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait, and start again what ended, as `restart: unless-stopped` does."""
        deadline = time.monotonic() + seconds
        servers = (*self.daemons, self.code, self.team.mlflow)
        while not ask():
            for server in servers:
                if server.process is not None and server.process.poll() is not None:
                    server.start()
            shown = [(run.status.value, dict(run.tags)) for run in self.runs()] if time.monotonic() > deadline else []
            assert time.monotonic() < deadline, f"{shown}\n{self.code.tail()}\n{self.daemons[0].tail()}"
            until_one_ends(servers, 1)

    def reads(self, last: str) -> Callable[[], bool]:
        """Whether a drop was taken in, the corpus holds all that was, and no run goes on."""
        root = self.workspace.root

        def ask() -> bool:
            if last not in (root / "intake.yaml").read_text() or unread(root):
                return False
            runs = self.runs()
            return all(run.is_finished for run in runs) and runs[-1].status == SUCCESS

        return ask


def until_one_ends(servers: Sequence[Server], seconds: float) -> None:
    """Wait until the process of one of them ends, so many seconds at most."""
    processes = [os.pidfd_open(server.process.pid) for server in servers if server.process is not None]
    try:
        select.select(processes, [], [], seconds)
    finally:
        for descriptor in processes:
            os.close(descriptor)


@pytest.mark.minutes(5)
def test_a_day_of_twelve_drops(team: Team, history: dg.DagsterInstance, shared_data: Path, tmp_path: Path) -> None:
    """A daemon, the database and the store are killed while files come in: nothing is lost, nothing is read twice."""
    workspace = write_workspace(tmp_path / "workspace", team, shared_data)
    day = Day(workspace, team, history)
    day.command("plumbline", "run")
    day.start()
    try:
        day.drop("good.txt", story(1))  # 1
        day.drop("copy.txt", story(1))  # 2: of its content, one is read
        day.drop("broken.jsonl", "{not json\n" * 400)  # 3
        day.drop("program.exe", b"MZ")  # 4
        day.until(lambda: any(run.status == STARTED for run in day.runs()))
        day.daemons[0].kill()
        day.until(day.reads("program.exe"))

        day.drop("two.txt", story(2))  # 5
        day.drop("huge.txt", "x" * 200_001)  # 6
        day.drop("rows.jsonl", "".join(json.dumps({"text": story(n)}) + "\n" for n in (3, 4)))  # 7
        day.until(lambda: any(run.status == STARTED for run in day.runs()))
        team.postgres.kill()
        team.postgres.start()
        day.until(day.reads("two.txt"))

        day.drop("five.txt", story(5))  # 8
        day.drop("deep/six.md", story(6))  # 9
        team.store.kill()
        team.store.start()
        day.drop("cut.jsonl.gz", b"\x1f\x8b")  # 10
        day.until(day.reads("cut.jsonl.gz"))

        day.drop("good.txt", story(1))  # 11: uploaded again
        day.drop("last.txt", story(7))  # 12
        day.until(day.reads("last.txt"))
    finally:
        day.stop()
    nothing_is_lost_or_twice(day)
    there_is_one_champion(day)
    the_content_is_in_the_bucket(day, tmp_path)


def nothing_is_lost_or_twice(day: Day) -> None:
    manifest = read_json(day.workspace.root / "data/raw_corpus/manifest.json")
    shards = [shard for shard in manifest["shards"] if shard["source"] == "inbox"]
    good = {shard["file"]: shard["documents"] for shard in shards if not shard.get("quarantined")}
    assert good == {"copy.txt": 1, "two.txt": 1, "rows.jsonl": 2, "five.txt": 1, "deep/six.md": 1, "last.txt": 1}
    bad = {shard["file"] for shard in shards if shard.get("quarantined")}
    assert bad == {"broken.jsonl", "program.exe", "huge.txt", "cut.jsonl.gz"}
    # Two queues may start one run twice, which Dagster ignores, but retries: runs of the sensor itself are counted.
    keys = Counter(run.tags["dagster/run_key"] for run in day.runs() if run.parent_run_id is None)
    assert set(keys.values()) == {1}, keys


def there_is_one_champion(day: Day) -> None:
    """The last data has a model, each evaluation one run, and one version the alias."""
    day.command("plumbline", "run")
    client = MlflowClient(day.team.tracking, day.team.tracking)
    versions = client.search_model_versions("name = 'plumbline'")
    aliases = [alias for v in versions for alias in client.get_model_version("plumbline", v.version).aliases]
    assert aliases.count("champion") == 1
    experiment = client.get_experiment_by_name("plumbline")
    runs = client.search_runs([experiment.experiment_id], "tags.`dvc.stage` = 'evaluation@random-8-w4a16-rtn'")
    assert runs and all(run.info.status == "FINISHED" for run in runs)
    assert max(Counter(run.data.tags["dvc.md5"] for run in runs).values()) == 1
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    assert day.files.find("mlflow/artifacts")  # passed through by the server


def the_content_is_in_the_bucket(day: Day, place: Path) -> None:
    """A clone pulls all; after gc the champion's set comes back from the bucket alone, without DVC."""
    root = day.workspace.root
    day.command("plumbline", "push")  # the champion may be older than what dvc.lock names
    clone = place / "clone"
    shutil.copytree(root, clone, ignore=shutil.ignore_patterns("data", "cache", ".plumbline", "tmp"))
    there = {"cwd": clone, "env": day.team.of(clone), "capture_output": True, "text": True}
    pulled = subprocess.run([sys.executable, "-m", "dvc", "pull", "--run-cache"], **there)
    assert pulled.returncode == 0, pulled.stderr
    verified = subprocess.run([sys.executable, "-m", "plumbline", "verify"], **there)
    assert verified.returncode == 0, verified.stdout

    day.command("plumbline", "gc", "--yes", "--cloud", "--alone")
    for made in (clone / "data", clone / ".dvc/cache/files"):  # DVC's records of the runs stay
        shutil.rmtree(made)
    audit = [sys.executable, "-c", BLOCKED, "audit", "models:/plumbline@champion", "--restore", str(place / "back")]
    restored = subprocess.run(audit, **there)
    assert "RESTORED to" in restored.stdout, restored.stdout + restored.stderr
    placed = read_json(place / "back/restored.json")["dvc"]
    assert {path: dvc_digest(place / "back" / path) for path in placed} == placed
    assert {"data/calibration_set/random-8", "data/activation_stats/random-8"} <= placed.keys()

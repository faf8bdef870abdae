"""The servers of deploy/ as processes on this machine: PostgreSQL, a store of S3, MLflow, a code location, daemons."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.paths import BIN, PROJECT
from tests.helpers.processes import PATIENCE
from tests.helpers.s3_server import environment_of

DEPLOY = PROJECT / "deploy"
STORE = """
import sys, threading
from moto.moto_api import recorder
from moto.server import ThreadedMotoServer

before = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
before.start()
recorder.replay_recording("http://%s:%s" % before.get_host_and_port())
ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False).start()
threading.Event().wait()
"""
"""A server of S3 that forgets all when it ends. What was asked of it is asked again before it answers: servers of one
process share their content."""
USER, PASSWORD = "plumbline", "secret-of-the-database"


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs, as Debian installs them, or from PATH; None: not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Server:
    """A process that is started, killed as by a power failure, and started again."""

    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    folder: Path
    user: str | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self, seconds: float = PATIENCE) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=dict(self.environment),
                stdout=output,
                stderr=output,
                start_new_session=True,
                user=self.user,
            )
        deadline = time.monotonic() + seconds
        while not self.ready():
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self.process.wait(timeout=0.2)
                raise AssertionError(f"{self.command} ended with {status}:\n{self.tail()}")
            assert time.monotonic() < deadline, f"{self.command} is not ready:\n{self.tail()}"

    def kill(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


class Team:
    """What a team starts, with the very dagster.yaml and workspace.yaml of deploy/."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.ports = {name: free_port() for name in ("postgres", "store", "mlflow", "code")}
        self.home = place / "dagster"
        self.home.mkdir()
        for name in ("dagster.yaml", "workspace.yaml"):
            shutil.copyfile(DEPLOY / name, self.home / name)
        self.data = Path(tempfile.mkdtemp(prefix="plumbline-team-"))  # pytest's folders are closed to other users
        self.postgres = self._postgres()
        self.store = self._store()
        self.mlflow = self._mlflow()

    @property
    def tracking(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the team is told; secrets are nowhere else."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
        return {
            **inherited,
            **environment_of(f"http://127.0.0.1:{self.ports['store']}"),
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_PORT": str(self.ports["postgres"]),
            "DAGSTER_PG_USERNAME": USER,
            "DAGSTER_PG_PASSWORD": PASSWORD,
            "DAGSTER_PG_DB": "dagster",
            "PLUMBLINE_CODE_HOST": "127.0.0.1",
            "PLUMBLINE_CODE_PORT": str(self.ports["code"]),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def of(self, root: Path) -> dict[str, str]:
        """The environment of a process in a workspace."""
        return {
            **self.environment,
            "PLUMBLINE_ROOT": str(root),
            "PYTHONPATH": f"{root}{os.pathsep}{PROJECT}",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def code(self, root: Path) -> Server:
        """The code location of a workspace: sensors and runs are its processes."""
        port = str(self.ports["code"])
        command = [str(BIN / "dagster"), "code-server", "start", "-h", "127.0.0.1", "-p", port]
        command += ["-m", "orchestration.definitions", "-d", str(root)]

        def ready() -> bool:
            from dagster._grpc.client import DagsterGrpcClient

            with contextlib.suppress(Exception):
                return bool(DagsterGrpcClient(port=int(port), host="127.0.0.1").ping("") is not None)
            return False

        return Server(command, self.place / "code.log", self.of(root), ready, root)

    def daemon(self, root: Path, name: str) -> Server:
        command = [str(BIN / "dagster-daemon"), "run", "-w", str(self.home / "workspace.yaml")]
        return Server(command, self.place / f"{name}.log", self.of(root), lambda: True, self.home)

    def stop(self) -> None:
        for server in (self.mlflow, self.store, self.postgres):
            server.kill()
        shutil.rmtree(self.data, ignore_errors=True)

    def _postgres(self) -> Server:
        programs = postgres_programs()
        assert programs is not None
        user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        if user:
            shutil.chown(self.data, user)
        port = self.ports["postgres"]
        (word := self.data / "password").write_text(PASSWORD)
        word.chmod(0o644)
        create = [programs / "initdb", "-D", self.data / "db", "-U", USER, "-A", "scram-sha-256", "--no-sync"]
        subprocess.run([*create, f"--pwfile={word}"], user=user, cwd=self.data, check=True, capture_output=True)
        command = [str(programs / "postgres"), "-D", str(self.data / "db"), "-h", "127.0.0.1", "-p", str(port)]
        command += ["-k", str(self.data)]
        (log := self.place / "postgres.log").touch()
        return Server(command, log, dict(os.environ), self._databases, self.data, user)

    def _databases(self) -> bool:
        """Whether PostgreSQL answers; its two databases are made where they are not there."""
        import psycopg2

        try:
            connection = psycopg2.connect(
                host="127.0.0.1", port=self.ports["postgres"], user=USER, password=PASSWORD, dbname="postgres"
            )
        except psycopg2.OperationalError:
            return False
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            present = {name for (name,) in cursor.fetchall()}
            for name in {"dagster", "mlflow"} - present:
                cursor.execute(f"CREATE DATABASE {name}")
        return True

    def _store(self) -> Server:
        port = self.ports["store"]
        recorded = {"MOTO_ENABLE_RECORDING": "1", "MOTO_RECORDER_FILEPATH": str(self.place / "requests")}
        (self.place / "requests").touch()

        def ready() -> bool:
            return answers(f"http://127.0.0.1:{port}/moto-api/")

        command = [sys.executable, "-c", STORE, str(port)]
        return Server(command, self.place / "store.log", {**self.environment, **recorded}, ready, self.place)

    def _mlflow(self) -> Server:
        port = str(self.ports["mlflow"])
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
        command += ["--artifacts-destination", "s3://mlflow/artifacts"]
        environment = {
            **self.environment,
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{USER}:{PASSWORD}@127.0.0.1:{self.ports['postgres']}/mlflow",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

        def ready() -> bool:
            return answers(f"{self.tracking}/health")

        return Server(command, self.place / "mlflow.log", environment, ready, self.place)


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2):
        return True
    return False


@contextlib.contextmanager
def running_team(place: Path) -> Iterator[Team]:
    """PostgreSQL, the store with its three buckets, and MLflow."""
    team = Team(place)
    try:
        team.postgres.start()
        team.store.start()
        buckets = "import s3fs; s3 = s3fs.S3FileSystem(); [s3.makedir(b) for b in ('inbox', 'dvc', 'mlflow')]"
        subprocess.run([sys.executable, "-c", buckets], env=team.environment, check=True)
        team.mlflow.start()
        yield team
    finally:
        team.stop()

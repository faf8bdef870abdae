"""The stores that params.yaml names are asked before the first step, and all that is wrong is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from plumbline.cli.main import main
from plumbline.graph.preflight import services
from plumbline.params import load_params
from plumbline.versioning.remote import default_remote
from tests.helpers.s3_server import bucket, environment_of
from tests.helpers.workspace import SMALL, Workspace, make_workspace

pytest.importorskip("s3fs", reason="needs s3fs (pip install -c constraints.txt -e '.[s3]')")

EVERYTHING = ["raw_corpus", "evaluation"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that names a team's servers, none of which is there."""
    for name in ("MLFLOW_TRACKING_URI", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment_of("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    sections = {
        **SMALL,
        "corpus": {**SMALL["corpus"], "inbox": "s3://inbox/drops"},
        "tracking": {"uri": "http://127.0.0.1:1"},
        "storage": {"remote": "s3://dvc/team"},
    }
    workspace = make_workspace(tmp_path / "workspace", **sections)
    (workspace.root / "texts/a.txt").write_text("text")
    return workspace


def run(workspace: Workspace) -> Result:
    environment = {"PLUMBLINE_ROOT": str(workspace.root), "DAGSTER_HOME": str(workspace.root / ".dagster")}
    return CliRunner().invoke(main, ["run"], env=environment)


def test_servers_that_are_down_are_listed_together_and_nothing_is_run(workspace: Workspace) -> None:
    result = run(workspace)
    said = " ".join(result.output.split())
    assert result.exit_code == 1 and "3 problems found before the first step; nothing was run" in said, said
    for address in ("corpus.inbox: s3://inbox/drops", "storage.remote: s3://dvc/team"):
        assert f"{address}: the store does not answer" in said
    assert "MLflow at http://127.0.0.1:1 does not answer" in said
    assert not (workspace.root / "data/raw_corpus").exists()
    remote = default_remote(workspace.root)
    assert remote is not None and remote.url == "s3://dvc/team"  # DVC is told all the same


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (None, None, "there is no bucket dvc; make it, or correct the name"),
        ("AWS_SECRET_ACCESS_KEY", None, "no credentials (Partial credentials found"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "correct AWS_ENDPOINT_URL"),
        ("AWS_PROFILE", "nobody", "no credentials (The config profile (nobody) could not be found"),
    ],
)
def test_each_reason_is_told_with_its_fix(
    variable: str | None, value: str | None, said: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    with bucket("inbox", monkeypatch):
        if variable and value:
            monkeypatch.setenv(variable, value)
        elif variable:
            monkeypatch.delenv(variable)
        s3fs.S3FileSystem.clear_instance_cache()
        problems = list(services(load_params(workspace.root), workspace.root, ["raw_corpus"]))
    assert any(said in problem for problem in problems), problems
    assert len(problems) == (2 if variable else 1)


def test_stores_that_answer_are_no_problem(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket("inbox", monkeypatch) as files:
        files.mkdir("dvc")
        assert list(services(load_params(workspace.root), workspace.root, ["raw_corpus"])) == []
        files.rm("dvc", recursive=True)


def test_a_remote_that_somebody_else_named_is_a_problem(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with (workspace.root / ".dvc/config").open("a") as file:
        file.write("['remote \"mine\"']\n    url = /mine\n")
    text = (workspace.root / ".dvc/config").read_text()
    (workspace.root / ".dvc/config").write_text(text.replace("[core]\n", "[core]\n    remote = mine\n"))
    [problem] = services(load_params(workspace.root), workspace.root, [])
    assert "DVC's default remote 'mine' is /mine" in problem

"""Which assets a run takes: all that are out of date, those named, and on request those that wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner

from assets.artifact import write_json
from orchestration import graph_run, versioning
from orchestration.cli import main
from orchestration.definitions import ASSETS
from orchestration.params import project_root, request, requested

PROJECT = Path(__file__).resolve().parents[2]
WAITING = "study"


@pytest.fixture
def materialized(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the assets that a run would materialize, where everything is out of date; nothing is run."""
    names: list[str] = []

    class Done:
        success = True

    def note(assets: Sequence[Any], **_: Any) -> Done:
        names.append(assets[0].key.to_user_string())
        return Done()

    stages = versioning._stages(project_root() / "dvc.yaml")
    asset = next(a for a in ASSETS if a.key.to_user_string() == WAITING)
    monkeypatch.setattr(asset.partitions_def, "_partition_keys", ["asked-for"], raising=False)

    def changed(root: Path, asset: str | None = None) -> dict[str, list[str]]:
        left_alone = versioning.on_request(root)
        keys = {
            a.key.to_user_string(): a.partitions_def.get_partition_keys() if a.partitions_def else [None]
            for a in ASSETS
        }
        wanted = [asset] if asset else [name for name in stages if name not in left_alone]
        return {versioning.stage_name(name, key): ["never run"] for name in wanted for key in keys[name]}

    monkeypatch.setattr(versioning, "changed_stages", changed)
    monkeypatch.setattr(versioning, "sweep", lambda root: 0)
    monkeypatch.setattr(dg, "materialize", note)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return names


def test_a_run_leaves_alone_what_runs_on_request(materialized: list[str]) -> None:
    graph_run.run_graph(project_root(), announce=lambda _: None)
    assert materialized == [a.key.to_user_string() for a in ASSETS if a.key.to_user_string() != WAITING]


def test_what_is_named_runs_with_what_it_is_made_from(materialized: list[str]) -> None:
    graph_run.run_graph(project_root(), graph_run.with_upstream(WAITING), announce=lambda _: None)
    assert materialized == ["raw_corpus", "tokenized_samples", "sample_features", WAITING]


STUDY = {
    "headline": "clusters is better in 1 of 1 comparisons with random.",
    "baseline": "random",
    "draws": 10,
    "confidence": 0.95,
    "arms": [
        {"scheme": "w3a16-gptq", "n": 16, "rule": "random", "kl_mean": 0.07, "kl_sd": 0.0014},
        {"scheme": "w3a16-gptq", "n": 16, "rule": "clusters", "kl_mean": 0.06, "kl_sd": 0.0006},
        {"scheme": "w3a16-gptq", "n": 256, "rule": "random", "kl_mean": 0.0124, "kl_sd": 0.0014},
        {"scheme": "w3a16-gptq", "n": 256, "rule": "clusters", "kl_mean": 0.0123, "kl_sd": 0.0006},
    ],
    "comparisons": [
        {
            "scheme": "w3a16-gptq",
            "n": 16,
            "rule": "clusters",
            "kl_mean": 0.06,
            "kl_mean_baseline": 0.07,
            "difference": -0.143,
            "low": -0.2,
            "high": -0.08,
            "verdict": "better",
        },
        {
            "scheme": "w3a16-gptq",
            "n": 256,
            "rule": "clusters",
            "kl_mean": 0.0123,
            "kl_mean_baseline": 0.0124,
            "difference": 0.008,
            "low": -0.121,
            "high": 0.137,
            "verdict": "no difference detected",
        },
    ],
}


def test_a_study_shows_a_table_that_fits_a_screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    workspace(tmp_path)
    (tmp_path / "data/study/clusters").mkdir(parents=True)
    write_json(tmp_path / "data/study/clusters/verdict.json", STUDY)
    monkeypatch.setenv("PLUMBLINE_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    asked: list[list[str]] = []
    monkeypatch.setattr(graph_run, "run_graph", lambda root, only, announce: asked.append(list(only)) or 0)
    monkeypatch.setattr(graph_run, "with_upstream", lambda asset: ["upstream", asset])
    done = CliRunner().invoke(main, ["study"])
    assert done.exit_code == 0, done.output
    assert asked == [["upstream", WAITING]] and requested(tmp_path) == ["clusters"]
    for word in (
        "up to date",
        "clusters is better",
        "0.0700",
        "0.0600",
        "2.0 %",
        "-14.3 %",
        "-20.0 to -8.0",
        "better",
    ):
        assert word in done.output
    assert "data/study/clusters/study.html" in done.output
    assert "none seen" in done.output and "-12.1 to +13.7" in done.output and "…" not in done.output
    assert max(map(len, done.output.splitlines())) <= 80


def workspace(root: Path, **sections: Any) -> Path:
    params = yaml.safe_load((project_root() / "params.yaml").read_text())
    (root / "params.yaml").write_text(yaml.safe_dump({**params, **sections}))
    (root / ".git").mkdir()
    return root


def test_a_study_without_an_entry_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLUMBLINE_ROOT", str(workspace(tmp_path, studies={})))
    done = CliRunner().invoke(main, ["study"])
    assert done.exit_code == 1 and "nothing under `studies:`" in done.output


def test_a_study_that_is_not_there_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLUMBLINE_ROOT", str(workspace(tmp_path)))
    done = CliRunner().invoke(main, ["study", "nobody"])
    assert done.exit_code == 1 and "['nobody'] not in params.yaml (there: ['clusters'])" in done.output
    assert requested(tmp_path) == []


def test_requests_add_up_and_drop_what_is_gone(tmp_path: Path) -> None:
    one = yaml.safe_load((project_root() / "params.yaml").read_text())["studies"]["clusters"]
    workspace(tmp_path, studies={"a": one, "b": one})
    request(["b"], tmp_path)
    request(["a", "b"], tmp_path)
    assert requested(tmp_path) == ["b", "a"]
    assert (tmp_path / "requested.yaml").read_text().startswith("# Entries of `studies:`")
    (tmp_path / "params.yaml").write_text((tmp_path / "params.yaml").read_text() + " ")
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    del params["studies"]["b"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    request(["a"], tmp_path)
    assert requested(tmp_path) == ["a"]


def test_nothing_is_requested_in_the_project_itself() -> None:
    """A stage that was never run would fail `dvc pull` in every clone."""
    assert requested(PROJECT) == []

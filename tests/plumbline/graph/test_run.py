"""Which assets a run takes: all that are out of date, those named, and on request those that wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner

from orchestration.definitions import ASSETS
from plumbline.artifact import write_json
from plumbline.cli.main import main
from plumbline.graph import run as graph_run
from plumbline.requested import request, requested
from plumbline.versioning.facts import STAGES
from plumbline.versioning.lock import stage_name
from plumbline.versioning.pipeline import on_request, stage_names
from plumbline.workspace import workspace_root
from tests.helpers.paths import PROJECT

WAITING = "study"


@pytest.fixture
def materialized(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the assets that a run would materialize, where everything is out of date; nothing is run."""
    names: list[str] = []

    class Done:
        success = True

        def get_asset_check_evaluations(self) -> list[Any]:
            return []

        def get_step_failure_events(self) -> list[Any]:
            return []

        def get_asset_materialization_events(self) -> list[Any]:
            return []

    def note(root: Path, asset: dg.AssetsDefinition, *_: Any) -> Done:
        names.append(asset.key.to_user_string())
        return Done()

    stages = [name for name in stage_names(workspace_root()) if name not in STAGES]
    asset = next(a for a in ASSETS if a.key.to_user_string() == WAITING)
    monkeypatch.setattr(asset.partitions_def, "_partition_keys", ["asked-for"], raising=False)

    def changed(root: Path, *assets: str) -> dict[str, list[str]]:
        left_alone = on_request(root)
        keys = {
            a.key.to_user_string(): a.partitions_def.get_partition_keys() if a.partitions_def else [None]
            for a in ASSETS
        }
        wanted = assets or [name for name in stages if name not in left_alone]
        return {stage_name(name, key): ["never run"] for name in wanted for key in keys[name]}

    monkeypatch.setattr(graph_run, "changed_stages", changed)
    monkeypatch.setattr(graph_run, "sweep", lambda root: 0)
    monkeypatch.setattr(graph_run, "refresh_facts", lambda root: None)
    monkeypatch.setattr(graph_run, "require_ready", lambda root, stages: None)
    monkeypatch.setattr(graph_run, "run_asset", note)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return names


def test_a_run_leaves_alone_what_runs_on_request(materialized: list[str]) -> None:
    graph_run.run_graph(workspace_root(), announce=lambda _: None)
    assert materialized == [a.key.to_user_string() for a in ASSETS if a.key.to_user_string() != WAITING]


def test_what_is_named_runs_with_what_it_is_made_from(materialized: list[str]) -> None:
    graph_run.run_graph(workspace_root(), graph_run.with_upstream(workspace_root(), WAITING), announce=lambda _: None)
    assert materialized == ["raw_corpus", "tokenized_samples", "sample_features", WAITING]


TESTED = {"low": -0.2, "high": -0.08, "draws_needed": 40}
STUDY = {
    "headline": "clusters is better in 1 of 2 comparisons with random.",
    "baseline": "random",
    "rules": {"random": {"strategy": "random"}, "clusters": {"strategy": "embedding_cluster"}},
    "sizes": [16, 256],
    "schemes": ["w3a16-gptq"],
    "draws": 10,
    "confidence": 0.95,
    "arms": [
        {"scheme": "w3a16-gptq", "n": n, "rule": rule, "kl_mean": kl}
        for n, rule, kl in [
            (16, "random", 0.07),
            (16, "clusters", 0.06),
            (256, "random", 0.0124),
            (256, "clusters", 1.0),
        ]
    ],
    "comparisons": [
        {"scheme": "w3a16-gptq", "n": 16, "rule": "clusters", "difference": -0.143, "verdict": "better", **TESTED},
        {
            "scheme": "w3a16-gptq",
            "n": 256,
            "rule": "clusters",
            "difference": 0.008,
            "verdict": "no difference detected",
            **TESTED,
        },
    ],
    "controls": [
        {"scheme": "w3a16-gptq", "n": n, "rule": "nonsense", "difference": 0.5, "verdict": "worse", **TESTED}
        for n in (16, 256)
    ],
    "recommendations": [{"sentence": "Hessian-based (w3a16-gptq): 16 samples.", "rules": ["clusters"], "n": 16}],
    "representativeness": {"by_scheme": [{"sentence": "w3a16-gptq: no, no metric predicts."}]},
}


def shown(monkeypatch: pytest.MonkeyPatch, root: Path, found: dict[str, Any]) -> str:
    """What `plumbline study` prints on a terminal of 80 columns, where nothing has to run."""
    workspace(root)
    (root / "data/study/strategies").mkdir(parents=True)
    write_json(root / "data/study/strategies/verdict.json", found)
    monkeypatch.setenv("PLUMBLINE_ROOT", str(root))
    monkeypatch.setenv("COLUMNS", "80")
    asked: list[list[str]] = []
    monkeypatch.setattr(graph_run, "run_graph", lambda root, only, *_: asked.append(list(only)) or 0)
    monkeypatch.setattr(graph_run, "with_upstream", lambda root, asset: ["upstream", asset])
    done = CliRunner().invoke(main, ["study", "strategies"])
    assert done.exit_code == 0, done.output
    assert asked == [["upstream", WAITING]] and requested(root) == ["strategies"]
    return done.stdout


def test_a_study_shows_a_table_that_fits_a_screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = shown(monkeypatch, tmp_path, STUDY)
    for word in ("up to date", "clusters is better", "KL 0.0700", "KL 0.0124", "-14.3 % better", "+0.8 %"):
        assert word in output
    assert "(nonsense)" in output and "+50.0 % worse" in output and "…" not in output
    assert "data/study/strategies/study.html" in output
    assert "16 samples." in output and "no metric predicts" in output
    assert "strategy: embedding_cluster, n: 16 under calibrations:" in output
    table = output[: output.index("Look")]
    assert max(map(len, table.splitlines())) <= 80


def test_a_study_of_many_rules_and_sizes_fits_a_screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes, rules = [8, 16, 32, 64, 128, 256, 512], [f"rule-{i}" for i in range(8)]
    found = {
        **STUDY,
        "sizes": sizes,
        "rules": {rule: {"strategy": "random"} for rule in ["random", *rules]},
        "arms": [{"scheme": "w3a16-gptq", "n": n, "rule": "random", "kl_mean": 0.1} for n in sizes],
        "recommendations": [{**STUDY["recommendations"][0], "rules": []}],
        "comparisons": [
            {**STUDY["comparisons"][1], "n": n, "rule": rule, "difference": -0.1, "verdict": "worse"}
            for n in sizes
            for rule in rules
        ],
    }
    output = shown(monkeypatch, tmp_path, found)
    table = output[: output.index("Look")]
    assert max(map(len, table.splitlines())) <= 80 and len(table.splitlines()) < 30
    assert "n = 8" in table and "n = 512" in table and "n = 16" not in table
    assert "draws: 40 would settle the first open comparison" in output


def workspace(root: Path, **sections: Any) -> Path:
    params = yaml.safe_load((workspace_root() / "params.yaml").read_text())
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
    assert done.exit_code == 1
    assert "['nobody'] not in params.yaml (there: ['formats', 'sizes', 'strategies'])" in done.output
    assert requested(tmp_path) == []


def test_requests_add_up_and_drop_what_is_gone(tmp_path: Path) -> None:
    one = yaml.safe_load((workspace_root() / "params.yaml").read_text())["studies"]["strategies"]
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


def test_a_warning_is_said_and_fails_nothing() -> None:
    @dg.asset
    def weights() -> None: ...

    @dg.asset_check(asset=weights)
    def enough_tokens() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, description="two sites starve")

    result = dg.materialize([weights, enough_tokens])
    assert result.success
    assert graph_run.failed_checks(result) == ["check enough_tokens: two sites starve"]


@pytest.mark.parametrize(
    ("name", "hint"), [("nope", "Assets: raw_corpus"), ("evaluations", "did you mean evaluation?")]
)
def test_an_asset_that_is_not_there_is_an_error(name: str, hint: str) -> None:
    """It was up to date before."""
    done = CliRunner().invoke(main, ["run", "--only", name], env={"PLUMBLINE_ROOT": str(PROJECT)})
    assert done.exit_code == 1 and f"there is no asset {name!r}" in done.output and hint in done.output


@pytest.mark.parametrize("raised", [KeyboardInterrupt, dg.DagsterExecutionInterruptedError])
@pytest.mark.parametrize("in_step", [True, False])
def test_who_stops_a_run_is_told_that_nothing_is_lost(
    in_step: bool, raised: type[BaseException], materialized: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.asset
    def weights() -> None:
        raise raised

    def stop(*_: Any, **__: Any) -> Any:
        if in_step:
            return dg.materialize([weights], raise_on_error=False)
        raise raised

    monkeypatch.setattr(graph_run, "run_asset", stop)
    done = CliRunner().invoke(main, ["run", "--only", "raw_corpus"], env={"PLUMBLINE_ROOT": str(PROJECT)})
    assert done.exit_code == 130, done.output
    assert "stopped in raw_corpus. Nothing was lost" in done.output and "`plumbline run` continues" in done.output
    assert "Dagster" not in done.output.splitlines()[-1]


def test_the_error_of_a_step_is_ours_not_that_which_it_explains() -> None:
    @dg.asset
    def weights() -> None:
        try:
            {}["x"]
        except KeyError as error:
            raise ValueError("config.json lacks x; add it") from error

    result = dg.materialize([weights], raise_on_error=False)
    assert graph_run.failure(result) == "weights: ValueError: config.json lacks x; add it"

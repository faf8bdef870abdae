"""A new file in the inbox leads to one run, also when the daemon is killed; what depends on it follows by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from assets.artifact import read_json
from tests.integration.conftest import BIN, Workspace
from tests.integration.processes import running, until
from tests.integration.test_pipeline import stale

pytestmark = pytest.mark.integration

DAEMON = [str(BIN / "dagster-daemon"), "run"]  # finds the code by [tool.dagster] of the workspace's pyproject.toml
WORDS = ["true", "plumb", "line", "falls", "string", "of", "gravity"]


def text(seed: int) -> str:
    """About 2,000 words that differ from seed to seed."""
    return " ".join(WORDS[(i * i * seed + i) % len(WORDS)] + str(i * seed % 97) for i in range(2000))


@pytest.fixture
def history(finished: Workspace, tmp_path: Path) -> Iterator[tuple[Workspace, dg.DagsterInstance]]:
    workspace = finished.copy(tmp_path / "daemon")
    with dg.DagsterInstance.from_config(str(workspace.root / ".dagster")) as instance:
        yield workspace, instance


def inbox_runs(instance: dg.DagsterInstance) -> list[str]:
    runs = instance.get_runs(dg.RunsFilter(tags={"plumbline/trigger": "inbox"}))
    return [run.status.value for run in runs]


def looks(instance: dg.DagsterInstance) -> int:
    """How often the inbox's sensor has looked and seen nothing to do."""
    for state in instance.all_instigator_state():
        if state.name == "inbox_sensor":
            ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id)
            return sum(tick.status.value == "SKIPPED" for tick in ticks)
    return 0


def ingested(workspace: Workspace) -> set[str]:
    manifest = read_json(workspace.root / "data/raw_corpus/manifest.json")
    return {Path(shard["file"]).name for shard in manifest["shards"] if shard["source"] == "inbox"}


def test_one_file_one_run_over_restarts(history: tuple[Workspace, dg.DagsterInstance], tmp_path: Path) -> None:
    workspace, instance = history
    inbox, log = workspace.root / "inbox", tmp_path / "daemon.log"
    with running(DAEMON, workspace, log) as daemon:
        (inbox / "new.txt").write_text(text(1))
        until(daemon, lambda: inbox_runs(instance) == ["SUCCESS"], log)
    assert ingested(workspace) == {"new.txt"}

    with running(DAEMON, workspace, log) as daemon:  # after SIGKILL
        seen = looks(instance)
        until(daemon, lambda: looks(instance) >= seen + 3, log)
        assert inbox_runs(instance) == ["SUCCESS"]

        for part in range(3):  # a file that is still being written waits
            with (inbox / "second.txt").open("a") as file:
                file.write(text(2 + part))
            seen = looks(instance)
            until(daemon, lambda seen=seen: looks(instance) > seen, log)
        assert inbox_runs(instance) == ["SUCCESS"]
        until(daemon, lambda: inbox_runs(instance) == ["SUCCESS", "SUCCESS"], log)
    assert ingested(workspace) == {"new.txt", "second.txt"}
    made = instance.fetch_materializations(dg.AssetKey("raw_corpus"), limit=9).records
    assert len(made) == 3  # with the one of `plumbline run`: automation did not read the files once more


def test_calibration_sets_follow_new_data_by_themselves(
    history: tuple[Workspace, dg.DagsterInstance], tmp_path: Path
) -> None:
    workspace, instance = history
    log = tmp_path / "daemon.log"
    sets = ["data/calibration_set/random-8", "data/calibration_set/stratified-8"]
    before = workspace.lock()

    def automatic() -> list[dg.DagsterRun]:
        runs = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]))
        return [run for run in runs if "dagster/from_automation_condition" in run.tags]

    with running(DAEMON, workspace, log) as daemon:
        until(daemon, lambda: looks(instance) >= 1, log)
        for seed in range(3, 9):
            (workspace.root / "inbox" / f"{seed}.txt").write_text(text(seed))
        until(daemon, automatic, log)
    assert inbox_runs(instance) == ["SUCCESS"]
    [run] = automatic()
    assert run.asset_selection == {dg.AssetKey("calibration_set")}
    after = workspace.lock()
    assert all(after[path] != before[path] for path in sets)
    # Evaluations read the samples, too, and were not made in vain: they wait for the models.
    waiting = {name.split()[0] for name in stale(workspace)}
    assert waiting == {"activation_stats", "quantized_model", "evaluation", "calibration_report"}

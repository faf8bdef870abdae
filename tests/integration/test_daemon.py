"""New files lead to the right runs, also when the daemon is killed; what depends on them follows by itself."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from plumbline.artifact import read_json
from tests.helpers.paths import BIN
from tests.helpers.processes import running, until
from tests.helpers.workspace import SMALL, Workspace, stale

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


def unfinished(instance: dg.DagsterInstance) -> list[str]:
    """Runs of the inbox that are not over, or will be tried again."""
    runs = instance.get_runs(dg.RunsFilter(tags={"plumbline/trigger": "inbox"}))
    again = {run.parent_run_id for run in runs}
    waiting = [r for r in runs if r.tags.get("dagster/will_retry") == "true" and r.run_id not in again]
    return [run.run_id for run in [*waiting, *(run for run in runs if not run.is_finished)]]


@pytest.mark.long  # test_team_day.py has such a day on a team's servers
def test_a_day_of_twelve_drops_and_three_kills(history: tuple[Workspace, dg.DagsterInstance], tmp_path: Path) -> None:
    """Good, bad, copied, growing, huge and hostile files: exactly the right runs, and every file accounted for."""
    workspace, instance = history
    workspace.set_params(corpus={**SMALL["corpus"], "max_file_bytes": 200_000})
    # What follows from new data has a test of its own below.
    workspace.command(str(BIN / "dagster"), "sensor", "stop", "automation")
    inbox, log = workspace.root / "inbox", tmp_path / "daemon.log"
    secret = tmp_path / "secret.txt"
    secret.write_text("not part of any corpus")

    (inbox / "good.txt").write_text(text(1))  # 1
    (inbox / "copy.txt").write_text(text(1))  # 2: of its content, one is read
    (inbox / "broken.jsonl").write_text("{not json\n" * 400)  # 3: more bad rows than the whole corpus may have
    (inbox / "link.txt").symlink_to(secret)  # 4
    os.mkfifo(inbox / "pipe.txt")  # 5: would be waited for
    (inbox / "program.exe").write_bytes(b"MZ")  # 6
    with running(DAEMON, workspace, log) as daemon:
        until(daemon, lambda: "STARTED" in inbox_runs(instance), log)
    # killed in the middle of the run

    (inbox / "huge.txt").write_text("x" * 200_001)  # 7
    (inbox / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": text(2)}).encode())[:-40])  # 8
    pq.write_table(pa.table({"text": [text(3), text(4)]}), inbox / "table.parquet")  # 9
    with running(DAEMON, workspace, log) as daemon:
        until(daemon, lambda: inbox_runs(instance)[:1] == ["SUCCESS"] and len(inbox_runs(instance)) == 3, log)
        assert inbox_runs(instance) == ["SUCCESS", "SUCCESS", "FAILURE"]  # what was killed ran again; then what came
        whole = "".join(json.dumps({"text": text(seed)}) + "\n" for seed in (5, 6, 7))
        for part in range(3):  # 10: a file that is still being written waits
            with (inbox / "log.jsonl").open("a") as file:
                file.write(whole[part * len(whole) // 3 : (part + 1) * len(whole) // 3])
            seen = looks(instance)
            until(daemon, lambda seen=seen: looks(instance) > seen, log)
        until(
            daemon, lambda: inbox_runs(instance)[:2] == ["SUCCESS", "SUCCESS"] and len(inbox_runs(instance)) == 4, log
        )
    # killed when there was nothing to do

    (inbox / "good.txt").unlink()
    (inbox / "good.txt").write_text(text(1))  # 11: uploaded again
    (inbox / "last.txt").write_text(text(8))  # 12
    with running(DAEMON, workspace, log) as daemon:
        until(daemon, lambda: len(inbox_runs(instance)) == 5, log)
    # killed as soon as the run was there
    with running(DAEMON, workspace, log) as daemon:
        until(
            daemon, lambda: inbox_runs(instance)[:1] == ["SUCCESS"] and not unfinished(instance), log
        )  # a start that was cut off times out first
        seen = looks(instance)
        until(daemon, lambda: looks(instance) >= seen + 2, log)

    runs = inbox_runs(instance)
    assert runs.count("SUCCESS") == 4 and set(runs) == {"SUCCESS", "FAILURE"} and len(runs) <= 6, runs
    manifest = read_json(workspace.root / "data/raw_corpus/manifest.json")
    dropped = {shard["file"]: shard for shard in manifest["shards"] if shard["source"] == "inbox"}
    good = {name: shard["documents"] for name, shard in dropped.items() if not shard.get("quarantined")}
    content = {"copy.txt": 1, "table.parquet": 2, "log.jsonl": 3, "last.txt": 1}
    assert good == content  # copy.txt came first by name; good.txt is the same text
    bad = {name: shard["rejected"] for name, shard in dropped.items() if shard.get("quarantined")}
    assert bad == {
        "broken.jsonl": {"broken_json": 400},
        "cut.jsonl.gz": {"unreadable": 1},
        **{name: {"unsupported": 1} for name in ("link.txt", "pipe.txt", "program.exe", "huge.txt")},
    }
    record = instance.get_latest_materialization_event(dg.AssetKey("raw_corpus"))
    assert record is not None and record.asset_materialization is not None
    held_back = record.asset_materialization.metadata["quarantine"].value
    assert {row.data["file"] for row in held_back.records} == {f"inbox/{name}" for name in bad}  # type: ignore[union-attr]
    assert workspace.plumbline("verify").returncode == 0


@pytest.mark.minutes(3)
def test_the_champion_changes_only_for_a_better_one(history: tuple[Workspace, dg.DagsterInstance]) -> None:
    workspace, _ = history

    def decide(**scheme: object) -> dict[str, object]:
        """Give the deployed scheme other parameters, and let the graph decide."""
        params = yaml.safe_load((workspace.root / "params.yaml").read_text())
        w4 = {"method": "rtn", "weight_bits": 4, **scheme}
        workspace.set_params(schemes={**params["schemes"], "w4a16-gptq": w4})
        workspace.plumbline("run")
        return dict(read_json(workspace.root / "data/deployed_model/promotion.json"))

    first = read_json(workspace.root / "data/deployed_model/promotion.json")
    worse = decide(group_size=128, weight_bits=3)
    assert (first["decision"], worse["decision"]) == ("promoted", "rejected")
    [failed] = [check for check in worse["checks"] if not check["passed"]]  # type: ignore[attr-defined]
    assert failed["name"] == "no_worse_than_the_champion" and failed["found"]["relative"]["low"] > 0
    assert worse["champion_before"]["model"] == first["model"]  # type: ignore[index]
    workspace.plumbline("gc", "--yes")  # the champion is in the cache alone by now
    better = decide(group_size=128, weight_bits=8)
    assert better["decision"] == "promoted" and better["checks"][0]["found"]["relative"]["high"] < 0  # type: ignore[index]
    assert better["champion_before"]["model"] == first["model"]  # type: ignore[index]

    back = workspace.plumbline("rollback", "--why", "only a test").stdout
    assert str(first["pair"]) in back and "is the champion again" in back
    again = decide(group_size=128, weight_bits=8, range="mse")
    assert again["decision"] == "promoted"  # another model; the one that was taken back stays back
    uri = workspace.plumbline("promote", str(again["pair"]), "--why", "twice", check=False)
    assert uri.returncode == 1 and "is already the champion" in uri.stderr


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
    made = {"activation_stats", "sample_page", "quantized_model", "evaluation", "calibration_report", "deployed_model"}
    assert waiting == made

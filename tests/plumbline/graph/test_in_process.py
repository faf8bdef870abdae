"""The runs of commands: they carry the names of the asset and its partitions, and its checks run with it."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from plumbline.graph import definitions
from plumbline.graph.in_process import run_asset

KEYS = ["a", "b", "c", "d"]


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(KEYS), backfill_policy=dg.BackfillPolicy.single_run())
def sets(context):  # Dagster reads the annotation, which is a string here
    return dg.MaterializeResult(metadata={"keys": list(context.partition_keys)})


@dg.asset(deps=[sets])
def report() -> None: ...


@dg.asset_check(asset=sets)
def whole() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@pytest.fixture(autouse=True)
def defs(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = dg.Definitions([sets, report], asset_checks=[whole])
    monkeypatch.setattr(definitions, "load_definitions", lambda root: loaded)


@pytest.mark.parametrize(
    ("keys", "tags"),
    [
        (["b"], {"dagster/partition": "b"}),
        (["a", "b"], {"plumbline/partitions": "a, b"}),
        (KEYS, {"plumbline/partitions": "a … d (4)"}),
    ],
)
def test_a_run_carries_names(keys: list[str], tags: dict[str, str]) -> None:
    with dg.DagsterInstance.ephemeral() as history:
        result = run_asset(Path(), sets, history, {"front_door": "a test"}, keys)
        [run] = history.get_runs()
        assert result.success and run.asset_selection == {sets.key} and run.job_name == "__ASSET_JOB"
        assert {**tags, "front_door": "a test"}.items() <= run.tags.items()
        assert history.get_materialized_partitions(sets.key) == set(keys)
        assert [check.check_name for check in result.get_asset_check_evaluations()] == ["whole"]


def test_an_asset_without_partitions_runs_alone() -> None:
    with dg.DagsterInstance.ephemeral() as history:
        result = run_asset(Path(), report, history, {})
        assert result.success and [event.asset_key for event in result.get_asset_materialization_events()] == [
            report.key
        ]

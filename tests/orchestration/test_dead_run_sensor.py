"""A killed run does not hold up the queue: the sensor ends it, in the instance that DAGSTER_HOME names."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from orchestration.sensors import dead_run_sensor
from tests.helpers.started_run import started_run


def test_a_killed_run_is_marked_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:

        def tick() -> str:
            answer = dead_run_sensor(dg.build_sensor_context(instance=instance))
            assert isinstance(answer, dg.SkipReason)
            return answer.skip_message or ""

        with started_run(tmp_path) as process:
            [run] = instance.get_runs()
            assert tick() == "every started run has a living process"
            process.kill()
            process.wait()
        assert tick() == f"marked as failed: ['{run.run_id}']"
        ended = instance.get_run_by_id(run.run_id)
        assert ended is not None and ended.status == dg.DagsterRunStatus.FAILURE
        assert tick() == "every started run has a living process"

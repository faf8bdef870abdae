"""The calibration report in MLflow on SQLite, and the seconds that its models took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from plumbline.artifact import read_json
from plumbline.graph.timings import seconds_before, seconds_of
from plumbline.tracking.client import Tracking
from plumbline.tracking.report import ReportRecord
from plumbline.tracking.run_logging import log_run
from tests.helpers.calibration_report import Disk, build_report
from tests.helpers.tracking import table


def test_a_report_is_a_run_with_every_comparison(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracking = Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    out = tmp_path / "out"
    build_report(Disk(tmp_path), out)
    verdict = read_json(out / "verdict.json")
    report = ReportRecord(verdict, "1" * 32, sorted(out.iterdir()), {"code_version": "abc"}, 7.5)
    run_id = log_run(tracking, report.as_run()).run_id
    run = MlflowClient(tracking.uri, tracking.uri).get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.tags["code_version"] == "abc"
    assert run.data.tags["mlflow.note.content"].startswith(verdict["headline"])
    assert run.info.end_time - run.info.start_time == 7500, "of the computation, not of the logging"
    client = MlflowClient(tracking.uri, tracking.uri)
    comparisons = {(row["scheme"], row["choice"]): row for row in table(client, run_id, "comparisons.json")}
    models = {row["model"]: row["kl_mean"] for row in table(client, run_id, "models.json")}
    for c in verdict["comparisons"]:
        pair = f"{c['choice']}-{c['scheme']}"
        figures = [c["relative"][key] for key in ("difference", "low", "high")] if "relative" in c else [None] * 3
        row = comparisons[c["scheme"], c["choice"]]
        assert [row["difference"], row["low"], row["high"]] == figures and row["verdict"] == c["verdict"]
        assert models[pair] == verdict["estimates"][pair]["kl_mean"]
    assert run.data.metrics["comparisons/worse"] == 2 and len(run.data.metrics) < 8
    stored = {f.path for folder in (None, "plots") for f in client.list_artifacts(run_id, folder)}
    assert stored == {
        "plots",
        "plots/by_domain.png",
        "plots/difference.png",
        "report.html",
        "comparisons.json",
        "models.json",
        "table.json",
        "verdict.json",
    }
    assert log_run(tracking, report.as_run()).run_id == run_id
    assert log_run(tracking, replace(report, dvc_md5="2" * 32).as_run()).run_id != run_id


def test_seconds_are_those_of_the_latest_run_of_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr("plumbline.graph.partitions.split_pair", lambda _: ("random", "w4"))
    with dg.DagsterInstance.get() as history:
        for asset, key, seconds in (
            ("calibration_set", "random", 1.0),
            ("calibration_set", "random", 2.5),
            ("quantized_model", "random-w4", 4.0),
            ("quantized_model", "other-w4", 8.0),
            ("activation_stats", "random", None),  # brought by `dvc pull`
        ):
            metadata = {} if seconds is None else {"seconds": seconds}
            tags = {"dagster/data_version": "1"}
            event = dg.AssetMaterialization(asset, partition=key, metadata=metadata, tags=tags)
            history.report_runless_asset_event(event)
        assert seconds_of(history, "calibration_set", "random") == 2.5
        assert seconds_of(history, "evaluation", "random-w4") is None
    assert seconds_before("random-w4") == {"selection": 2.5, "quantization": 4.0}

"""What the registry lost, `plumbline run` registers again, from artifacts that are up to date."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from plumbline.artifact import read_json, write_json
from plumbline.provenance import dvc_digest
from plumbline.tracking.champions import champions
from plumbline.tracking.client import Tracking
from plumbline.tracking.promotion import history, promote, restore_history, rollback
from plumbline.tracking.promotion_chain import COPY, contradictions, read_copy
from plumbline.tracking.registry import open_registry
from plumbline.tracking.restoration import restore, unregistered
from tests.helpers.checkpoint import checkpoint
from tests.helpers.small_chain import CHOICE, MODEL, QUANTIZED, SCHEME, chain, record, run
from tests.helpers.tracking import log_evaluation, mlflow_client

PAIR = f"{CHOICE}-{SCHEME}"
EVALUATION = f"data/evaluation/{PAIR}"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a model, its evaluation and the decision that promoted it, of which no registry knows."""
    from plumbline.evaluation.build import build_evaluation
    from plumbline.evaluation.params import EvaluationParams

    root = chain(tmp_path_factory.mktemp("evaluated") / "workspace", "random")
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["calibrations"] = {CHOICE: {"strategy": "random", "n": 8, "seed": 0}}
    params["schemes"] = {SCHEME: {"method": "rtn", "weight_bits": 4, "group_size": 32}}
    params["grid"] = {"calibrations": [CHOICE], "schemes": [SCHEME]}
    params["corpus"] = {"sources": {"texts": {"kind": "directory", "path": "texts"}}}
    params["deployment"] = {"scheme": SCHEME}
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (root / EVALUATION).mkdir(parents=True)
    base, samples = checkpoint("base", root), root / "data/tokenized_samples"
    build_evaluation(EvaluationParams(tokens_per_domain=256), base, root / MODEL, samples, root / EVALUATION)
    record(root, f"evaluation@{PAIR}", EVALUATION, [MODEL, "data/tokenized_samples"])
    (root / "data/deployed_model").mkdir()
    decision = {"decision": "promoted", "pair": PAIR, "model": dvc_digest(root / MODEL), "why": "lowest mean KL"}
    write_json(root / "data/deployed_model/promotion.json", {**decision, "champion_before": None})
    return root


@pytest.fixture
def root(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "workspace"))


def versions(root: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(version.version, version.pair, version.aliases) for version in open_registry(root).versions()]


def test_a_lost_registry_comes_back_with_its_champion(root: Path) -> None:
    assert list(unregistered(root)) == [PAIR]
    said: list[str] = []
    assert restore(root, [], said.append) == 1
    assert versions(root) == [("1", PAIR, ("champion",))]
    [entry] = history(open_registry(root)).entries
    assert (entry.who, entry.why) == ("plumbline", "Restored from the last decision: lowest mean KL")
    assert said == [
        f"▸ {PAIR} was not in the registry: registered as version 1",
        f"▸ {PAIR} (version 1) is the champion again",
    ]
    registered = open_registry(root).versions()[0]
    data = open_registry(root).run(registered.run_id)
    assert data.metrics["kl_mean"] == read_json(root / EVALUATION / "metrics.json")["kl_mean"]
    assert "seconds/evaluation" not in data.metrics
    assert (registered.model, registered.evaluation) == (dvc_digest(root / MODEL), dvc_digest(root / EVALUATION))
    assert unregistered(root) == {} and restore(root, [], said.append) == 0 and len(said) == 2


def test_a_deleted_registered_model_is_registered_from_its_run(root: Path) -> None:
    restore(root, [], lambda _: None)
    run_id = open_registry(root).versions()[0].run_id
    mlflow_client(Tracking.of(root)).delete_registered_model("plumbline")
    assert restore(root, [], lambda _: None) == 1
    assert versions(root) == [("1", PAIR, ("champion",))] and open_registry(root).versions()[0].run_id == run_id


@pytest.mark.parametrize("stale", [QUANTIZED, f"evaluation@{PAIR}"])
def test_what_is_out_of_date_registers_its_own_output(stale: str, root: Path) -> None:
    assert restore(root, [stale], lambda _: None) == 0 and not (root / "mlflow.db").exists()


def test_an_alias_that_somebody_took_away_stays_away(root: Path) -> None:
    restore(root, [], lambda _: None)
    client = mlflow_client(Tracking.of(root))
    client.delete_registered_model_alias("plumbline", "champion")
    client.delete_model_version("plumbline", "1")
    assert restore(root, [], lambda _: None) == 1
    assert [aliases for _, _, aliases in versions(root)] == [()]


def test_a_champion_that_left_the_workspace_is_named(root: Path) -> None:
    path = root / "data/deployed_model/promotion.json"
    before = {"pair": "gone-w4", "model": "f" * 32 + ".dir"}
    write_json(path, read_json(path) | {"decision": "rejected", "champion_before": before})
    said: list[str] = []
    restore(root, [], said.append)
    assert said[-1].startswith("  warning: the champion gone-w4 is not in this workspace; `plumbline promote`")
    assert [aliases for _, _, aliases in versions(root)] == [()]
    promote(open_registry(root), root, "1", "Ada", "instead")


def test_a_server_that_does_not_answer_is_a_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    assert restore(root, [], said.append) == 0
    assert "the registry was not checked: MLflow at http://127.0.0.1:9 does not answer" in said[0]


def test_the_status_lists_what_the_registry_lacks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plumbline.versioning import status

    monkeypatch.setattr(status, "changed_stages", lambda *_: {})
    monkeypatch.setattr("plumbline.versioning.pipeline.on_request", lambda _: set())
    shown: Any = run(root, "status")
    assert shown.exit_code == 1, shown.output
    assert f"registry: {PAIR} is evaluated, but has no version" in shown.output
    assert "the registry lacks versions: plumbline run" in shown.output
    restore(root, [], lambda _: None)
    assert run(root, "status").exit_code == 0


def test_the_history_of_promotions_comes_back_and_goes_on(root: Path) -> None:
    """The registry is lost after two promotions by hand; the models get other numbers in the new one."""
    restore(root, [], lambda _: None)
    registry = open_registry(root)
    other = log_evaluation(Tracking.of(root), pair="another-w4", model_md5=f"{7:032x}.dir")
    for version, who, why in (("2", "Ada", "a try"), ("1", "Grace", "it was worse")):
        promote(registry, root, version, who, why)
    copied = (root / COPY).read_text()
    mlflow_client(Tracking.of(root)).delete_registered_model("plumbline")
    said: list[str] = []
    assert restore(root, [], said.append) == 1
    assert "▸ the history of promotions is restored from promotions.jsonl" in said
    registry = open_registry(root)
    assert other.version == "2" and versions(root) == [("1", PAIR, ("champion",))]
    entries = history(registry).entries
    assert [(entry.who, entry.why) for entry in entries] == [
        ("plumbline", "Restored from the last decision: lowest mean KL"),
        ("Ada", "a try"),
        ("Grace", "it was worse"),
        ("plumbline", "Restored from promotions.jsonl: it was worse"),
    ]
    assert history(registry).remarks == () and (root / COPY).read_text().startswith(copied)
    assert contradictions(history(registry).numbered, read_copy(root, "plumbline")) == []
    with pytest.raises(ValueError, match="is the first champion: none came before it; the earlier ones were deleted"):
        rollback(registry, root, "Ada", "back")


def test_a_rollback_goes_to_the_same_model_under_its_new_number(root: Path) -> None:
    restore(root, [], lambda _: None)
    digests = {"model_md5": f"{7:032x}.dir", "calibration_md5": f"{6:032x}.dir"}
    log_evaluation(Tracking.of(root), pair="another-w4", **digests)
    promote(open_registry(root), root, "2", "Ada", "a try")
    mlflow_client(Tracking.of(root)).delete_registered_model("plumbline")
    assert log_evaluation(Tracking.of(root), pair="another-w4", **digests).version == "1"
    registry = open_registry(root)
    mlflow_client(Tracking.of(root)).set_registered_model_alias("plumbline", "champion", "1")
    restore_history(registry, root)
    restore(root, [], lambda _: None)
    assert [pair for _, pair, _ in versions(root)] == ["another-w4", PAIR]
    assert rollback(registry, root, "Ada", "back").version == "2"
    [newest, *_] = champions(root).promotions
    assert (newest.kind, newest.pair) == ("rolled back", PAIR)


def test_a_lost_report_is_logged_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    (root / "data/calibration_report").mkdir()
    write_json(root / "data/calibration_report/verdict.json", {})
    record(root, "calibration_report", "data/calibration_report", [EVALUATION])
    monkeypatch.setattr("plumbline.tracking.report.log_report", lambda step, run: logged.append(f"{step.name} {run}"))
    monkeypatch.setattr("plumbline.versioning.status.changed_stages", lambda *_: {})
    restore(root, ["calibration_report"], lambda _: None)
    assert logged == []
    mlflow_client(Tracking.of(root)).delete_registered_model("plumbline")
    restore(root, [], lambda _: None)
    assert logged == ["calibration_report restored"]
    restore(root, [], lambda _: None)
    assert len(logged) == 1

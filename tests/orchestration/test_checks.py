"""The checks as Dagster runs them: on which asset, with which severity, on which partitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from assets.calibration_set import calibration_set
from assets.production_drift import production_drift
from assets.quantized_model import quantized_model
from orchestration import checks
from orchestration.jobs import SERVE_CHECK
from plumbline.artifact import write_json
from plumbline.deployed_model.check_specs import GATES
from plumbline.graph.check_result import as_result, partitions
from plumbline.graph.checks import CheckOutcome
from plumbline.markdown import plain
from plumbline.params import load_params
from tests.helpers.paths import PROJECT

FIRST, SECOND, *_ = load_params(PROJECT).calibrations
PAIR = next(iter(load_params(PROJECT).pairs()))
BLOCKING = {
    "raw_corpus": ["every_row_is_accounted_for"],
    "tokenized_samples": ["every_token_is_accounted_for"],
    "calibration_set": ["no_report_document_is_used", "tokenized_as_the_corpus"],
    "quantized_model": ["carries_its_tokenizer"],
}
OTHERS = {
    "raw_corpus": ["no_file_is_held_back"],
    "tokenized_samples": ["no_control_tokens_in_texts"],
    "calibration_set": ["represents_production"],
    "activation_stats": ["every_site_saw_enough_tokens"],
    "quantized_model": ["no_layer_fell_back", "most_matrices_are_quantized", "served_as_simulated"],
    "deployed_model": list(GATES),
}


@pytest.mark.parametrize(("blocking", "expected"), [(True, BLOCKING), (False, OTHERS)])
def test_each_check_belongs_to_its_asset_and_blocks_or_not(blocking: bool, expected: dict[str, list[str]]) -> None:
    names: dict[str, list[str]] = {}
    for spec in (spec for check in checks.CHECKS for spec in check.check_specs):
        if spec.blocking is blocking:
            names.setdefault(spec.asset_key.to_user_string(), []).append(spec.name)
    assert names == expected


def test_no_name_is_cut_off() -> None:
    """The list of checks on an asset's page has room for about 30 characters."""
    specs = [spec for check in checks.CHECKS for spec in check.check_specs] + list(production_drift.check_specs)
    assert len(specs) > 18 and [spec.name for spec in specs if len(spec.name) > 30] == []


def test_every_check_says_what_it_promises() -> None:
    assert all(spec.description for check in checks.CHECKS for spec in check.check_specs)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of which the checks see nothing but what the test writes."""
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    monkeypatch.setenv("PLUMBLINE_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def write_set(root: Path) -> Callable[[str, str], None]:
    """Writes the parts of a calibration set and of the samples that the check of fingerprints reads."""
    (root / "data/tokenized_samples").mkdir(parents=True)
    write_json(root / "data/tokenized_samples/accounting.json", {"fingerprint": "right"})

    def write(name: str, fingerprint: str) -> None:
        (root / "data/calibration_set" / name).mkdir(parents=True)
        write_json(root / "data/calibration_set" / name / "manifest.json", {"fingerprint": fingerprint})

    return write


def test_outside_of_a_run_all_partitions_that_exist_are_checked(root: Path, write_set: Callable) -> None:
    for name in (SECOND, "of-another-time"):
        write_set(name, "right")
    context = dg.build_asset_check_context()
    assert partitions(context, calibration_set) == [SECOND]
    assert partitions(context, quantized_model) == []
    result = checks.tokenized_as_the_corpus(context)
    assert isinstance(result, dg.AssetCheckResult)
    assert result.passed and result.description == "one fingerprint: right"


def test_a_run_checks_its_own_partition_and_a_blocking_failure_fails_it(root: Path, write_set: Callable) -> None:
    write_set(FIRST, "wrong")
    write_set(SECOND, "right")

    @dg.asset(name="calibration_set", partitions_def=calibration_set.partitions_def)
    def stand_in() -> None:
        """Takes the place of the asset, so that its check runs without the asset's own work."""

    def run(key: str) -> dg.ExecuteInProcessResult:
        check = checks.tokenized_as_the_corpus
        return dg.materialize([stand_in, check], partition_key=key, raise_on_error=False)

    assert run(SECOND).success
    failed = run(FIRST)
    assert not failed.success
    [evaluation] = failed.get_asset_check_evaluations()
    assert not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR
    assert evaluation.description == f"{FIRST} was tokenized under wrong, the samples under right"


def test_a_warning_is_shown_as_one(root: Path) -> None:
    (root / "data/activation_stats" / FIRST).mkdir(parents=True)
    header = {"sites": {"a": {"tokens": 3, "width": 4, "members": ["a"]}}, "unreached": []}
    write_json(root / "data/activation_stats" / FIRST / "header.json", header)
    result = checks.every_site_saw_enough_tokens(dg.build_asset_check_context())
    assert isinstance(result, dg.AssetCheckResult)
    assert not result.passed and result.severity == dg.AssetCheckSeverity.WARN
    assert result.metadata["starved"].value == {FIRST: {"a": {"tokens": 3, "width": 4}}}


def test_an_outcome_becomes_a_result_of_the_same_content() -> None:
    result = as_result(CheckOutcome(False, "two rows are missing", {"rows": 2}))
    assert not result.passed and result.severity == dg.AssetCheckSeverity.ERROR
    assert result.description == "two rows are missing" and result.metadata["rows"].value == 2


def test_the_gates_read_the_record_of_the_workspace(root: Path) -> None:
    (root / "data/deployed_model").mkdir(parents=True)
    gates = [{"name": name, "passed": False, "sentence": f"{name}!", "found": 1, "limit": 0} for name in GATES]
    write_json(root / "data/deployed_model/promotion.json", {"pair": "p", "decision": "rejected", "checks": gates})
    results = [check() for check in checks.GATE_CHECKS]
    assert [plain(result.description or "") for result in results if isinstance(result, dg.AssetCheckResult)] == [
        f"{name}!" for name in GATES
    ]


def test_serving_is_checked_on_request_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that makes models gives no result; the job of checks does, here that there is no engine."""
    asked = []
    outcome = CheckOutcome(False, "not tried: no engine", warn=True)
    monkeypatch.setattr(checks, "served_outcome", lambda root, pairs: asked.append(pairs) or outcome)
    (root / "data/quantized_model" / PAIR).mkdir(parents=True)

    @dg.asset(name="quantized_model", partitions_def=quantized_model.partitions_def)
    def stand_in() -> None:
        """Takes the place of the asset."""

    made = dg.materialize([stand_in, checks.served_as_simulated], partition_key=PAIR)
    assert made.success and made.get_asset_check_evaluations() == [] and asked == []
    defs = dg.Definitions([stand_in], asset_checks=[checks.served_as_simulated], jobs=[SERVE_CHECK])
    alone = defs.resolve_job_def(SERVE_CHECK.name).execute_in_process()
    [evaluation] = alone.get_asset_check_evaluations()
    assert asked == [[PAIR]] and not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.WARN

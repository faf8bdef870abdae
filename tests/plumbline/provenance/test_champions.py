"""The history of champions as MLflow has it, and what two models' chains differ in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plumbline.artifact import read_json, write_json
from plumbline.cli.champion_log import render_log
from plumbline.provenance.audit import open_read_case
from plumbline.provenance.difference import difference, render_difference
from plumbline.tracking.champions import champions
from plumbline.tracking.client import Tracking
from tests.helpers.small_chain import CHOICE, MODEL, OTHER, OTHER_CHOICE, SET, run

PROJECT = Path(__file__).resolve().parents[3]


def promotions(root: Path, *entries: Any) -> None:
    """Write the list that promoting appends to; the alias follows the last."""
    with Tracking(f"sqlite:///{root / 'mlflow.db'}").client() as client:
        for n, entry in enumerate(entries, 1):
            value = entry if isinstance(entry, str) else json.dumps(entry)
            client.set_registered_model_tag("plumbline", f"plumbline.promotion.{n}", value)
            if isinstance(entry, dict):
                client.set_registered_model_alias("plumbline", "champion", str(entry["version"]))


FIRST = {
    "when": "2026-03-01T10:00:00+01:00",
    "version": "1",
    "from_version": None,
    "who": "ann",
    "why": "the first one",
}
SECOND = {"when": 1772452800000, "version": 2, "from_version": "1", "who": "bob", "why": "better", "kind": "promoted"}
BACK = {"when": "2026-03-03T09:30:00", "version": "1", "from_version": "2", "who": "ann", "why": "a poisoned document"}


def test_a_history_has_when_which_who_why_data_and_figures(both: Path) -> None:
    promotions(both, FIRST, SECOND, {**BACK, "kind": "rolled back"})
    history = champions(both)
    assert history.champion == "1" and history.remarks == ()
    assert [(each.version, each.kind, each.who, each.when) for each in history.promotions] == [
        ("1", "rolled back", "ann", "2026-03-03 09:30 UTC"),
        ("2", "promoted", "bob", "2026-03-02 12:00 UTC"),
        ("1", "promoted", "ann", "2026-03-01 09:00 UTC"),
    ]
    latest = history.promotions[0]
    assert latest.why == "a poisoned document" and latest.from_version == "2"
    assert latest.choice["name"] == CHOICE and latest.scheme["method"] == "rtn"
    assert latest.figures == {"kl_mean": 0.028, "top1_agreement": 0.9, "weights_bytes": 1234}
    record, tokens = (
        read_json(both / MODEL / "calibration.json"),
        str(read_json(both / SET / "manifest.json")["tokens"]),
    )
    assert latest.data["digest"] == record["calibration_set"]["digest"]
    assert (latest.data["samples"], latest.data["tokens"]) == ("8", tokens)
    text = render_log(history)
    assert text.index("rolled back: version 1") < text.index("promoted: version 2")
    assert "← champion" in text and max(map(len, text.splitlines())) <= 100
    result = run(both, "log", "--json")
    assert result.exit_code == 0 and len(json.loads(result.stdout)["promotions"]) == 3


def test_a_champion_from_before_promotions_were_recorded(both: Path) -> None:
    with Tracking(f"sqlite:///{both / 'mlflow.db'}").client() as client:
        client.delete_registered_model_tag("plumbline", "plumbline.promotion.1")
        for key in ("plumbline.promoted_by", "plumbline.reason"):
            client.delete_model_version_tag("plumbline", "1", key)
    (both / "data/deployed_model").mkdir()
    pair = MODEL.split("/")[-1]
    write_json(both / "data/deployed_model/promotion.json", {"pair": pair, "why": "lowest mean KL of 2 choices"})
    [only] = champions(both).promotions
    assert (only.version, only.why, only.who) == ("1", "lowest mean KL of 2 choices", "not recorded")
    assert only.when.startswith("registered 20")


def test_a_history_that_was_tampered_with_says_so(both: Path) -> None:
    promotions(both, FIRST, "{", SECOND)
    with Tracking(f"sqlite:///{both / 'mlflow.db'}").client() as client:
        client.delete_registered_model_tag("plumbline", "plumbline.promotion.1")
        client.set_model_version_tag("plumbline", "1", "plumbline.promotion.5", json.dumps({"version": "7"}))
    history = champions(both)
    remarks = " ".join(history.remarks)
    assert "plumbline.promotion.2 is not a record" in remarks
    assert "a promotion was removed" in remarks
    assert "the last promotion on record is of version 7, but the alias names 2" in remarks
    assert any(each.pair == "a version that was deleted" for each in history.promotions)
    assert run(both, "log").exit_code == 0


def test_the_log_of_a_sqlite_store_imports_neither_mlflow_nor_anything_heavy(both: Path) -> None:
    """The import of MLflow takes longer than everything else that the command does."""
    heavy = ["mlflow", "pandas", "numpy", "pyarrow", "torch", "dvc", "dagster"]
    code = (
        "import sys, contextlib\n"
        "from plumbline.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main(['log'])\n"
        f"sys.exit(str([name for name in {heavy} if name in sys.modules]))"
    )
    environment = {**os.environ, "PLUMBLINE_ROOT": str(both)}
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert "← champion" in done.stdout and done.stderr.splitlines()[-1] == "[]"


def test_without_a_registry(workspace: Path) -> None:
    result = run(workspace, "log")
    assert result.exit_code == 2 and "`plumbline run` makes it" in result.output


def test_no_alias_is_exit_status_1(both: Path) -> None:
    with Tracking(f"sqlite:///{both / 'mlflow.db'}").client() as client:
        client.delete_registered_model_alias("plumbline", "champion")
        client.delete_registered_model_tag("plumbline", "plumbline.promotion.1")
    result = run(both, "log")
    assert result.exit_code == 1 and "no champion yet" in result.output


# ---------------------------------------------------------------------------------------------------------------------
# diff


def test_two_models_differ_in_samples_parameters_versions_and_figures(registered: Path) -> None:
    cases = open_read_case(registered / MODEL, registered), open_read_case(registered / OTHER, registered)
    found = difference(*cases, ("a", "b"))
    lists = [
        [
            sample["sample_id"]
            for sample in read_json(registered / path / "calibration.json")["calibration_set"]["samples"]
        ]
        for path in (MODEL, OTHER)
    ]
    assert [row["sample_id"] for row in found.only_a] == [each for each in lists[0] if each not in lists[1]]
    assert [row["sample_id"] for row in found.only_b] == [each for each in lists[1] if each not in lists[0]]
    assert found.samples_in_both + len(found.only_a) == 8
    assert (found.parameters["choice.name"].a, found.parameters["choice.name"].b) == (CHOICE, OTHER_CHOICE)
    assert (found.parameters["choice.n"].a, found.parameters["choice.n"].b) == (8, 6)
    assert found.parameters["scheme.method"].b == "gptq"
    assert set(found.versions) == {"calibration set", "statistics"}
    assert found.figures["kl_mean"].a == 0.028 and found.figures["kl_mean"].b == 0.027
    assert found.weights and not found.same
    text = render_difference(found)
    assert f"choice.name: {CHOICE} → {OTHER_CHOICE}" in text and "DIFFERENT" in text


@pytest.mark.parametrize(("b", "status"), [("models:/plumbline@champion", 0), ("models:/plumbline/2", 1), ("no", 2)])
def test_diff_exit_codes(b: str, status: int, registered: Path) -> None:
    result = run(registered, "diff", str(registered / MODEL), b, *(["--json"] if status == 1 else []))
    assert result.exit_code == status, result.output
    if status == 0:
        assert "SAME" in result.output
    if status == 1:
        assert json.loads(result.stdout)["same"] is False


def test_the_same_samples_in_another_order_are_a_difference(both: Path) -> None:
    a = open_read_case(both / MODEL, both)
    b = open_read_case(both / MODEL, both)
    b.record["calibration_set"]["samples"].reverse()
    found = difference(a, b, ("a", "b"))
    assert found.reordered and not found.same and not found.only_a


@pytest.mark.parametrize("command", ["audit", "affected", "log", "diff", "sign"])
def test_every_command_says_its_exit_status(command: str, registered: Path) -> None:
    told = run(registered, command, "--help")
    assert "Exit status: 0" in " ".join(told.output.split())

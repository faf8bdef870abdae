"""`plumbline audit --explain` names every link that an audit can have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from plumbline.cli.main import main
from plumbline.provenance import audit
from plumbline.provenance.audit import AFTER, CHECKS, REGISTRY
from plumbline.provenance.explain import LINKS
from tests.helpers.small_chain import MODEL, run

NAMES = [link.name for link in LINKS]


def test_every_check_is_explained_once_in_the_order_of_a_report(both: Path) -> None:
    checks = [name for name, _ in (*REGISTRY, *CHECKS, *AFTER)]
    assert len(set(NAMES)) == len(NAMES)
    assert [name for name in NAMES if name in checks] == checks
    assert set(NAMES) - set(checks) == {"DVC's cache", "weights file", "hub cache", "signature", "statement"}
    shown = [link.name for link in audit(both / MODEL, both).links]
    assert shown == [name for name in NAMES if name in shown] and len(shown) >= 14
    assert all(link.meaning.endswith(".") and link.compares for link in LINKS)


@pytest.mark.parametrize("arguments", [["--explain"], [MODEL, "--explain"]])
def test_the_command_lists_them_without_a_model(arguments: list[str], pristine: Path) -> None:
    result = run(pristine, "audit", *arguments)
    assert result.exit_code == 0
    assert all(f"{name}: " in result.output for name in NAMES)
    assert "Out of reach without a signature" in result.output
    assert max(map(len, result.output.splitlines())) <= 100
    told = json.loads(run(pristine, "audit", *arguments, "--json").stdout)
    assert [link["name"] for link in told] == NAMES


def test_without_a_model_the_command_says_what_is_missing(pristine: Path) -> None:
    result = run(pristine, "audit")
    assert result.exit_code == 2 and "Missing argument 'MODEL'" in result.output


def test_the_list_needs_no_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLUMBLINE_ROOT", raising=False)
    shown = CliRunner().invoke(main, ["audit", "--explain"])
    assert shown.exit_code == 0 and all(f"{name}: " in shown.output for name in NAMES)
    assert CliRunner().invoke(main, ["audit", "models:/plumbline@champion"]).exit_code == 2

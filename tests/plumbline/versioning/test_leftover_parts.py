"""The parts of interrupted steps are deleted only where no run can go on from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock

from plumbline.cli import gc as gc_module
from plumbline.cli.main import main
from plumbline.versioning import leftover_parts as module
from plumbline.versioning.garbage import Garbage
from plumbline.versioning.leftover_parts import leftover_parts, remove_parts
from plumbline.versioning.scratch import parts_of

STEPS = ("activation_stats@a", "activation_stats@gone", "quantized_model@a-x", "quantized_model@a-y")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace in which `activation_stats@a` has to run, and the steps of quantized_model are up to date."""
    for step in STEPS:
        parts_of(tmp_path, step).mkdir(parents=True)
        (parts_of(tmp_path, step) / "x").write_bytes(bytes(8192))
    (tmp_path / "params.yaml").write_text("")
    asked: list[set[str]] = []

    def changed(root: Path, *assets: str) -> dict[str, list[str]]:
        asked.append(set(assets))
        return {"activation_stats@a": ["never run"]}

    monkeypatch.setattr(module, "changed_stages", changed)
    monkeypatch.setattr(module, "resolved", lambda root: dict.fromkeys(set(STEPS) - {"activation_stats@gone"}))
    return tmp_path


def present(root: Path) -> set[str]:
    return {step for step in STEPS if parts_of(root, step).is_dir()}


def test_only_what_no_run_needs_is_removed(root: Path) -> None:
    found = {left.step: left for left in leftover_parts(root)}
    assert [step for step, left in found.items() if left.needed] == ["activation_stats@a"]
    assert all(8192 <= left.bytes <= 16384 for left in found.values())
    assert remove_parts(root, found.values()) == 3 and present(root) == {"activation_stats@a"}


def test_a_step_that_runs_keeps_its_parts(root: Path) -> None:
    locks = root / ".plumbline" / "locks"
    locks.mkdir()
    before = leftover_parts(root)
    with FileLock(locks / "quantized_model@a-x.lock"):
        assert {left.step for left in leftover_parts(root) if left.needed == "it is running"} == {"quantized_model@a-x"}
        assert remove_parts(root, before) == 2  # it began after it was looked at
    assert present(root) == {"activation_stats@a", "quantized_model@a-x"}


def test_a_workspace_without_parts_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolved", lambda root: pytest.fail("asked"))
    assert leftover_parts(tmp_path) == []


def test_gc_lists_them_and_asks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_module, "require_sole_use", lambda *args: None)
    monkeypatch.setattr(gc_module, "retained", lambda *args: (frozenset(), []))
    monkeypatch.setattr("plumbline.versioning.garbage.garbage", lambda *args: Garbage((), 0, ()))

    def gc(*arguments: str, answer: str = "") -> str:
        return CliRunner().invoke(main, ["gc", *arguments], input=answer, env={"PLUMBLINE_ROOT": str(root)}).output

    shown = gc("--dry")
    assert "kept: 0.0 MB that an interrupted activation_stats@a left" in shown and "its next run goes on" in shown
    assert shown.count("would delete: ") == 3
    assert "Delete them?" in gc(answer="n\n") and present(root) == set(STEPS)
    assert "Removed the parts of 3 interrupted steps." in gc("--yes") and present(root) == {"activation_stats@a"}
    assert "Delete them?" not in gc()

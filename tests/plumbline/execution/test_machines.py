"""What the machines of a cluster are asked before any work, without a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from plumbline.execution import machines
from plumbline.execution.packages import package_versions


def test_a_machine_with_other_packages_is_named_with_both_versions(tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    said = replace(machines.answer(str(tmp_path / "mark")), host="gpu-7")
    assert list(machines._differences(said, "10.0.0.7", tmp_path)) == []
    here = package_versions()
    other = replace(said, packages={"torch": "2.0.1", "transformers": here["transformers"]})
    assert list(machines._differences(other, "10.0.0.7", tmp_path)) == [
        f"Ray's machine gpu-7 (10.0.0.7) has torch 2.0.1, the machine that shares out has {here['torch']}: install "
        f"torch=={here['torch']} there"
    ]

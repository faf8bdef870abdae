"""A worker computes only with the code of the machine that shares out: its library, its kernels, its packages."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from plumbline import kernels
from plumbline.execution.packages import package_versions
from plumbline.versioning import same_code
from plumbline.versioning.code import code_version
from plumbline.versioning.same_code import OtherCode, RecordedCode


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedCode:
    return RecordedCode("activation_stats", code_version("activation_stats"), tmp_path_factory.mktemp("workspace"))


def test_the_same_code_is_accepted_in_another_process(recorded: RecordedCode) -> None:
    pickle.loads(pickle.dumps(recorded.require))()
    RecordedCode("activation_stats", "", recorded.root).require()


def test_a_machine_without_the_compiled_kernel_is_refused(
    recorded: RecordedCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "implementation", lambda *arguments: "another")
    with pytest.raises(OtherCode, match="has another version of the code of activation_stats than .* compiled kernels"):
        recorded.require()


@pytest.mark.parametrize("package", ["torch", "transformers"])
@pytest.mark.parametrize(("version", "said"), [("1.2", "{} 1.2"), (None, "no {}")])
def test_a_machine_with_another_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, version: str | None, said: str
) -> None:
    recorded, here = RecordedCode("evaluation", "", tmp_path), package_versions()
    there = {name: here[name] for name in here if name != package} | ({package: version} if version else {})
    monkeypatch.setattr(same_code, "package_versions", lambda: there)
    with pytest.raises(OtherCode) as refusal:
        recorded.require()
    expected = f" has {said.format(package)}, the machine that shares out has {here[package]}: install "
    assert expected in str(refusal.value)

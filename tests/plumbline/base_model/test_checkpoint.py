"""The base model as one value: what artifacts record of it, and that it costs nothing until it is used."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plumbline.base_model import checkpoint
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.folder import BUNDLED, base_model_digest
from plumbline.base_model.params import ModelParams


@pytest.mark.parametrize(
    ("name", "recorded"), [("models/tiny", "models/tiny"), ("/elsewhere/tiny", "tiny"), ("org/model", "org/model")]
)
def test_the_recorded_name_holds_no_path_of_this_machine(tmp_path: Path, name: str, recorded: str) -> None:
    assert BaseCheckpoint.of(ModelParams(name=name), tmp_path).name == recorded


def test_the_bundled_model_is_found_from_any_workspace(tmp_path: Path) -> None:
    base = BaseCheckpoint.of(ModelParams(name="llama-stdlib-6m"), tmp_path)
    assert base.folder == BUNDLED
    assert base.digest() == base_model_digest(BUNDLED)


def test_a_folder_of_the_workspace_comes_before_the_bundled_model(tmp_path: Path) -> None:
    (tmp_path / BUNDLED.name).mkdir()
    (tmp_path / BUNDLED.name / "config.json").write_text("{}")
    assert BaseCheckpoint.of(ModelParams(), tmp_path).folder == tmp_path / BUNDLED.name


def test_a_missing_folder_is_reported_when_it_is_needed(tmp_path: Path) -> None:
    base = BaseCheckpoint.of(ModelParams(name="models/missing/deeper"), tmp_path)
    for use in (base.digest, base.load, base.tokenizer):
        with pytest.raises(FileNotFoundError, match="no folder 'models/missing/deeper'"):
            use()


def test_a_worker_process_is_given_the_same_checkpoint(tmp_path: Path) -> None:
    base = BaseCheckpoint.of(ModelParams(device="cpu"), tmp_path)
    there = pickle.loads(pickle.dumps(base))
    assert there == base and there.folder == BUNDLED


def test_a_worker_on_another_machine_downloads_the_model_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's folder of the hub's cache may not be there, or hold nothing."""
    base = BaseCheckpoint.of(ModelParams(name="org/model", revision="0" * 40), tmp_path)
    for machine in ("head", "worker"):
        shutil.copytree(BUNDLED, tmp_path / machine)
    monkeypatch.setattr(checkpoint, "model_folder", lambda params, root: tmp_path / "head")
    digest, job = base.digest(), pickle.dumps(base)
    assert base.folder == tmp_path / "head"
    shutil.rmtree(tmp_path / "head")
    monkeypatch.setattr(checkpoint, "model_folder", lambda params, root: tmp_path / "worker")
    there = pickle.loads(job)
    assert there.folder == tmp_path / "worker" and there.digest() == digest and there == base


def test_weights_on_disk_or_in_memory_are_the_same_modules() -> None:
    base = BaseCheckpoint.of(ModelParams(device="cpu"))
    names = [name for name, _ in base.loaded().named_modules()]
    assert names == [name for name, _ in base.skeleton().named_modules()]
    assert names == [name for name, _ in base.streamed().model.named_modules()]
    assert base.loaded() is base.loaded()


def test_naming_a_checkpoint_imports_no_torch() -> None:
    code = (
        "import sys; from plumbline.base_model.checkpoint import BaseCheckpoint as B; "
        "from plumbline.base_model.params import ModelParams as M; B.of(M()).digest(); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"

"""The content outlives DVC: an audit and a restoration read the cache and the remote without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plumbline.provenance import dvc_digest
from plumbline.versioning.cache import cache_folder
from tests.helpers.paths import PROJECT
from tests.helpers.s3_server import bucket
from tests.helpers.small_chain import MODEL, SET, STATS, run
from tests.helpers.without_dvc import BLOCKED


def without_dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PLUMBLINE_ROOT": str(root), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)


def use(root: Path, remote: str) -> None:
    text = f"[core]\n    no_scm = true\n    remote = store\n['remote \"store\"']\n    url = {remote}\n"
    (root / ".dvc/config").write_text(text)
    (root / "dvc.yaml").write_text("stages: {}\n")


def test_an_audit_and_a_restoration_from_the_cache(both: Path, tmp_path: Path) -> None:
    wanted = {path: dvc_digest(both / path) for path in (SET, STATS)}
    shutil.rmtree(both / SET)
    done = without_dvc(both, "audit", MODEL, "--restore", str(tmp_path / "back"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VERIFIED" in done.stdout and {path: dvc_digest(tmp_path / "back" / path) for path in wanted} == wanted


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_restoration_from_the_remote(kind: str, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of a registry's champion is in the remote alone."""
    objects, wanted = cache_folder(both), {path: dvc_digest(both / path) for path in (SET, STATS)}
    if kind == "folder":
        shutil.move(objects, tmp_path / "remote/files/md5")
        restored(both, tmp_path, str(tmp_path / "remote"), wanted)
    else:
        with bucket("artifacts", monkeypatch) as files:
            files.put(str(objects), "artifacts/team/files/md5", recursive=True)
            shutil.rmtree(objects)
            restored(both, tmp_path, "s3://artifacts/team", wanted)


def restored(root: Path, place: Path, remote: str, wanted: dict[str, str]) -> None:
    use(root, remote)
    for path in (SET, STATS, MODEL):
        shutil.rmtree(root / path)
    target = place / "back"
    done = without_dvc(root, "audit", "models:/plumbline@champion", "--restore", str(target))
    assert done.returncode == 0 and "RESTORED to" in done.stdout, done.stdout + done.stderr
    assert {path: dvc_digest(target / path) for path in wanted} == wanted


def test_a_remote_of_another_kind_says_that_it_needs_dvc(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(cache_folder(workspace))
    use(workspace, "ssh://host/store")
    for name in ("dvc.exceptions", "dvc.repo", "dvc_data.hashfile.hash_info"):
        monkeypatch.setitem(sys.modules, name, None)
    done = run(workspace, "audit", MODEL, "--restore", str(tmp_path / "back"))
    assert done.exit_code == 1 and "only DVC can read a remote of this kind" in " ".join(done.output.split())


def test_an_altered_object_of_a_remote_is_refused(workspace: Path, tmp_path: Path) -> None:
    shutil.move(cache_folder(workspace), tmp_path / "remote/files/md5")
    md5 = dvc_digest(workspace / STATS)
    (altered := tmp_path / "remote/files/md5" / md5[:2] / md5[2:]).chmod(0o644)
    altered.write_bytes(altered.read_bytes() + b" ")
    use(workspace, str(tmp_path / "remote"))
    done = run(workspace, "audit", MODEL, "--restore", str(tmp_path / "back"))
    shown = " ".join(done.output.split())
    assert done.exit_code == 1 and "holds other bytes than its name says; delete it there" in shown, shown
    assert not (cache_folder(workspace) / md5[:2] / md5[2:]).exists() and not (tmp_path / "back").exists()

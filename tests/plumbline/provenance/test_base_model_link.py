"""Where the audit looks for the base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from plumbline.base_model.folder import BUNDLED, base_model_digest
from plumbline.provenance.data_links import base_model
from plumbline.provenance.link import Case


def case(root: Path, name: str, digest: str) -> Case:
    return Case(root / "model", root, {}, {"base_model": {"name": name, "revision": None, "digest": digest}})


def test_the_bundled_model_is_found_from_a_workspace_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    link = base_model(case(tmp_path, BUNDLED.name, base_model_digest(BUNDLED)))
    assert (link.status, link.found) == ("verified", base_model_digest(BUNDLED))


def test_another_bundled_model_is_not_tampering(tmp_path: Path) -> None:
    link = base_model(case(tmp_path, BUNDLED.name, "0" * 64))
    assert link.status == "missing" and "bundled with this version of Plumbline is another model" in link.meaning


def test_a_model_outside_the_workspace_comes_before_the_bundled_one(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere" / BUNDLED.name, tmp_path / "workspace"
    shutil.copytree(BUNDLED, elsewhere)
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps(config))
    root.mkdir()
    (root / "params.yaml").write_text(f"model: {{name: {elsewhere}}}\n")
    assert base_model_digest(elsewhere) != base_model_digest(BUNDLED)
    assert base_model(case(root, BUNDLED.name, base_model_digest(elsewhere))).status == "verified"
    assert base_model(case(root, BUNDLED.name, base_model_digest(BUNDLED))).status == "tampered"

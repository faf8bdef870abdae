"""Links of `cache.type = symlink` are part of a model's folder; any other link is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from plumbline.provenance import audit
from plumbline.provenance.model_files import irregular, is_cache_link, without_links
from plumbline.versioning.digest import md5_of
from tests.helpers.small_chain import MODEL, link, make_keys, run, states


@pytest.fixture
def root(registered: Path, tmp_path: Path) -> Path:
    """A workspace whose model is checked out as links into its cache."""
    root = Path(shutil.copytree(registered, tmp_path / "workspace"))
    for path in sorted((root / MODEL).iterdir()):
        path.symlink_to(replaced(root, path))
    return root


def replaced(root: Path, path: Path) -> Path:
    md5 = md5_of(path)
    path.unlink()
    return root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def test_a_folder_of_links_verifies_and_can_be_signed(root: Path, tmp_path: Path) -> None:
    assert states(audit(root / MODEL, root)) == {}
    private, public = make_keys(tmp_path, "key")
    assert run(root, "sign", MODEL, "--key", str(private)).exit_code == 0
    assert run(root, "audit", MODEL, "--public-key", str(public)).exit_code == 0
    for path in (root / MODEL).iterdir():  # checked out anew, as files
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    assert run(root, "audit", MODEL, "--public-key", str(public)).exit_code == 0


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "README.md"])
@pytest.mark.parametrize("target", ["a file elsewhere", "another object", "an altered object", "nothing"])
def test_any_other_link_is_a_tampering(target: str, name: str, root: Path, tmp_path: Path) -> None:
    path = root / MODEL / name
    before = path.resolve()
    if target == "an altered object":
        before.chmod(0o644)
        before.write_bytes(before.read_bytes() + b" ")
        assert not is_cache_link(path)
    else:
        path.unlink()
        shutil.copyfile(before, tmp_path / "copy")
        other = next(file for file in (root / MODEL).iterdir() if file.name == "generation_config.json").resolve()
        path.symlink_to({"a file elsewhere": tmp_path / "copy", "another object": other}.get(target, root / "gone"))
    result = audit(root / MODEL, root)
    assert result.verdict == "tampered" and link(result, "model folder").status == "tampered", states(result)


def test_what_is_laid_out_without_links_is_the_same(root: Path) -> None:
    folder = root / MODEL
    assert irregular(folder) == []
    with without_links(folder) as plain:
        assert plain != folder and not any(path.is_symlink() for path in plain.rglob("*"))
        assert {p.name: p.read_bytes() for p in plain.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert not plain.exists()
    with without_links(root / "base") as unchanged:
        assert unchanged == root / "base"


@pytest.mark.parametrize("text", ["[core\nx", "x = 1\n", "\udcff\udcfe"])
def test_a_configuration_that_cannot_be_read_says_nothing_of_the_model(
    registered: Path, tmp_path: Path, text: str
) -> None:
    """The audit called the chain tampered."""
    root = Path(shutil.copytree(registered, tmp_path / "workspace"))
    (root / ".dvc/config.local").write_bytes(text.encode("utf-8", "surrogateescape"))
    found = states(audit(root / MODEL, root))
    assert found and set(found.values()) == {"missing"}

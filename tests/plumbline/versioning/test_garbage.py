"""What a bare `dvc gc` loses of a registered model, and `plumbline gc` keeps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline.versioning.cache import cached, cached_listing
from plumbline.versioning.digest import dvc_digest
from plumbline.versioning.garbage import collect


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A DVC project whose model was made three times; dvc.yaml knows the last one."""
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("project")
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    hashes = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(root)
        with Repo(str(root)) as repo:
            for name in ("registered", "forgotten", "current"):
                shutil.rmtree(root / "model", ignore_errors=True)
                (root / "model").mkdir()
                (root / "model/weights").write_text(f"weights of {name}")
                (root / "model/config").write_text("the same in all")
                repo.add("model")
                hashes[name] = dvc_digest(root / "model")
    yield root, hashes


def whole(root: Path, md5: str) -> bool:
    listing = cached_listing(root, md5)
    return listing is not None and all(cached(root, of) for of in listing.values())


def test_what_the_registry_names_survives_and_a_bare_gc_would_delete_it(project: tuple[Path, dict[str, str]]) -> None:
    root, hashes = project
    assert all(whole(root, md5) for md5 in hashes.values())
    assert "2" in collect(root, [hashes["registered"]], ["--dry"])  # the tree and the weights of the forgotten one
    collect(root, [hashes["registered"]])
    assert {name for name, md5 in hashes.items() if whole(root, md5)} == {"registered", "current"}
    assert not list(root.rglob("plumbline-gc*")) and not (root / "kept.dvc").exists()

    with pytest.raises(RuntimeError, match="no DVC hash; nothing was deleted"):
        collect(root, ["../../etc"])
    collect(root, [])  # what `dvc gc --workspace` does
    assert {name for name, md5 in hashes.items() if whole(root, md5)} == {"current"}

"""The exact set, statistics and parameters come back by hash, whatever the workspace holds by now."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from plumbline.provenance import dvc_digest, reproduce
from plumbline.provenance.audit import open_read_case
from plumbline.provenance.cache_recovery import chain_hashes
from plumbline.provenance.restore import restore
from plumbline.versioning import code
from plumbline.versioning.digest import Hasher
from plumbline.versioning.run_history import History
from tests.helpers.small_chain import (
    CHOICE,
    CORPUS,
    MODEL,
    OTHER,
    OTHER_SET,
    OTHER_STATS,
    QUANTIZED,
    SCHEME,
    SET,
    STATS,
    record,
    remember,
    run,
)


def move_on(root: Path) -> None:
    """dvc.lock and the working tree hold something else under the same names."""
    for stage in (f"calibration_set@{CHOICE}", f"activation_stats@{CHOICE}"):  # the model is stale, and stays
        remember(root, stage)
    for path, other in ((SET, OTHER_SET), (STATS, OTHER_STATS)):
        shutil.rmtree(root / path)
        shutil.copytree(root / other, root / path)
    record(root, f"calibration_set@{CHOICE}", SET, ["data/tokenized_samples"])
    record(root, f"activation_stats@{CHOICE}", STATS, [SET])
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")


@pytest.mark.parametrize("moved", [False, True])
def test_what_comes_back_is_what_the_model_was_made_from(moved: bool, both: Path, tmp_path: Path) -> None:
    wanted = {path: dvc_digest(both / path) for path in (SET, STATS)}
    if moved:
        move_on(both)
    target = tmp_path / "back"
    result = run(both, "audit", str(both / MODEL), "--restore", str(target), "--json")
    assert result.exit_code == 0, result.output
    assert {path: dvc_digest(target / path) for path in wanted} == wanted
    params = yaml.safe_load((target / "params.yaml").read_text())
    assert params["schemes"] == {SCHEME: {"method": "rtn", "weight_bits": 4, "group_size": 32}}
    assert params["calibrations"] == {CHOICE: {"strategy": "random", "n": 8, "seed": 0}}
    assert params["tokenize"] == {"max_length": 32}
    told = json.loads(result.stdout)["restored"]
    assert told["dvc"].items() >= wanted.items()
    assert told["corpus"] == dvc_digest(both / CORPUS)
    assert {path.name for path in tmp_path.iterdir()} == {"workspace", "back"}  # no draft is left


def test_a_set_that_no_run_leads_to_is_found_by_its_digest(both: Path, tmp_path: Path) -> None:
    """A model from another workspace, of which only the content of the cache is here."""
    wanted = dvc_digest(both / SET)
    (both / "dvc.lock").unlink()
    told = restore(open_read_case(both / MODEL, both), tmp_path / "back")
    assert told["dvc"][SET] == wanted
    assert "calibration.json" in told["parameters"]
    params = yaml.safe_load((tmp_path / "back" / "params.yaml").read_text())
    assert params["calibrations"][CHOICE]["n"] == 8 and params["schemes"][SCHEME]["weight_bits"] == 4


def test_what_the_cache_lacks_comes_from_the_remote(both: Path, tmp_path: Path) -> None:
    wanted = dvc_digest(both / SET)
    shutil.move(both / ".dvc/cache/files", tmp_path / "remote" / "files")
    config = f"[core]\n    no_scm = true\n    remote = store\n['remote \"store\"']\n    url = {tmp_path / 'remote'}\n"
    (both / ".dvc/config").write_text(config)
    (both / "dvc.yaml").write_text("stages: {}\n")
    shutil.rmtree(both / SET)
    shutil.rmtree(both / MODEL)
    assert run(both, "audit", "models:/plumbline@champion").exit_code == 1  # it downloads nothing unasked
    result = run(both, "audit", "models:/plumbline@champion", "--restore", str(tmp_path / "back"))
    assert result.exit_code == 0 and "RESTORED to" in result.output, result.output
    assert dvc_digest(tmp_path / "back" / SET) == wanted


def test_nothing_is_left_where_something_cannot_be_had(both: Path, tmp_path: Path) -> None:
    move_on(both)
    case = open_read_case(both / MODEL, both)
    target = tmp_path / "back"
    md5 = chain_hashes(case)[STATS]
    stored = both / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    tensors = json.loads(stored.read_text())[-1]["md5"]
    path = both / ".dvc/cache/files/md5" / tensors[:2] / tensors[2:]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\xff")
    result = run(both, "audit", str(both / MODEL), "--restore", str(target))
    assert result.exit_code == 1 and "NOT RESTORED" in result.output
    assert "holds other bytes than its name says" in " ".join(result.output.split())
    assert [p.name for p in tmp_path.iterdir()] == ["workspace"]

    path.unlink()
    with pytest.raises(ValueError, match="cache and its remote lack stats.safetensors"):
        restore(case, target)
    assert [p.name for p in tmp_path.iterdir()] == ["workspace"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="is not an empty folder"):
        restore(case, tmp_path / "full")


# ---------------------------------------------------------------------------------------------------------------------
# History


def test_history_remembers_from_lock_run_cache_and_git(workspace: Path) -> None:
    model, chosen = dvc_digest(workspace / MODEL), dvc_digest(workspace / SET)
    ancestry = History(workspace).ancestry(model)
    assert {CORPUS, SET, STATS, MODEL, f"data/calibration_choice/{CHOICE}", "data/tokenized_samples"} == ancestry.keys()
    order = list(ancestry)
    assert order.index(CORPUS) < order.index("data/tokenized_samples") < order.index(SET) < order.index(STATS)
    assert order[-1] == MODEL
    git(workspace, "init", "-q")
    git(workspace, "add", "dvc.lock")
    git(workspace, "commit", "-qm", "one")
    remember(workspace, QUANTIZED)
    assert History(workspace).maker(model).deps[SET] == chosen  # type: ignore[union-attr]
    shutil.rmtree(workspace / ".dvc/cache/runs")
    assert History(workspace).maker(model).deps[SET] == chosen  # type: ignore[union-attr]
    assert History(workspace).commit_of(model) == git(workspace, "rev-parse", "HEAD").strip()
    assert History(workspace).maker("0" * 32) is None


def git(root: Path, *arguments: str) -> str:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    done = subprocess.run(["git", *author, *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# The clean place of --reproduce (it runs in tests/integration/test_audit.py)


def test_the_clean_place_has_the_code_and_parameters_of_then(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library has moved on, and a commit has what it was; so have the sources, of which the corpus is in the
    cache."""
    library = tmp_path / "installed" / "plumbline"
    builder = Path("quantized_model/build.py")
    (library / builder).parent.mkdir(parents=True)
    for name in ("__init__.py", "quantized_model/__init__.py"):
        (library / name).write_text("")
    (library / builder).write_text("then = 1\n")
    monkeypatch.setattr(code, "LIBRARY", library)
    monkeypatch.setattr(reproduce, "LIBRARY", library)
    shutil.copytree(library, workspace / "plumbline")
    lock = yaml.safe_load((workspace / "dvc.lock").read_text())
    version = {"quantized_model": code.code_version("quantized_model")}
    lock["stages"][QUANTIZED]["params"][code.VERSIONS] = version
    lock["stages"]["raw_corpus"]["deps"].append({"path": "texts", "md5": dvc_digest(workspace / "texts")})
    (workspace / "dvc.lock").write_text(yaml.safe_dump(lock))
    case = open_read_case(workspace / MODEL, workspace)
    ancestry = case.history.ancestry(case.digest, MODEL)
    git(workspace, "init", "-q")
    git(workspace, "add", "dvc.lock", "plumbline")
    git(workspace, "commit", "-qm", "one")

    def lay_out(name: str) -> tuple[Path, Path, str, str, list[str]]:
        place = tmp_path / name
        place.mkdir()
        library, code = reproduce._lay_out_code(case, ancestry, place)
        start, assets = reproduce._lay_out_sources(case, ancestry, place)
        reproduce._write_params(case, case.made_by, place)  # type: ignore[arg-type]
        return place, library, code, start, assets

    place, used, words, start, assets = lay_out("same")
    assert (used, words) == (library, "the recorded code, that of the installed library")
    assert start == "from the sources on" and assets[0] == "raw_corpus"
    assert Hasher().files(place / "texts") == Hasher().files(workspace / "texts")
    params = yaml.safe_load((place / "params.yaml").read_text())
    assert params["grid"] == {"calibrations": [CHOICE], "schemes": [SCHEME]}
    assert params["calibrations"] == {CHOICE: {"strategy": "random", "n": 8, "seed": 0}}

    (library / builder).write_text("now = 2\n")
    (workspace / "texts" / "prose" / "00.txt").write_text("other")
    place, used, words, start, assets = lay_out("moved")
    assert words.startswith("the recorded code, that of commit ")
    assert used == place / "plumbline" and (used / builder).read_text() == "then = 1\n"
    assert "the sources have changed since: texts" in start and "raw_corpus" not in assets
    assert dvc_digest(place / CORPUS) == dvc_digest(workspace / CORPUS)

    git(workspace, "rm", "-rq", "--cached", "plumbline")
    git(workspace, "commit", "-q", "--amend", "-m", "a workspace without the library")
    place, used, words, *_ = lay_out("lost")
    assert (used, words) == (library, "other code than recorded for quantized_model, that of the installed library")
    assert not (place / "plumbline").exists()


def test_reproducing_without_a_remembered_run_says_so(both: Path) -> None:
    (both / "dvc.lock").unlink()
    result = run(both, "audit", str(both / OTHER), "--reproduce")
    assert result.exit_code == 1 and "NOT REPRODUCED: DVC has no run on record" in result.output

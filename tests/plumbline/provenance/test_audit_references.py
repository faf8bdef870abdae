"""Whatever a person types leads to the model that is meant, or to a sentence that says what was expected."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from plumbline.artifact import read_json, sha256_file
from plumbline.provenance import AuditResult, audit_subject, dvc_digest, resolved
from plumbline.tracking.registry import registered_versions
from tests.helpers.small_chain import (
    CHOICE,
    MODEL,
    OTHER,
    SCHEME,
    SET,
    STATS,
    flip,
    link,
    record,
    remember,
    run,
    states,
)


def audited(reference: str, root: Path) -> AuditResult:
    with resolved(reference, root) as subject:
        return audit_subject(subject, root)


def run_id(root: Path) -> str:
    return next(version.run_id for version in registered_versions(root) if version.version == "1")


def test_every_way_to_name_the_champion_leads_to_it(registered: Path, tmp_path: Path) -> None:
    loose = shutil.copy(registered / OTHER / "model.safetensors", tmp_path / "renamed.bin")
    references = {
        "models:/plumbline@champion": "registry",
        "models:/plumbline/1": "registry",
        f"runs:/{run_id(registered)}": "registry",
        run_id(registered): "registry",
        dvc_digest(registered / MODEL): "DVC's cache",
        str(registered / MODEL / "model.safetensors"): "weights file",
        MODEL: "registry",
    }
    for reference, first in references.items():
        result = audited(reference, registered)
        assert result.verified, (reference, states(result))
        assert result.links[0].name == first
        assert result.about["choice"]["name"] == CHOICE
        assert link(result, "model folder").found == dvc_digest(registered / MODEL)
    result = audited(str(loose), registered)
    assert result.verified and result.about["choice"]["name"] == "first-6"
    assert link(result, "weights file").found == sha256_file(Path(loose))


def test_a_version_that_the_workspace_has_moved_on_from_is_verified_from_the_cache(both: Path) -> None:
    wanted = dvc_digest(both / MODEL)
    for stage in (f"calibration_set@{CHOICE}", f"activation_stats@{CHOICE}", f"quantized_model@{CHOICE}-{SCHEME}"):
        remember(both, stage)
    for path in (SET, STATS, MODEL):
        shutil.rmtree(both / path)
    shutil.copytree(both / OTHER, both / MODEL)  # a later version, recorded as such
    record(both, f"quantized_model@{CHOICE}-{SCHEME}", MODEL, [])
    result = audited("models:/plumbline/1", both)
    assert result.verified, states(result)
    assert link(result, "model folder").found == wanted
    assert "from DVC's cache" in link(result, "calibration set").meaning
    assert "from DVC's cache" in link(result, "statistics").meaning
    assert run(both, "audit", "models:/plumbline@champion").exit_code == 0

    folder = both / ".dvc/cache/files/md5" / wanted[:2] / wanted[2:]
    folder.unlink()
    result = audited("models:/plumbline/1", both)
    assert link(result, "DVC's cache").status == "missing"
    assert f"lacks {wanted}" in link(result, "DVC's cache").meaning


def test_an_altered_champion_is_reported_though_the_cache_has_a_sound_copy(both: Path) -> None:
    flip(both / MODEL / "model.safetensors", -9)
    result = audited("models:/plumbline@champion", both)
    assert states(result) == {"registry": "tampered", "weights": "tampered", "model folder": "tampered"}


def test_weights_that_nobody_knows_are_missing_their_model(both: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(both / MODEL / "model.safetensors", tmp_path / "model.safetensors"))
    flip(path, -9)
    result = audited(str(path), both)
    assert states(result)["weights file"] == "missing"
    assert link(result, "weights file").found == sha256_file(path)
    assert run(both, "audit", str(path)).exit_code == 1


def test_weights_of_a_model_that_only_the_cache_has(both: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(both / MODEL / "model.safetensors", tmp_path / "w.safetensors"))
    shutil.rmtree(both / MODEL)
    result = audited(str(path), both)
    assert result.verified, states(result)
    assert "DVC's cache" in link(result, "weights file").meaning


def test_models_with_the_same_weights_are_all_named(both: Path, tmp_path: Path) -> None:
    """Rounding to nearest reads no calibration data, so two choices may give the same bytes."""
    path = Path(shutil.copy(both / MODEL / "model.safetensors", tmp_path / "w.safetensors"))
    shutil.copytree(both / MODEL, both / "data/quantized_model/zz-w4a16-rtn")
    meaning = link(audited(str(path), both), "weights file").meaning
    assert MODEL in meaning and "data/quantized_model/zz-w4a16-rtn" in meaning


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face's cache


@pytest.fixture
def hub(registered: Path, tmp_path: Path) -> Path:
    """The champion as huggingface_hub lays out what it downloaded: links into blobs named by their digests."""
    home = tmp_path / "hub" / "models--team--quantized"
    snapshot = home / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("c" * 40)
    for path in (registered / MODEL).iterdir():
        data = path.read_bytes()
        large = path.suffix == ".safetensors"
        name = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        (home / "blobs" / name).write_bytes(data)
        (snapshot / path.name).symlink_to(Path("../../blobs") / name)
    return home


def test_a_folder_of_the_hubs_cache_is_audited_by_its_main_snapshot(hub: Path, registered: Path) -> None:
    for reference in (hub, hub / "snapshots" / ("c" * 40)):
        result = audited(str(reference), registered)
        assert result.verified, states(result)
        assert "blob matches its name" in link(result, "hub cache").meaning


def test_tampering_with_the_hubs_cache_is_found(hub: Path, registered: Path, tmp_path: Path) -> None:
    snapshot = hub / "snapshots" / ("c" * 40)
    weights = (snapshot / "model.safetensors").resolve()
    flip(weights, -9)
    result = audited(str(hub), registered)
    assert {"hub cache", "weights", "model folder"} <= states(result).keys()
    assert "model.safetensors: its blob" in link(result, "hub cache").meaning
    flip(weights, -9)

    stranger = tmp_path / "stranger.json"
    stranger.write_text("{}")
    (snapshot / "generation_config.json").unlink()
    (snapshot / "generation_config.json").symlink_to(stranger)
    result = audited(str(hub), registered)
    assert "generation_config.json points outside the cache folder" in link(result, "hub cache").meaning
    (snapshot / "generation_config.json").unlink()
    (snapshot / "generation_config.json").symlink_to(snapshot / "generation_config.json")
    result = audited(str(hub), registered)
    assert "generation_config.json points outside the cache folder or to no file" in link(result, "hub cache").meaning
    (hub / "refs" / "main").write_text("../../..")
    assert audited(str(hub), registered).verdict == "tampered"  # the one snapshot there is

    (hub / "snapshots" / ("d" * 40)).mkdir()
    told = run(registered, "audit", str(hub))
    assert told.exit_code == 2 and "holds 2 snapshots" in told.output


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("models:/plumbline@nobody", "has no such version"),
        ("models:/plumbline/99", "has no such version"),
        ("models:/plumbline", "expected models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("runs:/" + "0" * 32, "has no run"),
        ("data/quantized_model/random-9-w4a16-rtn", "no such folder or file"),
    ],
)
def test_a_mistake_is_answered_with_what_was_expected(reference: str, says: str, registered: Path) -> None:
    result = run(registered, "audit", reference)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_without_a_registry_none_is_made(workspace: Path) -> None:
    result = run(workspace, "audit", "models:/plumbline@champion")
    assert result.exit_code == 2 and "`plumbline run` makes it" in result.output
    assert not (workspace / "mlflow.db").exists()


def test_the_page_stands_alone_and_escapes_what_the_model_says(both: Path, tmp_path: Path) -> None:
    path = both / MODEL / "calibration.json"
    content = json.loads(path.read_text())
    content["calibration_set"]["samples"][0]["source"] = "<script>alert(1)</script>"
    content["calibration_set"]["samples"][1] = {"doc_ids": 7}
    content["scheme"] = {}
    path.write_text(json.dumps(content))
    page = tmp_path / "pages" / "audit.html"
    assert run(both, "audit", str(both / MODEL), "--html", str(page)).exit_code == 1
    text = page.read_text(encoding="utf-8")
    assert "Tampered: do not deploy" in text and "alert(1)" in text
    assert "<script>alert" not in text
    assert "http://" not in text and "https://" not in text and " src=" not in text and "<link" not in text

    assert run(both, "audit", str(both / OTHER), "--html", str(page)).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "14 of 14 links verified" in text and "All 6, in order" in text
    digest = read_json(both / OTHER / "calibration.json")["base_model"]["digest"]
    assert f"Base model: <b>base (digest {digest[:12]})" in text
    assert f"base model base (digest {digest[:12]})" in run(both, "audit", str(both / OTHER)).output


def test_the_page_links_to_the_samples_of_the_set_on_record(workspace: Path, tmp_path: Path) -> None:
    """The workspace's page of the set, but not that of another version of it."""
    page, shown = tmp_path / "audits" / "a.html", workspace / "data/sample_page" / CHOICE
    shown.mkdir(parents=True)
    (shown / "samples.html").write_text("samples")
    for digest, links in (("0" * 64, 0), (read_json(workspace / SET / "manifest.json")["digest"], 1)):
        (shown / "page.json").write_text(json.dumps({"digest": digest}))
        run(workspace, "audit", str(workspace / MODEL), "--html", str(page))
        found = re.findall(r'href="([^"]*samples.html)"', page.read_text(encoding="utf-8"))
        assert len(found) == links
    assert (page.parent / found[0]).read_text() == "samples"

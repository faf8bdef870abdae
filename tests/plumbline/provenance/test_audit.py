"""A small real chain, made by the stages themselves; then one thing in it is changed, and the audit must name it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plumbline.artifact import sha256_file, write_json, write_table
from plumbline.provenance import audit, data_links, dvc_digest, render, verify
from plumbline.provenance.link import Case
from plumbline.versioning.digest import Hasher
from plumbline.versioning.lock import Entry
from tests.helpers.small_chain import (
    CHOICE,
    CORPUS,
    MODEL,
    SCHEME,
    SET,
    STATS,
    chain,
    flip,
    link,
    record,
    remember,
    states,
)

LINKS = ["record", "weights", "model folder", "tokenizer", "base model", "statistics", "calibration set"]
LINKS += ["calibration choice", "pool", "documents", "texts", "dvc.lock"]


# ---------------------------------------------------------------------------------------------------------------------
# DVC's hashes


def test_the_digest_is_the_one_that_dvc_computes(tmp_path: Path) -> None:
    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, check=True, capture_output=True)

    files = {
        "a.b": b"1",
        "a/b": b"2",
        "a/ü 日本.txt": b"3",
        "a/c/d/e": b"",
        "Z": b"5",
        'q"uo\te': b"6",
        "0": bytes(70000),
    }
    for name, data in files.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"one\r\ntwo\n")
    dvc("init", "--no-scm", "--quiet")
    dvc("add", "--quiet", "folder", "empty", "file")
    for name in ("folder", "empty", "file"):
        recorded = yaml.safe_load((tmp_path / f"{name}.dvc").read_text())["outs"][0]["md5"]
        assert dvc_digest(tmp_path / name) == recorded


def test_a_digest_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        dvc_digest(tmp_path / "nothing")


# ---------------------------------------------------------------------------------------------------------------------
# The intact chain


def test_an_intact_chain_is_verified_from_the_weights_to_the_documents(pristine: Path) -> None:
    result = audit(pristine / MODEL, pristine)
    assert [link.name for link in result.links] == LINKS
    assert states(result) == {}
    assert (result.verified, result.verdict) == (True, "verified")
    assert result.about["samples"] == 8
    assert sum(result.about["domains"].values()) == 8
    assert link(result, "weights").found == sha256_file(pristine / MODEL / "model.safetensors")
    assert link(result, "model folder").found == dvc_digest(pristine / MODEL)
    assert json.loads(json.dumps(result.as_dict()))["verdict"] == "verified"


def test_samples_joined_of_several_documents_lead_to_all_of_them(tmp_path: Path) -> None:
    root = chain(tmp_path / "workspace", "packed_windows")
    result = audit(root / MODEL, root)
    assert states(result) == {}
    samples = pq.read_table(root / SET / "samples.parquet").to_pylist()
    joined = {document for sample in samples if len(sample["doc_ids"]) > 1 for document in sample["doc_ids"]}
    assert joined
    assert f"{len({d for sample in samples for d in sample['doc_ids']})} documents" in link(result, "documents").meaning
    removed = next(iter(joined))
    shard = next(
        path for path in (root / CORPUS / "shards").iterdir() if removed in pq.read_table(path)["doc_id"].to_pylist()
    )
    table = pq.read_table(shard)
    pq.write_table(table.filter(pa.array([document != removed for document in table["doc_id"].to_pylist()])), shard)
    result = audit(root / MODEL, root)
    assert f"first {removed[:12]}" in link(result, "documents").meaning


def test_the_report_fits_a_screen_and_names_choice_scheme_and_counts(pristine: Path) -> None:
    text = render(audit(pristine / MODEL, pristine))
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines()[1:])) <= 100
    for part in (CHOICE, SCHEME, "8 samples", "strategy random", "VERIFIED: every digest"):
        assert part in text


def test_a_copy_elsewhere_is_found_by_its_content(workspace: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(workspace / MODEL, tmp_path / "deployed")
    result = audit(copy, workspace)
    assert result.verified
    assert MODEL in link(result, "model folder").meaning

    flip(copy / "generation_config.json", 5)
    result = audit(copy, workspace)
    assert states(result) == {"model folder": "tampered"}
    assert "generation_config.json decides other numbers" in link(result, "model folder").meaning


def test_an_earlier_version_is_found_in_the_cache(workspace: Path, tmp_path: Path) -> None:
    old = shutil.copytree(workspace / MODEL, tmp_path / "deployed")
    stage = f"quantized_model@{CHOICE}-{SCHEME}"
    remember(workspace, stage)
    flip(workspace / MODEL / "generation_config.json", 5)
    record(workspace, stage, MODEL, [SET, STATS])
    result = audit(old, workspace)
    assert result.verified
    assert "DVC's cache holds" in link(result, "model folder").meaning


def test_a_model_from_another_workspace_is_missing_its_chain_not_tampered(workspace: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(workspace / "params.yaml", empty)
    result = audit(workspace / MODEL, empty)
    chain = ["model folder", "base model", "statistics", "calibration set", "documents"]
    assert states(result) == dict.fromkeys(chain, "missing")  # record, weights and tokenizer vouch for themselves
    assert (result.verified, result.verdict) == (False, "missing")
    assert "NOT VERIFIED" in render(result)


# ---------------------------------------------------------------------------------------------------------------------
# One thing changed


def in_text(text: str) -> Callable[[bytes], int]:
    """Where a text begins in a file, plus its length: the byte behind it."""
    return lambda data: data.index(text.encode()) + len(text)


FLIPS: dict[str, tuple[str, Callable[[bytes], int], set[str]]] = {
    "weights": (f"{MODEL}/model.safetensors", lambda data: len(data) - 9, {"weights", "model folder"}),
    "header of the weights": (f"{MODEL}/model.safetensors", lambda data: 3, {"weights", "model folder"}),
    "sample in calibration.json": (f"{MODEL}/calibration.json", in_text('"sample_id": "'), {"record", "model folder"}),
    "syntax of calibration.json": (f"{MODEL}/calibration.json", lambda data: 0, {"record", "model folder"}),
    "digest in config.json": (f"{MODEL}/config.json", in_text('"sha256": "'), {"record", "model folder"}),
    "architecture in config.json": (f"{MODEL}/config.json", in_text('"hidden_act": "'), {"model folder"}),
    "vocabulary": (f"{MODEL}/tokenizer.json", in_text('"vocab": {'), {"tokenizer", "model folder"}),
    "a merge": (f"{MODEL}/tokenizer.json", in_text('"merges": [\n      [\n        "'), {"tokenizer", "model folder"}),
    "generation settings": (f"{MODEL}/generation_config.json", in_text('"eos_token_id": '), {"model folder"}),
    "base weights": ("base/model.safetensors", lambda data: len(data) - 9, {"base model"}),
    "base config": ("base/config.json", in_text('"rms_norm_eps": '), {"base model"}),
    "statistics": (f"{STATS}/stats.safetensors", lambda data: len(data) - 9, {"statistics"}),
    "statistics' header": (f"{STATS}/header.json", in_text('"sample_ids": [\n  "'), {"statistics"}),
    "set": (f"{SET}/samples.parquet", lambda data: len(data) // 3, {"calibration set"}),
    "set's manifest": (f"{SET}/manifest.json", in_text('"digest": "'), {"calibration set"}),
    "set's representativeness": (f"{SET}/representativeness.json", lambda data: 9, {"calibration set"}),
}


@pytest.mark.parametrize("what", FLIPS)
def test_a_changed_byte_is_tampering_at_its_link_and_nowhere_else(what: str, workspace: Path) -> None:
    file, at, broken = FLIPS[what]
    flip(workspace / file, at((workspace / file).read_bytes()))
    result = audit(workspace / MODEL, workspace)
    if what in ("syntax of calibration.json",):  # what only calibration.json lists cannot be compared any more
        assert {name for name, state in states(result).items() if state == "tampered"} == broken
        assert states(result)["weights"] == states(result)["documents"] == "missing"
    else:
        assert states(result) == dict.fromkeys(broken, "tampered")
    assert result.verdict == "tampered"
    text = render(result)
    assert "TAMPERED: " in text
    assert all(f"TAMPERED   {name}: " in text for name in broken)
    assert all(link(result, name).fix for name in broken)


def shard_of(workspace: Path, document: str) -> Path:
    return next(
        shard
        for shard in (workspace / CORPUS / "shards").iterdir()
        if document in pq.read_table(shard, columns=["doc_id"])["doc_id"].to_pylist()
    )


def test_a_changed_document_is_tampering(workspace: Path) -> None:
    document = pq.read_table(workspace / SET / "samples.parquet")["doc_ids"][0][0].as_py()
    shard = shard_of(workspace, document)
    table = pq.read_table(shard)
    rows = table.to_pylist()
    next(row for row in rows if row["doc_id"] == document)["text"] += "!"
    write_table(shard, pa.Table.from_pylist(rows, table.schema))
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"documents": "tampered"}
    assert document[:12] in link(result, "documents").meaning

    flip(shard, shard.stat().st_size // 2)  # and when it is no Parquet file any more
    assert states(audit(workspace / MODEL, workspace)) == {"documents": "tampered"}


def test_a_removed_document_is_missing_if_the_corpus_was_ingested_again(workspace: Path) -> None:
    document = pq.read_table(workspace / SET / "samples.parquet")["doc_ids"][0][0].as_py()
    shard_of(workspace, document).unlink()
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"documents": "tampered"}  # dvc.lock still records the file
    assert "is gone" in link(result, "documents").meaning

    record(workspace, "raw_corpus", CORPUS, [])
    assert "from DVC's cache" in link(audit(workspace / MODEL, workspace), "documents").meaning
    for listing in (workspace / ".dvc/cache/files/md5").glob("*/*.dir"):
        if b"duplicates.parquet" in listing.read_bytes():
            listing.unlink()
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"documents": "missing", "dvc.lock": "missing"}
    assert "which no run on record made" in link(result, "dvc.lock").meaning
    assert "1 of" in link(result, "documents").meaning


def test_a_swapped_sample_is_found_although_ids_and_digests_were_recomputed(workspace: Path) -> None:
    """Whoever edits the set and makes its files agree again still contradicts the model."""
    path = workspace / SET / "samples.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[2]["input_ids"][0] ^= 1
    tokens = array("i", rows[2]["input_ids"]).tobytes()
    rows[2]["sample_id"] = hashlib.sha256(tokens).hexdigest()
    write_table(path, pa.Table.from_pylist(rows, table.schema))
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"calibration set": "tampered"}
    assert "row 2: sample_id" in link(result, "calibration set").meaning


def test_a_forged_record_is_found_although_config_was_made_to_agree(workspace: Path) -> None:
    model = workspace / MODEL
    forged = json.loads((model / "calibration.json").read_text())
    forged["calibration_set"]["samples"][0]["source"] = "licensed/elsewhere.txt"
    write_json(model / "calibration.json", forged)
    config = json.loads((model / "config.json").read_text())
    for entry in (config["quantization_config"]["calibration"], config["calibration"]):
        entry["record"]["sha256"] = sha256_file(model / "calibration.json")
    write_json(model / "config.json", config)
    result = audit(model, workspace)
    assert states(result) == dict.fromkeys(("model folder", "calibration set", "documents"), "tampered")
    assert "row 0: source" in link(result, "calibration set").meaning


def test_another_models_record_does_not_fit(workspace: Path, tmp_path: Path) -> None:
    """Swapped weights under a sound record."""
    weights = workspace / MODEL / "model.safetensors"
    shutil.copy(workspace / "base/model.safetensors", weights)
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"weights": "tampered", "model folder": "tampered"}
    weights.unlink()
    assert states(audit(workspace / MODEL, workspace))["weights"] == "missing"


def test_a_model_that_transformers_saved_again_still_leads_to_its_record(workspace: Path) -> None:
    """save_pretrained drops `quantization_config.calibration`; the copy of it at the top level stays."""
    path = workspace / MODEL / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]["calibration"]
    write_json(path, config)
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"model folder": "tampered"}
    assert "config.json changed" in link(result, "model folder").meaning


def test_an_added_weights_file_is_named(workspace: Path) -> None:
    (workspace / MODEL / "pytorch_model.bin").write_bytes(b"")
    meaning = link(audit(workspace / MODEL, workspace), "weights").meaning
    assert meaning == "pytorch_model.bin is not on record"


# ---------------------------------------------------------------------------------------------------------------------
# What is not here


def other_set(workspace: Path) -> None:
    """Another set under the same name, recorded as such."""
    remember(workspace, f"calibration_set@{CHOICE}")
    path = workspace / SET / "samples.parquet"
    write_table(path, pq.read_table(path).slice(0, 4))
    manifest = json.loads((workspace / SET / "manifest.json").read_text())
    write_json(workspace / SET / "manifest.json", {**manifest, "digest": "0" * 64, "samples": 4})
    record(workspace, f"calibration_set@{CHOICE}", SET, ["data/tokenized_samples"])


def test_a_set_that_was_replaced_is_verified_from_the_cache_and_missing_without_it(workspace: Path) -> None:
    wanted = dvc_digest(workspace / SET)
    other_set(workspace)
    result = audit(workspace / MODEL, workspace)
    assert result.verified
    assert "from DVC's cache, the workspace has changed since" in link(result, "calibration set").meaning

    (workspace / ".dvc/cache/files/md5" / wanted[:2] / wanted[2:]).unlink()
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"calibration set": "missing"}
    assert "now holds another set" in link(result, "calibration set").meaning
    fix = link(result, "calibration set").fix
    assert f"git log -S {wanted} -- dvc.lock" in fix
    assert "cache lacks it" in fix


def test_where_the_cache_shares_the_altered_file_the_fix_does_not_rely_on_it(workspace: Path) -> None:
    md5 = Hasher().files(workspace / STATS)["stats.safetensors"]
    shared = workspace / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    shared.unlink()
    os.link(workspace / STATS / "stats.safetensors", shared)
    flip(shared, 400)
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"statistics": "tampered"}
    fix = link(result, "statistics").fix
    assert f"rm -f {shared.relative_to(workspace).as_posix()}, then dvc pull --force {STATS}" in fix


@pytest.mark.parametrize(("path", "name"), [(SET, "calibration set"), (STATS, "statistics"), (CORPUS, "documents")])
def test_an_absent_folder_is_verified_from_the_cache_and_missing_without_it(
    path: str, name: str, workspace: Path
) -> None:
    shutil.rmtree(workspace / path)
    result = audit(workspace / MODEL, workspace)
    assert result.verified
    assert "from DVC's cache" in link(result, name).meaning

    shutil.rmtree(workspace / ".dvc/cache")
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {name: "missing"}
    assert link(result, name).fix == f"dvc pull --force {path}"


def test_a_model_that_plumbline_did_not_make_is_said_to_be_one(workspace: Path) -> None:
    result = audit(workspace / "base", workspace)
    assert link(result, "record").status == "missing"
    assert "has no calibration record" in link(result, "record").meaning
    assert not result.verified


# ---------------------------------------------------------------------------------------------------------------------
# Hostile input


def edit(workspace: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change calibration.json and let config.json name the result."""
    model = workspace / MODEL
    content = json.loads((model / "calibration.json").read_text())
    change(content)
    (model / "calibration.json").write_text(json.dumps(content))
    config = json.loads((model / "config.json").read_text())
    summary = config["quantization_config"]["calibration"]
    summary["record"]["sha256"] = sha256_file(model / "calibration.json")
    for key in summary.keys() & content.keys() - {"calibration_set"}:
        summary[key] = content[key]
    if isinstance(content.get("calibration_set"), dict) and isinstance(content["calibration_set"].get("choice"), dict):
        summary["calibration_set"]["name"] = content["calibration_set"]["choice"].get("name")
    config["calibration"] = summary
    (model / "config.json").write_text(json.dumps(config))


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda workspace: (workspace / MODEL / name).write_bytes(data) and None


def outside(workspace: Path) -> None:
    (workspace / "data/quantized_model/outside.safetensors").write_bytes(b"x")
    sha = hashlib.sha256(b"x").hexdigest()
    edit(workspace, lambda c: c["model"].update({"../outside.safetensors": sha}))


def link_weights(workspace: Path) -> None:
    weights = workspace / MODEL / "model.safetensors"
    weights.rename(workspace / "elsewhere")
    weights.symlink_to(workspace / "elsewhere")


def link_folder(workspace: Path) -> None:
    (workspace / MODEL / "loop").symlink_to(workspace / MODEL, target_is_directory=True)


def record_is_a_folder(workspace: Path) -> None:
    (workspace / MODEL / "calibration.json").unlink()
    (workspace / MODEL / "calibration.json").mkdir()


def dangling(workspace: Path) -> None:
    (workspace / MODEL / "tokenizer.json").unlink()
    (workspace / MODEL / "tokenizer.json").symlink_to("/nowhere/at/all")


def device(workspace: Path) -> None:
    (workspace / MODEL / "tokenizer.json").unlink()
    (workspace / MODEL / "tokenizer.json").symlink_to("/dev/zero")


HOSTILE: dict[str, Callable[[Path], None]] = {
    "record: empty": write("calibration.json", b""),
    "record: not UTF-8": write("calibration.json", b"\xff\xfe{"),
    "record: a list": write("calibration.json", b"[]"),
    "record: null": write("calibration.json", b"null"),
    "record: nested without end": write("calibration.json", b"[" * 100_000),
    "record: a folder": record_is_a_folder,
    "record: removed": lambda workspace: (workspace / MODEL / "calibration.json").unlink(),
    "config: empty": write("config.json", b""),
    "config: a number": write("config.json", b"7"),
    "config: calibration is a text": write("config.json", b'{"quantization_config": {"calibration": "trust me"}}'),
    "config: calibration is a text, twice": write(
        "config.json", b'{"calibration": "trust me", "quantization_config": {"calibration": "trust me"}}'
    ),
    "config: removed": lambda workspace: (workspace / MODEL / "config.json").unlink(),
    "weights: a name that leads out": outside,
    "weights: an absolute name": lambda w: edit(w, lambda c: c["model"].update({"/etc/hostname": "0" * 64})),
    "weights: a name with NUL": lambda w: edit(w, lambda c: c["model"].update({"a\0b": "0" * 64})),
    "weights: digests of the wrong type": lambda w: edit(w, lambda c: c.update(model={"model.safetensors": {"a": 1}})),
    "weights: a list": lambda w: edit(w, lambda c: c.update(model=["model.safetensors"])),
    "weights: a symbolic link": link_weights,
    "folder: a loop": link_folder,
    "choice: a name that leads out": lambda w: edit(w, lambda c: c["calibration_set"]["choice"].update(name="../base")),
    "choice: a number": lambda w: edit(w, lambda c: c["calibration_set"].update(choice=3)),
    "samples: a number": lambda w: edit(w, lambda c: c["calibration_set"].update(samples=3)),
    "samples: of numbers": lambda w: edit(w, lambda c: c["calibration_set"].update(samples=[1, None, "a"])),
    "base model: a name with NUL": lambda w: edit(w, lambda c: c["base_model"].update(name="a\0b")),
    "base model: a list": lambda w: edit(w, lambda c: c.update(base_model=[])),
    "statistics: a list": lambda w: edit(w, lambda c: c.update(statistics=[1])),
    "statistics: digests of the wrong type": lambda w: edit(w, lambda c: c["statistics"].update(files={"h": []})),
    "fingerprint: a number": lambda w: edit(w, lambda c: c.update(fingerprint=12)),
    "format of the future": lambda w: edit(w, lambda c: c.update(format=99)),
    "escape sequences": lambda w: edit(w, lambda c: c["scheme"].update(name="\x1b[2J\x1b]0;owned\x07")),
    "tokenizer: broken": write("tokenizer.json", b'{"model": {"type": "BPE"'),
    "tokenizer: another type": write("tokenizer.json", b'{"version": "1.0", "model": {"type": "Pickle"}}'),
    "tokenizer: dangling link": dangling,
    "tokenizer: a device": device,
    "folder: a pipe": lambda w: os.mkfifo(w / MODEL / "notes.txt"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_whatever_the_files_hold_the_audit_says_tampered_and_does_not_crash(what: str, workspace: Path) -> None:
    HOSTILE[what](workspace)
    result = audit(workspace / MODEL, workspace)
    assert result.verdict == "tampered"
    if what.startswith(("weights: a name", "weights: an absolute name", "weights: a symbolic link")):
        assert link(result, "weights").status == "tampered"
        assert "leads out of the folder" in link(result, "weights").meaning or "symbolic link" in what
    if what.startswith(("record: ", "config: ", "tokenizer: ")):
        assert link(result, what.split(":")[0].replace("config", "record")).status == "tampered"
    json.dumps(result.as_dict())
    text = render(result)
    assert all(line.isprintable() for line in text.splitlines())
    assert len(text.splitlines()) < 80


@pytest.mark.parametrize("content", ["{", "[]", "stages: 7", "stages: {a: {outs: [1]}}", "a: \x00"])
def test_a_damaged_dvc_lock_is_reported(content: str, workspace: Path) -> None:
    (workspace / "dvc.lock").write_text(content)
    result = audit(workspace / MODEL, workspace)
    assert link(result, "dvc.lock").status == "tampered"
    assert link(result, "weights").status == "verified"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert not audit(tmp_path / "nothing", tmp_path).verified


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_in_the_model_folder_is_detected(data: st.DataObject, shared_workspace: Path) -> None:
    files = sorted(path for path in (shared_workspace / MODEL).iterdir() if path.stat().st_size)
    path = data.draw(st.sampled_from(files), label="file")
    original = path.read_bytes()
    at = data.draw(st.integers(0, len(original) - 1), label="offset")
    bit = data.draw(st.integers(0, 7), label="bit")
    try:
        flip(path, at, bit)
        result = audit(shared_workspace / MODEL, shared_workspace)
    finally:
        path.write_bytes(original)
    assert states(result)["model folder"] == "tampered"
    assert result.verdict == "tampered"
    assert "changed" in link(result, "model folder").meaning
    assert link(result, "calibration set").status == "verified" or path.name == "calibration.json"


@pytest.fixture(scope="module")
def shared_workspace(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(pristine, tmp_path_factory.mktemp("shared") / "workspace"))


# ---------------------------------------------------------------------------------------------------------------------
# A whole workspace


def test_verify_finds_nothing_wrong_in_an_intact_workspace(pristine: Path) -> None:
    assert verify(pristine) == []


def test_verify_names_a_corrupted_output_and_the_file_in_it(workspace: Path) -> None:
    flip(workspace / STATS / "stats.safetensors", 400)
    [wrong] = verify(workspace)
    assert wrong.path == STATS
    assert "stats.safetensors changed" in str(wrong)
    assert f"dvc checkout --force {STATS}" in str(wrong)


def test_verify_finds_a_read_only_cache_object_that_dvc_would_trust(workspace: Path) -> None:
    md5 = Hasher().files(workspace / CORPUS)["manifest.json"]
    victim = workspace / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    flip(victim, 10)
    victim.chmod(0o444)
    [wrong] = verify(workspace)
    assert (wrong.path, wrong.expected) == (victim.relative_to(workspace).as_posix(), md5)


def test_verify_names_both_names_of_a_hard_linked_file(workspace: Path) -> None:
    md5 = Hasher().files(workspace / CORPUS)["manifest.json"]
    victim = workspace / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    (workspace / CORPUS / "manifest.json").unlink()
    os.link(victim, workspace / CORPUS / "manifest.json")
    assert verify(workspace) == []
    flip(victim, 10)
    assert [wrong.path for wrong in verify(workspace)] == [CORPUS, victim.relative_to(workspace).as_posix()]


def test_verify_lists_an_absent_output_and_reads_the_configured_cache(workspace: Path) -> None:
    shutil.move(workspace / ".dvc/cache", workspace / "big-disk")
    (workspace / ".dvc/config").write_text("[cache]\n    dir = ../big-disk\n")
    flip(next((workspace / "big-disk/files/md5").glob("*/*.dir")), 3)
    shutil.rmtree(workspace / STATS)
    absent, damaged = verify(workspace)
    assert (absent.path, absent.found) == (STATS, "")
    assert damaged.path.endswith(".dir")


def test_verify_does_not_call_a_folder_sound_in_which_nothing_is_recorded(tmp_path: Path) -> None:
    [wrong] = verify(tmp_path)
    assert wrong.path == "dvc.lock"


@pytest.mark.parametrize(("now", "later", "replaced"), [("b", "b", True), ("b", "a", False), ("a", "a", False)])
def test_a_bundled_model_that_an_upgrade_brought_is_no_tampering(
    now: str, later: str, replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's code version covers it: another model, made since, has the version of today."""

    def entry(key: str, code_version: str) -> Entry:
        name = f"quantized_model@{key}"
        return Entry(name, "", {f"data/quantized_model/{key}": key}, {}, {}, code_version)

    lock = {each.name: each for each in (entry("old", "a"), entry("new", later))}
    case = Case(tmp_path / "data/quantized_model/old", tmp_path, lock)
    monkeypatch.setattr(data_links, "code_version", lambda asset: now)
    assert data_links._was_replaced(case, data_links.LIBRARY / "base_model/llama-stdlib-6m") is replaced

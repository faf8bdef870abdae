"""Thirty ways and more to tamper, each through the command: found, named, and never a traceback.

One byte changed anywhere, and hostile content of every file, are in test_provenance.py; here are the frauds that need
more than one file, another model, an older version, the registry, DVC's own records, the hub's cache or a signature.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from plumbline.artifact import read_json, sha256_file, write_json, write_table
from plumbline.calibration_set.reader import set_digest
from plumbline.provenance import dvc_digest, model_files, model_links
from plumbline.provenance.audit import open_read_case
from plumbline.provenance.cache_recovery import chain_hashes
from plumbline.provenance.reproduce import _write_params
from plumbline.versioning.digest import Hasher
from tests.helpers.small_chain import (
    CHOICE,
    CORPUS,
    MODEL,
    OTHER,
    OTHER_SET,
    OTHER_STATS,
    QUANTIZED,
    SET,
    STATS,
    put,
    record,
    remember,
    run,
)

CHAMPION = "models:/plumbline@champion"


def seal(model: Path) -> None:
    """Let config.json name calibration.json as it is now."""
    content, config = read_json(model / "calibration.json"), read_json(model / "config.json")
    for summary in (config["quantization_config"]["calibration"], config["calibration"]):
        summary["record"]["sha256"] = sha256_file(model / "calibration.json")
        summary |= {key: content[key] for key in model_links.COPIED}
        of_set, choice = content["calibration_set"], content["calibration_set"]["choice"]
        summary["calibration_set"] |= {key: choice.get(key) for key in ("name", "strategy", "n", "seed")}
        summary["calibration_set"] |= {"digest": of_set["digest"], "samples": len(of_set["samples"])}
    write_json(model / "config.json", config)


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    content = read_json(path)
    write_json(path, change(content) or content)


def rows_of(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    write_table(path, pa.Table.from_pylist(change(rows) or rows, table.schema))


def tokens_id(row: dict[str, Any]) -> str:
    return hashlib.sha256(pa.array(row["input_ids"], pa.int32()).to_numpy().astype("<i4").tobytes()).hexdigest()


def truncate(path: Path, part: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])


def rehash(root: Path) -> None:
    """Whoever can write dvc.lock and DVC's cache makes them agree with what they forged."""
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    for stage, entry in stages.items():
        for out in entry["outs"]:
            deps, params = [dep["path"] for dep in entry["deps"]], entry["params"]["params.yaml"]
            record(root, stage, out["path"], deps, params)


# ---------------------------------------------------------------------------------------------------------------------
# Weights and the model's folder


def swap_weights_of_models(root: Path) -> None:
    shutil.copy(root / OTHER / "model.safetensors", root / MODEL / "model.safetensors")


def swap_weights_and_reseal(root: Path) -> None:
    swap_weights_of_models(root)
    sha = sha256_file(root / MODEL / "model.safetensors")
    rewrite(root / MODEL / "calibration.json", lambda c: c["model"].update({"model.safetensors": sha}))
    seal(root / MODEL)


def pack_another_record(root: Path) -> None:
    shutil.copy(root / OTHER / "calibration.json", root / MODEL / "calibration.json")


def pack_another_record_and_config(root: Path) -> None:
    for name in ("calibration.json", "config.json"):
        shutil.copy(root / OTHER / name, root / MODEL / name)


def disguise_as_the_other(root: Path) -> None:
    """The whole other folder in the champion's place."""
    shutil.rmtree(root / MODEL)
    shutil.copytree(root / OTHER, root / MODEL)


def add_code(root: Path) -> None:
    (root / MODEL / "modeling_llama.py").write_text("import os\n")
    rewrite(root / MODEL / "config.json", lambda c: c.update(auto_map={"AutoModelForCausalLM": "modeling_llama.X"}))


def redirect_code(root: Path) -> None:
    rewrite(root / MODEL / "config.json", lambda c: c.update(auto_map={"AutoModelForCausalLM": "evil/repo--m.X"}))


def chat_template(root: Path) -> None:
    (root / MODEL / "chat_template.jinja").write_text("{{ messages }}")


def tokenizer_of_another_vocabulary(root: Path) -> None:
    rewrite(root / MODEL / "tokenizer.json", swap_two_tokens)


def swap_two_tokens(content: Any) -> None:
    vocabulary = content["model"]["vocab"]
    a, b = sorted(vocabulary, key=vocabulary.get)[40:42]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]


def special_token(root: Path) -> None:
    rewrite(root / MODEL / "tokenizer_config.json", lambda c: c.update(eos_token="<s>"))


def hidden_shard(root: Path) -> None:
    shutil.copy(root / MODEL / "model.safetensors", root / MODEL / "model-00002-of-00002.safetensors")
    (root / MODEL / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def weights_below(root: Path) -> None:
    (root / MODEL / "onnx").mkdir()
    shutil.move(root / MODEL / "model.safetensors", root / MODEL / "onnx" / "model.safetensors")


def link_out_of_the_tree(root: Path) -> None:
    (root.parent / "elsewhere").mkdir()
    for name in ("config.json", "calibration.json", "tokenizer.json"):
        shutil.move(root / MODEL / name, root.parent / "elsewhere" / name)
        (root / MODEL / name).symlink_to(root.parent / "elsewhere" / name)


# ---------------------------------------------------------------------------------------------------------------------
# The set, the statistics, the documents, the base model


def edit_a_sample_and_everything_after_it(root: Path) -> None:
    """Tokens, ids, the set's digest, the manifest: all agree again, but the statistics saw other tokens."""

    def change(rows: list[dict[str, Any]]) -> None:
        rows[0]["input_ids"][0] ^= 1
        rows[0]["sample_id"] = tokens_id(rows[0])

    rows_of(root / SET / "samples.parquet", change)
    ids = pq.read_table(root / SET / "samples.parquet")["sample_id"].to_pylist()
    rewrite(root / SET / "manifest.json", lambda c: c.update(digest=set_digest(ids, c["fingerprint"])))


def forge_the_set_into_the_record(root: Path) -> None:
    """As above, and the model's own record, too. The statistics still name the set they were collected on."""
    edit_a_sample_and_everything_after_it(root)
    digest = read_json(root / SET / "manifest.json")["digest"]
    first = pq.read_table(root / SET / "samples.parquet")["sample_id"][0].as_py()

    def change(content: Any) -> None:
        content["calibration_set"]["digest"] = digest
        content["calibration_set"]["samples"][0]["sample_id"] = first

    rewrite(root / MODEL / "calibration.json", change)
    seal(root / MODEL)
    rehash(root)


def blame_another_document(root: Path) -> None:
    """The record and the set agree that the text came from elsewhere; that document's text is not in the corpus."""
    forged = hashlib.sha256(b"licensed").hexdigest()
    rows_of(root / SET / "samples.parquet", lambda rows: rows[1].update(doc_ids=[forged]))
    rewrite(
        root / MODEL / "calibration.json",
        lambda c: c["calibration_set"]["samples"][1].update(doc_ids=[forged]),
    )
    seal(root / MODEL)
    rehash(root)


def replay_an_older_manifest(root: Path) -> None:
    """manifest.json of another version over the samples of this one."""
    shutil.copy(root / OTHER_SET / "manifest.json", root / SET / "manifest.json")


def replay_an_older_set(root: Path) -> None:
    """A whole other set under this one's name; dvc.lock still speaks of the original."""
    shutil.rmtree(root / SET)
    shutil.copytree(root / OTHER_SET, root / SET)
    rewrite(root / SET / "manifest.json", lambda c: c["choice"].update(name=CHOICE))


def drop_a_sample(root: Path) -> None:
    rows_of(root / SET / "samples.parquet", lambda rows: rows[:-1])


def repeat_a_sample(root: Path) -> None:
    rows_of(root / SET / "samples.parquet", lambda rows: [*rows[:-1], rows[0]])


def reorder_samples(root: Path) -> None:
    rows_of(root / SET / "samples.parquet", lambda rows: rows[::-1])


def drop_a_column(root: Path) -> None:
    path = root / SET / "samples.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["input_ids"]), path)


def other_statistics(root: Path) -> None:
    for path in (root / OTHER_STATS).iterdir():
        shutil.copy(path, root / STATS / path.name)


def statistics_with_a_forged_header(root: Path) -> None:
    """The other set's statistics, whose header was made to name this set and this choice."""
    digest = read_json(root / STATS / "header.json")["calibration_set"]
    other_statistics(root)
    rewrite(root / STATS / "header.json", lambda c: c.update(calibration_set=digest))


def extra_statistics(root: Path) -> None:
    shutil.copy(root / STATS / "stats.safetensors", root / STATS / "more.safetensors")


def swap_two_documents(root: Path) -> None:
    """Each document under the other's id."""
    wanted = pq.read_table(root / SET / "samples.parquet")["doc_ids"][0][0].as_py()
    for shard in sorted((root / CORPUS / "shards").glob("*.parquet")):
        rows = pq.read_table(shard).to_pylist()
        if any(row["doc_id"] == wanted for row in rows):
            rows_of(shard, lambda rows: [row.update(text=f"{row['text']} and more") for row in rows] and None)


def base_model_with_other_weights(root: Path) -> None:
    shutil.copy(root / MODEL / "config.json", root / "base" / "config.json")


# ---------------------------------------------------------------------------------------------------------------------
# DVC's and MLflow's own records


def lock_forged_to_fit(root: Path) -> None:
    """The model's weights are altered, and dvc.lock and the cache were made to say that this is right."""
    path = root / MODEL / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    rehash(root)


def lock_with_a_path_that_leads_out(root: Path) -> None:
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    lock["stages"][QUANTIZED]["outs"][0]["path"] = "../../../etc"
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    (root / MODEL / "generation_config.json").write_text("{}")


def cache_altered_where_it_is_needed(root: Path) -> None:
    """The workspace has moved on, and the cache's copy of the set is not what its name says."""
    md5 = Hasher().files(root / SET)["samples.parquet"]
    shutil.rmtree(root / SET)
    path = root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    path.write_bytes(path.read_bytes()[:-5] + b"PAR1\0")


def forged_run(root: Path) -> None:
    """A run in DVC's run cache that claims the model was made from the other set, and from itself."""
    shutil.rmtree(root / SET)
    shutil.rmtree(root / STATS)
    model = dvc_digest(root / MODEL)
    remember(root, f"calibration_set@{CHOICE}")
    remember(root, f"activation_stats@{CHOICE}")
    forged = [{"path": SET, "md5": dvc_digest(root / OTHER_SET)}, {"path": STATS, "md5": model}]
    remember(root, QUANTIZED, deps=[*forged, {"path": MODEL, "md5": model}])
    for name in ("samples.parquet", "manifest.json"):  # so that nothing leads to the original by content
        for folder in (root / ".dvc/cache/files/md5").glob("*/*.dir"):
            if name in folder.read_text() and folder.parent.name + folder.name != dvc_digest(root / OTHER_SET):
                folder.unlink()


def run_that_leads_out(root: Path) -> None:
    """A forged run claims that the set lay outside of the workspace, from where it would be restored."""
    shutil.rmtree(root / SET)
    outside = "data/calibration_set/../../../escaped.json"
    remember(root, QUANTIZED, deps=[{"path": outside, "md5": dvc_digest(root / OTHER_SET)}])
    (root / ".dvc/cache/files").rename(root / ".dvc/cache/moved")


def listing_that_leads_out(root: Path) -> None:
    """The model is only in the cache, whose listing names a file outside of it."""
    data = json.dumps([{"md5": hashlib.md5(b"x").hexdigest(), "relpath": "../../escaped.json"}]).encode()
    md5 = hashlib.md5(data).hexdigest() + ".dir"
    put(root, hashlib.md5(b"x").hexdigest(), b"x")
    put(root, md5, data)
    tag(root, "model.md5", md5)
    tag(root, "path", "data/quantized_model/gone")


def tag(root: Path, key: str, value: str) -> None:
    """Change a tag of version 1 behind MLflow's back."""
    with sqlite3.connect(root / "mlflow.db") as database:
        changed = database.execute(
            "update model_version_tags set value = ? where key = ? and version = 1", (value, key)
        ).rowcount
    database.close()
    assert changed == 1


def registry_names_another_folder(root: Path) -> None:
    tag(root, "path", "../../../../etc")


WAYS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    # name: (what is done, what is audited, the link that must not verify)
    "weights of another model": (swap_weights_of_models, MODEL, "weights"),
    "weights of another model, record resealed": (swap_weights_and_reseal, MODEL, "model folder"),
    "weights truncated": (lambda r: truncate(r / MODEL / "model.safetensors"), MODEL, "weights"),
    "weights emptied": (lambda r: truncate(r / MODEL / "model.safetensors", 0), MODEL, "weights"),
    "weights in a folder below": (weights_below, MODEL, "weights"),
    "a shard added": (hidden_shard, MODEL, "weights"),
    "record of another model": (pack_another_record, MODEL, "record"),
    "record and config of another model": (pack_another_record_and_config, MODEL, "weights"),
    "record truncated": (lambda r: truncate(r / MODEL / "calibration.json"), MODEL, "record"),
    "another model in the champion's place": (disguise_as_the_other, CHAMPION, "registry"),
    "code added": (add_code, MODEL, "weights"),
    "code from elsewhere": (redirect_code, MODEL, "model folder"),
    "chat template added": (chat_template, MODEL, "tokenizer"),
    "two tokens swapped": (tokenizer_of_another_vocabulary, MODEL, "tokenizer"),
    "special token changed": (special_token, MODEL, "tokenizer"),
    "links out of the tree": (link_out_of_the_tree, MODEL, "model folder"),
    "a sample edited, ids and digests recomputed": (edit_a_sample_and_everything_after_it, MODEL, "calibration set"),
    "the set forged into record, lock and cache": (forge_the_set_into_the_record, MODEL, "statistics"),
    "a document blamed": (blame_another_document, MODEL, "documents"),
    "older manifest": (replay_an_older_manifest, MODEL, "calibration set"),
    "older set": (replay_an_older_set, MODEL, "calibration set"),
    "sample dropped": (drop_a_sample, MODEL, "calibration set"),
    "sample repeated": (repeat_a_sample, MODEL, "calibration set"),
    "samples reordered": (reorder_samples, MODEL, "calibration set"),
    "column dropped": (drop_a_column, MODEL, "calibration set"),
    "samples truncated": (lambda r: truncate(r / SET / "samples.parquet"), MODEL, "calibration set"),
    "statistics of another set": (other_statistics, MODEL, "statistics"),
    "statistics of another set, header forged": (statistics_with_a_forged_header, MODEL, "statistics"),
    "statistics added": (extra_statistics, MODEL, "statistics"),
    "statistics truncated": (lambda r: truncate(r / STATS / "stats.safetensors"), MODEL, "statistics"),
    "documents edited under their ids": (swap_two_documents, MODEL, "documents"),
    "corpus without its shards": (lambda r: shutil.rmtree(r / CORPUS / "shards"), MODEL, "documents"),
    "base model replaced": (base_model_with_other_weights, MODEL, "base model"),
    "dvc.lock and cache forged to fit": (lock_forged_to_fit, MODEL, "weights"),
    "dvc.lock with a path that leads out": (lock_with_a_path_that_leads_out, MODEL, "model folder"),
    "cache altered where the workspace has moved on": (cache_altered_where_it_is_needed, MODEL, "calibration set"),
    "forged run in DVC's run cache": (forged_run, MODEL, "calibration set"),
    "forged run that leads out of the workspace": (run_that_leads_out, MODEL, "calibration set"),
    "listing that leads out of the folder": (listing_that_leads_out, CHAMPION, "DVC's cache"),
    "registry: other folder's hash": (lambda r: tag(r, "model.md5", dvc_digest(r / OTHER)), CHAMPION, "registry"),
    "registry: other set's digest": (lambda r: tag(r, "hash.calibration_set", "0" * 64), CHAMPION, "registry"),
    "registry: other statistics": (lambda r: tag(r, "hash.statistics", "0" * 64), CHAMPION, "registry"),
    "registry: other base model": (lambda r: tag(r, "hash.base_model", "0" * 64), CHAMPION, "registry"),
    "registry: other set's hash": (lambda r: tag(r, "calibration.md5", "0" * 32 + ".dir"), CHAMPION, "registry"),
    "registry: no hash at all": (lambda r: tag(r, "model.md5", "../../etc"), CHAMPION, "registry"),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_found_and_named(way: str, both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, reference, broken = WAYS[way]
    monkeypatch.chdir(both)
    change(both)
    result = run(both, "audit", reference, "--json")
    assert result.exit_code == 1, result.output
    told = json.loads(result.stdout)
    assert told["verdict"] in ("tampered", "missing")
    wrong = {link["name"]: link for link in told["links"] if link["status"] != "verified"}
    assert broken in wrong, sorted(wrong)
    assert all(link["fix"] and link["meaning"] for link in wrong.values())
    assert not (both.parent / "escaped.json").exists() and not (both / "escaped.json").exists()


def test_what_a_forged_run_names_outside_is_neither_restored_nor_laid_out(both: Path, tmp_path: Path) -> None:
    outside = "data/calibration_set/../../../escaped.json"
    forged = [{"path": outside, "md5": dvc_digest(both / OTHER_SET)}, {"path": "../../etc", "md5": "0" * 32}]
    read = [{"path": path, "md5": dvc_digest(both / path)} for path in (SET, STATS)]
    entry = yaml.safe_load((both / "dvc.lock").read_text())["stages"][QUANTIZED]
    remember(both, QUANTIZED, deps=[*forged, *read])
    lock = yaml.safe_load((both / "dvc.lock").read_text())
    (both / "dvc.lock").write_text(yaml.safe_dump({**lock, "stages": {**lock["stages"], QUANTIZED: entry}}))
    case = open_read_case(both / MODEL, both)
    assert all(".." not in path for path in [*chain_hashes(case), *case.history.ancestry(case.digest)])
    result = run(both, "audit", str(both / MODEL), "--restore", str(tmp_path / "back"))
    assert "RESTORED" in result.output, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"workspace", "back"}


def test_a_forged_run_does_not_switch_on_code_that_comes_with_a_model(both: Path, tmp_path: Path) -> None:
    lock = yaml.safe_load((both / "dvc.lock").read_text())
    lock["stages"][QUANTIZED]["params"]["params.yaml"]["model"] = {"name": "base", "trust_remote_code": True}
    (both / "dvc.lock").write_text(yaml.safe_dump(lock))
    case = open_read_case(both / MODEL, both)
    _write_params(case, case.made_by, tmp_path)  # type: ignore[arg-type]
    written = yaml.safe_load((tmp_path / "params.yaml").read_text())["model"]
    assert written == {"name": "base", "trust_remote_code": False}


def test_a_path_in_the_registry_that_leads_out_is_not_followed(both: Path) -> None:
    """The model is taken from DVC's cache by its hash instead."""
    registry_names_another_folder(both)
    told = json.loads(run(both, "audit", CHAMPION, "--json").stdout)
    assert told["origin"].startswith("DVC's cache")
    assert [link["name"] for link in told["links"] if link["status"] != "verified"] == ["registry"]


@pytest.mark.parametrize(
    "content",
    [b'{"a": 1e999, "b": NaN}', b'{"a": ' + b"9" * 5000 + b"}", b'{"a":' * 3000, b'"' + b"a" * (1 << 16)],
    ids=["no numbers", "a number of 5000 digits", "nested", "a long text"],
)
def test_json_made_to_break_a_reader(content: bytes, both: Path) -> None:
    for name in ("calibration.json", "config.json"):
        (both / MODEL / name).write_bytes(content)
        assert run(both, "audit", str(both / MODEL)).exit_code == 1
        assert run(both, "diff", str(both / MODEL), str(both / OTHER)).exit_code in (1, 2)
        assert run(both, "affected", "texts").exit_code in (0, 1)


def test_json_without_end_is_not_read(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "MAX_JSON", 1 << 16)
    path = both / MODEL / "calibration.json"
    path.write_bytes(path.read_bytes().rstrip()[:-1] + b" " * (1 << 17) + b"}")
    result = run(both, "audit", str(both / MODEL))
    assert result.exit_code == 1 and "the limit for a record is 65,536" in " ".join(result.output.split())


NO_MODELS = ["", "\0", "../../../etc/passwd\0", "/dev/null", "/dev/zero", "models:/", "models:/a/../b", "models:/x@y@z"]


@pytest.mark.parametrize("reference", [*NO_MODELS, "runs:/x", "0" * 32, "nothing/there", "a" * 5000])
def test_what_is_no_model_is_a_usage_error(reference: str, registered: Path) -> None:
    result = run(registered, "audit", reference)
    assert result.exit_code == 2 and "Error: " in result.output


@pytest.mark.parametrize("what", ["../../etc/passwd", "f" * 63 + "g", "%s%s%n", "\x1b[2J", "a" * 5000])
def test_ids_that_lead_out_touch_nothing(what: str, registered: Path) -> None:
    assert run(registered, "affected", what).exit_code == 2
    assert run(registered, "affected", what, "--as", "text").exit_code == 0


def test_everything_forged_at_once_is_what_a_signature_is_for(both: Path, keys: tuple[Path, Path]) -> None:
    """Whoever may write everything can forge everything, but not the signature."""
    private, public = keys
    assert run(both, "sign", str(both / MODEL), "--key", str(private)).exit_code == 0
    rewrite(both / MODEL / "generation_config.json", lambda c: c.update(temperature=2.0))
    rehash(both)
    assert run(both, "audit", str(both / MODEL)).exit_code == 0  # consistent, and not what was signed
    result = run(both, "audit", str(both / MODEL), "--public-key", str(public), "--json")
    assert result.exit_code == 1
    wrong = {link["name"] for link in json.loads(result.stdout)["links"] if link["status"] == "tampered"}
    assert wrong == {"signature", "statement"}


def test_ways_are_counted() -> None:
    """The promise is thirty; those of test_provenance.py come on top."""
    assert len(WAYS) >= 30 and len({change for change, _, _ in WAYS.values()}) == len(WAYS)

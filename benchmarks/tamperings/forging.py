"""What a forger does: rewrite files, and make DVC's, MLflow's and Plumbline's records agree with them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.tamperings import chain
from plumbline.artifact import (
    canonical_json,
    read_json,
    sha256_file,
    sha256_files,
    sha256_json,
    write_json,
    write_table,
)
from plumbline.calibration_set.reader import set_digest
from plumbline.provenance.model_links import COPIED
from plumbline.tracking.promotion import ENTRY
from plumbline.tracking.promotion_chain import COPY
from plumbline.versioning.digest import Hasher, dvc_digest, folder_digest, listing

Rows = list[dict[str, Any]]


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place."""
    content = read_json(path)
    change(content)
    write_json(path, content)


def edit_rows(path: Path, change: Callable[[Rows], Any]) -> None:
    """Change the rows of a Parquet file in place; a returned list replaces them."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    changed = change(rows)
    write_table(path, pa.Table.from_pylist(changed if isinstance(changed, list) else rows, table.schema))


def flip(path: Path, at: int = -9) -> None:
    """Flip a bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit_lock(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the stages of dvc.lock."""
    path = root / "dvc.lock"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(content["stages"])
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def sql(root: Path, statement: str, *values: Any) -> None:
    """Change MLflow's database behind its back.

    Raises:
        AssertionError: the statement changes nothing.
    """
    database = sqlite3.connect(root / "mlflow.db")
    with database:
        changed = database.execute(statement, values).rowcount
    database.close()
    assert changed, statement


def version_of(root: Path, pair: str) -> int:
    """Number of the registered version of a pair."""
    database = sqlite3.connect(root / "mlflow.db")
    [(version,)] = database.execute("SELECT version FROM model_version_tags WHERE key = 'pair' AND value = ?", (pair,))
    database.close()
    return int(version)


def set_tag(root: Path, key: str, value: str) -> None:
    """Change a tag of the champion's version."""
    version = version_of(root, chain.CHAMPION)
    sql(root, "UPDATE model_version_tags SET value = ? WHERE key = ? AND version = ?", value, key, version)


def shard_of_a_sample(root: Path) -> tuple[Path, str]:
    """The shard of the corpus with a document of the champion's set, and the document's id."""
    [document, *_] = pq.read_table(root / chain.SET / "samples.parquet")["doc_ids"][0].as_py()
    for shard in sorted((root / chain.CORPUS / "shards").glob("*.parquet")):
        if document in pq.read_table(shard)["doc_id"].to_pylist():
            return shard, document
    raise AssertionError("no shard has the document")


def seal(model: Path) -> None:
    """Make config.json agree with calibration.json."""
    content, config = read_json(model / "calibration.json"), read_json(model / "config.json")
    for summary in (config["quantization_config"]["calibration"], config["calibration"]):
        summary["record"]["sha256"] = sha256_file(model / "calibration.json")
        summary |= {key: content[key] for key in COPIED}
        calibration_set, choice = content["calibration_set"], content["calibration_set"]["choice"]
        summary["calibration_set"] |= {key: choice.get(key) for key in ("name", "strategy", "n", "seed")}
        summary["calibration_set"] |= {
            "digest": calibration_set["digest"],
            "samples": len(calibration_set["samples"]),
        }
    write_json(model / "config.json", config)


def relock(root: Path) -> dict[str, str]:
    """Make dvc.lock and DVC's cache agree with the files; returns old hash -> new hash."""
    before: dict[str, str] = {}
    moved: dict[str, str] = {}

    def change(stages: dict[str, Any]) -> None:
        for stage in stages.values():
            for out in stage["outs"]:
                before[out["path"]] = out["md5"]
                out["md5"] = dvc_digest(root / out["path"])
                store(root, root / out["path"])
        now = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
        for stage in stages.values():
            for dep in stage.get("deps", []):
                if dep["path"] in now:
                    dep["md5"] = now[dep["path"]]
                elif any(now[path] != before[path] for path in now if path.startswith(f"{dep['path']}/")):
                    before[dep["path"]] = dep["md5"]
                    dep["md5"] = now[dep["path"]] = folder_of_partitions(root / dep["path"])
        moved.update({md5: now[path] for path, md5 in before.items() if now[path] != md5})

    edit_lock(root, change)
    return moved


def folder_of_partitions(folder: Path) -> str:
    """DVC's hash of a folder of partitions, without the signatures beside them."""
    files = Hasher().files(folder)
    return folder_digest({name: md5 for name, md5 in files.items() if not name.endswith((".sig", ".intoto.json"))})


def store(root: Path, path: Path) -> None:
    """Put an artifact into DVC's cache."""
    if path.is_file():
        put(root, dvc_digest(path), path.read_bytes())
        return
    files = Hasher().files(path)
    for name, md5 in files.items():
        put(root, md5, (path / name).read_bytes())
    put(root, dvc_digest(path), listing(files))


def put(root: Path, md5: str, data: bytes) -> None:
    """Put an object into DVC's cache."""
    path = root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)


def forget_runs(root: Path) -> None:
    """Remove DVC's run cache, as in a clone."""
    shutil.rmtree(root / ".dvc/cache/runs")


def replace_everywhere(root: Path, replaced: Mapping[str, str]) -> None:
    """Replace digests in DVC's run cache and in MLflow."""
    for path in (root / ".dvc/cache/runs").glob("*/*/*"):
        path.write_text(_replaced(path.read_text(encoding="utf-8"), replaced), encoding="utf-8")
    database = sqlite3.connect(root / "mlflow.db")
    columns = {"model_version_tags": "value", "tags": "value", "registered_model_tags": "value", "params": "value"}
    columns |= {"logged_model_tags": "tag_value", "datasets": "digest"}
    with database:
        for table, column in columns.items():
            for old, new in replaced.items():
                database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (old, new))
    database.close()


def _replaced(text: str, replaced: Mapping[str, str]) -> str:
    for old, new in replaced.items():
        text = text.replace(old, new)
    return text


def forge_all(root: Path, digests: Mapping[str, str] | None = None) -> None:
    """Make every record that is not signed agree with the files.

    Args:
        digests: SHA-256 and other digests that changed, old -> new.
    """
    moved: dict[str, str] = {}
    for _ in range(2):  # promotion.json names the model's hash, so its own hash comes second
        step = relock(root)
        moved = {**step, **{old: step.get(new, new) for old, new in moved.items()}}
        names = {**(digests or {}), **step}
        for path in (root / chain.EVALUATION / "metrics.json", root / chain.DECISION / "promotion.json"):
            path.write_text(_replaced(path.read_text(encoding="utf-8"), names), encoding="utf-8")
    step = relock(root)
    moved = {**step, **{old: step.get(new, new) for old, new in moved.items()}}
    replace_everywhere(root, {**(digests or {}), **moved})
    edit_history(root, lambda entries: None)


def edit_history(root: Path, change: Callable[[dict[int, dict[str, Any]]], Any], copy: bool = True) -> None:
    """Change the history of promotions, link it again, and (with `copy`) rewrite the workspace's copy."""
    database = sqlite3.connect(root / "mlflow.db")
    rows = database.execute("SELECT key, value FROM registered_model_tags WHERE key LIKE ?", (f"{ENTRY}%",)).fetchall()
    entries = {int(key.removeprefix(ENTRY)): json.loads(value) for key, value in rows}
    change(entries)
    before = ""
    for number in sorted(entries):
        entries[number]["previous"], before = before, ""
        before = sha256_json(entries[number])
    with database:
        database.execute("DELETE FROM registered_model_tags WHERE key LIKE ?", (f"{ENTRY}%",))
        for number, entry in entries.items():
            values = ("plumbline", f"{ENTRY}{number}", json.dumps(entry))
            database.execute("INSERT INTO registered_model_tags (name, key, value) VALUES (?, ?, ?)", values)
    database.close()
    if copy:
        lines = [
            canonical_json({"registered_model": "plumbline", "number": number, **entries[number]})
            for number in sorted(entries)
        ]
        (root / COPY).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Stages run again on forged data


def forge_samples(root: Path, change: Callable[[Rows], Any], rerun: bool = True) -> None:
    """Change the champion's set, run its statistics and model again, and make all records agree."""
    old = read_json(root / chain.MODEL / "calibration.json")
    path = root / chain.SET / "samples.parquet"
    edit_rows(path, lambda rows: (change(rows), [named(row) for row in rows])[1])
    ids = pq.read_table(path)["sample_id"].to_pylist()
    edit_json(root / chain.SET / "manifest.json", lambda c: c.update(digest=set_digest(ids, c["fingerprint"])))
    run_again(root)
    new = read_json(root / chain.MODEL / "calibration.json")
    forge_all(root, dict(zip(_digests(old), _digests(new), strict=True)))


def named(row: dict[str, Any]) -> dict[str, Any]:
    """The row under the id of its tokens."""
    tokens = np.asarray(row["input_ids"], "<i4")
    return {**row, "n_tokens": len(tokens), "sample_id": hashlib.sha256(tokens.tobytes()).hexdigest()}


def _digests(record: Mapping[str, Any]) -> list[str]:
    weights = [record["model"][name] for name in sorted(record["model"])]
    return [record["calibration_set"]["digest"], record["statistics"]["digest"], *weights]


def run_again(root: Path) -> None:
    """Make the champion's statistics and model again from its set as it is."""
    from plumbline.activation_stats.build import build_activation_stats
    from plumbline.activation_stats.params import StatisticsParams
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.base_model.params import ModelParams
    from plumbline.quantized_model.build import build_quantized_model
    from plumbline.quantized_model.params import SchemeParams

    base = BaseCheckpoint.of(ModelParams(name="base"), root)
    version = read_json(root / chain.MODEL / "calibration.json")["code_version"]
    for path in (chain.STATS, chain.MODEL):
        shutil.rmtree(root / path)
        (root / path).mkdir()
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    statistics = StatisticsParams.model_validate(params.get("statistics") or {})
    build_activation_stats(statistics, base, root / chain.SET, root / chain.STATS)
    scheme = SchemeParams.model_validate(params["schemes"][chain.SCHEME])
    folders = (root / chain.STATS, root / chain.SET, root / chain.MODEL)
    build_quantized_model(chain.SCHEME, scheme, base, *folders, version)


def weights_in_record(root: Path) -> dict[str, str]:
    """Make the record name the champion's weights as they are; returns old digest -> new digest."""
    path = root / chain.MODEL / "calibration.json"
    before = read_json(path)["model"]
    now = sha256_files(root / chain.MODEL, before)
    edit_json(path, lambda content: content.update(model=now))
    seal(root / chain.MODEL)
    return {before[name]: now[name] for name in now}

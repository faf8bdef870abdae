"""Frauds in what stands beside the model: dvc.lock, the registry, the history, choice, evaluation and decision.

Each is one change to a copy of a chain; benchmarks/tamperings does many more to a chain that `plumbline run` made.
"""

from __future__ import annotations

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

from plumbline.artifact import read_json, write_json, write_table
from plumbline.provenance import AuditResult, audit_subject, dvc_digest, resolved
from plumbline.tracking.client import Tracking
from plumbline.tracking.promotion import promote
from plumbline.tracking.registry import Registry
from tests.helpers.small_chain import (
    CHOICE,
    CORPUS,
    MODEL,
    OTHER_CHOICE,
    QUANTIZED,
    SCHEME,
    SET,
    link,
    record,
    remember,
    states,
)

CHAMPION, NOWHERE = "models:/plumbline@champion", "0" * 32 + ".dir"
CHOSEN, METRICS = f"data/calibration_choice/{CHOICE}", f"data/evaluation/{CHOICE}-{SCHEME}/metrics.json"
SAMPLES, DECISION = "data/tokenized_samples", "data/deployed_model"
RUN = "(SELECT run_id FROM model_versions WHERE version = 1)"
Stages = dict[str, Any]


def audited(root: Path, reference: str = CHAMPION) -> AuditResult:
    with resolved(reference, root) as subject:
        return audit_subject(subject, root)


def sql(statement: str, *values: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        database = sqlite3.connect(root / "mlflow.db")
        with database:
            assert database.execute(statement, values).rowcount, statement
        database.close()

    return change


def tag(key: str, value: str) -> Callable[[Path], None]:
    return sql("UPDATE model_version_tags SET value = ? WHERE version = 1 AND key = ?", value, key)


def entry(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the one promotion on record."""

    def edit(root: Path) -> None:
        key = "plumbline.promotion.1"
        database = sqlite3.connect(root / "mlflow.db")
        [(text,)] = database.execute("SELECT value FROM registered_model_tags WHERE key = ?", (key,)).fetchall()
        content = json.loads(text)
        change(content)
        with database:
            database.execute("UPDATE registered_model_tags SET value = ? WHERE key = ?", (json.dumps(content), key))
        database.close()

    return edit


def lock(change: Callable[[Stages], Any]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        content = yaml.safe_load((root / "dvc.lock").read_text())
        change(content["stages"])
        (root / "dvc.lock").write_text(yaml.safe_dump(content), encoding="utf-8")

    return edit


def parameter(stage: str, section: str, **values: Any) -> Callable[[Path], None]:
    return lock(lambda stages: stages[stage]["params"]["params.yaml"].setdefault(section, {}).update(values))


def dependency(stage: str, path: str, md5: str) -> Callable[[Path], None]:
    def change(stages: Stages) -> None:
        next(dep for dep in stages[stage]["deps"] if dep["path"] == path).update(md5=md5)

    return lock(change)


def edit(path: str, **values: Any) -> Callable[[Path], None]:
    return lambda root: write_json(root / path, {**read_json(root / path), **values})


def relabel(column: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        document = pq.read_table(root / SET / "samples.parquet")["doc_ids"][0][0].as_py()
        for shard in (root / CORPUS / "shards").iterdir():
            table = pq.read_table(shard)
            rows = [{**row, column: "other"} for row in table.to_pylist()]
            if document in table["doc_id"].to_pylist():
                write_table(shard, pa.Table.from_pylist(rows, table.schema))

    return change


def relocked(change: Callable[[Path], None], stage: str, out: str, *deps: str) -> Callable[[Path], None]:
    """Make dvc.lock and DVC's cache agree with the change."""

    def do(root: Path) -> None:
        params = yaml.safe_load((root / "dvc.lock").read_text())["stages"][stage]["params"]["params.yaml"]
        change(root)
        record(root, stage, out, list(deps), params)

    return do


def decide(root: Path, **values: Any) -> None:
    """A decision to promote the champion, as the stage writes one."""
    metrics = read_json(root / METRICS)
    model = yaml.safe_load((root / "dvc.lock").read_text())["stages"][QUANTIZED]["outs"][0]["md5"]
    content = {
        "pair": f"{CHOICE}-{SCHEME}",
        "model": model,
        "decision": "kept",
        "why": "it is the champion",
        "figures": {key: metrics[key] for key in ("kl_mean", "top1_agreement", "weights_bytes")},
        **{key: metrics[key] for key in ("weights", "base_model", "fingerprint")},
        **values,
    }
    (root / DECISION).mkdir(exist_ok=True)
    write_json(root / DECISION / "promotion.json", content)
    record(root, "deployed_model", DECISION, [])
    lock(
        lambda stages: stages["deployed_model"].update(
            deps=[{"path": "data/evaluation", "md5": dvc_digest(root / "data/evaluation")}]
        )
    )(root)


WAYS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    # name: (what is done, the one link that is broken, a part of what it says)
    "corpus: domain": (relabel("domain"), "documents", "its domain is"),
    "corpus: source": (relabel("source"), "documents", "the corpus has 'other'"),
    "corpus: domain, relocked": (
        relocked(relabel("domain"), "raw_corpus", CORPUS),
        "dvc.lock",
        "tokenized_samples read data/raw_corpus",
    ),
    "corpus: a shard added": (
        lambda r: shutil.copy(next((r / CORPUS / "shards").iterdir()), r / CORPUS / "shards/ffff.parquet"),
        "documents",
        "ffff.parquet was added",
    ),
    "pool": (edit(f"{SAMPLES}/accounting.json", documents_in=1), "pool", "accounting.json changed"),
    "choice.json": (edit(f"{CHOSEN}/choice.json", seed=5), "calibration choice", "seed differ from the model's"),
    "choice.json, relocked": (
        relocked(edit(f"{CHOSEN}/choice.json", seed=5), f"calibration_choice@{CHOICE}", CHOSEN),
        "dvc.lock",
        "which no run on record made",
    ),
    "choice.json: no JSON": (lambda r: (r / CHOSEN / "choice.json").write_text("{"), "calibration choice", "not JSON"),
    "dvc.lock: seed": (
        parameter(f"calibration_choice@{CHOICE}", f"calibrations.{CHOICE}", seed=5),
        "dvc.lock",
        "has other seed than the model's record",
    ),
    "dvc.lock: no scheme": (
        lock(lambda stages: stages[QUANTIZED].update(params={"params.yaml": {}})),
        "dvc.lock",
        f"has no parameters schemes.{SCHEME}",
    ),
    "dvc.lock: tokenization": (parameter("tokenized_samples", "tokenize", max_length=64), "dvc.lock", "max_length"),
    "dvc.lock: base model": (parameter(f"calibration_set@{CHOICE}", "model", name="x"), "dvc.lock", "base model x"),
    "dvc.lock: an input dropped": (
        lock(lambda stages: stages["tokenized_samples"].update(deps=[])),
        "dvc.lock",
        "is said to have read no data/raw_corpus",
    ),
    "dvc.lock: an entry removed": (lock(lambda stages: stages.pop("raw_corpus")), "dvc.lock", "no entry for data/raw"),
    "metrics.json": (edit(METRICS, kl_mean=0.001), "evaluation", "is not what dvc.lock records: metrics.json changed"),
    "metrics: rewritten": (
        sql(f"UPDATE latest_metrics SET value = 0.001 WHERE key = 'kl_mean' AND run_uuid = {RUN}"),
        "registry",
        "its metric kl_mean is 0.001, the evaluation has 0.028",
    ),
    "metrics: of a domain": (
        sql(f"UPDATE latest_metrics SET value = 0.001 WHERE key = 'kl_mean/code' AND run_uuid = {RUN}"),
        "registry",
        "its metric kl_mean/code",
    ),
    "parameters: rewritten": (
        sql(f"UPDATE params SET value = '5' WHERE key = 'choice.seed' AND run_uuid = {RUN}"),
        "registry",
        "its parameters choice.seed are not",
    ),
    "parameters: of the scheme": (
        sql(f"UPDATE params SET value = '8' WHERE key = 'scheme.weight_bits' AND run_uuid = {RUN}"),
        "registry",
        "its parameters scheme.weight_bits are not",
    ),
    "run: tags": (
        sql(f"UPDATE tags SET value = ? WHERE key = 'dvc.md5' AND run_uuid = {RUN}", NOWHERE),
        "registry",
        "its run has another dvc.md5",
    ),
    "run: gone": (sql("UPDATE model_versions SET run_id = '' WHERE version = 1"), "registry", "does not exist"),
    "hash.* deleted": (
        sql("DELETE FROM model_version_tags WHERE key LIKE 'hash.%' AND version = 1"),
        "registry",
        "its tag hash.calibration_set is missing",
    ),
    "hash.* of another": (tag("hash.statistics", "0" * 64), "registry", "its tag hash.statistics differs"),
    "pair": (tag("pair", f"{OTHER_CHOICE}-{SCHEME}"), "registry", "its pair or path is not that of"),
    "rests on": (
        sql(
            'UPDATE model_version_tags SET value = replace(value, \'"data/raw_corpus": "\', \'"data/raw_corpus": "0\') '
            "WHERE key = 'plumbline.rests_on' AND version = 1"
        ),
        "registry",
        "from what its tag plumbline.rests_on names",
    ),
    "rests on: no JSON": (tag("plumbline.rests_on", "["), "registry", "is not a JSON object"),
    "history deleted": (
        sql("DELETE FROM registered_model_tags"),
        "promotion history",
        "promotions.jsonl has promotion 1, the registry lacks it",
    ),
    "who forged": (entry(lambda e: e.update(who="Eve")), "promotion history", "who differ between the registry and"),
    "who forged in entry and copy": (
        lambda r: (entry(lambda e: e.update(who="Eve"))(r), (r / "promotions.jsonl").unlink()),
        "promotion history",
        "who or why of version 1 differ between its tags and the history",
    ),
    "model of an entry": (entry(lambda e: e.update(model=NOWHERE)), "promotion history", "model differ between"),
    "copy edited": (
        lambda r: (r / "promotions.jsonl").write_text((r / "promotions.jsonl").read_text().replace("Ada", "Eve")),
        "promotion history",
        "who differ",
    ),
    "promotion.json": (
        lambda r: (decide(r), edit(f"{DECISION}/promotion.json", why="ok")(r)),
        "promotion",
        "is not what dvc.lock records",
    ),
    "promotion.json: figures, relocked": (
        lambda r: decide(r, figures={"kl_mean": 1e-9}),
        "promotion",
        "its figure kl_mean is not that of metrics.json",
    ),
    "promotion.json: weights, relocked": (
        lambda r: decide(r, weights={"model.safetensors": "0" * 64}),
        "promotion",
        "its weights is not the model's",
    ),
    "promotion.json: a promotion that was not": (
        lambda r: decide(r, decision="promoted"),
        "promotion history",
        "the history has no such promotion",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_found_at_its_link_and_nowhere_else(way: str, both: Path) -> None:
    change, broken, says = WAYS[way]
    change(both)
    result = audited(both)
    assert states(result).keys() == {broken}, {name: link(result, name).meaning for name in states(result)}
    assert says in link(result, broken).meaning
    assert link(result, broken).fix


def test_the_intact_chain_has_every_link(both: Path) -> None:
    decide(both)
    result = audited(both)
    assert states(result) == {}
    names = {
        "registry",
        "promotion history",
        "calibration choice",
        "pool",
        "texts",
        "dvc.lock",
        "evaluation",
        "promotion",
    }
    assert names <= {link.name for link in result.links}
    assert link(result, "promotion").meaning.endswith("it is on this model")


def test_another_scheme_in_dvc_lock_contradicts_the_record_and_the_registry(both: Path) -> None:
    parameter(QUANTIZED, f"schemes.{SCHEME}", weight_bits=8)(both)
    result = audited(both)
    assert states(result) == {"dvc.lock": "tampered", "registry": "tampered"}
    assert "other weight_bits than the model's record" in link(result, "dvc.lock").meaning


def test_an_alias_that_was_moved_without_a_record(both: Path) -> None:
    sql("UPDATE registered_model_aliases SET version = 2 WHERE alias = 'champion'")(both)
    assert states(audited(both)) == {"promotion history": "tampered"}
    assert (
        "made version 1 the champion, the alias names version 2"
        in link(audited(both, "models:/plumbline/1"), "promotion history").meaning
    )


# ---------------------------------------------------------------------------------------------------------------------
# DVC's run cache is the witness of dvc.lock


@pytest.fixture
def witnessed(both: Path) -> Path:
    """The run cache has every run, as after `plumbline run`."""
    before = (both / "dvc.lock").read_text()
    for stage in yaml.safe_load(before)["stages"]:
        remember(both, stage)
    (both / "dvc.lock").write_text(before)
    return both


WITNESSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "the sources": (parameter("raw_corpus", "corpus", sources={}), "raw_corpus was run with corpus"),
    "the command": (lock(lambda stages: stages["raw_corpus"].update(cmd="mine")), "was run with the command ''"),
    "a dependency": (dependency(f"activation_stats@{CHOICE}", SET, NOWHERE), f"was run with {SET}"),
    "another output": (
        lock(lambda stages: stages[f"calibration_set@{CHOICE}"]["outs"][0].update(md5=NOWHERE)),
        f"dvc.lock has {NOWHERE}",
    ),
}


@pytest.mark.parametrize("what", WITNESSED)
def test_an_entry_that_no_run_had_is_tampered(what: str, witnessed: Path) -> None:
    assert "as DVC recorded the runs" in link(audited(witnessed), "dvc.lock").meaning
    change, says = WITNESSED[what]
    change(witnessed)
    result = audited(witnessed)
    assert states(result)["dvc.lock"] == "tampered"
    assert says in link(result, "dvc.lock").meaning


def test_a_later_run_of_other_code_with_the_same_output_is_no_fault(witnessed: Path) -> None:
    """Both runs are in the run cache, and dvc.lock has the later one."""
    stage = f"activation_stats@{CHOICE}"
    content = yaml.safe_load((witnessed / "dvc.lock").read_text())
    content["stages"][stage]["params"]["data/code_versions.yaml"] = {"activation_stats": "new"}
    (witnessed / "dvc.lock").write_text(yaml.safe_dump(content))
    assert states(audited(witnessed)) == {"dvc.lock": "tampered"}
    path = witnessed / ".dvc/cache/runs/ne/new/run"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(content["stages"][stage]))
    assert states(audited(witnessed)) == {}


# ---------------------------------------------------------------------------------------------------------------------
# What happens without a fraud


def test_another_workspaces_copy_of_the_history_may_be_behind_or_absent(both: Path) -> None:
    registry = Registry(Tracking(f"sqlite:///{both / 'mlflow.db'}"))
    copy = (both / "promotions.jsonl").read_text()
    promote(registry, both, "2", "Bob", "better")
    promote(registry, both, "1", "Ada", "it swears")
    (both / "promotions.jsonl").write_text(copy)
    result = audited(both)
    assert states(result) == {} and "has the first 1" in link(result, "promotion history").meaning
    (both / "promotions.jsonl").unlink()
    result = audited(both)
    assert states(result) == {} and "does not exist here" in link(result, "promotion history").meaning
    assert "3 promotions, the last of version 1" in link(result, "promotion history").meaning


def test_a_model_that_was_never_promoted_or_registered_has_no_such_links(both: Path) -> None:
    assert "promotion history" not in {link.name for link in audited(both, "models:/plumbline/2").links}
    (both / "mlflow.db").unlink()
    result = audited(both, MODEL)
    assert states(result) == {}
    assert not {"registry", "promotion history"} & {link.name for link in result.links}


def test_a_promotion_that_was_interrupted_is_missing_and_not_tampered(both: Path) -> None:
    """The entry is written before the alias moves."""
    interrupted = {"version": "2", "from_version": "1", "who": "Bob", "why": "better", "kind": "promoted", "when": ""}
    sql(
        "INSERT INTO registered_model_tags (name, key, value) VALUES ('plumbline', 'plumbline.promotion.2', ?)",
        json.dumps(interrupted),
    )(both)
    result = audited(both)
    assert states(result) == {"promotion history": "missing"}
    assert "interrupted, or the alias was moved back" in link(result, "promotion history").meaning

"""Tamperings with dvc.lock, DVC's cache and the registry."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tamperings import chain, forging
from benchmarks.tamperings.forging import edit_history, edit_lock, sql, version_of
from benchmarks.tamperings.way import Way
from plumbline.tracking.promotion_chain import COPY
from plumbline.versioning.digest import Hasher

MODEL_STAGE, SET_STAGE, STATS_STAGE = (
    f"quantized_model@{chain.CHAMPION}",
    f"calibration_set@{chain.CHOICE}",
    f"activation_stats@{chain.CHOICE}",
)
CHOICE_STAGE, NONE = f"calibration_choice@{chain.CHOICE}", "0" * 32 + ".dir"
CODE = "data/code_versions.yaml"
RUN = "(SELECT run_id FROM model_versions WHERE version = ?)"


def lock(change: Callable[[dict[str, Any]], Any], *then: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Edit dvc.lock, and then do more."""

    def edit(root: Path) -> None:
        edit_lock(root, change)
        for more in then:
            more(root)

    return edit


def seed(stages: dict[str, Any]) -> None:
    stages[CHOICE_STAGE]["params"]["params.yaml"][f"calibrations.{chain.CHOICE}"]["seed"] = 5


def scheme(stages: dict[str, Any]) -> None:
    stages[MODEL_STAGE]["params"]["params.yaml"][f"schemes.{chain.SCHEME}"]["weight_bits"] = 8


def base_model(stages: dict[str, Any]) -> None:
    stages[MODEL_STAGE]["params"]["params.yaml"]["model"] = {"name": "another"}


def max_length(stages: dict[str, Any]) -> None:
    stages["tokenized_samples"]["params"]["params.yaml"]["tokenize"]["max_length"] = 64


def sources(stages: dict[str, Any]) -> None:
    stages["raw_corpus"]["params"]["params.yaml"]["corpus"]["sources"]["texts"]["path"] = "licensed"


def code_version(stages: dict[str, Any]) -> None:
    stages[MODEL_STAGE]["params"][CODE]["quantized_model"] = "f" * 12


def params_dropped(stages: dict[str, Any]) -> None:
    del stages[MODEL_STAGE]["params"]["params.yaml"][f"schemes.{chain.SCHEME}"]


def dependency(stage: str, path: str, md5: str = NONE) -> Callable[[dict[str, Any]], None]:
    def change(stages: dict[str, Any]) -> None:
        [dep] = [dep for dep in stages[stage]["deps"] if dep["path"] == path]
        dep["md5"] = md5

    return change


def dependency_dropped(stages: dict[str, Any]) -> None:
    stages[SET_STAGE]["deps"] = [dep for dep in stages[SET_STAGE]["deps"] if dep["path"] != chain.SAMPLES]


def outs_swapped(asset: str, one: str, two: str) -> Callable[[dict[str, Any]], None]:
    def change(stages: dict[str, Any]) -> None:
        a, b = stages[f"{asset}@{one}"]["outs"][0], stages[f"{asset}@{two}"]["outs"][0]
        a["md5"], b["md5"] = b["md5"], a["md5"]

    return change


def command(stages: dict[str, Any]) -> None:
    stages[SET_STAGE]["cmd"] = "python mine.py"


def cache_altered_and_workspace_moved_on(root: Path) -> None:
    md5 = Hasher().files(root / chain.SET)["samples.parquet"]
    shutil.rmtree(root / chain.SET)
    forging.flip(root / ".dvc/cache/files/md5" / md5[:2] / md5[2:])


def runs_forged(root: Path) -> None:
    """dvc.lock and the run cache agree on another seed."""
    edit_lock(root, seed)
    for path in (root / ".dvc/cache/runs").glob("*/*/*"):
        text = path.read_text()
        if f"calibrations.{chain.CHOICE}" in text:
            path.write_text(text.replace("seed: 0", "seed: 5"))


# ---------------------------------------------------------------------------------------------------------------------
# The registry


def alias_moved(root: Path) -> None:
    other = version_of(root, chain.OTHER)
    sql(root, "UPDATE registered_model_aliases SET version = ? WHERE alias = 'champion'", other)


def alias_and_history_moved(root: Path) -> None:
    """As if the last promotion had never been; the workspace's copy remembers it."""
    alias_moved(root)
    edit_history(root, lambda entries: entries.pop(max(entries)), copy=False)


def history_deleted(root: Path) -> None:
    sql(root, "DELETE FROM registered_model_tags WHERE key LIKE 'plumbline.promotion.%'")


def entry_deleted(root: Path) -> None:
    sql(root, "DELETE FROM registered_model_tags WHERE key = 'plumbline.promotion.2'")


def entry_damaged(root: Path) -> None:
    sql(root, "UPDATE registered_model_tags SET value = '{' WHERE key = 'plumbline.promotion.2'")


def who_of_an_old_entry(root: Path) -> None:
    sql(
        root,
        'UPDATE registered_model_tags SET value = replace(value, \'"who": "\', \'"who": "Not \') '
        "WHERE key = 'plumbline.promotion.1'",
    )


def newest(entries: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return entries[max(entries)]


def who_of_the_newest(root: Path) -> None:
    edit_history(root, lambda entries: newest(entries).update(who="Eve"), copy=False)


def why_in_the_whole_registry(root: Path) -> None:
    edit_history(root, lambda entries: newest(entries).update(why="asked for by the board"), copy=False)
    forging.set_tag(root, "plumbline.reason", "asked for by the board")


def history_relinked(root: Path) -> None:
    """An old entry forged, and every later digest recomputed."""
    edit_history(root, lambda entries: entries[min(entries)].update(who="Eve"), copy=False)


def copy_edited(root: Path) -> None:
    path = root / COPY
    path.write_text(path.read_text().replace('"who":"Ada"', '"who":"Eve"'))


def history_forged_everywhere(root: Path) -> None:
    edit_history(root, lambda entries: [entry.update(who="Eve") for entry in entries.values()])
    forging.set_tag(root, "plumbline.promoted_by", "Eve")


def tags_of_the_other(root: Path) -> None:
    version = version_of(root, chain.CHAMPION)
    sql(
        root,
        "UPDATE model_version_tags SET value = (SELECT value FROM model_version_tags AS other WHERE "
        "other.key = model_version_tags.key AND other.version != ?) WHERE version = ? AND key LIKE 'hash.%'",
        version,
        version,
    )


def tags_deleted(pattern: str) -> Callable[[Path], None]:
    def delete(root: Path) -> None:
        version = version_of(root, chain.CHAMPION)
        sql(root, "DELETE FROM model_version_tags WHERE version = ? AND key LIKE ?", version, pattern)

    return delete


def tag(key: str, value: str) -> Callable[[Path], None]:
    return lambda root: forging.set_tag(root, key, value)


def metric(root: Path) -> None:
    version = version_of(root, chain.CHAMPION)
    sql(root, f"UPDATE latest_metrics SET value = 1e-9 WHERE key = 'kl_mean' AND run_uuid = {RUN}", version)


def metric_deleted(root: Path) -> None:
    version = version_of(root, chain.CHAMPION)
    sql(root, f"DELETE FROM latest_metrics WHERE key = 'kl_p99' AND run_uuid = {RUN}", version)


def metric_of_a_domain(root: Path) -> None:
    version = version_of(root, chain.CHAMPION)
    sql(root, f"UPDATE latest_metrics SET value = 0 WHERE key = 'kl_mean/code' AND run_uuid = {RUN}", version)


def count(root: Path) -> None:
    version = version_of(root, chain.CHAMPION)
    sql(root, f"UPDATE latest_metrics SET value = 512 WHERE key = 'count/samples' AND run_uuid = {RUN}", version)


def parameter(key: str, value: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        version = version_of(root, chain.CHAMPION)
        sql(root, f"UPDATE params SET value = ? WHERE key = ? AND run_uuid = {RUN}", value, key, version)

    return change


def parameter_added(root: Path) -> None:
    version = version_of(root, chain.CHAMPION)
    sql(root, f"INSERT INTO params (key, value, run_uuid) SELECT 'choice.reviewed', 'yes', {RUN}", version)


def run_swapped(root: Path) -> None:
    champion, other = version_of(root, chain.CHAMPION), version_of(root, chain.OTHER)
    sql(root, f"UPDATE model_versions SET run_id = {RUN} WHERE version = ?", other, champion)


def run_tags(root: Path) -> None:
    version = version_of(root, chain.CHAMPION)
    sql(root, f"UPDATE tags SET value = ? WHERE key = 'dvc.md5' AND run_uuid = {RUN}", NONE, version)


def run_deleted(root: Path) -> None:
    version = version_of(root, chain.CHAMPION)
    for table in ("latest_metrics", "metrics", "params", "tags", "runs"):
        sql(root, f"DELETE FROM {table} WHERE run_uuid = {RUN}", version)


def rests_on_edited(root: Path) -> None:
    sql(
        root,
        'UPDATE model_version_tags SET value = replace(value, \'"data/raw_corpus": "\', \'"data/raw_corpus": "0\') '
        "WHERE key = 'plumbline.rests_on'",
    )


def second_version(root: Path) -> None:
    """A version made by hand, with the champion's tags and no run, gets the alias and an entry."""
    version = version_of(root, chain.CHAMPION)
    columns = "name, creation_time, last_updated_time, description, user_id, current_stage, source, status, workspace"
    sql(
        root,
        f"INSERT INTO model_versions (version, run_id, {columns}) SELECT 9, '', {columns} FROM model_versions "
        "WHERE version = ?",
        version,
    )
    sql(
        root,
        "INSERT INTO model_version_tags (name, version, key, value) SELECT name, 9, key, value "
        "FROM model_version_tags WHERE version = ?",
        version,
    )
    sql(root, "UPDATE registered_model_aliases SET version = 9 WHERE alias = 'champion'")


WAYS = [
    Way("dvc.lock: seed", lock(seed), "dvc.lock"),
    Way("dvc.lock: seed, no run cache", lock(seed, forging.forget_runs), "dvc.lock"),
    Way("dvc.lock and run cache: seed", runs_forged, "dvc.lock"),
    Way("dvc.lock: scheme", lock(scheme), "dvc.lock"),
    Way("dvc.lock: scheme, no run cache", lock(scheme, forging.forget_runs), "dvc.lock"),
    Way("dvc.lock: scheme dropped, no run cache", lock(params_dropped, forging.forget_runs), "dvc.lock"),
    Way("dvc.lock: base model, no run cache", lock(base_model, forging.forget_runs), "dvc.lock"),
    Way("dvc.lock: max_length, no run cache", lock(max_length, forging.forget_runs), "dvc.lock"),
    Way("dvc.lock: code version, no run cache", lock(code_version, forging.forget_runs), "dvc.lock"),
    Way("dvc.lock: sources of the corpus", lock(sources), "dvc.lock"),
    Way("dvc.lock: command", lock(command), "dvc.lock"),
    Way("dvc.lock: the set's samples", lock(dependency(SET_STAGE, chain.SAMPLES)), "dvc.lock"),
    Way(
        "dvc.lock: the set's samples, no run cache",
        lock(dependency(SET_STAGE, chain.SAMPLES), forging.forget_runs),
        "registry",
    ),
    Way("dvc.lock: the set's samples dropped", lock(dependency_dropped), "dvc.lock"),
    Way("dvc.lock: the model's statistics", lock(dependency(MODEL_STAGE, chain.STATS)), "dvc.lock"),
    Way("dvc.lock: the model's set", lock(dependency(MODEL_STAGE, chain.SET)), "dvc.lock"),
    Way("dvc.lock: the statistics' set", lock(dependency(STATS_STAGE, chain.SET)), "dvc.lock"),
    Way("dvc.lock: models swapped", lock(outs_swapped("quantized_model", chain.CHAMPION, chain.OTHER)), "model folder"),
    Way("dvc.lock: sets swapped", lock(outs_swapped("calibration_set", chain.CHOICE, chain.OTHER_CHOICE)), "dvc.lock"),
    Way("dvc.lock: evaluations swapped", lock(outs_swapped("evaluation", chain.CHAMPION, chain.OTHER)), "evaluation"),
    Way("dvc.lock: the model's stage removed", lock(lambda stages: stages.pop(MODEL_STAGE)), "dvc.lock"),
    Way("dvc.lock: the corpus's stage removed", lock(lambda stages: stages.pop("raw_corpus")), "dvc.lock"),
    Way("dvc.lock: no YAML", lambda r: (r / "dvc.lock").write_text("{"), "dvc.lock"),
    Way("cache altered, workspace moved on", cache_altered_and_workspace_moved_on, "calibration set"),
    Way("registry: alias moved", alias_moved, "promotion history"),
    Way("registry: alias moved, last entry deleted", alias_and_history_moved, "promotion history"),
    Way(
        "registry: alias removed",
        lambda r: sql(r, "DELETE FROM registered_model_aliases"),
        "promotion history",
        reference=chain.MODEL,
    ),
    Way("history deleted", history_deleted, "promotion history"),
    Way("history: an entry deleted", entry_deleted, "promotion history"),
    Way("history: an entry is no JSON", entry_damaged, "promotion history"),
    Way("history: who of an old entry", who_of_an_old_entry, "promotion history"),
    Way("history: who of the newest entry", who_of_the_newest, "promotion history"),
    Way("history: an old entry, linked again", history_relinked, "promotion history"),
    Way("history: why, in entry and version", why_in_the_whole_registry, "promotion history"),
    Way("history: the workspace's copy", copy_edited, "promotion history"),
    Way("history: the workspace's copy is no JSON", lambda r: (r / COPY).write_text("{"), "promotion history"),
    Way("registry: hash.* deleted", tags_deleted("hash.%"), "registry"),
    Way("registry: hash.* of the other version", tags_of_the_other, "registry"),
    Way("registry: hash of the model deleted", tags_deleted("model.md5"), "registry", reference=chain.MODEL),
    Way("registry: hash of the evaluation", tag("dvc.md5", NONE), "registry"),
    Way("registry: hash of the set", tag("calibration.md5", NONE), "registry"),
    Way("registry: pair", tag("pair", chain.OTHER), "registry"),
    Way("registry: path", tag("path", chain.OTHER_MODEL), "registry"),
    Way("registry: who, in the version only", tag("plumbline.promoted_by", "Eve"), "promotion history"),
    Way("registry: what the version rests on", rests_on_edited, "registry"),
    Way("registry: what the version rests on, no JSON", tag("plumbline.rests_on", "{"), "registry"),
    Way("registry: metric", metric, "registry"),
    Way("registry: metric of a domain", metric_of_a_domain, "registry"),
    Way("registry: metric deleted", metric_deleted, "registry"),
    Way("registry: count of the samples", count, "registry"),
    Way("registry: parameter of the choice", parameter("choice.seed", "5"), "registry"),
    Way("registry: parameter of the scheme", parameter("scheme.weight_bits", "8"), "registry"),
    Way("registry: parameter added", parameter_added, "registry"),
    Way("registry: run of the other version", run_swapped, "registry"),
    Way("registry: tags of the run", run_tags, "registry"),
    Way("registry: run deleted", run_deleted, "registry"),
    Way("registry: a version made by hand", second_version, "registry"),
    Way("history forged in registry and workspace", history_forged_everywhere, "", "statement"),
]

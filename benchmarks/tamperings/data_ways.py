"""Tamperings with the corpus, the samples, the choice, the evaluation and the decision."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.tamperings import chain, forging
from benchmarks.tamperings.forging import edit_json, edit_rows, flip, relock, shard_of_a_sample
from benchmarks.tamperings.way import Way
from plumbline.artifact import write_json

CORPUS, SAMPLES = chain.CORPUS, chain.SAMPLES
METRICS, PROMOTION = f"{chain.EVALUATION}/metrics.json", f"{chain.DECISION}/promotion.json"


def relabelled(column: str, value: str, then: Any = None) -> Any:
    """Relabel the rows of a shard that the set rests on."""

    def change(root: Path) -> None:
        shard, _ = shard_of_a_sample(root)
        edit_rows(shard, lambda rows: [row.update({column: value}) for row in rows] and None)
        if then is not None:
            then(root)

    return change


def relabelled_everywhere(root: Path) -> None:
    """Corpus, set and the model's record agree on other labels; the stages are run again."""
    relabelled("domain", "licensed")(root)
    forging.forge_samples(root, lambda rows: [row.update(domain="licensed") for row in rows])


def relabelled_in_all_but_the_corpus(root: Path) -> None:
    forging.forge_samples(root, lambda rows: [row.update(domain="licensed") for row in rows])


def text_edited(root: Path) -> None:
    shard, _ = shard_of_a_sample(root)

    def change(rows: forging.Rows) -> None:
        for row in rows:
            if row["text"] is None:
                row["messages"][0]["content"] += " and more"
            else:
                row["text"] += " and more"

    edit_rows(shard, change)


def document_removed(root: Path) -> None:
    shard, document = shard_of_a_sample(root)
    edit_rows(shard, lambda rows: [row for row in rows if row["doc_id"] != document])


def shard_added(root: Path) -> None:
    shard, _ = shard_of_a_sample(root)
    shutil.copy(shard, shard.with_name("ffffffffffffffff.parquet"))


def another_shard_changed(root: Path) -> None:
    """A shard of which the set has no document."""
    used = {d for row in pq.read_table(root / chain.SET / "samples.parquet")["doc_ids"].to_pylist() for d in row}
    for shard in sorted((root / CORPUS / "shards").glob("*.parquet")):
        if not used & set(pq.read_table(shard)["doc_id"].to_pylist()):
            edit_rows(shard, lambda rows: [row.update(domain="licensed") for row in rows] and None)
            return
    raise AssertionError("every shard is used")


def corpus_counts(root: Path) -> None:
    edit_json(root / CORPUS / "manifest.json", lambda c: c["totals"].update(documents=7))


def sample_shard(root: Path) -> None:
    shard = sorted((root / SAMPLES / "shards").glob("*.parquet"))[0]
    edit_rows(shard, lambda rows: [row.update(domain="licensed") for row in rows] and None)


def accounting(root: Path) -> None:
    edit_json(root / SAMPLES / "accounting.json", lambda c: c.update(documents_in=1))


def features(root: Path) -> None:
    flip(sorted((root / chain.FEATURES).glob("*.npy"))[0], -3)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens that the documents do not have; every stage after them is run again, and every record agrees


def foreign_tokens(rows: forging.Rows) -> None:
    ids = rows[0]["input_ids"]
    rows[0]["input_ids"] = [(token + 7) % 250 + 20 for token in ids]


def one_foreign_token(rows: forging.Rows) -> None:
    rows[-1]["input_ids"][-2] ^= 1


def another_document_blamed(root: Path) -> Any:
    used = {d for row in pq.read_table(root / chain.SET / "samples.parquet")["doc_ids"].to_pylist() for d in row}
    for shard in sorted((root / CORPUS / "shards").glob("*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            if row["doc_id"] not in used and row["text"] is not None:
                label = {"doc_ids": [row["doc_id"]], "domain": row["domain"], "source": row["source"]}
                return lambda rows: rows[0].update(label)
    raise AssertionError("every document is used")


def nobody_blamed(rows: forging.Rows) -> None:
    """As if the base model had written the sample."""
    foreign_tokens(rows)
    label = "written by the base model"
    rows[0].update(doc_ids=[], domain=label, source=label, parents=[], assistant_spans=None)


def without_parents(rows: forging.Rows) -> None:
    next(row for row in rows if len(row["parents"]) > 1).update(parents=[])


# ---------------------------------------------------------------------------------------------------------------------
# The choice, the evaluation, the decision


def choice_relocked(root: Path) -> None:
    edit_json(root / chain.CHOSEN / "choice.json", lambda c: c.update(seed=5))
    relock(root)


def better_metrics(root: Path) -> None:
    edit_json(root / METRICS, lambda c: c.update(kl_mean=c["kl_mean"] / 2))


def better_metrics_relocked(root: Path) -> None:
    better_metrics(root)
    relock(root)


def better_metrics_everywhere(root: Path) -> None:
    better_metrics(root)
    edit_json(root / PROMOTION, lambda c: c["figures"].update(kl_mean=c["figures"]["kl_mean"] / 2))
    edit_json(root / PROMOTION, lambda c: c["candidates"].update({chain.CHOICE: c["candidates"][chain.CHOICE] / 2}))
    for table in ("latest_metrics", "metrics"):
        run = "(SELECT run_id FROM model_versions WHERE version = ?)"
        version = forging.version_of(root, chain.CHAMPION)
        forging.sql(root, f"UPDATE {table} SET value = value / 2 WHERE key = 'kl_mean' AND run_uuid = {run}", version)
    forging.forge_all(root)


def metrics_of_the_other(root: Path) -> None:
    shutil.copy(root / chain.OTHER_EVALUATION / "metrics.json", root / METRICS)


def metrics_of_the_other_relocked(root: Path) -> None:
    metrics_of_the_other(root)
    relock(root)


def document_table(root: Path) -> None:
    edit_rows(root / chain.EVALUATION / "documents.parquet", lambda rows: rows[0].update(kl_sum=0.0) and None)


def figures_relocked(root: Path) -> None:
    edit_json(root / PROMOTION, lambda c: c["figures"].update(kl_mean=1e-9))
    relock(root)


def checks_relocked(root: Path) -> None:
    edit_json(root / PROMOTION, lambda c: c["checks"][0].update(sentence="Twice as good.", passed=False))
    relock(root)


def report(root: Path) -> None:
    path = root / "data/calibration_report/report.html"
    path.write_text(path.read_text().replace("<h1", "<h1 title='better'"))


def verdict(root: Path) -> None:
    edit_json(root / "data/calibration_report/verdict.json", lambda c: c.update(headline="packed is better"))


WAYS = [
    Way("corpus: domain of rows", relabelled("domain", "licensed"), "documents"),
    Way("corpus: source of rows", relabelled("source", "texts/other.txt"), "documents"),
    Way("corpus: domain of rows, relocked", relabelled("domain", "licensed", relock), "documents"),
    Way("corpus: text under its id", text_edited, "documents"),
    Way("corpus: a document removed", document_removed, "documents"),
    Way("corpus: a shard added", shard_added, "documents"),
    Way("corpus: a shard that the set does not use", another_shard_changed, "documents"),
    Way("corpus: counts of the manifest", corpus_counts, "documents"),
    Way("corpus: without its shards", lambda r: shutil.rmtree(r / CORPUS / "shards"), "documents"),
    Way("labels forged everywhere but in the corpus", relabelled_in_all_but_the_corpus, "documents"),
    Way("pool: a shard of the samples", sample_shard, "pool"),
    Way("pool: accounting", accounting, "pool"),
    Way("pool: features", features, "pool"),
    Way("tokens of no document, stages run again", lambda r: forging.forge_samples(r, foreign_tokens), "texts"),
    Way("one token of no document, stages run again", lambda r: forging.forge_samples(r, one_foreign_token), "texts"),
    Way(
        "another document blamed, stages run again",
        lambda r: forging.forge_samples(r, another_document_blamed(r)),
        "texts",
    ),
    Way("nobody blamed, stages run again", lambda r: forging.forge_samples(r, nobody_blamed), "texts"),
    Way("a joined sample passed off as whole", lambda r: forging.forge_samples(r, without_parents), "texts"),
    Way(
        "choice.json: seed",
        lambda r: edit_json(r / chain.CHOSEN / "choice.json", lambda c: c.update(seed=5)),
        "calibration choice",
    ),
    Way("choice.json: seed, relocked", choice_relocked, "calibration choice"),
    Way("choice.json: no JSON", lambda r: (r / chain.CHOSEN / "choice.json").write_text("{"), "calibration choice"),
    Way("metrics.json: half the KL", better_metrics, "evaluation"),
    Way("metrics.json: half the KL, relocked", better_metrics_relocked, "dvc.lock"),
    Way("metrics.json of the other model", metrics_of_the_other, "evaluation"),
    Way("metrics.json of the other model, relocked", metrics_of_the_other_relocked, "evaluation"),
    Way("evaluation: table of the documents", document_table, "evaluation"),
    Way("evaluation: removed with its cache", lambda r: evaluation_removed(r), "evaluation"),
    Way("promotion.json: why", lambda r: edit_json(r / PROMOTION, lambda c: c.update(why="ok")), "promotion"),
    Way("promotion.json: figures, relocked", figures_relocked, "promotion"),
    Way("promotion.json: checks, relocked", checks_relocked, "dvc.lock"),
    Way("promotion.json: no JSON", lambda r: write_json(r / PROMOTION, []), "promotion"),
    Way("report.html", report, "promotion"),
    Way("verdict.json", verdict, "promotion"),
    Way("labels forged everywhere", relabelled_everywhere, "", "signature"),
    Way("half the KL, every record forged", better_metrics_everywhere, "", "statement"),
]


def evaluation_removed(root: Path) -> None:
    """The evaluation, its listing in the cache and its stage."""
    listing = forging.dvc_digest(root / chain.EVALUATION)
    (root / ".dvc/cache/files/md5" / listing[:2] / listing[2:]).unlink()
    shutil.rmtree(root / chain.EVALUATION)
    forging.edit_lock(root, lambda stages: stages.pop(f"evaluation@{chain.CHAMPION}"))

"""From a document forward: every set, model and deployment, in every version that is still known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from plumbline.provenance import dvc_digest
from plumbline.provenance.affected import affected
from tests.helpers.small_chain import (
    CHOICE,
    CORPUS,
    MODEL,
    OTHER,
    OTHER_CHOICE,
    OTHER_SET,
    SET,
    record,
    remember,
    run,
)


def documents(root: Path, path: str) -> list[str]:
    return [doc for docs in pq.read_table(root / path / "samples.parquet")["doc_ids"].to_pylist() for doc in docs]


def text_of(root: Path, document: str) -> tuple[str, str]:
    """The text of a document, and the file that it came from."""
    for shard in (root / CORPUS / "shards").glob("*.parquet"):
        for row in pq.read_table(shard, columns=["doc_id", "text", "source"]).to_pylist():
            if row["doc_id"] == document:
                return row["text"], row["source"]
    raise LookupError(document)


def only_in(root: Path, mine: str, others: str) -> str:
    return sorted(set(documents(root, mine)) - set(documents(root, others)))[0]


def test_id_prefix_file_text_and_source_lead_to_the_same_sets_and_models(registered: Path, tmp_path: Path) -> None:
    document = only_in(registered, SET, OTHER_SET)
    text, source = text_of(registered, document)
    expected = documents(registered, SET).count(document)
    moved = tmp_path / "elsewhere.txt"
    moved.write_text(text)
    listed = tmp_path / "rows.jsonl"
    listed.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("not in the corpus", text)))
    for what in (document, document[:12], str(moved), str(listed), text, source, text[10:200]):
        found = affected(what, registered)
        assert found.touched, what
        assert [(each.name, each.samples, each.of) for each in found.sets] == [(CHOICE, expected, 8)], what
        assert [(each.name, each.md5) for each in found.models] == [
            (MODEL.split("/")[-1], dvc_digest(registered / MODEL))
        ]
        assert found.deployments == ["models:/plumbline/1 @champion"]
        assert found.corpus == [f"{source} row 0 ({source.split('/')[1]})"]


def test_a_source_is_every_document_of_it(registered: Path) -> None:
    found = affected("texts", registered)
    assert {each.name: each.samples for each in found.sets} == {CHOICE: 8, OTHER_CHOICE: 6}
    assert len(found.models) == 2 and len(found.documents) == 40
    prose = affected("texts/prose", registered)
    assert 0 < sum(each.samples for each in prose.sets) < 14
    with pytest.raises(ValueError, match="sources: texts"):
        affected("texts/pros", registered)


def test_a_file_that_changed_since_it_was_ingested_is_found_by_its_name(both: Path) -> None:
    document = only_in(both, SET, OTHER_SET)
    _, source = text_of(both, document)
    (both / source).write_text("what it holds now")
    found = affected(source, both)
    assert found.kind == "file" and [each.name for each in found.sets] == [CHOICE]


def test_versions_that_only_the_cache_has_are_found(both: Path) -> None:
    document = only_in(both, SET, OTHER_SET)
    text, _ = text_of(both, document)
    old = dvc_digest(both / SET), dvc_digest(both / MODEL)
    for path in (SET, MODEL):
        shutil.rmtree(both / path)
    shutil.rmtree(both / CORPUS)
    for what in (document, text):
        found = affected(what, both)
        assert [(each.md5, each.now) for each in found.sets] == [(old[0], False)]
        assert [(each.md5, each.now, each.deployed) for each in found.models] == [
            (old[1], False, ("models:/plumbline/1 @champion",))
        ]
        assert found.corpus == []
    told = run(both, "affected", document).output
    assert "earlier version" in told and "not in the corpus as it is now" in told


def test_a_registered_version_without_its_record_cannot_be_ruled_out(both: Path) -> None:
    shutil.rmtree(both / OTHER)
    gone = next(p for p in (both / ".dvc/cache/files/md5").glob("*/*.dir") if is_other(both, p))
    gone.unlink()
    found = affected("f" * 64, both)
    assert not found.sets and not found.models and found.touched
    assert found.unknown == ["models:/plumbline/2: its record is neither in the workspace nor in DVC's cache"]


def is_other(root: Path, listing: Path) -> bool:
    from plumbline.tracking.registry import registered_versions

    return any(
        version.version == "2" and version.model == listing.parent.name + listing.name
        for version in registered_versions(root)
    )


def test_exit_codes_and_json(registered: Path) -> None:
    touched, untouched = documents(registered, SET)[0], "0" * 64
    result = run(registered, "affected", touched, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["touched"] and told["sets"] and told["documents"] == [touched]
    result = run(registered, "affected", untouched)
    assert result.exit_code == 0 and "NONE: no calibration set" in result.output
    assert run(registered, "affected", "a phrase that nobody wrote", "--as", "text").exit_code == 0
    result = run(registered, "affected", "no-such-source")
    assert result.exit_code == 2 and "sources: texts" in result.output


def test_a_document_of_the_corpus_that_no_set_has(registered: Path) -> None:
    chosen = {*documents(registered, SET), *documents(registered, OTHER_SET)}
    rows = [
        row
        for shard in sorted((registered / CORPUS / "shards").glob("*.parquet"))
        for row in pq.read_table(shard, columns=["doc_id"])["doc_id"].to_pylist()
    ]
    found = affected(next(doc for doc in rows if doc not in chosen), registered)
    assert not found.touched and len(found.corpus) == 1


def test_a_recorded_change_of_the_set_shows_both_versions(both: Path) -> None:
    """After a document was withdrawn and the set was made anew, its earlier versions are still named."""
    document = only_in(both, SET, OTHER_SET)
    remember(both, f"calibration_set@{CHOICE}")
    shutil.rmtree(both / SET)
    shutil.copytree(both / OTHER_SET, both / SET)
    record(both, f"calibration_set@{CHOICE}", SET, [])
    assert [(each.name, each.now) for each in affected(document, both).sets] == [(CHOICE, False)]


def test_a_file_is_read_as_a_source_of_params_yaml_reads_it(both: Path, tmp_path: Path) -> None:
    text = text_of(both, documents(both, SET)[0])[0]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": text}))
    assert run(both, "affected", str(tmp_path / "rows.jsonl")).exit_code == 2
    params = yaml.safe_load((both / "params.yaml").read_text())
    params["corpus"] = {"sources": {"more": {"kind": "directory", "path": "more", "column": "body"}}}
    (both / "params.yaml").write_text(yaml.safe_dump(params))
    assert run(both, "affected", str(tmp_path / "rows.jsonl")).exit_code == 1


def test_a_broken_file_is_an_error_that_names_it(registered: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "doubled.parquet")
    result = run(registered, "affected", str(tmp_path / "doubled.parquet"))
    assert (
        result.exit_code == 2 and "doubled.parquet cannot be read: the column 'text' is there 2 times" in result.output
    )

"""A sample is compared with the text of the documents that it names, tokenized again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.artifact import read_json, write_json, write_table
from plumbline.calibration_set.reader import set_digest
from plumbline.provenance import audit
from plumbline.provenance.document_links import fewest_pieces
from tests.helpers.checkpoint import checkpoint
from tests.helpers.small_chain import CHOICE, CORPUS, MODEL, QUANTIZED, SCHEME, SET, STATS, chain, link, record, states

Rows = list[dict[str, Any]]
int32 = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(lambda values: np.array(values, np.int32))


def shortest(tokens: list[int], sources: list[list[int]]) -> int:
    """The same number by trying every cut."""
    runs = {tuple(s[a:b]) for s in sources for a in range(len(s)) for b in range(a + 1, len(s) + 1)}
    best = [0, *[len(tokens) + 1] * len(tokens)]
    for stop in range(1, len(tokens) + 1):
        for start in range(stop):
            if tuple(tokens[start:stop]) in runs:
                best[stop] = min(best[stop], best[start] + 1)
    return best[-1] if best[-1] <= len(tokens) else 0


@settings(deadline=None)
@given(tokens=int32, sources=st.lists(int32, min_size=1, max_size=3))
def test_the_fewest_pieces_are_those_of_an_exhaustive_search(tokens: Any, sources: list[Any]) -> None:
    assert fewest_pieces(tokens, sources) == shortest(tokens.tolist(), [s.tolist() for s in sources])


# ---------------------------------------------------------------------------------------------------------------------
# Forged samples, with every stage after them run again


def forge(root: Path, change: Callable[[Rows], Any]) -> None:
    """Change the set; make statistics, model, records, dvc.lock and cache anew, as if it had been drawn so."""
    from plumbline.activation_stats.build import build_activation_stats
    from plumbline.activation_stats.params import StatisticsParams
    from plumbline.quantized_model.build import build_quantized_model
    from plumbline.quantized_model.params import SchemeParams

    path = root / SET / "samples.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    for row in rows:
        tokens = np.asarray(row["input_ids"], "<i4")
        row.update(sample_id=hashlib.sha256(tokens.tobytes()).hexdigest(), n_tokens=len(tokens))
    write_table(path, pa.Table.from_pylist(rows, table.schema))
    manifest = read_json(root / SET / "manifest.json")
    digest = set_digest([row["sample_id"] for row in rows], manifest["fingerprint"])
    tokens = sum(row["n_tokens"] for row in rows)
    write_json(root / SET / "manifest.json", {**manifest, "digest": digest, "tokens": tokens})
    for out in (STATS, MODEL):
        shutil.rmtree(root / out)
        (root / out).mkdir()
    base = checkpoint("base", root)
    build_activation_stats(StatisticsParams(), base, root / SET, root / STATS)
    scheme = SchemeParams.model_validate({"method": "rtn", "weight_bits": 4, "group_size": 32})
    build_quantized_model(SCHEME, scheme, base, root / STATS, root / SET, root / MODEL, "0123456789ab")
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    for stage in (f"calibration_set@{CHOICE}", f"activation_stats@{CHOICE}", QUANTIZED):
        entry = stages[stage]
        deps = [dep["path"] for dep in entry["deps"]]
        record(root, stage, entry["outs"][0]["path"], deps, entry["params"]["params.yaml"])


def other_tokens(rows: Rows) -> None:
    rows[0]["input_ids"] = [(token + 7) % 250 + 20 for token in rows[0]["input_ids"]]


def one_token(rows: Rows) -> None:
    rows[-1]["input_ids"][-1] ^= 1


def shifted(rows: Rows) -> None:
    """The document's own tokens, but no window that the settings give."""
    rows[2]["input_ids"] = rows[2]["input_ids"][1:]


def blamed(rows: Rows) -> None:
    about = {key: rows[1][key] for key in ("doc_ids", "domain", "source")}
    rows[0].update(about)


def nobody(rows: Rows) -> None:
    label = "written by the base model"
    rows[0].update(doc_ids=[], domain=label, source=label, assistant_spans=None)


def parents(rows: Rows) -> None:
    rows[0].update(parents=["0" * 64])


FORGED: dict[str, tuple[Callable[[Rows], Any], str]] = {
    "other tokens": (other_tokens, "sample 0 (texts/"),
    "one token": (one_token, "does not give these tokens"),
    "shifted by a token": (shifted, "sample 2 (texts/"),
    "another document blamed": (blamed, "does not give these tokens"),
    "nobody blamed": (nobody, "it names no document, and strategy random writes no text itself"),
    "parents that are not there": (parents, "its documents have no sample 000000000000"),
}


@pytest.mark.parametrize("what", FORGED)
def test_tokens_that_the_documents_do_not_have_are_tampered_though_every_record_agrees(
    what: str, workspace: Path
) -> None:
    change, says = FORGED[what]
    forge(workspace, change)
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"texts": "tampered"}
    assert says in link(result, "texts").meaning and "1 of 8 samples" in link(result, "texts").meaning


def test_the_same_set_made_again_is_verified(workspace: Path) -> None:
    forge(workspace, lambda rows: None)
    assert states(audit(workspace / MODEL, workspace)) == {}


def test_samples_joined_of_several_documents(tmp_path: Path) -> None:
    root = chain(tmp_path / "workspace", "packed_windows")
    rows = pq.read_table(root / SET / "samples.parquet").to_pylist()
    assert any(len(row["parents"]) > 1 for row in rows)
    assert "8 samples are the tokens of their documents" in link(audit(root / MODEL, root), "texts").meaning

    def mixed(rows: Rows) -> None:
        """Each token is one of its parents', in another order."""
        joined = next(row for row in rows if len(row["parents"]) > 1)
        joined["input_ids"] = joined["input_ids"][::-1]

    forge(root, mixed)
    result = audit(root / MODEL, root)
    assert states(result) == {"texts": "tampered"}
    assert "it is not joined of the samples it names" in link(result, "texts").meaning


def test_another_versions_tokens_are_missing_and_not_tampered(workspace: Path) -> None:
    """Of a set that an older Plumbline tokenized, this one cannot say that it was forged."""
    lock = yaml.safe_load((workspace / "dvc.lock").read_text())
    lock["stages"]["tokenized_samples"]["params"]["data/code_versions.yaml"] = {"tokenized_samples": "older"}
    (workspace / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert states(audit(workspace / MODEL, workspace)) == {}
    forge(workspace, other_tokens)
    lock = yaml.safe_load((workspace / "dvc.lock").read_text())
    lock["stages"]["tokenized_samples"]["params"]["data/code_versions.yaml"] = {"tokenized_samples": "older"}
    (workspace / "dvc.lock").write_text(yaml.safe_dump(lock))
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"texts": "missing"} and link(result, "texts").expected == "older"


def test_a_chat_is_rendered_again_by_its_template(tmp_path: Path) -> None:
    from tests.helpers.small_chain import build, write_sources

    root = tmp_path / "workspace"
    root.mkdir()
    write_sources(root)
    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    (root / "base/chat_template.jinja").write_text(template)
    shutil.rmtree(root / "texts")
    (root / "texts/chat").mkdir(parents=True)
    words = ["the", "quick", "model", "reads", "short", "words"]
    chats = [
        {
            "messages": [
                {"role": role, "content": " ".join(words[n % 6 :] + words) * 2} for role in ("user", "assistant")
            ]
        }
        for n in range(40)
    ]
    for n, chat in enumerate(chats):
        chat["messages"][0]["content"] += f" {n}"
    (root / "texts/chat/c.jsonl").write_text("\n".join(map(json.dumps, chats)))
    build(root, "random")
    result = audit(root / MODEL, root)
    assert link(result, "texts").status == "verified"
    sets = pq.read_table(root / SET / "samples.parquet", columns=["domain"])["domain"].to_pylist()
    assert sets == ["chat"] * 8 and (root / CORPUS).is_dir() and CHOICE

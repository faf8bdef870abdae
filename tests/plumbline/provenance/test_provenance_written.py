"""A model calibrated on texts that the base model wrote: the whole chain, and the audit where there is no document."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.artifact import read_json, write_json, write_table
from plumbline.provenance import audit
from tests.helpers.checkpoint import checkpoint
from tests.helpers.small_chain import CHOICE, CORPUS, MODEL, SCHEME, SET, STATS, link, record, states
from tests.helpers.small_chain import write_sources as write_sources_of_a_small_workspace


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages from documents to an evaluation, called as Dagster calls them."""
    from plumbline.activation_stats.build import build_activation_stats
    from plumbline.activation_stats.params import StatisticsParams
    from plumbline.calibration_choice.build import build_calibration_choice
    from plumbline.calibration_set.build import build_calibration_set
    from plumbline.calibration_set.pool import Sources
    from plumbline.evaluation.build import build_evaluation
    from plumbline.evaluation.params import EvaluationParams
    from plumbline.quantized_model.build import build_quantized_model
    from plumbline.quantized_model.params import SchemeParams
    from plumbline.raw_corpus.build import build_raw_corpus
    from plumbline.raw_corpus.params import CorpusParams
    from plumbline.tokenized_samples.build import build_tokenized_samples
    from plumbline.tokenized_samples.params import TokenizeParams

    root = tmp_path_factory.mktemp("written") / "workspace"
    root.mkdir()
    write_sources_of_a_small_workspace(root)
    samples, choice = root / "data/tokenized_samples", root / "data/calibration_choice" / CHOICE
    evaluation = root / "data/evaluation" / f"{CHOICE}-{SCHEME}"
    for path in (root / CORPUS, samples, choice, root / SET, root / STATS, root / MODEL, evaluation):
        path.mkdir(parents=True)
    base = checkpoint("base", root)
    sources = {"sources": {"texts": {"kind": "directory", "path": "texts"}}}
    build_raw_corpus(CorpusParams.model_validate(sources), root, root / CORPUS)
    build_tokenized_samples(TokenizeParams(max_length=32, workers=1), base, root / CORPUS, samples)
    build_calibration_choice(CHOICE, {"strategy": "self_generated", "n": 8, "seed": 0}, choice)
    build_calibration_set(choice, Sources(samples, None, base), root / SET)
    build_activation_stats(StatisticsParams(), base, root / SET, root / STATS)
    scheme = SchemeParams(method="gptq", weight_bits=4, group_size=32)
    build_quantized_model(SCHEME, scheme, base, root / STATS, root / SET, root / MODEL, "0123456789ab")
    build_evaluation(EvaluationParams(tokens_per_domain=256), base, root / MODEL, samples, evaluation)
    for stage, out, deps in (
        ("raw_corpus", CORPUS, []),
        ("tokenized_samples", "data/tokenized_samples", [CORPUS]),
        (f"calibration_set@{CHOICE}", SET, ["data/tokenized_samples"]),
        (f"activation_stats@{CHOICE}", STATS, [SET]),
        (f"quantized_model@{CHOICE}-{SCHEME}", MODEL, [SET, STATS]),
    ):
        params = {f"schemes.{SCHEME}": scheme.model_dump(mode="json")} if stage.startswith("quantized_model") else {}
        record(root, stage, out, deps, params)
    return root


@pytest.fixture
def workspace(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "workspace"))


def test_the_whole_chain_verifies_without_a_document(pristine: Path) -> None:
    result = audit(pristine / MODEL, pristine)
    assert states(result) == {}
    assert "the base model wrote every sample itself" in link(result, "documents").meaning
    listed = read_json(pristine / MODEL / "calibration.json")["calibration_set"]["samples"]
    assert len(listed) == 8 and all(sample["doc_ids"] == [] for sample in listed)
    assert {sample["source"] for sample in listed} == {"written by the base model"}
    metrics = read_json(pristine / "data/evaluation" / f"{CHOICE}-{SCHEME}" / "metrics.json")
    assert metrics["by_domain"]["prose"]["kl_mean"] >= 0


def one_token(table: pa.Table) -> pa.Table:
    ids = table["input_ids"].to_pylist()
    ids[3][5] += 1
    return table.set_column(table.schema.get_field_index("input_ids"), "input_ids", pa.array(ids, pa.list_(pa.int32())))


def a_document(table: pa.Table) -> pa.Table:
    given = [["d" * 64], *table["doc_ids"].to_pylist()[1:]]
    return table.set_column(table.schema.get_field_index("doc_ids"), "doc_ids", pa.array(given, pa.list_(pa.string())))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (one_token, "row 3: its tokens do not match its id"),
        (lambda table: table.slice(0, 7), "7 samples, calibration.json lists 8"),
        (lambda table: table.take(pa.array([1, 0, 2, 3, 4, 5, 6, 7])), "row 0: sample_id"),
        (a_document, "row 0: doc_ids"),
    ],
)
def test_an_altered_set_is_found(workspace: Path, change: Callable[[pa.Table], pa.Table], says: str) -> None:
    file = workspace / SET / "samples.parquet"
    write_table(file, change(pq.read_table(file)))
    result = audit(workspace / MODEL, workspace)
    assert states(result) == {"calibration set": "tampered"}
    assert says in link(result, "calibration set").meaning


def test_a_record_that_hides_where_samples_came_from_is_found(workspace: Path) -> None:
    """Documents cannot be made to vanish by calling the samples self-written: the record is sealed by the weights."""
    file = workspace / MODEL / "calibration.json"
    content = read_json(file)
    content["calibration_set"]["samples"][0]["doc_ids"] = ["d" * 64]
    write_json(file, content)
    assert "tampered" in states(audit(workspace / MODEL, workspace)).values()

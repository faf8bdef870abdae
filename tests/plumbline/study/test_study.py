"""The whole study on a tiny model: what it measures, that it goes on after a kill, what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.artifact import sha256_file
from plumbline.base_model.load import load_model
from plumbline.base_model.one_thread import one_thread
from plumbline.evaluation.base_logits import BaseLogits
from plumbline.evaluation.held_out import batches, choose
from plumbline.evaluation.measure import measure
from plumbline.quantized_model.apply import apply_scheme
from plumbline.quantized_model.export import export
from plumbline.study import draws, measuring
from plumbline.study.build import evaluated
from plumbline.study.draws import asked_of, draw_set, sub_pool
from plumbline.study.result_cache import ResultCache
from tests.helpers.study import SCHEMES, Small

FILES = ["by_domain.png", "difference.png", "documents.parquet", "size_curve.png", "study.html", "verdict.json"]


@pytest.fixture(scope="session")
def finished(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    small.run(out, out.with_name("scratch"))
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_cell_is_what_the_ordinary_stages_give(
    small: Small, request: pytest.FixtureRequest, tmp_path: Path, scheme: str
) -> None:
    """Collect, quantize, export, load and evaluate one set of the study by the ordinary way."""
    if "cache" in SCHEMES[scheme].reads:  # `statistics:` says nothing of keys and values
        small.run(finished := tmp_path / "out", tmp_path / "scratch", schemes=[scheme])
    else:
        finished = request.getfixturevalue("finished")
    folder = tmp_path / "model"
    folder.mkdir()
    params, (n, draw, rule) = small.params(), (5, 3, "lengths")
    part = sub_pool(small.sources.pool(), params.share, params.seed + draw)
    drawn = draw_set(part, asked_of(rule, params.rules[rule], n, params.seed + draw)).rows
    samples = list(zip(drawn["sample_id"].to_pylist(), drawn["input_ids"].to_pylist(), strict=True))
    model = small.sources.load_model()
    with one_thread():  # as a study collects
        settings = StatisticsParams(cache="cache" in SCHEMES[scheme].reads)
        stats = collect(model, samples, settings, base_model_digest="", fingerprint="")
    quantized = apply_scheme(model, stats, SCHEMES[scheme], lambda: (samples, None))
    export(model, quantized, SCHEMES[scheme], small.root / "base", folder)

    held_out = choose(small.sources.samples, params.tokens_per_domain, 1)
    work = list(batches(held_out, measuring.BATCH_TOKENS))
    tokens, sample_of_token = measure(BaseLogits(lambda: model, work, 2**30), load_model(folder), work)
    found = pq.read_table(finished / "documents.parquet").to_pylist()
    ours = {
        (row["domain"], row["doc_id"]): row
        for row in found
        if (row["scheme"], row["n"], row["draw"], row["rule"]) == (scheme, n, draw, rule)
    }
    pairs = list(zip(held_out.domains, held_out.doc_ids, strict=True))
    assert list(ours) == sorted(set(pairs))
    for sample, pair in enumerate(pairs):  # one sample per document here
        of = sample_of_token == sample
        assert ours[pair]["n_tokens"] == of.sum()
        assert ours[pair]["kl_sum"] == pytest.approx(tokens.kl[of].sum(), rel=1e-12)


def test_both_rules_choose_from_the_same_part_and_are_held_to_the_same_documents(
    small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts: dict[tuple[int, int], list[list[str]]] = {}
    whole = draws.draw_set

    def spy(part, asked):
        parts.setdefault((asked["seed"], asked["n"]), []).append(part.sample_ids)
        return whole(part, asked)

    monkeypatch.setattr(draws, "draw_set", spy)
    small.run(tmp_path / "out", tmp_path / "scratch", schemes=["w4"], seed=7)
    assert sorted(parts) == [(seed, n) for seed in range(7, 12) for n in (2, 5)]
    assert all(len(seen) == 3 and seen[0] == seen[1] == seen[2] for seen in parts.values())  # nonsense, too
    assert len({tuple(seen[0]) for seen in parts.values()}) == 5  # a sub-pool per draw, shared by the sizes
    table = pq.read_table(tmp_path / "out/documents.parquet").to_pylist()
    documents: dict[tuple, list] = {}
    for row in table:
        documents.setdefault((row["n"], row["rule"], row["draw"]), []).append((row["doc_id"], row["n_tokens"]))
    assert len(documents) == 1 + 40 and len(set(map(tuple, documents.values()))) == 1


class Killed(BaseException):
    """Not an error that anything would handle."""


@pytest.mark.parametrize("after", [1, 7])
def test_a_killed_study_goes_on_and_ends_in_the_same_bytes(
    small: Small, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int
) -> None:
    done: list[dict] = []
    store = ResultCache.store

    def interrupted(self, result, **what):
        if len(done) == after:
            raise Killed
        store(self, result, **what)
        done.append(what)

    monkeypatch.setattr(ResultCache, "store", interrupted)
    one_at_a_time = 1  # byte: as few sets at once as can be
    with pytest.raises(Killed):
        small.run(tmp_path / "killed", tmp_path / "scratch", statistics_bytes=one_at_a_time)
    first, done[:] = list(done), []
    after = 10**9
    parts: list[int] = []
    read = measuring._statistics
    monkeypatch.setattr(measuring, "_statistics", lambda part, *of: (parts.append(len(part)), read(part, *of))[1])
    monkeypatch.setattr(measuring, "AT_ONCE", 7)
    small.run(tmp_path / "out", tmp_path / "scratch")
    assert 5 <= max(parts) <= 7  # a study that is killed again loses no more
    assert len(first) + len(done) == 2 + 5 * 2 * 4 * 2  # no calibration; draws, sizes, rules, schemes: each once
    assert not [what for what in done if what in first]
    assert bytes_of(tmp_path / "out") == bytes_of(finished)

    done[:] = []
    small.run(tmp_path / "again", tmp_path / "scratch")
    assert not done and bytes_of(tmp_path / "again") == bytes_of(finished)


def test_a_result_is_not_found_under_other_conditions(tmp_path: Path, small: Small, finished: Path) -> None:
    scratch = finished.with_name("scratch")
    assert len(list(scratch.glob("*.json"))) == 82
    small.run(tmp_path / "out", scratch, share=0.7, schemes=["w8a8"], sizes=[2])
    assert len(list(scratch.glob("*.json"))) == 82 + 15  # the oracle has no sub-pool
    small.run(tmp_path / "judged otherwise", scratch, confidence=0.9, resamples=500)
    assert len(list(scratch.glob("*.json"))) == 82 + 15  # the oracle has no sub-pool


def test_the_artifact_says_what_was_found(finished: Path) -> None:
    found = json.loads((finished / "verdict.json").read_text())
    assert found["comparisons_tested"] == 4 and len(found["comparisons"]) == 4 and len(found["arms"]) == 8
    assert len(found["controls"]) == 12 and found["widest_layer"] == 48
    table = pq.read_table(finished / "documents.parquet")
    kl = {}
    for row in table.to_pylist():
        kl.setdefault((row["scheme"], row["n"], row["rule"], row["draw"]), []).append(row["kl_sum"])
    for c in found["comparisons"]:
        arms = [
            np.array([sum(kl[c["scheme"], c["n"], rule, draw]) for draw in range(5)]) for rule in ("random", "lengths")
        ]
        assert c["difference"] == pytest.approx(arms[1].sum() / arms[0].sum() - 1, rel=1e-7)
        np.testing.assert_allclose(c["draws"], arms[1] / arms[0] - 1, rtol=1e-7)
        assert c["kl_mean"] == pytest.approx(arms[1].mean() / found["tokens"])
    assert all((finished / name).stat().st_size < 100_000 for name in FILES if name.endswith(".png"))
    for of in found["by_domain"]:
        rows = {name: [] for name in of["domains"]}
        for row in table.to_pylist():
            if (row["scheme"], row["n"], row["rule"]) == (of["scheme"], of["n"], of["rule"]):
                rows[row["domain"]].append((row["kl_sum"], row["n_tokens"]))
        assert sorted(rows) == ["code", "prose"]
        for name, one in of["domains"].items():
            assert one["kl_mean"] == pytest.approx(np.sum(rows[name], axis=0)[0] / np.sum(rows[name], axis=0)[1])
    assert len(found["by_domain"]) == 8
    sets = {draw["set"]: draw["tokens"] for arm in found["arms"] for draw in arm["draws"]}
    cost = found["cost"]
    assert cost["models"] == 82 and cost["evaluated_tokens"] == 82 * found["tokens"]
    assert cost["sets"] == 40 and cost["samples"] == 5 * 4 * (2 + 5) and cost["tokens"] > sum(sets.values())
    page = (finished / "study.html").read_text().replace("\u00a0%", " %")
    assert sha256_file(finished / "verdict.json") in page and sha256_file(finished / "documents.parquet") in page
    assert '<th class="left" scope="row">code</th>' in page
    assert found["headline"] in page and "http" not in page.replace("http://www.w3.org", "")
    for sentence in found["sentences"]:
        assert sentence in page


def test_of_each_document_the_first_tokens_are_evaluated(small: Small) -> None:
    whole = evaluated(small.sources.samples, small.params(tokens_per_domain=None))
    cut = evaluated(small.sources.samples, small.params(tokens_per_domain=None, tokens_per_document=5))
    assert cut.sample_ids == whole.sample_ids and max(map(len, whole.tokens)) > 5
    for ours, theirs in zip(cut.tokens, whole.tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs[:5])


def test_too_few_documents_are_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few to compare"):
        small.run(tmp_path / "out", tmp_path / "scratch", tokens_per_domain=1, schemes=["w8a8"], sizes=[2])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokens": "assistant"}, "statistics.tokens: assistant.*tokens: all"),
        ({"histogram_share": 0.5}, "histogram_share: 0.5.*histogram_share: 1"),
    ],
)
def test_statistics_that_are_not_collected_together_are_refused_at_once(small, tmp_path, settings, said) -> None:
    with pytest.raises(ValueError, match=said):
        small.run(tmp_path / "out", tmp_path / "scratch", StatisticsParams.model_validate(settings))
    assert not any((tmp_path / "out").iterdir())

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from plumbline.base_model.load import load_model
from plumbline.calibration_set.methods.own_text import BATCH, repeated_share, write
from plumbline.calibration_set.pool import Sources
from plumbline.calibration_set.strategies.base import Pool, Selection, generator, sample_id
from plumbline.calibration_set.strategies.self_generated import Criteria, _starts, select
from tests.helpers.calibration_pool import make_pool, rows_of
from tests.helpers.paths import BUNDLED
from tests.helpers.tokenized_samples import write_samples

VOCABULARY, BOS, EOS, PAD = 40, 1, 2, 3


def toy(spread: float = 0.3, context: int = 48) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        initializer_range=spread,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def row(number: int, length: int, split: str = "pool", special: int = 1) -> dict[str, Any]:
    ids = np.random.default_rng(number).integers(4, VOCABULARY, length)
    ids[:special] = BOS
    name = sample_id(ids)
    about = {"doc_id": f"doc-{split}-{number}", "split": split, "domain": "prose", "source": "a.txt", "window": 0}
    return {
        **about,
        "sample_id": name,
        "start": 0,
        "n_tokens": length,
        "n_special": special,
        "input_ids": ids.tolist(),
    }


def toy_pool(model: Any = None, special: int = 1, tuning: int = 20, count: int = 40, **more: Any) -> Pool:
    shared = toy() if model is None else model
    return make_pool(
        rows=[row(i, 30, special=special) for i in range(count)],
        tuning=[row(100 + i, tuning + i - 2, "tuning", special) for i in range(5)],
        load_model=lambda: shared,
        **more,
    )


def chosen(pool: Pool, n: int, seed: int = 0, **options: Any) -> Selection:
    return select(pool, n, generator(seed, "self_generated"), **options)


def uniforms(rows: int, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, steps))


def test_each_token_is_where_the_models_own_distribution_passes_the_number() -> None:
    """Against a plain loop without a cache, one text at a time, in float64."""
    model = toy().double()
    numbers = uniforms(3, 15)
    temperatures = (2.0, 0.5)
    texts = write(model, np.full((3, 1), BOS, np.int32), numbers, temperatures, frozenset({PAD}))
    for text, line in zip(texts, numbers, strict=True):
        ids, log_p = [BOS], []
        for step, number in enumerate(line):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1].numpy().copy()
            logits[PAD] = -np.inf
            weights = np.exp(logits / temperatures[min(step, 1)])
            token = int(np.argmax(np.cumsum(weights) / weights.sum() > number))
            log_p.append(logits[token] - np.log(np.exp(logits).sum()))
            ids.append(token)
        assert text.ids.tolist() == ids and text.ids.dtype == np.int32
        assert text.log_probability == pytest.approx(np.mean(log_p), abs=1e-9)
        assert not text.ended and PAD not in text.ids


def test_the_numbers_draw_the_distribution() -> None:
    model = toy(spread=1.0)
    numbers = (np.arange(4000) + 0.5)[:, None] / 4000
    texts = write(model, np.full((4000, 1), BOS, np.int32), numbers, (1.0,))
    share = np.bincount([text.ids[1] for text in texts], minlength=VOCABULARY) / 4000
    expected = torch.softmax(model(input_ids=torch.tensor([[BOS]])).logits[0, -1], -1).detach().numpy()
    np.testing.assert_allclose(share, expected, atol=1 / 4000)


def test_a_text_ends_before_its_end_token() -> None:
    model = toy()
    free = write(model, np.full((8, 1), BOS, np.int32), uniforms(8, 20), (1.0,))
    some = frozenset({int(free[0].ids[7])})
    for whole, text in zip(
        free, write(model, np.full((8, 1), BOS, np.int32), uniforms(8, 20), (1.0,), end=some), strict=True
    ):
        at = np.flatnonzero(np.isin(whole.ids[1:], sorted(some)))
        assert text.ended == bool(len(at))
        assert text.ids.tolist() == whole.ids[: 1 + at[0] if len(at) else None].tolist()


def test_a_model_without_a_cache_writes_the_same() -> None:
    model = toy().double()

    class Forgetful:
        device = model.device

        def __call__(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
            assert past_key_values is None
            assert torch.get_num_threads() == 1  # a text hangs on every last bit before it
            return type("Answer", (), {"logits": model(input_ids=input_ids).logits})

    start, numbers = np.full((2, 1), BOS, np.int32), uniforms(2, 9)
    with_cache, without = (write(m, start, numbers, (1.0,)) for m in (model, Forgetful()))
    assert [text.ids.tolist() for text in with_cache] == [text.ids.tolist() for text in without]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_the_repeated_share_is_counted(ids: list[int], n: int) -> None:
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    expected = sum(gram in grams[:i] for i, gram in enumerate(grams)) / len(grams) if grams else 0
    assert repeated_share(np.array(ids, np.int32), n) == pytest.approx(expected)


def test_samples_are_written_as_long_as_the_reference_and_never_beyond_the_context() -> None:
    found = chosen(toy_pool(), 6)
    assert found.indices.tolist() == [-1] * 6 and not found.pieces and len(found.written) == 6
    assert found.notes["length"] == 20 and found.notes["shortest"] == 10
    for ids, reason in zip(found.written.values(), found.reasons, strict=True):
        assert ids.dtype == np.int32 and ids[0] == BOS and not {BOS, EOS, PAD} & set(ids[1:].tolist())
        assert len(ids) == 20 or (reason["ended_itself"] and 10 <= len(ids) < 20)
        assert reason["distinct_share"] == round(len(set(ids.tolist())) / len(ids), 4)
    assert chosen(toy_pool(), 2, length=7).notes["length"] == 7
    assert chosen(toy_pool(tuning=90), 2).notes["length"] == 48
    production = toy_pool(production=[row(300, 25, "production")])
    assert chosen(production, 2).notes["length"] == 25


def test_the_same_texts_twice_with_any_number_of_threads_and_the_larger_set_begins_with_the_smaller() -> None:
    model = toy().to(torch.bfloat16)
    before = torch.get_num_threads()
    small = chosen(toy_pool(model), 3)
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        large = chosen(toy_pool(model), BATCH + 3)
    finally:
        torch.set_num_threads(before)
    assert torch.get_num_threads() == before
    assert [small.written[i].tolist() for i in range(3)] == [large.written[i].tolist() for i in range(3)]
    assert small.reasons == large.reasons[:3]
    other = chosen(toy_pool(model), 3, seed=1)
    assert other.written[0].tolist() != small.written[0].tolist()


def test_the_random_numbers_of_torch_and_the_model_are_left_alone() -> None:
    model = toy()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    chosen(toy_pool(model), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_temperatures_act_in_turn() -> None:
    cold, hot = (
        chosen(toy_pool(toy(1.0)), 8, temperatures=(t,), max_repeated=1.0, min_distinct=1) for t in (0.01, 3.0)
    )
    assert len({tuple(ids.tolist()) for ids in cold.written.values()}) < 8 or cold.notes["dropped"]
    assert np.mean([r["mean_log_probability"] for r in cold.reasons]) > np.mean(
        [r["mean_log_probability"] for r in hot.reasons]
    )
    assert cold.reasons[0]["temperature"] == 0.01 and hot.notes["temperatures"] == [3.0]


def test_a_greedy_model_writes_one_text_and_the_rest_is_counted() -> None:
    """Nearly at temperature 0 from one start: the second text is the first one again."""
    found = chosen(toy_pool(toy(1.0)), 3, temperatures=(1e-4,), max_repeated=1.0, min_distinct=1, shortest=1, tries=4)
    assert len(found.written) == 1 and found.notes["dropped"] == {"written_before": 11}
    assert found.notes["attempts"] == 12 and "1 of 12 texts passed (11 written before)" in found.notes["short"]


def test_degenerate_texts_are_dropped_by_reason() -> None:
    from plumbline.calibration_set.methods.own_text import Text

    def fault(ids: list[int], **more: Any) -> str:
        settings = {"least": 8, "min_distinct": 4, "ngram": 2, "max_repeated": 0.4, **more}
        return Criteria(**settings).fault(Text(np.array([BOS, *ids], np.int32), -1.0, False), 1)

    varied = list(range(10, 30))
    assert fault(varied) == ""
    assert fault(varied[:6]) == "ended_early"
    assert fault([5, 6, 7] * 4) == "few_distinct_tokens"
    assert fault([5, 6, 7, 8] * 5) == "repeats_itself"
    assert fault(varied + [9] * 7) == "repeats_itself"  # only at its end
    assert fault(varied + [9] * 7, max_repeated=0.9) == ""


def test_without_a_special_token_texts_start_all_over_the_vocabulary() -> None:
    pool = toy_pool(special=0)
    assert pool.special_prefix == 0
    start = _starts(pool, toy(), 123, frozenset({BOS, EOS, PAD}))
    tokens = [int(start(attempt)[0]) for attempt in range(VOCABULARY - 3)]
    assert sorted(tokens) == [0, *range(4, VOCABULARY)]  # each once before any comes again
    assert np.ptp(tokens[:5]) > VOCABULARY / 3
    found = chosen(pool, 4)
    assert [reason["start"] for reason in found.reasons] == [[int(ids[0])] for ids in found.written.values()]
    assert found.notes["start"].endswith("vocabulary")


def test_a_text_that_ends_early_is_dropped_or_kept_as_asked() -> None:
    model = toy()
    model.generation_config.eos_token_id = list(range(2, 12))
    strict = chosen(toy_pool(model), 2, shortest=20, tries=100)
    assert strict.notes["dropped"]["ended_early"] > 0 and all(len(ids) == 20 for ids in strict.written.values())
    loose = chosen(toy_pool(model), 2, shortest=2, min_distinct=1)
    assert min(len(ids) for ids in loose.written.values()) < 20


def test_what_cannot_be_met_is_said() -> None:
    with pytest.raises(ValueError, match="none of 8 texts passed .3 ended early, 5 few distinct tokens.; give another"):
        chosen(toy_pool(), 2, min_distinct=VOCABULARY)
    with pytest.raises(ValueError, match="`shortest` in params.yaml is 49, more than the model's context of 48"):
        chosen(toy_pool(), 2, length=90, shortest=49)


def test_one_sample_and_no_reference() -> None:
    pool = make_pool(rows=[row(0, 30)], load_model=toy)
    assert [len(ids) for ids in chosen(pool, 1, shortest=30, tries=50).written.values()] == [30]


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Sources, "load_model", lambda self: toy())
    rows = [row(i, 30) for i in range(12)] + [row(100 + i, 20, "tuning") for i in range(4)]
    return write_samples(tmp_path / "samples", rows)


def test_the_set_holds_no_document(samples: Path, choose: Callable[..., Path]) -> None:
    from plumbline.calibration_set.calibration_dataset import CalibrationDataset, load_calibration_set
    from plumbline.calibration_set.reader import read_manifest

    first, second = (choose(samples, strategy="self_generated", n=5) for _ in range(2))
    for name in ("samples.parquet", "manifest.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    rows, manifest = rows_of(first), read_manifest(first)
    assert all(r["doc_ids"] == [] and r["parents"] == [] for r in rows)
    assert {r["domain"] for r in rows} == {r["source"] for r in rows} == {"written by the base model"}
    assert manifest["documents"] == 0 and manifest["counts"]["written"] == 5
    data = CalibrationDataset(first)
    assert [data[i]["input_ids"].tolist() for i in range(5)] == [r["input_ids"] for r in rows]
    assert load_calibration_set(first)["input_ids"][:] == [r["input_ids"] for r in rows]
    json.dumps(manifest["notes"], allow_nan=False)


def test_fewer_than_asked_is_refused_unless_allowed(samples: Path, choose: Callable[..., Path]) -> None:
    options = {"strategy": "self_generated", "n": 3, "temperatures": [1e-4], "max_repeated": 1, "min_distinct": 1}
    options["shortest"] = 1
    with pytest.raises(ValueError, match=r"asked for n = 3 samples, found 1"):
        choose(samples, **options)
    assert len(rows_of(choose(samples, **options, allow_fewer=True))) == 1


def check_real_model(folder: Path) -> None:
    """A few tokens of a trained model: likelier than chance, unlike each other, and with structure."""
    model = load_model(folder, "cpu")
    width = model.config.vocab_size
    pool = make_pool(
        rows=[{**row(0, 24), "input_ids": [model.config.bos_token_id, *range(4, 27)]}], load_model=lambda: model
    )
    found = select(pool, 4, generator(0, "self_generated"), length=24, temperatures=(1.0,), shortest=12)
    assert len(found.written) == 4
    assert np.mean([reason["mean_log_probability"] for reason in found.reasons]) > -np.log(width) / 1.5
    texts = b"".join(ids.astype("<u2").tobytes() for ids in found.written.values())
    assert len(zlib.compress(texts)) < len(texts)


def test_the_bundled_model_writes() -> None:
    check_real_model(BUNDLED)


def test_a_foreign_model_writes(shared_data: Path) -> None:
    check_real_model(shared_data / "models" / "stories260K")

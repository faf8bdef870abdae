from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plumbline.calibration_set.methods.greedy import lazy_greedy
from plumbline.calibration_set.methods.quantized_kl import QuantizedKL
from plumbline.calibration_set.methods.set_search import Search, Trial
from plumbline.calibration_set.strategies import get
from plumbline.calibration_set.strategies.activation_coverage import ActivationCoverage
from plumbline.calibration_set.strategies.base import Pool, Selection, generator
from plumbline.calibration_set.strategies.reinforce import Judge, compared, select
from plumbline.sample_features.signatures import Signatures, SignatureSite
from tests.helpers.calibration_pool import make_pool
from tests.helpers.tokenized_samples import sample

POOL, TUNING = 24, 8
QUICK: dict[str, Any] = {"steps": 2, "sets": 2, "tuning_tokens": 200, "group_size": 16, "candidates": 12}


@lru_cache(maxsize=1)
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=96, num_key_value_heads=1, max_position_embeddings=64, dtype=torch.bfloat16, **sizes
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(6)  # the default initialisation leaves next to nothing in the logits
    return model


def row(number: int, split: str = "pool") -> dict[str, Any]:
    """A sample of tokens that the tiny model knows."""
    rng = np.random.default_rng(number)
    made = sample(number, int(rng.integers(12, 40)), split=split, domain="code" if number % 3 else "prose")
    return made | {"input_ids": [1, *rng.integers(2, 96, size=made["n_tokens"] - 1).tolist()]}


def a_pool(order: list[int] | None = None, with_signatures: bool = False) -> Pool:
    rng = np.random.default_rng(5)
    rows, tuning = [row(i) for i in range(POOL)], [row(100 + i, "tuning") for i in range(TUNING)]
    everything = [*rows, *tuning]
    embeddings = {one["sample_id"]: rng.normal(size=6) / 3 for one in everything}
    cells = rng.integers(0, 9, size=(len(everything), 1, 6)).astype(np.int32)
    made = Signatures(
        tuple(one["sample_id"] for one in everything),
        (SignatureSite("a", 3, 0),),
        cells.sum((1, 2)).astype(np.int64),
        rng.normal(size=(len(everything), 5)).astype(np.float32),
        cells,
        rng.gamma(2, size=(len(everything), 3)).astype(np.float32),
        np.zeros((len(everything), 1, 1, 1), np.float32),
    )
    return make_pool(
        order=order,
        rows=rows,
        tuning=tuning,
        embeddings=embeddings,
        signatures=made if with_signatures else None,
        load_model=model,
    )


def choose(pool: Pool, n: int = 4, seed: int = 0, **options: Any) -> Selection:
    return select(pool, n, generator(seed, "reinforce"), **(QUICK | options))


def test_the_set_its_reasons_and_the_comparison() -> None:
    selection = choose(a_pool())
    assert len(set(selection.indices.tolist())) == 4
    notes = selection.notes
    assert notes["evaluations"] == 4 and notes["candidates"] == 12 and notes["linears"] == 14
    assert all(70 <= tokens < 100 for tokens in notes["tokens"].values())  # 100 at most, less one per sample
    assert set(notes["kl"]) == {"rewarding", "checking"}
    for half in notes["kl"].values():
        assert set(half) == {"reinforce", "swap", "best_random", "median_random"}
        assert all(0 < value < 10 for value in half.values())
    assert len(notes["policy"]["mean_kl_per_step"]) == 2
    assert list(notes["policy"]["weights"])[:3] == ["log_length", "domain code", "domain prose"]
    assert notes["policy"]["entropy"][0] == round(np.log(12), 4) > notes["policy"]["entropy"][1]
    logits = [reason["logit"] for reason in selection.reasons]
    assert logits == sorted(logits, reverse=True)
    assert all(0 <= reason["in_sets"] <= 4 for reason in selection.reasons)
    json.dumps([selection.reasons, notes])


def test_its_kl_is_that_of_the_set_it_returns() -> None:
    """Recomputed from the ids alone, on all texts that the two halves can hold."""
    pool = a_pool()
    selection = choose(pool, tuning_tokens=10**6)
    chosen = sorted(zip(pool.names(selection.indices), pool.input_ids(selection.indices), strict=True))
    kl = QuantizedKL(model(), chosen, blocks=None, bits=3, group_size=16, memory_gb=1)
    texts = kl.texts(pool.tuning.input_ids(range(TUNING)))
    tokens = selection.notes["tokens"]
    assert texts.tokens == sum(tokens.values())
    found = {half: selection.notes["kl"][half]["reinforce"] for half in tokens}
    mean = sum(found[half] * tokens[half] for half in tokens) / texts.tokens
    assert kl(range(4), texts) == pytest.approx(mean, abs=2e-6)


def test_same_bytes_whatever_the_order_on_disk() -> None:
    first = choose(a_pool())
    again = choose(a_pool(order=list(range(POOL))[::-1]))
    assert first.indices.tolist() == again.indices.tolist()
    assert json.dumps([first.reasons, first.notes]) == json.dumps([again.reasons, again.notes])
    assert choose(a_pool(), seed=1).indices.tolist() != first.indices.tolist()


def test_the_base_model_is_left_alone() -> None:
    before = {name: tensor.clone() for name, tensor in model().state_dict().items()}
    choose(a_pool())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model().state_dict().items())
    assert not any(module._forward_pre_hooks for module in model().modules())


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 1.0}, {"entropy_bonus": 50.0}, {"bits": 4}, {"blocks": 1}, {"group_size": None},
        {"tuning_tokens": 100}, {"candidates": 20}, {"embedding_dimensions": 0}, {"rival": "cem"}, {"sets": 3},
        {"steps": 3}, {"start": "greedy"}, {"beta": 0.5}, {"activation_dimensions": 3},
    ],
)  # fmt: skip
def test_options_act(options: dict[str, Any]) -> None:
    pool = a_pool(with_signatures=True)
    assert choose(pool, **options).notes != usual()


@lru_cache(maxsize=1)
def usual() -> dict[str, Any]:
    return choose(a_pool()).notes


def test_a_greedy_start_favours_the_covering_samples() -> None:
    pool = a_pool(with_signatures=True)
    everything = np.arange(POOL)
    reference = pool.tuning.signatures(pool.tuning.signed)
    chosen, _ = lazy_greedy(ActivationCoverage.of(pool.signatures(everything), reference, 4), everything, 4)
    # too small a step to leave the start; every sample is a candidate, so positions are rows
    options = {"candidates": POOL, "learning_rate": 1e-9, "activation_dimensions": 5, "start": "greedy"}
    selection = choose(pool, steps=1, **options)
    assert set(selection.indices.tolist()) & set(chosen.tolist())
    assert selection.notes["policy"]["entropy"][0] < np.log(POOL) - 0.1
    assert {"activations 0", "activations 4"} <= set(selection.notes["policy"]["weights"])


def test_coverage_counts_beta_times_beside_the_kl() -> None:
    pool = a_pool(with_signatures=True)
    whole = ActivationCoverage.of(pool.signatures(np.arange(POOL)), pool.tuning.signatures(pool.tuning.signed), 3)
    items = (2, 5, 11)
    judge = judge_of({items: 0.3}, {items: 0.7}, whole, 2.0)
    f = whole.reached(np.array(items))[0]
    assert 0.2 < f < 1
    assert judge.reward(items) == pytest.approx(2 * f - 0.3, abs=1e-8)
    assert judge.check(items) == pytest.approx(2 * f - 0.7, abs=1e-8)
    selection = choose(pool, n=3, beta=1.0)
    assert selection.notes["coverage"] == round(whole.reached(selection.indices)[0], 6)
    assert "coverage" not in choose(pool, n=3).notes


def judge_of(
    rewarding: dict[tuple[int, ...], float],
    checking: dict[tuple[int, ...], float],
    coverage: ActivationCoverage | None = None,
    beta: float = 0.0,
) -> Judge:
    class Fake:
        def __call__(self, items: Any, texts: Any) -> float:
            return texts[items]

    return Judge(Fake(), rewarding, checking, coverage, beta, lambda: None)  # type: ignore[arg-type]


def search_of(*sets: tuple[int, ...]) -> Search:
    return Search([Trial(items, 0.0) for items in sets], list(sets[:2]))


def test_the_half_that_did_not_reward_decides_and_a_loss_is_told() -> None:
    sets = [(number,) for number in range(6)]
    judge = judge_of(
        dict(zip(sets, [1, 2, 3, 4, 5, 6.0], strict=True)), dict(zip(sets, [9, 8, 7, 3, 4, 5.0], strict=True))
    )
    result = compared(judge, search_of(*sets[:2]), search_of(*sets[2:4]), search_of(*sets[2:6]), "swap")
    assert result["kl"]["checking"] == {"reinforce": 8, "swap": 3, "best_random": 3, "median_random": 4.5}
    assert result["kl"]["rewarding"] == {"reinforce": 2, "swap": 4, "best_random": 4, "median_random": 4.5}
    assert result["random_sets_worse"] == 0
    assert "8.00000 is higher than the 3.00000 of swap search" in result["verdict"]
    # ranks of the four random sets: 1 2 3 4 and 4 1 2 3
    assert result["rank_correlation_of_halves"] == -0.2 and "hardly alike" in result["verdict"]
    won = compared(judge, search_of(*sets[3:5]), search_of(*sets[:2]), search_of(*sets[3:6]), "cem")
    assert "3.00000 is lower than the 8.00000 of the cross-entropy method" in won["verdict"]
    assert "lower than that of 2 of 3 random sets" in won["verdict"]
    assert won["rank_correlation_of_halves"] == 1.0 and "hardly" not in won["verdict"]


def test_nothing_to_choose() -> None:
    pool = replace(a_pool(), load_model=lambda: pytest.fail("no model is needed"))
    assert choose(pool, n=POOL).indices.tolist() == list(range(POOL))


@pytest.mark.parametrize("n", [1, POOL - 1])
def test_the_least_and_the_most(n: int) -> None:
    assert len(set(choose(a_pool(), n=n, candidates=None).indices.tolist())) == n


def test_all_samples_alike() -> None:
    """One domain, one length, one embedding: no feature tells them apart, and the policy stays uniform."""
    rows = [{**row(3), "sample_id": f"{i:064x}", "n_tokens": 20, "input_ids": [1] * 20} for i in range(6)]
    tuning = [{**row(100 + i, "tuning"), "domain": "code"} for i in range(2)]
    names = [one["sample_id"] for one in (*rows, *tuning)]
    pool = make_pool(rows=rows, tuning=tuning, embeddings=dict.fromkeys(names, np.zeros(4)), load_model=model)
    selection = choose(pool, n=2, candidates=None)
    assert set(selection.notes["policy"]["weights"].values()) == {0.0}
    assert selection.notes["rank_correlation_of_halves"] is None
    assert "equals" in selection.notes["verdict"]


def test_bad_options_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"candidates = 4 leaves no choice of n = 4; raise it in params\.yaml"):
        choose(a_pool(), candidates=4)
    with pytest.raises(ValueError, match=r"memory_gb is 1e-06"):
        choose(a_pool(), memory_gb=1e-6)
    with pytest.raises(ValueError, match="sets"):
        get("reinforce").options(sets=1)

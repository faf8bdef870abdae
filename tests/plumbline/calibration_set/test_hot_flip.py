from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

from plumbline.base_model.load import load_model
from plumbline.calibration_set.methods.flip_scores import PATH, ROUNDED, FlipScores
from plumbline.calibration_set.methods.flip_test import FlipTest, random_flips
from plumbline.calibration_set.strategies import get
from plumbline.calibration_set.strategies.base import Pool, generator, sample_id
from plumbline.calibration_set.strategies.hot_flip import CoverageSoFar, SensitivityCoverage, select
from plumbline.quantized_model.grid import Grid, dequantize
from plumbline.quantized_model.rtn import rtn
from tests.helpers.calibration_pool import make_pool
from tests.helpers.paths import BUNDLED

VOCABULARY = 24


def toy(dtype: torch.dtype = torch.float32, spread: float = 0.4) -> LlamaForCausalLM:
    """Two layers, 8 wide: small enough to make every flip for real."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=spread,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


def text(number: int, length: int = 12) -> np.ndarray:
    return np.random.default_rng(number).integers(0, VOCABULARY, length).astype(np.int32)


def row(ids: np.ndarray, split: str = "pool") -> dict[str, Any]:
    name = sample_id(ids)
    about = {"doc_id": f"doc-{name}", "split": split, "domain": "prose", "source": "a.txt", "window": 0, "start": 0}
    return {**about, "sample_id": name, "n_tokens": len(ids), "n_special": 0, "input_ids": ids.tolist()}


def toy_pool(texts: int = 12, model: Any = None, production: bool = False, length: int = 12, **more: Any) -> Pool:
    rows = [row(text(i, length + i % 3)) for i in range(texts)]
    tuning = [row(text(100 + i), "tuning") for i in range(6)]
    other = [row(text(200 + i), "production") for i in range(6)] if production else None
    shared = toy() if model is None else model
    return make_pool(rows=rows, tuning=tuning, production=other, load_model=lambda: shared, **more)


OPTIONS: dict[str, Any] = {"group_size": 4, "rows": 3, "real_flips": 16, "weights_per_flip": 1}


def chosen(pool: Pool, n: int, **options: Any) -> Any:
    return select(pool, n, generator(0, "hot_flip"), **{**OPTIONS, **options})


def deltas(scores: FlipScores, ids: np.ndarray, path: tuple[float, ...] = ROUNDED) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    scores.scores(ids, scores.base(ids), lambda i, d: found.update({scores.layers[i].name: d.numpy().copy()}), path)
    return found


def neighbours(weight: torch.Tensor, bits: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ŵ and Ŵ with every weight on its other neighbour, one weight at a time, by hand in float64."""
    on_grid = rtn(weight, Grid(bits, size))
    scale, codes = np.repeat(on_grid.scale.double().numpy(), size, axis=1), on_grid.codes.tolist()
    w = weight.double().numpy()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rounded, flipped = np.zeros_like(w), np.zeros_like(w)
    for i, j in np.ndindex(*w.shape):
        code = codes[i][j]
        assert abs(w[i, j] / scale[i, j] - code) <= 0.5 + 1e-6  # the nearest one
        other = code + int(np.sign(w[i, j] - code * scale[i, j]))
        rounded[i, j] = code * scale[i, j]
        flipped[i, j] = (other if low <= other <= high else code) * scale[i, j]
    return rounded, flipped


def by_autograd(model: LlamaForCausalLM, ids: np.ndarray, bits: int, size: int, t: float) -> dict[str, np.ndarray]:
    """δ by plain autograd in float64, written anew from the definition."""
    double = toy().double()
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"]
    grids = {name: neighbours(model.get_submodule(name).weight, bits, size) for name in names}
    w = {name: double.get_submodule(name).weight for name in names}
    point = {name: (w[name] + t * (torch.from_numpy(grids[name][0]) - w[name])).requires_grad_() for name in names}
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    p = torch.log_softmax(double(input_ids=tokens).logits[0], -1)
    out = functional_call(
        double, {f"{name}.weight": value for name, value in point.items()}, kwargs={"input_ids": tokens}
    )
    q = torch.log_softmax(out.logits[0], -1)
    loss = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum") / len(ids)
    slopes = torch.autograd.grad(loss, [point[name] for name in names])
    return {name: g.numpy() * (grids[name][1] - grids[name][0]) for name, g in zip(names, slopes, strict=True)}


def test_every_delta_is_what_plain_autograd_gives() -> None:
    model = toy()
    scores = FlipScores(model, 4, 4, 3, torch.float64)
    found, wanted = deltas(scores, text(1)), by_autograd(model, text(1), 4, 4, 1.0)
    assert found.keys() == wanted.keys() and len(found) == 14
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-15)


def test_the_path_integral_is_the_mean_of_four_gradients() -> None:
    model = toy()
    scores = FlipScores(model, 3, 4, 3, torch.float64)
    found = deltas(scores, text(1), PATH)
    parts = [by_autograd(model, text(1), 3, 4, t) for t in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]
    for name, value in found.items():
        np.testing.assert_allclose(value, sum(part[name] for part in parts) / 4, rtol=1e-9, atol=1e-15)


def test_deltas_rank_like_every_single_flip_made_for_real() -> None:
    """A step of the grid is not small, so the rank correlation is near 1 and not 1; larger models come nearer."""
    scores = FlipScores(toy(), 6, 4, 3, torch.float64)
    ids = text(1, 8)
    found, base = deltas(scores, ids), scores.base(ids)
    before = scores.loss(ids, base)
    predicted, true = [], []
    for number, layer in enumerate(scores.layers):
        for i, j in np.argwhere(layer.sign.numpy() != 0):
            which = torch.zeros(layer.sign.shape, dtype=torch.bool)
            which[i, j] = True
            with scores.flipped(number, which):
                true.append(scores.loss(ids, base) - before)
            predicted.append(found[layer.name][i, j])
    assert len(true) > 800  # of 1,088 weights; the rest are at the end of the grid or on it
    assert spearmanr(predicted, true).statistic > 0.95
    large = np.abs(predicted) >= np.median(np.abs(predicted))
    assert (np.sign(np.array(predicted)[large]) == np.sign(np.array(true)[large])).mean() > 0.97
    assert scores.loss(ids, base) == before


def test_the_copy_is_rounded_as_the_quantized_model_is() -> None:
    model = toy(torch.bfloat16)
    for layer in FlipScores(model, 3, 5, 64).layers:
        weight = model.get_submodule(layer.name).weight
        assert layer.width in (4, 3) and weight.shape[1] % layer.width == 0  # the divisors of 8 and 12 below 5 ...
        assert torch.equal(layer.rounded().to(torch.bfloat16), dequantize(rtn(weight, Grid(3, layer.width))))


def test_a_weight_on_the_grid_or_at_its_end_has_no_flip() -> None:
    model = toy()
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight[0] = torch.tensor([7.5, 7.4, 2.0, 2.4, -7.5, -7.0, 1.6, 0.0])  # step 1: 7.5 is half a step beyond the end
    layer = FlipScores(model, 4, 8, 4).layers[0]
    assert layer.scale[0].tolist() == [1.0]
    assert layer.codes[0].tolist() == [7, 7, 2, 2, -8, -7, 2, 0]
    assert layer.sign[0].tolist() == [0, 0, 0, 1, 1, 0, -1, 0]


def test_group_sums_are_over_the_members_that_its_name_says() -> None:
    scores = FlipScores(toy(), 4, 4, 3, torch.float64)
    ids = text(2)
    found = deltas(scores, ids)
    seen = []
    for layer in scores.layers:
        sums = layer.group_sums(torch.from_numpy(found[layer.name]) ** 2).numpy()
        assert len(sums) == layer.groups
        for group in range(layer.groups):
            place = layer.of_group(layer.first + group)
            np.testing.assert_allclose(sums[group], (found[layer.name][place] ** 2).sum(), rtol=1e-12)
            seen.append(layer.first + group)
    assert seen == list(range(scores.groups))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10_000))
def test_the_objective_is_monotone_submodular_and_what_it_says(groups: int, m: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    phi, reference = (draw.gamma(0.5, size=(k, groups)).astype(np.float32) for k in (m + 2, 3))
    objective = SensitivityCoverage.of(phi, reference)

    def f(rows: list[int]) -> float:
        mean = reference.astype(np.float64).mean(0)
        return sum(mean[g] * np.sqrt(sum(phi[s, g] / mean[g] for s in rows)) for g in range(groups))

    order = draw.permutation(m + 2).tolist()
    small, large, one = order[: m // 2], order[:m], order[-1]
    reached = CoverageSoFar(objective)
    for taken in large:
        assert reached.gains(np.array([taken]))[0] >= 0
        reached.add(taken)
    np.testing.assert_allclose(objective.value(np.array(large)), f(large), rtol=1e-6)
    gain = reached.gains(np.array([one]))[0]
    np.testing.assert_allclose(gain, f([*large, one]) - f(large), rtol=1e-5, atol=1e-9)
    assert gain <= f([*small, one]) - f(small) + 1e-9


def test_groups_that_production_does_not_move_count_for_nothing() -> None:
    phi = np.array([[1, 5], [2, 0]], np.float32)
    objective = SensitivityCoverage.of(phi, np.array([[1, 0]], np.float32))
    assert objective.groups.tolist() == [0] and objective.value(np.array([1])) == pytest.approx(2**0.5)
    nothing = SensitivityCoverage.of(phi, np.zeros((1, 2), np.float32))
    reached = CoverageSoFar(nothing)
    assert reached.gains(np.array([0, 1])).tolist() == [0, 0]
    reached.add(1)
    assert nothing.value(np.array([0, 1])) == 0


@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_what_is_chosen_is_greedy_on_sensitivities_measured_anew(weighting: str) -> None:
    pool = toy_pool()
    found = chosen(pool, 4, reference=6, weighting=weighting)
    scores = FlipScores(toy(), 4, 4, 3)

    def phi(ids: np.ndarray) -> np.ndarray:
        of = deltas(scores, ids)
        phi = np.concatenate(
            [layer.group_sums(torch.from_numpy(of[layer.name] ** 2)).sqrt().numpy() for layer in scores.layers]
        )
        return phi * (len(ids) - 1) if weighting == "token" else phi

    ours = np.stack([phi(ids) for ids in pool.input_ids(range(12))]).astype(float)
    mean = np.stack([phi(ids) for ids in pool.tuning.input_ids(range(6))]).astype(float).mean(0)
    taken: list[int] = []
    for reason in found.reasons:
        value = [np.sqrt(mean * ours[[*taken, s]].sum(0)).sum() if s not in taken else -1 for s in range(12)]
        before = np.sqrt(mean * ours[taken].sum(0)).sum()
        best = int(np.argmax(value))
        taken.append(best)
        assert reason["gain"] == pytest.approx((value[best] - before) / mean.sum(), rel=1e-3)
        assert reason["raises_most"].split()[0] in of_names(scores)
    assert found.indices.tolist() == taken
    assert found.notes["objective"]["reached"] >= found.notes["objective"]["random_sets_mean"]
    assert found.notes["validation"]["validated"] and "warning" not in found.notes


def of_names(scores: FlipScores) -> set[str]:
    return {layer.name for layer in scores.layers}


def test_the_shared_model_is_left_bit_for_bit_as_it_was() -> None:
    model = toy(torch.bfloat16)
    model.model.layers[0].register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = {name: len(part._forward_hooks) for name, part in model.named_modules()}
    chosen(toy_pool(model=model), 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad and p.grad is None for p in model.parameters())
    assert {name: len(part._forward_hooks) for name, part in model.named_modules()} == hooks
    assert all(not getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters())
    assert not model.training


def test_no_gradient_or_hook_stays_when_a_pass_fails() -> None:
    scores = FlipScores(toy(), 4, 4, 3)

    def fail(_: int, __: torch.Tensor) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        scores.scores(text(1), scores.base(text(1)), fail)
    assert all(not p.requires_grad and p.grad is None for p in scores.parameters)
    assert all(not p._post_accumulate_grad_hooks for p in scores.parameters)


def test_the_same_set_twice_and_from_any_order_on_disk() -> None:
    first, second, third = (chosen(toy_pool(), 4), chosen(toy_pool(), 4), None)
    rows = [row(text(i, 12 + i % 3)) for i in range(12)][::-1]
    tuning = [row(text(100 + i), "tuning") for i in range(6)][::-1]
    third = chosen(make_pool(rows=rows, tuning=tuning, load_model=toy), 4)
    for other in (second, third):
        assert other.indices.tolist() == first.indices.tolist()
        assert json.dumps([other.reasons, other.notes]) == json.dumps([first.reasons, first.notes])


def test_a_larger_set_begins_with_the_smaller_one() -> None:
    small, large = chosen(toy_pool(), 3), chosen(toy_pool(), 9)
    assert large.indices[:3].tolist() == small.indices.tolist()
    assert large.reasons[:3] == small.reasons


def test_all_samples_alike_are_taken_in_the_order_of_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "input_ids", lambda self, rows: [text(1) for _ in rows])
    assert chosen(toy_pool(6), 4).indices.tolist() == [0, 1, 2, 3]


def test_only_candidates_are_scored_and_chosen() -> None:
    found = chosen(toy_pool(), 4, candidates=5, reference=2)
    drawn = np.sort(generator(0, "hot_flip").permutation(12)[:5])
    assert found.notes["candidates"] == 5 and set(found.indices.tolist()) <= set(drawn.tolist())
    assert found.notes["cost"]["backward_passes"] == 4 + 2 + 5
    assert found.notes["cost"]["forward_passes"] == 4 * (3 + 16) + 2 * (2 + 5)
    with pytest.raises(ValueError, match="n = 6 of 5 candidates.*set `candidates`"):
        chosen(toy_pool(), 6, candidates=5)


def test_one_sample_of_one() -> None:
    assert chosen(toy_pool(1), 1).indices.tolist() == [0]


def test_the_reference_is_production_where_there_is_one() -> None:
    notes = chosen(toy_pool(production=True), 3).notes
    assert notes["reference"] == {"split": "production", "samples": 6}
    assert chosen(toy_pool(), 3).notes["reference"]["split"] == "tuning"
    assert notes["sensitivity"] != chosen(toy_pool(), 3).notes["sensitivity"]
    alone = make_pool(rows=[row(text(i)) for i in range(5)], load_model=toy)
    assert chosen(alone, 2).notes["reference"]["split"].startswith("pool")


def test_max_tokens_cuts_what_is_looked_at() -> None:
    cut = [row(text(i, 12 + i % 3)[:7]) for i in range(12)]
    cut_tuning = [row(text(100 + i)[:7], "tuning") for i in range(6)]
    whole, short = toy_pool(), make_pool(rows=cut, tuning=cut_tuning, load_model=toy)
    kls = sorted(reason["kl"] for reason in chosen(whole, 12, max_tokens=7, reference=6).reasons)
    assert kls == sorted(reason["kl"] for reason in chosen(short, 12, reference=6).reasons)
    assert kls != sorted(reason["kl"] for reason in chosen(whole, 12, reference=6).reasons)
    assert chosen(whole, 12, max_tokens=7).notes["tokens_looked_at"] == 12 * 7


def test_the_models_context_is_a_limit_too() -> None:
    assert chosen(toy_pool(3, length=70), 2).notes["tokens_looked_at"] == 3 * 64


def test_it_refuses_below_the_threshold_unless_told_otherwise() -> None:
    with pytest.raises(ValueError, match=r"rank correlation 0\.\d\d by one backward pass and .* expected at least 1\."):
        chosen(toy_pool(), 3, min_rank_correlation=1.0)
    notes = chosen(toy_pool(), 3, min_rank_correlation=1.0, accept_unvalidated=True).notes
    assert not notes["validation"]["validated"] and "not validated" in notes["warning"]
    assert set(notes["validation"]["rank_correlation"]) == {"one backward pass", "path integral"}
    assert notes["gradient"] == "at Ŵ"


def test_the_path_is_taken_where_it_alone_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlipTest, "rank_correlation", lambda self, path: 0.9 if path is PATH else 0.1)
    found = chosen(toy_pool(), 3)
    assert found.notes["gradient"].startswith("mean of four") and found.notes["validation"]["validated"]
    monkeypatch.undo()
    assert found.notes["sensitivity"] != chosen(toy_pool(), 3).notes["sensitivity"]


def test_a_model_that_rounding_does_not_change_is_refused() -> None:
    """All weights on the grid: nothing to flip, no rank correlation, and no division by zero."""
    model = toy()
    for part in model.modules():
        if isinstance(part, torch.nn.Linear) and part is not model.lm_head:
            part.weight.zero_()
    with pytest.raises(ValueError, match="rank correlation nan"):
        chosen(toy_pool(model=model), 3)
    taken = chosen(toy_pool(model=model), 3, accept_unvalidated=True)
    assert taken.indices.tolist() == [0, 1, 2] and taken.notes["validation"]["flips"] == 0
    json.dumps([taken.reasons, taken.notes], allow_nan=False)


@pytest.mark.parametrize("options", [{"real_flips": 3}, {"bits": 1}, {"min_rank_correlation": 2}, {"rows": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        get("hot_flip").options.model_validate(options)


def rank_correlation(model: Any, texts: list[np.ndarray], weights: int) -> float:
    scores = FlipScores(model, 4, 128, 64)
    flips = random_flips(scores, 24, weights, np.random.default_rng(0))
    return FlipTest(scores, flips, texts).rank_correlation(ROUNDED)


def check_real_model(model: Any, texts: list[np.ndarray]) -> None:
    """A few weights flip as predicted; whole groups less so, which is why the test flips a few."""
    few, whole = (rank_correlation(model, texts, weights) for weights in (8, 10**9))
    assert few > 0.9 and whole < few - 0.1


def test_real_flips_of_the_bundled_model() -> None:
    texts = [np.random.default_rng(i).integers(3, 6144, 48).astype(np.int32) for i in range(1)]
    check_real_model(load_model(BUNDLED, "cpu"), texts)


def test_real_flips_of_a_foreign_model(shared_data: Path) -> None:
    texts = [np.random.default_rng(i).integers(3, 512, 64).astype(np.int32) for i in range(2)]
    check_real_model(load_model(shared_data / "models" / "stories260K", "cpu"), texts)


def test_a_set_is_built_from_it(tmp_path: Path, choose: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from plumbline.calibration_set.pool import Sources
    from plumbline.calibration_set.reader import read_manifest
    from tests.helpers.tokenized_samples import write_samples

    monkeypatch.setattr(Sources, "load_model", lambda self: toy())
    rows = [row(text(i)) for i in range(9)] + [row(text(100 + i), "tuning") for i in range(6)]
    samples = write_samples(tmp_path / "samples", rows)
    first, second = (choose(samples, strategy="hot_flip", n=3, **OPTIONS) for _ in range(2))
    for name in ("samples.parquet", "manifest.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert read_manifest(first)["notes"]["validation"]["validated"]

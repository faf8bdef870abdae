"""Merging and retracting, on statistics of made-up activations: shards must add up to a single pass."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.running import RunningSite
from plumbline.activation_stats.sketch import ActivationStats, SiteStats, extremes, merge, quantile, retract

SETTINGS = StatisticsParams(mantissa_bits=2, top_k=3)
WIDTH = 4
Activations = dict[str, tuple[Tensor, Tensor]]
"""By sample: what the site "always" and the site "expert" saw; the latter possibly nothing."""


def stats_of(activations: Activations, settings: StatisticsParams = SETTINGS) -> ActivationStats:
    """One pass over all of them."""
    ids = sorted(activations)
    sites, unreached = {}, []
    for number, name in enumerate(("always", "expert")):
        site = RunningSite(name, WIDTH, torch.bfloat16, torch.device("cpu"), settings, len(ids))
        for row, sample in enumerate(ids):
            if len(x := activations[sample][number]):
                site.add(x, row, sample)
        if site.sets:
            sites[name] = site.result((name, name + "_too"))
        else:
            unreached += [name, name + "_too"]
    tokens = torch.tensor([len(activations[sample][0]) for sample in ids], dtype=torch.int64)
    return ActivationStats("model", "tokenizer", settings, tuple(ids), tokens, sites, tuple(unreached))


OPTIONS = st.sampled_from(
    [
        SETTINGS,
        StatisticsParams(mantissa_bits=7, top_k=1, normalization="sequence"),
        StatisticsParams(mantissa_bits=0, top_k=5, histogram_share=0.4, hessian=False),
        StatisticsParams(mantissa_bits=4, top_k=2, histogram_share=0.4, normalization="sequence", tokens="assistant"),
    ]
)


def check_same(a: ActivationStats, b: ActivationStats, of: ActivationStats | None = None) -> None:
    """Equal, but for the sums: those within 1e-9 relative (of the magnitudes in `of`, from which they were taken)."""
    assert a.settings == b.settings
    assert a.sample_ids == b.sample_ids and torch.equal(a.sample_tokens, b.sample_tokens)
    assert list(a.sites) == list(b.sites) and a.unreached == b.unreached
    for name, x in a.sites.items():
        y = b.sites[name]
        whole = x if of is None else of.sites[name]
        assert x.histogram.first == y.histogram.first and torch.equal(x.histogram.counts, y.histogram.counts)
        for field in fields(SiteStats):
            left, right = getattr(x, field.name), getattr(y, field.name)
            if field.name in ("sum", "sum_abs"):
                assert torch.all((left - right).abs() <= 1e-9 * whole.sum_abs)
            elif field.name == "sum_sq":
                assert torch.all((left - right).abs() <= 1e-9 * whole.sum_sq)
            elif field.name == "hessian" and left is not None:
                assert whole.hessian is not None
                assert torch.all((left - right).abs() <= 1e-9 * whole.hessian.diag().outer(whole.hessian.diag()).sqrt())
            elif isinstance(left, Tensor):
                assert torch.equal(left, right), field.name
        assert extremes(a, name) == extremes(b, name)


@st.composite
def shards(draw: st.DrawFn, n: int) -> list[Activations]:
    """Disjoint sets of samples; few distinct values, so that ties, zeros and dead channels occur."""
    ids = draw(st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=n, max_size=8, unique=True))
    value = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e-3, -7.0, 1e-9, 3e7])
    cut: list[Activations] = [{} for _ in range(n)]
    for number, sample in enumerate(ids):
        sizes = draw(st.integers(1, 20)), draw(st.integers(0, 2))
        both = [
            torch.tensor(
                draw(st.lists(value, min_size=size * WIDTH, max_size=size * WIDTH)), dtype=torch.bfloat16
            ).view(size, WIDTH)
            for size in sizes
        ]
        cut[number if number < n else draw(st.integers(0, n - 1))][sample] = (both[0], both[1])
    return cut


@settings(deadline=None, max_examples=60)
@given(shards(3), OPTIONS)
def test_shards_add_up_to_a_single_pass_in_any_order_and_grouping(
    parts: list[Activations], options: StatisticsParams
) -> None:
    a, b, c = (stats_of(part, options) for part in parts)
    whole = stats_of({**parts[0], **parts[1], **parts[2]}, options)
    check_same(merge(merge(a, b), c), whole)
    check_same(merge(a, merge(b, c)), whole)
    check_same(merge(c, merge(b, a)), whole)
    for name, site in merge(a, b).sites.items():  # commutative to the last bit
        other = merge(b, a).sites[name]
        assert torch.equal(site.sum, other.sum) and torch.equal(site.sum_sq, other.sum_sq)
        assert (site.hessian is None) == (not options.hessian)
        assert site.hessian is None or (other.hessian is not None and torch.equal(site.hessian, other.hessian))


@settings(deadline=None, max_examples=60)
@given(shards(2), OPTIONS)
def test_retracting_what_was_merged_leaves_what_was_there(parts: list[Activations], options: StatisticsParams) -> None:
    a, b = (stats_of(part, options) for part in parts)
    whole = merge(a, b)
    check_same(retract(whole, b), a, of=whole)
    check_same(retract(whole, a), b, of=whole)
    nothing = retract(retract(whole, a), b)
    assert nothing.sample_ids == () and nothing.sites == {}
    assert nothing.unreached == ("always", "always_too", "expert", "expert_too")
    check_same(merge(nothing, a), a)


def one(sample: str, *rows: list[float]) -> Activations:
    return {sample: (torch.tensor(rows, dtype=torch.bfloat16), torch.zeros(0, WIDTH, dtype=torch.bfloat16))}


def test_a_dead_channel_is_exactly_zero_after_a_retraction() -> None:
    """1e9 + 1e-9 - 1e9 - 1e-9 is not zero, and GPTQ knows dead channels by a zero on the Hessian's diagonal."""
    rest = stats_of(one("a", [0.0, 0.1, 2.0, 3.0]))
    noisy = [stats_of(one(s, [v, v, v, v])) for s, v in (("b", 1e9), ("c", 1e-9), ("d", 0.3))]
    whole = rest
    for part in noisy:
        whole = merge(whole, part)
    for part in noisy:
        whole = retract(whole, part)
    assert whole.sites["always"].sum[1] != rest.sites["always"].sum[1]  # the rounding error that is promised, no less
    site = whole.sites["always"]
    assert site.sum[0] == site.sum_abs[0] == site.sum_sq[0] == 0
    assert site.hessian is not None and not site.hessian[0].any() and not site.hessian[:, 0].any()
    assert site.hessian[1, 1] != 0


def test_the_extreme_names_its_sample_and_leaves_with_it() -> None:
    stats = merge(stats_of(one("b", [1, 1, -9, 1], [8, 1, 1, 1])), stats_of(one("a", [1, 9, 1, 1])))
    found = [(e.value, e.sample_id, e.position, e.channel) for e in extremes(stats, "always")]
    assert found == [(9, "a", 0, 1), (-9, "b", 0, 2), (8, "b", 1, 0)]
    assert quantile(stats.sites["always"], 1, absolute=True) == 9
    rest = retract(stats, stats_of(one("b", [1, 1, -9, 1], [8, 1, 1, 1])))
    assert [(e.value, e.sample_id) for e in extremes(rest, "always")] == [(9, "a"), (1, "a"), (1, "a")]
    assert rest.sites["always"].min.tolist() == rest.sites["always"].max.tolist() == [1, 9, 1, 1]


def test_a_quantile_never_goes_beyond_what_was_seen() -> None:
    """The middle of the bucket of 1 is 1.125 here, that of 3e7 infinite, that of 1e-9 zero."""
    site = stats_of(one("a", [1, 3e7, 1e-9, -3e7])).sites["always"]
    seen = torch.tensor([1, 3e7, 1e-9, -3e7]).bfloat16().double()
    assert torch.equal(quantile(site, 0.5, per_channel=True), seen)
    assert torch.equal(quantile(site, 0.5, per_channel=True, absolute=True), seen.abs())
    assert quantile(site, 0.25) == -quantile(site, 0.999) == seen[3]


OTHER = {
    "hessian": False,
    "normalization": "sequence",
    "tokens": "assistant",
    "experts": "all",
    "mantissa_bits": 3,
    "histogram_share": 0.5,
    "top_k": 4,
    "cache": True,
    "outputs": ("o_proj",),
    "ignore": ("o_proj",),
}


@pytest.mark.parametrize("operation", [merge, retract])
def test_statistics_of_different_origin_refuse_and_name_both_sides(operation: object) -> None:
    assert callable(operation)
    a, b = stats_of(one("a", [1, 2, 3, 4])), stats_of(one("b", [1, 2, 3, 4]))
    with pytest.raises(ValueError, match="base model model on one side, other on the other"):
        operation(a, replace(b, base_model_digest="other"))
    with pytest.raises(ValueError, match="fingerprint tokenizer on one side, other on the other"):
        operation(a, replace(b, fingerprint="other"))
    for setting, other in OTHER.items():
        settings = SETTINGS.model_copy(update={setting: other})
        message = f"statistics.{setting} {getattr(SETTINGS, setting)} on one side, {other}"
        with pytest.raises(ValueError, match=re.escape(message)):
            operation(a, replace(b, settings=settings))
    assert {*OTHER, "shards"} == set(StatisticsParams.model_fields)
    grouped = {"always": replace(b.sites["always"], members=("always",))}
    with pytest.raises(ValueError, match=r"layers at 'always' \('always', 'always_too'\) on one side, \('always',\)"):
        operation(a, replace(b, sites=grouped))


def test_the_number_of_shards_is_about_rounding_alone() -> None:
    a, b = stats_of(one("a", [1, 2, 3, 4])), stats_of(one("b", [1, 2, 3, 4]))
    whole = merge(a, replace(b, settings=SETTINGS.model_copy(update={"shards": 4})))
    assert whole.settings.shards == merge(replace(b, settings=whole.settings), a).settings.shards == 4
    assert retract(whole, b).settings.shards == 4 and retract(whole, b).sample_ids == ("a",)


def test_a_sample_is_neither_counted_twice_nor_taken_out_twice() -> None:
    a, b = stats_of(one("a", [1, 2, 3, 4])), stats_of(one("b", [1, 2, 3, 4]))
    with pytest.raises(ValueError, match="1 samples are in both statistics, first a"):
        merge(a, merge(b, stats_of(one("a", [0, 0, 0, 0]))))
    with pytest.raises(ValueError, match="1 samples to retract were never part of it, first b"):
        retract(a, b)
    whole = merge(a, b)
    with pytest.raises(ValueError, match="'always': sample b has another sample_min in the whole"):
        retract(whole, stats_of(one("b", [0, 2, 3, 4])))
    with pytest.raises(ValueError, match="site 'expert' is in what is to be retracted"):
        x = one("b", [1, 2, 3, 4])["b"][0]
        retract(whole, stats_of({"b": (x, x)}))

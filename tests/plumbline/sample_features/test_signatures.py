"""Signatures against float64 recomputations from activations that independent hooks captured."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from plumbline.base_model import load as load_module
from plumbline.sample_features import probe as probe_module
from plumbline.sample_features import sign as module
from plumbline.sample_features.build import build_sample_features
from plumbline.sample_features.measure import measure
from plumbline.sample_features.params import FeatureParams
from plumbline.sample_features.probe import CODE, FLOOR, Probe, channels, load_probe, make_probe, own_text, save_probe
from plumbline.sample_features.reader import read_manifest
from plumbline.sample_features.signature_reader import Stored, read_magnitudes, read_probe
from plumbline.sample_features.signatures import PER_SAMPLE, Signatures, joined
from plumbline.sample_features.summary import summary as summary_of
from plumbline.tokenized_samples.reader import read_samples
from tests.helpers.checkpoint import checkpoint
from tests.helpers.forward_passes import count_forwards
from tests.helpers.log import numbers_logged
from tests.helpers.multimodal import multimodal_model
from tests.helpers.texts import texts
from tests.helpers.tiny_models import make_base_model

Tokenized = Callable[[dict[str, list[str]]], Path]
Build = Callable[..., tuple[Path, dict[str, Any]]]
SMALL = FeatureParams.model_validate({"signatures": {"sites": 5, "cells": 6, "sketch": 4, "pooled": 8}}).signatures
assert SMALL is not None


def samples(count: int = 5) -> list[tuple[str, list[int]]]:
    """Of unequal lengths, one of a single token."""
    rng = np.random.default_rng(0)
    lengths = [1, 64, *rng.integers(2, 64, count)][:count]
    return [(f"{i:04x}", [0, *rng.integers(2, 257, length - 1).tolist()]) for i, length in enumerate(lengths)]


def captured(model: PreTrainedModel, names: list[str], ids: list[list[int]]) -> dict[str, np.ndarray]:
    """What the named layers are given for a batch, float64 (tokens, width)."""
    seen: dict[str, np.ndarray] = {}
    handles = []
    for name in names:

        def keep(_: Any, args: tuple[torch.Tensor], name: str = name) -> None:
            assert name not in seen
            seen[name] = args[0].flatten(0, -2).double().numpy()

        handles.append(model.get_submodule(name).register_forward_pre_hook(keep))
    with torch.no_grad():
        model(input_ids=torch.tensor(ids))
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture(scope="module", autouse=True)
def short_text() -> Iterator[None]:
    """The model writes a few texts, not dozens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_module, "TOKENS", 256)
        yield


@pytest.fixture(scope="module", params=["bfloat16", "float16", "float32"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = make_base_model(tmp_path_factory.mktemp("model"), request.param)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@pytest.fixture(scope="module")
def probe(model: PreTrainedModel) -> Probe:
    return make_probe(model, SMALL)


def check_against_captured(found: Signatures, probe: Probe, model: PreTrainedModel, given: Any) -> None:
    names = [site.name for site in probe.sites]
    assert found.sites == probe.sites
    assert found.sample_ids == tuple(name for name, _ in given)
    for row, (_, ids) in enumerate(given):
        seen = captured(model, names, [list(ids)])
        joined_means = []
        assert found.tokens[row] == len(ids)
        for number, site in enumerate(probe.sites):
            x, here = seen[site.name], channels(site)
            mean, scale = probe.mean[here].astype(np.float64), probe.scale[here].astype(np.float64)
            assert x.shape == (len(ids), site.width)
            assert np.array_equal(found.absmax[row, here], np.abs(x).max(axis=0))
            z = (x - mean) / scale @ probe.code[here].astype(np.float64)
            distance = np.square(z[:, None, :] - probe.centroids[number].astype(np.float64)).sum(axis=2)
            nearest = np.sort(distance, axis=1)
            clear = nearest[:, 1] - nearest[:, 0] > 1e-3 * nearest[:, 1]  # float32 decides the others
            exact = np.bincount(distance.argmin(axis=1), minlength=distance.shape[1])
            assert np.abs(found.cells[row, number] - exact).sum() <= 2 * (~clear).sum()
            assert found.cells[row, number].sum() == len(ids)
            y = x / scale @ probe.directions[here].astype(np.float64)
            moments = y.T @ y
            size = np.abs(x) / scale @ np.abs(probe.directions[here].astype(np.float64))  # before terms cancel
            assert (np.abs(found.sketch[row, number] - moments) <= 3e-7 * size.T @ size).all()
            assert np.array_equal(found.sketch[row, number], found.sketch[row, number].T)
            joined_means.append(x.mean(axis=0) / np.linalg.norm(x.mean(axis=0)))
        pooled = np.concatenate(joined_means) @ probe.pooling.astype(np.float64)
        np.testing.assert_allclose(found.pooled[row], pooled, atol=3e-6)


def test_every_array_is_what_it_says(model: PreTrainedModel, probe: Probe) -> None:
    given, progress = samples(), []
    found = measure(model, given, probe, progress.append)
    assert progress == [len(ids) for _, ids in given]
    assert found.pooled.shape == (5, 8) and found.cells.shape == (5, 5, 6) and found.sketch.shape == (5, 5, 4, 4)
    check_against_captured(found, probe, model, given)


def test_a_real_model(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    folder = shared_data / "models" / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (shared_data / "corpora" / "tinystories" / "tinystories_train_head.txt").read_text()
    given = [(f"{i}", tokenizer(story)["input_ids"][:150]) for i, story in enumerate(text.split("<|endoftext|>")[:4])]
    probe = make_probe(model, SMALL)
    assert max(site.width for site in probe.sites) > CODE  # cells in a projection of the wide ones
    check_against_captured(measure(model, given, probe), probe, model, given)


def test_a_sample_is_measured_alone(model: PreTrainedModel, probe: Probe) -> None:
    given = samples()
    whole, alone = measure(model, given, probe), [measure(model, [sample], probe) for sample in reversed(given)]
    assert whole.sample_ids == joined(alone[::-1]).sample_ids
    for name in PER_SAMPLE:
        assert np.array_equal(getattr(whole, name), getattr(joined(alone[::-1]), name))
    assert whole.by_id(["0003", "0001"]).tokens.tolist() == [whole.tokens[3], whole.tokens[1]]


def test_the_probe_is_what_the_model_shows_of_its_own_text(model: PreTrainedModel, probe: Probe) -> None:
    text = own_text(model, 256)
    assert text.shape == (4, 64)  # as long as the model reads
    assert (text[:, 0] == 0).all() and not (text == 1).any()  # begins with BOS, and no text ends early
    assert len({tuple(row) for row in text.tolist()}) == 4
    seen = captured(model, [site.name for site in probe.sites], text.tolist())
    assert [site.start for site in probe.sites] == np.cumsum([0, *(s.width for s in probe.sites)])[:-1].tolist()
    for number, site in enumerate(probe.sites):
        x, here = seen[site.name], channels(site)
        np.testing.assert_allclose(probe.mean[here], x.mean(axis=0), atol=1e-6 * np.abs(x).max())
        scale = np.sqrt(np.square(x - x.mean(axis=0)).mean(axis=0))
        np.testing.assert_allclose(probe.scale[here], np.maximum(scale, FLOOR * np.sqrt((scale**2).mean())), rtol=1e-5)
        z = (x - probe.mean[here]) / probe.scale[here] @ probe.code[here].astype(np.float64)
        cell = np.square(z[:, None] - probe.centroids[number]).sum(axis=2).argmin(axis=1)
        for k in range(SMALL.cells):  # the codebook is a fixed point of k-means
            np.testing.assert_allclose(probe.centroids[number][k], z[cell == k].mean(axis=0), atol=0.05 * z.std())
    assert probe.dtype == str(model.dtype).removeprefix("torch.")


def test_directions_are_normal_with_the_variance_that_the_sketch_needs(probe: Probe) -> None:
    assert abs(probe.directions.std() * np.sqrt(SMALL.sketch) - 1) < 0.1
    assert abs(probe.pooling.std() * np.sqrt(SMALL.pooled) - 1) < 0.1
    assert np.linalg.matrix_rank(np.concatenate([probe.directions, probe.pooling], axis=1)) == 12


def test_sites_are_spread_over_the_depth(model: PreTrainedModel, probe: Probe) -> None:
    inputs = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    every = [f"model.layers.{layer}.{name}" for layer in range(2) for name in inputs]
    assert [site.name for site in make_probe(model, SMALL.model_copy(update={"sites": 99})).sites] == every
    assert [site.name for site in probe.sites] == [every[at] for at in (0, 2, 4, 5, 7)]
    assert [site.name for site in make_probe(model, SMALL.model_copy(update={"sites": 1})).sites] == every[:1]


def same(a: Probe, b: Probe) -> bool:
    arrays = ("mean", "scale", "code", "centroids", "directions", "pooling")
    return (a.sites, a.dtype) == (b.sites, b.dtype) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays
    )


def test_same_model_same_probe_whatever_was_drawn_before(model: PreTrainedModel, probe: Probe, tmp_path: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    assert same(make_probe(model, SMALL), probe)
    assert torch.get_num_threads() == 3 - min(threads, 2)
    torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(layer._forward_pre_hooks for layer in model.modules())
    save_probe(probe, tmp_path / "a")
    save_probe(load_probe(tmp_path / "a"), tmp_path / "b")
    assert same(load_probe(tmp_path / "b"), probe)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_model_another_probe(model: PreTrainedModel, probe: Probe, tmp_path: Path) -> None:
    folder = make_base_model(tmp_path, str(model.dtype).removeprefix("torch."), seed=1)
    other = make_probe(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval(), SMALL)
    assert not np.array_equal(other.mean, probe.mean)
    assert np.array_equal(other.directions, probe.directions)


def test_a_model_without_a_first_token_begins_with_random_ones(base_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto").eval()
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    first = own_text(model, 640)[:, 0]
    assert len(set(first.tolist())) > 5
    assert torch.equal(own_text(model, 640)[:, 0], first)


def test_a_dead_channel_divides_nothing_by_zero(base_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto").eval()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = 0  # one channel of a site
        model.model.layers[1].self_attn.v_proj.weight.zero_()  # all channels of o_proj's input
    probe = make_probe(model, SMALL)
    assert (probe.scale > 0).all() and np.isfinite(probe.centroids).all()
    found = measure(model, samples(), probe)
    assert all(np.isfinite(getattr(found, name)).all() for name in PER_SAMPLE)
    assert (found.cells.sum(axis=2) == found.tokens[:, None]).all()
    # o_proj's input is all zeros: one cell holds everything, and the site adds nothing to `pooled`
    dead = [site.name for site in probe.sites].index("model.layers.1.self_attn.o_proj")
    assert (found.cells[:, dead].max(axis=1) == found.tokens).all()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "sample zz has no tokens"),
        ([0] * 65, "sample zz has 65 tokens, the model reads at most 64; lower tokenize.max_length"),
        ([0, 257], "sample zz holds token 257, the model knows 0 to 256"),
    ],
)
def test_samples_that_the_model_cannot_read(base_model: Path, ids: list[int], message: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto").eval()
    probe = make_probe(model, SMALL)
    with pytest.raises(ValueError, match=message):
        measure(model, [("zz", ids)], probe)
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_activations_that_are_not_finite(base_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto").eval()
    probe = make_probe(model, SMALL)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[7] = torch.inf
    with pytest.raises(ValueError, match="site 'model.layers.1.mlp.down_proj', channel 7: .* inf or NaN for sample aa"):
        measure(model, [("aa", [0, 5, 6])], probe)
    with pytest.raises(ValueError, match="own text"):
        make_probe(model, SMALL)
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_a_site_that_tokens_do_not_reach_as_in_its_own_text(base_model: Path) -> None:
    """A model that leaves a layer out for short samples, as a router might."""
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto").eval()
    probe = make_probe(model, SMALL)
    mlp = model.model.layers[1].mlp
    whole = mlp.forward
    mlp.forward = lambda x: whole(x) if x.shape[1] > 3 else x
    measure(model, [("aa", [0, 5, 6, 7])], probe)
    with pytest.raises(ValueError, match="not every token of sample aa came by once"):
        measure(model, [("aa", [0, 5, 6])], probe)
    mlp.forward = lambda x: whole(x[:, 1:])
    with pytest.raises(ValueError, match="not every token of sample aa came by once"):
        measure(model, [("aa", [0, 5, 6])], probe)


# --- in the artifact


@pytest.fixture
def build(tmp_path: Path, embedder: Path, base_model: Path, caplog: pytest.LogCaptureFixture) -> Build:
    caplog.set_level(logging.INFO, "plumbline")
    count = 0

    def make(samples: Path, previous: Path | None = None, folder: Path = base_model, **sizes: Any) -> Any:
        nonlocal count
        count += 1
        out = tmp_path / f"features{count}"
        out.mkdir()
        signatures = {**SMALL.model_dump(), "pool": 9, "reference": 4, **sizes}
        settings = {"embedder": embedder.name, "max_tokens": 12, "batch_size": 8, "signatures": signatures}
        params = FeatureParams.model_validate(settings)
        build_sample_features(params, checkpoint(folder), samples, out, previous, embedder.parent)
        counts = dict(zip(("computed", "total", "forwarded"), numbers_logged(caplog, "computed"), strict=True))
        reused = counts["total"] - counts["computed"]
        told = {"signatures_computed": counts["computed"], "signatures_reused": reused}
        return out, {**summary_of(out), **told, "signatures_forwarded": counts["forwarded"]}

    return make


def stored_ids(features: Path) -> list[str]:
    return [str(name) for name in Stored(features).sample_ids.to_pylist()]


def read_signatures(features: Path, names: list[str]) -> Any:
    stored = Stored(features)
    return stored.take(stored.rows_of(names))


def content(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lowest(samples: Path, split: str, most: int) -> list[str]:
    return sorted(read_samples(samples, [split])["sample_id"].to_pylist())[:most]


def token_ids(samples: Path, names: list[str]) -> list[tuple[str, list[int]]]:
    table = read_samples(samples)
    by_name = dict(zip(table["sample_id"].to_pylist(), table["input_ids"].to_pylist(), strict=True))
    return [(name, by_name[name]) for name in names]


def test_the_lowest_ids_of_each_split_are_signed(tokenized: Tokenized, build: Build, base_model: Path) -> None:
    corpus = tokenized({"a": texts(0, 60), "b": texts(100, 40)})
    out, summary = build(corpus)
    chosen = [*lowest(corpus, "pool", 9), *lowest(corpus, "tuning", 4)]
    assert stored_ids(out) == chosen
    assert summary["signatures"] == summary["signatures_computed"] == summary["signatures_forwarded"] == 13
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype="auto").eval()
    probe = read_probe(out)
    assert same(probe, make_probe(model, SMALL))
    asked = [chosen[at] for at in (11, 2, 2, 0)]
    found = read_signatures(out, asked)
    expected = measure(model, token_ids(corpus, asked), probe)
    assert found.sample_ids == tuple(asked) and found.sites == probe.sites
    for name in PER_SAMPLE:
        assert np.array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    check_against_captured(found, probe, model, token_ids(corpus, asked))

    magnitudes = read_magnitudes(out, "tuning")
    seen = [captured(model, [s.name for s in probe.sites], [ids]) for _, ids in token_ids(corpus, chosen[9:])]
    x = np.abs(np.concatenate([np.concatenate([one[site.name] for one in seen]) for site in probe.sites], axis=1))
    assert np.array_equal(magnitudes.largest, x.max(axis=0))
    for channel in range(0, probe.width, 11):
        expected_counts, _ = np.histogram(x[:, channel], bins=np.append(magnitudes.edges[:-1], 1e300))
        assert np.array_equal(magnitudes.counts[channel], expected_counts)
    with pytest.raises(ValueError, match="no magnitudes of split 'pool', it has those of tuning"):
        read_magnitudes(out, "pool")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes_are_stored_without_loss(tokenized: Tokenized, build: Build, dtype: str, tmp_path: Path) -> None:
    folder = make_base_model(tmp_path / "other", dtype)
    corpus = tokenized({"a": texts(0, 30)})
    out, _ = build(corpus, folder=folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    names = stored_ids(out)
    expected = measure(model, token_ids(corpus, names), read_probe(out))
    assert np.array_equal(read_signatures(out, names).absmax, expected.absmax)


def test_two_runs_give_the_same_bytes(tokenized: Tokenized, build: Build) -> None:
    corpus = tokenized({"a": texts(0, 60)})
    assert content(build(corpus)[0]) == content(build(corpus)[0])


def test_where_nothing_is_missing_no_model_is_loaded(
    tokenized: Tokenized, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tokenized({"a": texts(0, 60)})
    out, _ = build(corpus)
    monkeypatch.setattr(load_module, "loaded_model", lambda *_: pytest.fail("loaded the base model"))
    again, summary = build(corpus, previous=out)
    assert content(again) == content(out)
    assert (summary["signatures_computed"], summary["signatures_forwarded"]) == (0, 0)
    fewer, _ = build(corpus, previous=out, pool=3)
    assert stored_ids(fewer) == [*lowest(corpus, "pool", 3), *lowest(corpus, "tuning", 4)]
    rows = read_signatures(fewer, stored_ids(fewer))
    assert np.array_equal(rows.sketch, read_signatures(out, stored_ids(fewer)).sketch)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward pass of the base model."""
    return count_forwards(monkeypatch)


def test_a_grown_corpus_costs_its_new_samples_and_gives_the_bytes_of_a_fresh_run(
    tokenized: Tokenized, build: Build, forwards: list[int]
) -> None:
    old, new = tokenized({"a": texts(0, 40)}), tokenized({"a": texts(0, 40), "b": texts(100, 60)})
    before, _ = build(old, pool=1000, reference=1000)
    forwards.clear()
    grown, summary = build(new, previous=before, pool=1000, reference=1000)
    added = sorted(set(stored_ids(grown)) - set(stored_ids(before)))
    assert sorted(forwards) == sorted(len(ids) for _, ids in token_ids(new, added))
    assert summary["signatures_computed"] == summary["signatures_forwarded"] == len(added) > 0
    assert summary["signatures_reused"] == len(stored_ids(before))
    assert content(grown) == content(build(new, pool=1000, reference=1000)[0])
    for name in ("probe.safetensors",):
        assert (grown / "signatures" / name).read_bytes() == (before / "signatures" / name).read_bytes()
    old_names = stored_ids(before)
    a, b = read_signatures(before, old_names), read_signatures(grown, old_names)
    assert all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in PER_SAMPLE)
    # added to: the magnitudes before are part of those after
    ours, theirs = read_magnitudes(grown, "tuning"), read_magnitudes(before, "tuning")
    assert ours.counts.sum() > theirs.counts.sum() > 0


def test_a_reference_sample_that_drops_out_has_the_magnitudes_counted_again(
    tokenized: Tokenized, build: Build, forwards: list[int]
) -> None:
    old, new = tokenized({"a": texts(0, 40)}), tokenized({"a": texts(0, 40), "b": texts(100, 80)})
    before, _ = build(old)
    forwards.clear()
    grown, summary = build(new, previous=before)
    assert not set(lowest(old, "tuning", 4)) <= set(lowest(new, "tuning", 4))
    pool_new = set(lowest(new, "pool", 9)) - set(stored_ids(before))
    assert len(forwards) == summary["signatures_forwarded"] == len(pool_new) + 4
    assert content(grown) == content(build(new)[0])


@pytest.mark.parametrize("change", ["model", "cells", "fingerprint", "version"])
def test_what_was_made_for_something_else_is_not_taken_over(
    tokenized: Tokenized, build: Build, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tokenized({"a": texts(0, 30)})
    out, first = build(corpus)
    arguments: dict[str, Any] = {}
    if change == "model":
        arguments["folder"] = make_base_model(tmp_path / "other", "bfloat16", seed=1)
    elif change == "cells":
        arguments["cells"] = 7
    elif change == "version":
        monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    else:
        manifest = (out / "manifest.json").read_text()
        (out / "manifest.json").write_text(manifest.replace(read_manifest(out)["fingerprint"], "0" * 64))
    _, again = build(corpus, previous=out, **arguments)
    assert again["signatures_computed"] == first["signatures"] > 0


def test_turned_off_it_says_what_to_set(
    tokenized: Tokenized, embedder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    params = FeatureParams(embedder=embedder.name, signatures=None)
    base = checkpoint(tokenizer_folder)
    build_sample_features(params, base, tokenized({"a": texts(0, 9)}), out, None, embedder.parent)
    assert "signatures" not in summary_of(out) and not (out / "signatures").exists()
    for read in (stored_ids, read_probe, lambda path: read_magnitudes(path, "tuning")):
        with pytest.raises(ValueError, match=r"features.signatures: null.*run sample_features again"):
            read(out)
    manifest = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(manifest.replace(' "signatures": null', ' "other": null'))
    with pytest.raises(ValueError, match="older than signatures"):
        stored_ids(out)


def test_manifest_names_what_decides(tokenized: Tokenized, build: Build, base_model: Path) -> None:
    from plumbline.artifact import sha256_file
    from plumbline.base_model.folder import base_model_digest

    out, _ = build(tokenized({"a": texts(0, 40)}))
    about = read_manifest(out)["signatures"]
    assert about["settings"] == {"sites": 5, "cells": 6, "sketch": 4, "pooled": 8}
    assert about["base_model_digest"] == base_model_digest(base_model)
    assert about["probe"] == sha256_file(out / "signatures" / "probe.safetensors")
    assert about["fingerprint"] == read_manifest(out)["fingerprint"]
    assert [site["width"] for site in about["sites"]] == [32, 32, 32, 32, 72]
    assert about["splits"]["pool"]["samples"] == 9 and about["splits"]["tuning"]["samples"] <= 4


@pytest.mark.parametrize("name", ["qwen3-vl", "qwen2.5-vl", "gemma3", "llama4"])
def test_a_multimodal_model_is_probed_in_its_language_model(name: str) -> None:
    sites = make_probe(multimodal_model(name, torch.float32), SMALL).sites
    assert len(sites) == 5
    assert all("language_model" in site.name and ".layers." in site.name for site in sites)

"""From the artifacts on disk to the artifact on disk, without running the base model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.params import StatisticsParams
from plumbline.artifact import read_json, sha256_file, write_json
from plumbline.base_model.folder import base_model_digest
from plumbline.params import load_params
from plumbline.quantized_model.activation_params import ActivationParams
from plumbline.quantized_model.build import build_quantized_model
from plumbline.quantized_model.fold_search import TOKENS
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.summary import summary as summary_of
from tests.helpers.checkpoint import checkpoint
from tests.helpers.paths import PROJECT
from tests.helpers.schemes import NARROW
from tests.helpers.written_set import write_set

SHIPPED = load_params(PROJECT).schemes

SCHEMES = {
    "w8a8-minmax": SchemeParams(method="rtn", weight_bits=8, activations=ActivationParams()),
    "w4a16-rtn": SchemeParams(method="rtn", weight_bits=4, group_size=128),
    "w4a16-gptq": SchemeParams(method="gptq", weight_bits=4, group_size=128),
    "w3a16-gptq": SchemeParams(method="gptq", weight_bits=3, group_size=128),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_llama: Any) -> Path:
    root = tmp_path_factory.mktemp("project")
    make_llama(torch.bfloat16).save_pretrained(root / "base")
    (root / "base" / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    write_set(root / "set")
    (root / "stats").mkdir()
    settings = StatisticsParams(cache=True)  # for the schemes with kv_cache
    build_activation_stats(settings, checkpoint("base", root), root / "set", root / "stats")
    return root


def build(root: Path, out: Path, scheme: str, **changed: Any) -> dict[str, Any]:
    out.mkdir(parents=True)
    given: dict[str, Any] = {"stats": root / "stats", "calibration_set": root / "set", **changed}
    params = given.pop("scheme_params", None) or SCHEMES[scheme]
    build_quantized_model(scheme, params, checkpoint("base", root), out=out, code_version="c1", **given)
    return summary_of(out) if (out / "calibration.json").is_file() else {}


@contextmanager
def products() -> Iterator[list[int]]:
    """Within the context, what Linears are called with is counted: tokens per call."""
    seen: list[int] = []

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Linear):
            seen.append(args[0][..., 0].numel())

    hook = register_module_forward_pre_hook(count)  # where Linears have a `forward` of their own, too
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_builds_without_a_forward_pass_and_loads(scheme, project, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("plumbline.quantized_model.build.require_loads", lambda *given: {"tokens": 1})
    with products() as seen:
        summary = build(project, tmp_path / "out", scheme)
    assert seen == []
    monkeypatch.undo()
    assert summary["fallbacks"] == {}
    assert summary["quantized_layers"] == 14
    json.dumps(summary, allow_nan=False)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
        base = AutoModelForCausalLM.from_pretrained(project / "base")(tokens).logits
    assert torch.isfinite(found).all()
    assert 0 < float((found - base).float().norm() / base.float().norm()) < 1


def test_the_summary_counts_bits_and_errors(project, tmp_path) -> None:
    by_scheme = {scheme: build(project, tmp_path / scheme, scheme) for scheme in SCHEMES}
    errors = {scheme: summary["mean_layer_error"] for scheme, summary in by_scheme.items()}
    assert errors["w8a8-minmax"] < errors["w4a16-gptq"] < errors["w4a16-rtn"]
    assert errors["w4a16-gptq"] < errors["w3a16-gptq"]
    summary = by_scheme["w4a16-rtn"]
    assert summary["group_sizes"] == ["64", "86"]
    # width 64: one bfloat16 scale per 64 codes; width 172: per 86, and 172 * 4 bits round up to 22 words of 32
    numel = {64: 2 * (64 * 64 * 2 + 32 * 64 * 2 + 172 * 64 * 2), 172: 2 * 64 * 172}
    bits = numel[64] * (4 + 16 / 64) + 2 * 64 * (22 * 32 + 2 * 16) + 14 * 2 * 64  # and two int64 of shape per layer
    rest = 96 * 64 + 5 * 64  # the embedding, which the head shares, and the norms
    assert summary["bits_per_weight"] == pytest.approx((bits + 16 * rest) / (sum(numel.values()) + rest), abs=1e-4)
    assert summary["share"] == 1.0
    assert summary["share_of_all"] == pytest.approx(sum(numel.values()) / (sum(numel.values()) + rest), abs=1e-6)
    assert summary["left"] == [
        {"kind": "embedding", "matrices": 1, "why": "embedding: looked up, not multiplied"},
        {"kind": "head", "matrices": 1, "why": "the scheme's ignore: lm_head"},
    ]
    assert summary["bytes"] == (tmp_path / "w4a16-rtn" / "model.safetensors").stat().st_size
    assert summary["bytes"] < (project / "base" / "model.safetensors").stat().st_size
    row = next(row for row in summary["layers"] if row["layer"] == summary["worst_layer"])
    assert row["relative_error"] == summary["max_layer_error"]


def test_layer_errors_equal_the_direct_formula(project, tmp_path, make_llama, see) -> None:
    summary = build(project, tmp_path / "out", "w4a16-rtn")
    base = AutoModelForCausalLM.from_pretrained(project / "base")
    samples = pq.read_table(project / "set" / "samples.parquet").column("input_ids").to_pylist()
    seen = see(base, torch.tensor(samples))
    quantized = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        quantized(torch.tensor([[1]]))  # decompresses
    recorded = json.loads((tmp_path / "out" / "calibration.json").read_text())["layers"]
    for row in summary["layers"]:
        assert recorded[row["layer"]]["relative_error"] == row["relative_error"]
        x, W = seen[row["layer"]].x, base.get_submodule(row["layer"]).weight.detach().double()
        dW = W - quantized.get_submodule(row["layer"]).weight.detach().double()
        # another batch shape rounds the activations differently in bfloat16
        assert row["relative_error"] == pytest.approx(float((x @ dW.T).norm() ** 2 / (x @ W.T).norm() ** 2), rel=2e-2)


@pytest.mark.parametrize("scheme", ["w8a8-minmax", "w3a16-gptq"])
def test_same_bytes_at_any_number_of_threads(scheme, project, tmp_path) -> None:
    threads, content = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            build(project, tmp_path / str(n), scheme)
            assert torch.get_num_threads() == n
            content.append({path.name: path.read_bytes() for path in sorted((tmp_path / str(n)).iterdir())})
    finally:
        torch.set_num_threads(threads)
    assert content[0] == content[1]
    assert not [name for name, data in content[0].items() if str(project).encode() in data]


def test_provenance_names_everything(project, tmp_path) -> None:
    out = tmp_path / "out"
    build(project, out, "w4a16-gptq")
    record, config = read_json(out / "calibration.json"), read_json(out / "config.json")
    entry = config["quantization_config"]["calibration"]
    assert entry == config["calibration"]
    assert entry["record"] == {"file": "calibration.json", "sha256": sha256_file(out / "calibration.json")}
    assert record["model"] == {"model.safetensors": sha256_file(out / "model.safetensors")}
    manifest = read_json(project / "set" / "manifest.json")
    assert record["calibration_set"]["digest"] == entry["calibration_set"]["digest"] == manifest["digest"]
    assert record["calibration_set"]["choice"] == manifest["choice"]
    assert record["calibration_set"]["samples"][2] == {
        "sample_id": f"0{2:063x}",
        "doc_ids": ["doc-2"],
        "source": "test",
        "domain": "prose",
    }
    assert entry["calibration_set"] == {
        "digest": manifest["digest"],
        "name": "six",
        "strategy": "random",
        "n": 6,
        "seed": 0,
        "samples": 6,
        "tokens": 192,
    }
    for where in (record, entry):
        assert where["fingerprint"] == "f" * 64
        assert where["base_model"] == {"name": "base", "revision": None, "digest": base_model_digest(project / "base")}
        assert where["statistics"]["files"]["stats.safetensors"] == sha256_file(project / "stats" / "stats.safetensors")
        assert where["scheme"]["name"] == "w4a16-gptq"
        assert where["scheme"]["group_size"] == 128
        assert where["code_version"] == "c1"
    layer = record["layers"]["model.layers.0.mlp.down_proj"]
    assert layer.pop("relative_error") > 0 and layer == {"bits": 4, "group_size": 86, "damping": 0.01}
    assert record["fallbacks"] == {}


def altered_stats(project: Path, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "stats.safetensors").write_bytes((project / "stats" / "stats.safetensors").read_bytes())
    write_json(folder / "header.json", {**read_json(project / "stats" / "header.json"), **changes})
    return folder


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"base_model": {"digest": "0" * 64}}, "base model"),
        ({"calibration_set": "0" * 64}, "calibration set"),
        ({"fingerprint": "0" * 64}, "tokenization fingerprint"),
    ],
)
def test_what_does_not_belong_together_is_refused_naming_both(changes, what, project, tmp_path) -> None:
    stats = altered_stats(project, tmp_path / "stats", **changes)
    header = read_json(project / "stats" / "header.json")
    mine = {
        "base model": header["base_model"]["digest"],
        "calibration set": header["calibration_set"],
        "tokenization fingerprint": header["fingerprint"],
    }[what]
    with pytest.raises(ValueError, match=f"{what}: {mine[:16]} .* collected with {'0' * 16}.*activation_stats again"):
        build(project, tmp_path / "out", "w4a16-rtn", stats=stats)
    assert not any((tmp_path / "out").iterdir())


def test_another_calibration_set_is_refused(project, tmp_path) -> None:
    write_set(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="calibration set: "):
        build(project, tmp_path / "out", "w4a16-rtn", calibration_set=tmp_path / "other")


def test_gptq_without_hessians_says_what_to_set(project, tmp_path) -> None:
    (tmp_path / "stats").mkdir()
    settings = StatisticsParams(hessian=False)
    build_activation_stats(settings, checkpoint("base", project), project / "set", tmp_path / "stats")
    with pytest.raises(ValueError, match=r"statistics\.hessian: true"):
        build(project, tmp_path / "gptq", "w4a16-gptq", stats=tmp_path / "stats")
    summary = build(project, tmp_path / "rtn", "w4a16-rtn", stats=tmp_path / "stats")
    assert summary["mean_layer_error"] is None


def test_a_layer_left_out_of_the_statistics(project, tmp_path) -> None:
    (tmp_path / "stats").mkdir()
    layer = "model.layers.0.mlp.down_proj"
    settings = StatisticsParams(ignore=("lm_head", layer))
    build_activation_stats(settings, checkpoint("base", project), project / "set", tmp_path / "stats")
    with pytest.raises(ValueError, match=rf"{layer} has no statistics.*statistics\.ignore"):
        build(project, tmp_path / "gptq", "w4a16-gptq", stats=tmp_path / "stats")
    rounded = build(project, tmp_path / "rtn", "w4a16-rtn", stats=tmp_path / "stats")
    assert rounded["quantized_layers"] == 14
    scheme = SchemeParams(method="gptq", group_size=128, ignore=("lm_head", layer))
    summary = build(project, tmp_path / "ok", "w4a16-gptq", stats=tmp_path / "stats", scheme_params=scheme)
    assert summary["quantized_layers"] == 13
    assert layer in read_json(tmp_path / "ok" / "config.json")["quantization_config"]["ignore"]


def test_a_layer_that_no_token_reached_falls_back_by_name(project, tmp_path) -> None:
    layer = "model.layers.1.mlp.down_proj"
    header = read_json(project / "stats" / "header.json")
    del header["sites"][layer]
    stats = altered_stats(project, tmp_path / "stats", sites=header["sites"], unreached=[layer])
    summary = build(project, tmp_path / "out", "w4a16-gptq", stats=stats)
    assert summary["fallbacks"] == {layer: "no tokens reached this layer"}
    assert read_json(tmp_path / "out" / "calibration.json")["fallbacks"] == summary["fallbacks"]
    with pytest.raises(ValueError, match=f"no token of the calibration set reached {layer}"):
        build(project, tmp_path / "w8a8", "w8a8-minmax", stats=stats)


def test_statistics_replaced_in_place_are_read_anew(project, tmp_path) -> None:
    header = read_json(project / "stats" / "header.json")
    stats = altered_stats(project, tmp_path / "stats")
    assert build(project, tmp_path / "before", "w4a16-gptq", stats=stats)["fallbacks"] == {}
    layer = "model.layers.1.mlp.down_proj"
    del header["sites"][layer]
    write_json(stats / "header.json", {**header, "unreached": [layer]})
    assert set(build(project, tmp_path / "after", "w4a16-gptq", stats=stats)["fallbacks"]) == {layer}


def test_propagation_counts_the_tokens_that_the_statistics_count(project, tmp_path) -> None:
    """First layer: nothing is quantized before it, so that its codes are those of the stored statistics."""
    write_set(tmp_path / "chats", spans=[8, 20])
    stats, where = tmp_path / "stats", {"stats": tmp_path / "stats", "calibration_set": tmp_path / "chats"}
    stats.mkdir()
    settings = StatisticsParams(tokens="assistant")
    build_activation_stats(settings, checkpoint("base", project), tmp_path / "chats", stats)
    stored = {"method": "gptq", "weight_bits": 3, "group_size": 32}
    codes = []
    for name, entry in (("stored", stored), ("propagated", stored | {"propagate": "quantized", "correction": 0})):
        build(project, tmp_path / name, name, scheme_params=SchemeParams.model_validate(entry), **where)
        codes.append(load_file(tmp_path / name / "model.safetensors"))
    first, last = "model.layers.0.self_attn.q_proj.weight_packed", "model.layers.1.mlp.down_proj.weight_packed"
    assert torch.equal(codes[0][first], codes[1][first])
    assert not torch.equal(codes[0][last], codes[1][last])


@pytest.mark.parametrize("scheme", [name for name in NARROW if SHIPPED[name].propagate != "quantized"])
def test_no_shipped_scheme_runs_text_through_the_base_model(scheme, project, tmp_path, monkeypatch) -> None:
    """A transform checks its folds on a few random hidden states; that is all that a layer ever sees."""
    monkeypatch.setattr("plumbline.quantized_model.build.export", lambda *given: [])
    monkeypatch.setattr("plumbline.quantized_model.build.write_card", lambda *given: None)
    monkeypatch.setattr("plumbline.quantized_model.build.require_loads", lambda *given: {"tokens": 1})
    monkeypatch.setattr("plumbline.quantized_model.build.add_provenance", lambda *given: None)
    with products() as seen:
        build(project, tmp_path / "out", scheme, scheme_params=SHIPPED[scheme])
    assert set(seen) == ({TOKENS} if SHIPPED[scheme].transform else set())


def test_a_model_of_other_layers_is_refused_with_what_can_be_done(project, tmp_path) -> None:
    root = tmp_path / "project"
    GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        root / "base"
    )
    write_set(root / "set")
    (root / "stats").mkdir()
    build_activation_stats(StatisticsParams(), checkpoint("base", root), root / "set", root / "stats")
    with pytest.raises(ValueError, match="Conv1D, which compressed-tensors does not store"):
        build(root, tmp_path / "out", "w4a16-rtn")

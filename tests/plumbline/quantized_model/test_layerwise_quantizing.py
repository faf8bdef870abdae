"""A model quantized layer by layer against the same one quantized whole: the same files, byte by byte."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.peers.subjects import write_set
from plumbline.activation_stats import expert_calls
from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.activation_stats.pieces import Pieces
from plumbline.base_model import large_mixture
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.decoder import layer_names
from plumbline.base_model.grouped_products import GroupedProducts
from plumbline.base_model.matrices import matrix_of
from plumbline.base_model.params import ModelParams
from plumbline.quantized_model import export, layerwise, layerwise_folder, layerwise_mixed, layerwise_part
from plumbline.quantized_model.build import build_quantized_model
from plumbline.quantized_model.params import SchemeParams
from tests.architectures.catalogue import CATALOGUE
from tests.architectures.vocabulary import samples

SCHEMES: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq", "weight_bits": 4, "group_size": 32},
    "gptq, head too": {"method": "gptq", "weight_bits": 8, "group_size": 32, "ignore": []},
    "zero points": {"method": "rtn", "weight_bits": 4, "group_size": 32, "symmetric": False},
    "static": {"method": "rtn", "weight_bits": 8, "activations": {"range": "minmax"}},
    "cache": {"method": "rtn", "weight_bits": 4, "group_size": 32, "kv_cache": {}},
    "smoothquant": {"method": "rtn", "weight_bits": 8, "activations": {"range": "minmax"}, "transform": "smoothquant"},
    "awq": {"method": "rtn", "weight_bits": 4, "group_size": 32, "transform": "awq"},
    "awq, cache": {"method": "gptq", "weight_bits": 4, "group_size": 32, "transform": "awq", "kv_cache": {}},
    "mixed": {"method": "gptq", "group_size": 32, "mixed": {"widths": [4, 8], "average_bits": 6}},
    "propagated": {"method": "gptq", "weight_bits": 4, "group_size": 32, "propagate": "quantized"},
    "propagated, corrected": {
        "method": "gptq",
        "weight_bits": 4,
        "group_size": 32,
        "propagate": "quantized",
        "correction": 0.5,
    },
    "mixed, awq": {
        "method": "rtn",
        "group_size": 32,
        "mixed": {"widths": [4, 8], "average_bits": 5},
        "transform": "awq",
    },
    "adaround": {"method": "adaround", "weight_bits": 4, "group_size": 32},
    "overrides": {
        "method": "gptq",
        "weight_type": "nvfp4",
        "activations": {"type": "nvfp4"},
        "overrides": {"attention": {"weight_type": "fp8", "activations": {"type": "fp8", "dynamic": True}}},
    },
    "fp8": {"method": "rtn", "weight_type": "fp8", "activations": {"type": "fp8", "range": "percentile"}},
    "mxfp4": {"method": "gptq", "weight_type": "mxfp4", "activations": {"type": "mxfp4"}},
    "mxfp8": {"method": "rtn", "weight_type": "mxfp8", "activations": {"type": "mxfp8"}},
}
CASES = [
    *(("llama-bias", scheme) for scheme in SCHEMES),
    ("llama-tied", "gptq"),
    ("qwen3-moe", "gptq"),
    ("llama4-text", "static"),
    ("gemma3", "static"),
    ("gemma3", "smoothquant"),
    ("gemma3", "awq"),
    ("llama-tied", "mixed, awq"),
    ("llama-tied", "propagated, corrected"),
    ("qwen3-moe", "propagated"),
    ("gemma3", "propagated, corrected"),
    ("qwen3-moe", "awq"),
    ("qwen3-moe", "mixed"),
    ("llama4-text", "mixed"),
    ("qwen3-moe", "adaround"),
    ("qwen3-moe", "mxfp4"),
]
FEW_EXPERTS = [*(("qwen3-moe", scheme) for scheme in ("gptq", "awq", "propagated")), ("deepseek-v3", "gptq")]
"""Cases in which some experts of a layer are in memory at a time, where the scheme lets them be solved apart."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Per architecture a folder with the base model, a calibration set and its statistics."""
    folders = {}
    for name in {name for name, _ in (*CASES, *FEW_EXPERTS)}:
        root = folders[name] = tmp_path_factory.mktemp(name)
        base = base_in(CATALOGUE[name].write(root / "base").parent)
        (root / "set").mkdir()
        write_set(root / "set", "sentences", samples())
        (root / "stats").mkdir()
        settings = StatisticsParams(ignore=(), cache=name == "llama-bias")
        build_activation_stats(settings, base, root / "set", root / "stats")
    return folders


def base_in(root: Path) -> BaseCheckpoint:
    return BaseCheckpoint.of(ModelParams(name=str(root / "base"), device="cpu"))


def build(root: Path, scheme: str, out: Path, mode: Any, resume: Path | None = None) -> dict[str, bytes]:
    out.mkdir(parents=True)
    params = SchemeParams.model_validate(SCHEMES[scheme])
    inputs = base_in(root), root / "stats", root / "set"
    build_quantized_model("s", params, *inputs, out, "v", ExecutionParams(mode=mode), resume)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_the_files_are_those_of_the_whole_model(
    name: str, scheme: str, bases: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (export, layerwise_folder):
        monkeypatch.setattr(module, "MAX_SHARD_SIZE", "40KB")  # several files
    whole = build(bases[name], scheme, tmp_path / "whole", "whole")
    assert sum(file.endswith(".safetensors") for file in whole) > 1
    with monkeypatch.context() as patch:
        patch.setattr(BaseCheckpoint, "loaded", lambda base: pytest.fail("the whole model was loaded"))
        assert build(bases[name], scheme, tmp_path / "layerwise", "layerwise") == whole


@pytest.mark.parametrize(("name", "scheme"), FEW_EXPERTS)
def test_experts_some_at_a_time_give_the_same_files(
    name: str, scheme: str, bases: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(bases[name], scheme, tmp_path / "whole", "whole")
    streamed = base_in(bases[name]).streamed()
    monkeypatch.setattr(large_mixture, "LARGE", 0)
    found = [large_mixture.large_mixture(streamed, layer) for layer in layer_names(streamed.model)]
    experts = sum(mixture.experts for mixture in found if mixture is not None)
    monkeypatch.setattr(large_mixture, "AT_A_TIME", 1)
    multiply, loaded = GroupedProducts.multiply, list[int]()

    def noted(products: GroupedProducts, experts: range, weights: Tensor) -> None:
        loaded.append(len(weights))
        multiply(products, experts, weights)

    monkeypatch.setattr(GroupedProducts, "multiply", noted)
    assert build(bases[name], scheme, tmp_path / "layerwise", "layerwise") == whole
    passes = 2 if scheme == "gptq" else 1  # simulated, and loaded again
    assert loaded == [1] * (passes * 2 * experts) and experts


def test_propagation_with_experts_in_groups_gives_the_same_files(
    bases: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = build(bases["qwen3-moe"], "propagated", tmp_path / "together", "whole")
    monkeypatch.setattr(expert_calls, "EXPERTS", 1)
    for mode in ("whole", "layerwise"):
        assert build(bases["qwen3-moe"], "propagated", tmp_path / mode, mode) == together


def test_a_base_model_without_settings_of_generation(bases: Mapping[str, Path], tmp_path: Path) -> None:
    """Both modes write those that transformers takes from config.json."""
    root = tmp_path / "root"
    shutil.copytree(bases["llama-bias"], root)
    (root / "base" / "generation_config.json").unlink()
    shutil.rmtree(root / "stats")
    (root / "stats").mkdir()
    build_activation_stats(StatisticsParams(ignore=()), base_in(root), root / "set", root / "stats")
    whole, layerwise = (build(root, "gptq", tmp_path / mode, mode) for mode in ("whole", "layerwise"))
    assert whole == layerwise and "generation_config.json" in whole


@pytest.mark.parametrize("name", ["llama-bias", "qwen3-moe"])
def test_weights_make_room_for_what_they_become(name: str, bases: Mapping[str, Path], tmp_path: Path) -> None:
    simulated, absent = layerwise_part.simulate, list[bool]()

    def noted(model: Any, quantized: Any, *args: Any, **more: Any) -> Any:
        absent.extend(matrix_of(model, matrix).parameter.is_meta for matrix in quantized.layers)
        return simulated(model, quantized, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise_part, "simulate", noted)
        build(bases[name], "gptq", tmp_path / "out", "layerwise")
    assert absent and all(absent)


PARTS = ["model.layers.0", "model.layers.1", "outside"]


@pytest.mark.parametrize("scheme", ["static", "propagated, corrected"])
@pytest.mark.parametrize("stop", range(3))
def test_every_part_is_a_point_to_resume_from(
    stop: int, scheme: str, bases: Mapping[str, Path], tmp_path: Path
) -> None:
    root, parts, made = bases["llama-bias"], tmp_path / "parts", list[str]()
    undisturbed = build(root, scheme, tmp_path / "undisturbed", "layerwise")
    with noted(made, stop), pytest.raises(KeyboardInterrupt):
        build(root, scheme, tmp_path / "stopped", "layerwise", parts)
    with noted(made):
        assert build(root, scheme, tmp_path / "last", "layerwise", parts) == undisturbed
    assert made == [*PARTS[: stop + 1], *PARTS[stop:]]


@contextmanager
def noted(made: list[str], stop: int | None = None) -> Iterator[None]:
    """Within the context, note the parts that are made, and stop in one before it is on disk."""
    write = Pieces.write

    def note(pieces: Any, name: str, *args: Any) -> None:
        if not name.endswith((layerwise.COMPUTED, ".states")):
            made.append(name)
            if stop is not None and name == PARTS[stop]:
                raise KeyboardInterrupt
        write(pieces, name, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pieces, "write", note)
        yield


def test_parts_of_another_scheme_are_not_used(bases: Mapping[str, Path], tmp_path: Path) -> None:
    root, parts = bases["llama-bias"], tmp_path / "parts"
    expected = build(root, "static", tmp_path / "expected", "layerwise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise_folder, "write_shards", lambda *args: pytest.fail("stop"))
        with pytest.raises(pytest.fail.Exception):
            build(root, "gptq", tmp_path / "stopped", "layerwise", parts)
    assert len(list(parts.glob("*.json"))) == 1 + 2 * len(PARTS)
    assert build(root, "static", tmp_path / "other", "layerwise", parts) == expected


def test_a_part_that_is_cut_short_is_made_again(bases: Mapping[str, Path], tmp_path: Path) -> None:
    root, parts = bases["llama-bias"], tmp_path / "parts"
    expected = build(root, "gptq", tmp_path / "expected", "layerwise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise_folder, "write_shards", lambda *args: pytest.fail("stop"))
        with pytest.raises(pytest.fail.Exception):
            build(root, "gptq", tmp_path / "stopped", "layerwise", parts)
    cut = parts / "model.layers.1.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert build(root, "gptq", tmp_path / "again", "layerwise", parts) == expected


def test_a_folder_that_computes_something_else_is_refused(
    bases: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = layerwise_part.tensors_of_layers

    def changed(names: Any, layers: Any, scheme: Any) -> Any:
        for target, tensors in stored(names, layers, scheme):
            if target.name == "model.layers.1.self_attn.v_proj":
                tensors = {key: _altered(key, tensor) for key, tensor in tensors.items()}
            yield target, tensors

    monkeypatch.setattr(layerwise_part, "tensors_of_layers", changed)
    with pytest.raises(
        ValueError, match=r"does not compute what was quantized.*first layer that differs: .*layers\.1$"
    ):
        build(bases["llama-bias"], "gptq", tmp_path / "out", "layerwise")


def _altered(key: str, tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if key.endswith("weight_packed") else tensor


def test_a_sensitivity_that_is_on_disk_is_not_measured_again(bases: Mapping[str, Path], tmp_path: Path) -> None:
    root, parts = bases["llama-bias"], tmp_path / "parts"
    expected = build(root, "mixed", tmp_path / "expected", "layerwise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise_mixed, "allocation", lambda *args: pytest.fail("stop"))
        with pytest.raises(pytest.fail.Exception):
            build(root, "mixed", tmp_path / "stopped", "layerwise", parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise_mixed, "sensitivity", lambda *args: pytest.fail("measured again"))
        assert build(root, "mixed", tmp_path / "again", "layerwise", parts) == expected

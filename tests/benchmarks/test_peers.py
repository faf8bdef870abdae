"""The parts of the contest that need no other tool; tests/integration/test_peer.py runs llm-compressor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.contest import Contest
from benchmarks.peers.environments import REQUIREMENTS, Unavailable, python_of
from benchmarks.peers.evaluation import interval, verdict
from benchmarks.peers.recipes import (
    BEST,
    DEFAULT,
    LIKE,
    LIKE_SCHEME,
    LLM_COMPRESSOR,
    PLUMBLINE,
    TOOLS,
    Format,
    recipes,
)
from benchmarks.peers.results import Results
from benchmarks.peers.speed import SCHEMES
from benchmarks.peers.subjects import RANDOM_LLAMAS, subject
from benchmarks.peers.tables import OURS, PEER, Row, caption, quality_table, spread, times_table
from plumbline.calibration_set.reader import read_calibration_set, read_manifest
from plumbline.export.modifiers import recipe
from plumbline.quantized_model.params import SchemeParams

FORM = Format(3, 64)


def test_the_eight_schemes_exist_for_both_and_four_of_them_are_gptq() -> None:
    found = {name: SchemeParams.model_validate(entry) for name, entry in SCHEMES.items()}
    assert len({scheme.model_dump_json() for scheme in found.values()}) == 8
    assert len({(s.weight_bits, s.group_size) for s in found.values() if s.method == "gptq"}) == 4
    for name, scheme in found.items():
        recipe(name, scheme)


def test_plumblines_default_names_the_format_alone_so_that_it_is_what_is_shipped() -> None:
    assert recipes(PLUMBLINE, FORM)[DEFAULT] == {"method": "gptq", "weight_bits": 3, "group_size": 64}


def test_llm_compressors_default_leaves_order_and_damping_to_it() -> None:
    (modifier,) = recipes(LLM_COMPRESSOR, FORM)[DEFAULT]["quantization_stage"]["quantization_modifiers"].values()
    assert set(modifier) == {"config_groups", "ignore"}
    assert "observer" not in modifier["config_groups"]["group_0"]["weights"]


def test_like_is_the_same_scheme_that_export_hands_over() -> None:
    ours = SchemeParams.model_validate(recipes(PLUMBLINE, FORM)[LIKE])
    steps = recipe("like", ours)["quantization_stage"]["quantization_modifiers"]["GPTQModifier"]
    assert steps["actorder"] == "static" and steps["dampening_frac"] == LIKE_SCHEME["damping"] == 0.01
    assert recipes(LLM_COMPRESSOR, FORM)[LIKE] == {}


def test_every_recipe_of_a_format_stores_the_same_bits() -> None:
    for name, entry in recipes(PLUMBLINE, FORM).items():
        scheme = SchemeParams.model_validate(entry)
        assert (scheme.weight_bits, scheme.group_size, scheme.symmetric) == (3, 64, True), name
        assert scheme.activations is None and scheme.mixed is None, name
    for name in (DEFAULT, BEST):
        modifiers = recipes(LLM_COMPRESSOR, FORM)[name]["quantization_stage"]["quantization_modifiers"]
        weights = modifiers["GPTQModifier"]["config_groups"]["group_0"]["weights"]
        assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (3, 64, True)
    for tool in TOOLS:
        assert DEFAULT in recipes(tool, FORM) and BEST in recipes(tool, FORM)


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
    assert set(RANDOM_LLAMAS) == {"random-6M", "random-51M"} and not about.says_something


def test_what_is_finished_is_taken_up_while_the_same_things_decide_it(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure() -> dict[str, int]:
        calls.append("x")
        return {"seconds": len(calls)}

    file, left = tmp_path / "results.json", tmp_path / "model"
    left.mkdir()
    assert Results(file).get("a", {"samples": 1}, measure, left) == {"seconds": 1}
    assert Results(file).get("a", {"samples": 1}, measure, left) == {"seconds": 1}
    assert Results(file).get("b", {"samples": 2}, measure) == {"seconds": 2}
    assert Results(file).get("a", {"samples": 1}, measure, left) == {"seconds": 1}  # other keys leave it alone
    assert Results(file).get("a", {"samples": 2}, measure, left) == {"seconds": 3}
    left.rmdir()
    assert Results(file).get("a", {"samples": 2}, measure, left) == {"seconds": 4}


def test_a_failed_measurement_is_tried_again(tmp_path: Path) -> None:
    def fails() -> dict[str, int]:
        raise Unavailable("no")

    with pytest.raises(Unavailable):
        Results(tmp_path / "results.json").get("a", {}, fails)
    assert Results(tmp_path / "results.json").get("a", {}, lambda: {"seconds": 1}) == {"seconds": 1}


def test_other_tokens_than_those_of_the_set_stop_the_contest(tmp_path: Path) -> None:
    about = subject("random-6M", 2, 16, tmp_path)
    contest = Contest(about, 2, tmp_path / "contest", Results(tmp_path / "results.json"))
    names = read_calibration_set(about.samples)["sample_id"].to_pylist()
    right: dict[str, Any] = {"embedding": names * 2, "first_linear": [[1, 16], [1, 16]] * 2}
    assert contest.passes(right) == 2
    for wrong in (
        {"embedding": names[::-1] * 2},
        {"embedding": names[:1] * 4},
        {"embedding": names},
        {"first_linear": [[1, 16], [1, 15]] * 2},
        {"embedding": [*names, names[0]]},
    ):
        with pytest.raises(RuntimeError, match="other samples"):
            contest.passes({**right, **wrong})


def sums(*kl: float) -> dict[str, Any]:
    """Documents of 10 tokens each with these means."""
    ten = [10.0] * len(kl)
    return {
        "domain": ["a"] * len(kl),
        "tokens": ten,
        "kl": [10 * x for x in kl],
        "nll": [-10 * x for x in kl],
        "top1": [7.0, 8.0] * (len(kl) // 2),
    }


def test_differences_are_paired_by_document() -> None:
    hard = [0.1, 2.0, 0.4, 3.0, 0.2, 1.0, 0.5, 4.0, 0.1, 2.5]
    ours, theirs = sums(*hard), sums(*(x + 0.05 + 0.001 * i for i, x in enumerate(hard)))
    estimate, half = interval(theirs, "kl", ours)
    assert estimate == pytest.approx(0.0545) and half < 0.01
    assert interval(ours, "kl")[1] > 0.5  # documents differ by more than models do
    assert verdict(estimate, half) == "worse" and verdict(-estimate, half) == "better"
    assert verdict(half / 2, half) == "no difference"


def test_the_quality_table_has_a_row_per_recipe_and_names_what_did_not_run() -> None:
    figures = {"cpu": 1234.5, "bytes": 3 * 2**20}
    rows = [
        Row(PLUMBLINE, DEFAULT, figures, sums(*[0.1, 0.2] * 5)),
        Row(LLM_COMPRESSOR, DEFAULT, figures, sums(*[0.3, 0.35] * 5)),
        Row("auto_round", DEFAULT, reason="7 hours"),
    ]
    lines = quality_table(rows, True)
    assert len({line.count("|") for line in lines}) == 1
    assert "| 0.1500 ± " in lines[2] and "| 1,234 | 3 | – |" in lines[2] and "| 75.0 ± " in lines[2]
    assert "| +0.1750 ± " in lines[3] and lines[3].endswith(": worse |")
    assert "not run: 7 hours" in lines[4]
    assert quality_table(rows, False)[3].endswith("no claim |")
    assert caption(rows[0].sums or {}).endswith("10 documents (100 tokens)")


def test_the_tables_of_times_show_medians_and_ratios() -> None:
    def runs(seconds: tuple[float, ...]) -> list[dict[str, float]]:
        return [{"work": s, "process": 2 * s, "cpu": 3 * s, "bytes": 2**20 * s} for s in seconds]

    lines = times_table({"bundled-6M": {PEER: runs((30, 20, 40)), OURS: runs((2, 3, 1))}})
    assert "30.0 (20.0–40.0)" in lines[1] and lines[3].split()[:4] == ["ratio", "15.0x,", "aim", "10x"]
    assert max(map(len, lines)) <= 100
    assert spread([1.0]) == "1.0" and spread([0.5, 0.25, 0.75]) == "0.50 (0.25–0.75)"


def test_where_an_environment_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_PEER_GPTQMODEL", str(tmp_path))
    with pytest.raises(Unavailable, match="--tools gptqmodel"):
        python_of("gptqmodel", install=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert python_of("gptqmodel", install=False) == str(tmp_path / "bin" / "python")


def test_what_pip_cannot_install_is_a_reason_for_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_PEER_GPTQMODEL", str(tmp_path / "venv"))
    monkeypatch.setitem(REQUIREMENTS, "gptqmodel", ("./no-such-folder",))
    with pytest.raises(Unavailable, match="not installed: .*no-such-folder"):
        python_of("gptqmodel")
    assert not (tmp_path / "venv").exists()

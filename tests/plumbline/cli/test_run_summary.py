"""What `plumbline run` says of the champion at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from plumbline.artifact import write_json
from plumbline.cli.summary import _next, _show_champion, _show_verdict, _show_what_to_look_at
from tests.helpers.paths import PROJECT


def said(root: Path, **decision: object) -> str:
    (root / "params.yaml").write_text((PROJECT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (root / "data/deployed_model").mkdir(parents=True, exist_ok=True)
    write_json(root / "data/deployed_model/promotion.json", decision)
    console = Console(highlight=False, width=80)
    with console.capture() as captured:
        _show_champion(console, root)
    return captured.get()


@pytest.mark.parametrize(("decision", "champion"), [("promoted", "new-w4"), ("kept", "old-w4")])
def test_the_champion_is_named_with_its_folder_and_three_lines(tmp_path: Path, decision: str, champion: str) -> None:
    text = said(tmp_path, decision=decision, pair="new-w4", why="lowest KL", champion_before={"pair": "old-w4"})
    assert f"Champion  {champion}, models:/plumbline@champion, in data/quantized_model/{champion}" in text
    assert f'model = AutoModelForCausalLM.from_pretrained("data/quantized_model/{champion}")' in text
    assert f"vllm serve data/quantized_model/{champion}" in text


def test_a_cache_with_scales_is_served_as_fp8(tmp_path: Path) -> None:
    for scheme, ending in (({"num_bits": 8}, " --kv-cache-dtype fp8"), (None, "")):
        write_config(tmp_path / "data/quantized_model/new", scheme)
        text = said(tmp_path, decision="promoted", pair="new", why="lowest KL", champion_before=None)
        assert f"vllm serve data/quantized_model/new{ending}\n" in text


def write_config(folder: Path, scheme: dict[str, int] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"quantization_config": {"kv_cache_scheme": scheme}})


def test_a_refused_candidate_leaves_the_earlier_champion_which_is_loaded_by_its_uri(tmp_path: Path) -> None:
    text = said(tmp_path, decision="rejected", pair="same", why="KL is higher.", champion_before={"pair": "same"})
    assert "Champion  same, as before: KL is higher." in text and "data/quantized_model" not in text
    assert 'mlflow.transformers.load_model("models:/plumbline@champion")' in text
    none = said(tmp_path, decision="rejected", pair="new", why="it falls back.", champion_before=None)
    assert none.strip() == "Champion  none: it falls back."


def test_the_verdict_names_every_scheme_under_which_the_choice_matters(tmp_path: Path) -> None:
    """Its headline speaks of them; the sentences are those of the deployed scheme."""
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "data/calibration_report").mkdir(parents=True)
    advice = {"w4a16-gptq": True, "w3a16-gptq": True, "w8a8-minmax": False}
    verdict = {
        "headline": "The calibration choice matters under 2 of 4 schemes.",
        "sentences": ["w4a16-gptq: b is worse than a.", "w8a8-minmax: b is better than a."],
        "advice": [{"scheme": s, "matters": m, "sentence": f"{s}: use a."} for s, m in advice.items()],
        "caveat": "Each choice was drawn once.",
    }
    write_json(tmp_path / "data/calibration_report/verdict.json", verdict)
    console = Console(highlight=False, width=80)
    with console.capture() as captured:
        _show_verdict(console, tmp_path)
    assert [line.strip() for line in captured.get().splitlines()] == [
        "The calibration choice matters under 2 of 4 schemes.",
        "• w4a16-gptq: b is worse than a.",
        "• w3a16-gptq: use a.",
        "• Each choice was drawn once.",
        "• all that was found on the other 3 schemes is in the report",
    ]


def test_the_lines_load_the_name_in_params(tmp_path: Path) -> None:
    params = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    assert "tracking" not in params  # the default name above
    console = Console(width=80)
    with console.capture() as captured:
        _show_champion(console, tmp_path)  # before the first decision
    assert captured.get() == ""


def test_the_next_step_of_a_study_is_what_it_recommends() -> None:
    """A rule that is better at a size nobody needs is not advised."""
    better = {"scheme": "w4", "rule": "coverage", "n": 4, "verdict": "better", "draws_needed": None}
    verdict = {
        "comparisons": [better],
        "recommendations": [{"rules": [], "n": 16}],
        "baseline": "random",
        "draws": 5,
        "rules": {"coverage": {"strategy": "token_coverage"}},
    }
    assert _next(verdict).startswith("keep random;")
    advised = {**verdict, "recommendations": [{"rules": ["coverage"], "n": 4}]}
    assert "strategy: token_coverage, n: 4" in _next(advised)


@pytest.mark.parametrize(
    ("decision", "model"),
    [("promoted", "models:/plumbline@champion"), ("kept", "data/quantized_model/random-64-w8a8-minmax")],
)
def test_three_things_to_look_at(tmp_path: Path, decision: str, model: str) -> None:
    said(tmp_path, decision=decision, pair="new", why="lowest KL", champion_before={"pair": "old"})
    console = Console(highlight=False, width=80)
    with console.capture() as captured:
        _show_what_to_look_at(console, tmp_path)
    text = captured.get()
    numbered = [line.split(maxsplit=1)[1] for line in text.splitlines() if line.strip()[:1] in "123" and line.strip()]
    assert numbered == ["data/calibration_report/report.html", "plumbline show random-64", f"plumbline audit {model}"]
    assert "plumbline ui" in text and max(map(len, text.splitlines())) <= 80

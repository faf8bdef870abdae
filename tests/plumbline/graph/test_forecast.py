"""What a run would do: its steps and amounts exactly, its time as amounts over the rates that were measured."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from plumbline.artifact import write_json
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.cli.forecast_text import table
from plumbline.cli.main import main
from plumbline.graph import forecast as module
from plumbline.graph.corpus_size import corpus_size
from plumbline.graph.forecast import AROUND, Forecast, Work, forecast, stages_of_run
from plumbline.graph.progress import RunProgress, clock
from plumbline.graph.rates import FILE, read_rates, write_rate
from plumbline.graph.speed import Speed
from plumbline.params import load_params
from tests.helpers.small_model import WORDS, write_base_model
from tests.helpers.workspace import SMALL, make_workspace

SPEED = Speed(tokens=100.0, embedded=4.0, text_bytes=1000.0, flops=1e6, step_seconds=0.5)
TEXTS = SMALL["corpus"]["sources"]
CHOICES, SCHEMES = SMALL["grid"]["calibrations"], SMALL["grid"]["schemes"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with 40 documents of 20 words in two domains; nothing was run, and rates are given."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(module, "measure", lambda *_: SPEED)
    root = make_workspace(
        tmp_path / "workspace", **{**SMALL, "tokenize": {"max_length": 64}}, model={"name": "base"}
    ).root
    write_base_model(root / "base")
    for domain in ("prose", "code"):
        (root / "texts" / domain).mkdir()
        for i in range(20):
            (root / "texts" / domain / f"{i}.txt").write_text(" ".join([*WORDS[i % 7 :], str(i)]), encoding="utf-8")
    return root


def by_asset(expected: Forecast | None) -> dict[str, Work]:
    assert expected is not None
    return {work.asset: work for work in expected.work}


def test_every_step_of_the_grid_is_counted_and_none_that_runs_on_request(root: Path) -> None:
    names = [stage.asset for stage in stages_of_run(root)]
    pairs, all_choices = len(CHOICES) * len(SCHEMES), len(SMALL["calibrations"])
    assert names.count("quantized_model") == names.count("evaluation") == pairs
    assert names.count("calibration_set") == names.count("activation_stats") == all_choices
    assert names.count("calibration_report") == names.count("deployed_model") == names.count("raw_corpus") == 1
    assert "study" not in names and "code_versions" not in names


def test_what_reads_a_step_that_is_due_is_due(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice, changed = CHOICES[0], dict[str, list[str]]()
    monkeypatch.setattr(module, "changed_stages", lambda *_: changed)
    assert stages_of_run(root) == [] and forecast(root) is None
    changed[f"calibration_choice@{choice}"] = ["params.yaml changed"]
    steps = ("calibration_choice", "calibration_set", "activation_stats", "sample_page")
    expected = {f"{asset}@{choice}" for asset in steps} | {"calibration_report", "deployed_model"}
    expected |= {f"{asset}@{choice}-{scheme}" for asset in ("quantized_model", "evaluation") for scheme in SCHEMES}
    assert {stage.name for stage in stages_of_run(root)} == expected
    assert stages_of_run(root, ["calibration_set"]) == []  # its choice is not among what runs
    (root / "inbox/new.txt").write_text("a new text")  # not in the corpus yet
    assert [stage.name for stage in stages_of_run(root)][:2] == ["raw_corpus", "tokenized_samples"]


def test_amounts_over_rates(root: Path) -> None:
    work, params = by_asset(forecast(root)), load_params(root)
    expected = forecast(root)
    assert expected is not None
    corpus = expected.corpus
    files = sorted((root / "texts").rglob("*.txt"))
    assert (corpus.documents, corpus.samples, corpus.domains, corpus.is_estimate) == (40, 40, 2, True)
    assert corpus.bytes == sum(path.stat().st_size for path in files)
    statistics, n = work["activation_stats"], sum(choice.n for choice in params.calibrations.values())
    assert statistics.passes == n
    around = AROUND["activation_stats"] * 0.5 * statistics.steps
    assert statistics.seconds == pytest.approx(1.5 * n * corpus.sample_tokens / 100 + around)
    assert work["tokenized_samples"].seconds == pytest.approx(corpus.bytes / 1000 + 9 * 0.5)
    assert expected.total(lambda entry: entry.steps) == len(stages_of_run(root))


def test_memory_counts_the_base_logits_of_the_evaluation(root: Path) -> None:
    expected, params = forecast(root), load_params(root)
    assert expected is not None
    model = BaseCheckpoint.of(params.model, root).skeleton()
    limit = params.evaluation.tokens_per_domain or math.inf
    evaluated = math.ceil(min(params.tokenize.splits.report * expected.corpus.tokens, 2 * limit))
    logits = model.config.vocab_size * model.dtype.itemsize
    assert evaluated < params.evaluation.batch_tokens
    assert expected.memory >= 4 * evaluated * logits  # those that stay, and of a batch three times as many


def test_a_tokenized_corpus_is_counted_not_estimated(root: Path) -> None:
    counts = {"documents": 7, "samples": 11, "tokens": 130}
    (root / "data/tokenized_samples").mkdir(parents=True)
    write_json(
        root / "data/tokenized_samples/accounting.json",
        {"by_split": {"pool": counts, "report": counts}, "by_domain": {"a": {}, "b": {}, "c": {}}},
    )
    found = corpus_size(load_params(root), root, 64, len)
    assert (found.documents, found.samples, found.tokens, found.domains, found.is_estimate) == (14, 22, 260, 3, False)


def test_the_plan_changes_nothing_and_names_every_column(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.glob("*.yaml")}
    environment = {"PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(root / ".dagster")}
    result = CliRunner().invoke(main, ["run", "--plan"], env=environment)
    assert result.exit_code == 0, result.output
    head, *rows = [line for line in result.output.splitlines() if not line.startswith("workspace:")]
    assert head.split() == ["asset", "steps", "forward", "passes", "time", "disk"]
    assert rows[0].startswith("raw_corpus") and any(row.startswith("in all") for row in rows)
    assert "about 40 documents" in result.output and "free)" in result.output
    assert not (root / "data").exists() and before == {path: path.read_bytes() for path in root.glob("*.yaml")}


def test_a_plan_of_what_would_fail_says_why(root: Path) -> None:
    shutil.rmtree(root / "base")
    environment = {"PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(root / ".dagster")}
    result = CliRunner().invoke(main, ["run", "--plan"], env=environment)
    assert result.exit_code == 1 and "'base' is no folder here" in result.output


def test_a_run_notes_its_rates_and_the_next_forecast_uses_them(root: Path) -> None:
    first = by_asset(forecast(root))["evaluation"]
    progress = RunProgress(root, forecast(root))
    progress.after("evaluation", first.steps, 3 * first.seconds)
    assert read_rates(root) == {"evaluation": pytest.approx(3.0, abs=1e-3)}
    second = by_asset(forecast(root))["evaluation"]
    assert second.seconds == pytest.approx(3 * first.seconds, rel=1e-3)
    RunProgress(root, forecast(root)).after("evaluation", second.steps, second.seconds)
    assert read_rates(root) == {"evaluation": pytest.approx(3.0, abs=1e-3)}
    (root / FILE).write_text("{")
    assert read_rates(root) == {}
    write_rate(root, "study", 2.0)
    assert json.loads((root / FILE).read_text()) == {"study": 2.0}


def of(**work: Any) -> Forecast:
    entries = tuple(Work(asset, steps, 0, seconds, 10**6) for asset, (steps, seconds) in work.items())
    return Forecast(entries, module.CorpusSize(1, 2, 3, 4, 1), 5 * 10**9, 4 * 10**9, 1)


def test_time_left_follows_the_pace_so_far(tmp_path: Path) -> None:
    progress = RunProgress(tmp_path, of(raw_corpus=(1, 10.0), evaluation=(4, 40.0)))
    assert progress.before("raw_corpus", 1) == "[1 of 5, 0:50 left] "
    progress.after("raw_corpus", 1, 60.0)  # 50 s more than expected, on 50 s of work: twice as slow
    assert progress.before("evaluation", 4) == "[2–5 of 5, 1:20 left] "
    progress.after("evaluation", 2, 20.0)
    progress.skipped("evaluation")
    assert progress.left() == 0 and progress.before("study", 1) == "[4 of 4, 0:00 left] "
    assert RunProgress(tmp_path, None).before("raw_corpus", 1) == ""


def test_too_little_memory_or_disk_is_said() -> None:
    text = table(of(evaluation=(4, 40.0)))
    assert "more memory than is free" in text and "more disk than is free" in text


def test_a_clock() -> None:
    assert [clock(s) for s in (0, 61, 3661)] == ["0:00", "1:01", "1:01:01"]

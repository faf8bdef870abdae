"""What an artifact's summary looks like in Dagster, and what is left of a step that is killed before its end."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from assets.production_drift import production_drift
from plumbline.execution.worker_check import with_check
from plumbline.graph import drift, step
from plumbline.graph.check_result import as_result
from plumbline.graph.checks import CheckOutcome
from plumbline.graph.metadata import as_metadata
from plumbline.graph.preflight import NotReady
from plumbline.graph.resources import BASE_MODEL, DVC, MLFLOW
from plumbline.markdown import plain
from plumbline.versioning import same_code
from plumbline.versioning.same_code import OtherCode
from plumbline.versioning.status import unfinished_mark

UNESCAPED = r"(?<!\\)[<>\[\]`*!#]"


def test_a_summary_becomes_what_people_can_read() -> None:
    metadata = as_metadata(
        {
            "samples": 64,
            "exact": True,
            "kl_mean": 0.011454767796978588,
            "shares": {"prose": 0.25},
            "sentences": ["Domains are off by 8 %.", "Lengths are off by 2 %."],
            "names": ["prose", "code"],
            "layers": [{"layer": "q_proj", "bits": 4, "shape": [2, 3], "error": 0.0023351290728896856}],
            "mlflow_run": "http://127.0.0.1:5000/#/experiments/1/runs/2",
            "nothing": None,
            "nobody": [],
            "none": {},
        }
    )
    assert metadata["samples"] == 64 and metadata["exact"] is True
    assert metadata["kl_mean"] == 0.0114548
    assert metadata["shares"] == dg.MetadataValue.json({"prose": 0.25})
    assert metadata["sentences"] == dg.MetadataValue.md("- Domains are off by 8 %.\n- Lengths are off by 2 %.")
    assert metadata["mlflow_run"] == dg.MetadataValue.url("http://127.0.0.1:5000/#/experiments/1/runs/2")
    assert metadata["names"] == dg.MetadataValue.json(["prose", "code"])
    assert metadata["layers"].records == [
        dg.TableRecord({"layer": "q_proj", "bits": 4, "shape": "[2, 3]", "error": 0.00233513})
    ]
    assert set(metadata) == {"samples", "exact", "kl_mean", "shares", "sentences", "names", "layers", "mlflow_run"}


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "![i](http://evil.example/i)",
    "[a](http://evil.example)",
    "# a\n- b",
    "`c` *d*",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_sentence_is_no_markdown(name: str) -> None:
    shown = as_metadata({"sentences": [f"the domain {name} is missing"]})["sentences"].value
    [line] = shown.splitlines()
    assert plain(line) == f"- the domain {' '.join(name.split())} is missing"
    assert not re.search(UNESCAPED, line)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_the_outcome_of_a_check_is_no_markdown(name: str) -> None:
    """Dagster shows the description of an outcome as Markdown, and the command line as it is."""
    shown = as_result(CheckOutcome(False, f"{name}.txt: not read", {"file": name}))
    assert shown.metadata["file"].value == name and not re.search(UNESCAPED, shown.description or "")
    assert plain(shown.description or "") == f"{' '.join(name.split())}.txt: not read"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_what_is_said_of_drift_is_no_markdown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"domains": {"sentence": name, "value": 1.0}}
    said = {"drifted": True, "sentence": f"moved to {name}", "p_value": 0.002, "production_samples": 64}
    monkeypatch.setattr(drift, "measure", lambda: {**said, "champion": name, "metrics": metrics})
    resources = dict.fromkeys((BASE_MODEL, DVC, MLFLOW))
    result = dg.materialize([production_drift], resources=resources, instance=dg.DagsterInstance.ephemeral())
    [check], [event] = result.get_asset_check_evaluations(), result.asset_materializations_for_node("production_drift")
    assert plain(check.description or "") == f"moved to {' '.join(name.split())}"
    assert not re.search(UNESCAPED, check.description or "")
    assert check.metadata["metrics"] == dg.MetadataValue.json(metrics)
    assert event.metadata["sentence"] == dg.MetadataValue.text(said["sentence"])
    assert event.metadata["champion"] == dg.MetadataValue.text(name)


def test_a_step_killed_before_mlflow_knows_of_it_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(
        is_current=False, code_version="", md5="m", name="n", params={}, inputs={}, out=tmp_path, root=tmp_path
    )

    @contextlib.contextmanager
    def recording(*_: Any) -> Iterator[Any]:
        yield made, tmp_path

    monkeypatch.setattr(step, "recording", recording)
    monkeypatch.setattr(step, "workspace_root", lambda: tmp_path)
    mark = unfinished_mark(tmp_path, "evaluation@a")

    def killed(*_: Any) -> dict[str, Any]:
        assert mark.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step._one("evaluation", "a", lambda *_: None, lambda _: {}, None, killed)
    assert mark.exists()
    step._one("evaluation", "a", lambda *_: None, lambda _: {}, None, lambda *_: {"run": 1})
    assert not mark.exists()
    step._one("evaluation", "a", lambda *_: None, lambda _: {}, None, None)
    assert not mark.exists()


def test_the_summary_is_read_from_what_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library logs stands in the log of the run, and the metadata come from the output's files."""
    out = tmp_path / "out"
    made = SimpleNamespace(
        is_current=False, code_version="", md5="m", name="n", params={"n": 2}, inputs={}, out=out, root=tmp_path
    )

    @contextlib.contextmanager
    def recording(root: Path, name: str, changed: dict[str, Any]) -> Iterator[Any]:
        assert changed == {"n": 2}
        (tmp_path / "folder").mkdir()
        yield made, tmp_path / "folder"
        (tmp_path / "folder").rename(out)

    monkeypatch.setattr(step, "recording", recording)
    monkeypatch.setattr(step, "workspace_root", lambda: tmp_path)

    @dg.asset
    def choice(context) -> Iterator[Any]:  # Dagster reads the annotation, which is a string here
        def build(step: Any, key: str, folder: Path) -> None:
            (folder / "count.txt").write_text("3")
            logging.getLogger("plumbline.calibration_choice.build").info("took over %d of %d", 1, 3)

        def summary(folder: Path) -> dict[str, Any]:
            assert folder == out
            return {"count": int((folder / "count.txt").read_text())}

        yield from step.materialize(context, build, summary, overrides=lambda key: {"n": 2})

    instance = dg.DagsterInstance.ephemeral()
    result = dg.materialize([choice], instance=instance, tags={step.FRONT_DOOR: "a test"})
    [event] = result.asset_materializations_for_node("choice")
    assert event.metadata["count"].value == 3
    assert event.metadata["overridden"].value == ["n"]
    assert "took over 1 of 3" in [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert not logging.getLogger("plumbline").handlers


def test_a_launch_that_nobody_looked_ahead_for_does_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run from the UI asks for all its stages before the first; one of a command, which has asked, does not."""
    asked: list[set[str]] = []

    def refuse(_: Path, stages: list[str]) -> None:
        asked.append(set(stages))
        raise NotReady("1 problem found before the first step")

    monkeypatch.setattr(step, "require_ready", refuse)
    monkeypatch.setattr(step, "declare", lambda _: [])
    monkeypatch.setattr(step, "workspace_root", lambda: tmp_path)
    names = ("choice", "sets@a", "sets@b", "models@a-w4", "other")
    monkeypatch.setattr(step, "resolved", lambda _: dict.fromkeys(names))
    partitions = dg.StaticPartitionsDefinition(["a", "b"])

    @dg.asset(partitions_def=partitions)
    def sets(context) -> Iterator[Any]:
        yield from step.materialize(context, lambda *_: None, lambda _: {})

    result = dg.materialize([sets], partition_key="a", raise_on_error=False, instance=dg.DagsterInstance.ephemeral())
    assert not result.success and asked == [{"sets@a"}]
    assert "1 problem found before the first step" in str(result.get_step_failure_events()[0].step_failure_data.error)


def test_workers_that_a_step_has_compute_must_have_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards of statistics, the cells of a study, blocks of embeddings: what `share_out` is given."""
    made = SimpleNamespace(
        is_current=False, code_version="a", md5="m", name="n", params={}, inputs={}, out=tmp_path, root=tmp_path
    )
    monkeypatch.setattr(step, "recording", lambda *_: contextlib.nullcontext((made, tmp_path)))
    monkeypatch.setattr(step, "workspace_root", lambda: tmp_path)
    monkeypatch.setattr(step, "code_version", lambda asset: "a")
    done: list[int] = []
    for version in ("a", "b"):  # of the worker's machine
        monkeypatch.setattr(same_code, "code_version", lambda asset, library, version=version: version)
        refused = contextlib.nullcontext() if version == "a" else pytest.raises(OtherCode, match="code of study")
        with refused:
            step._one("study", "x", lambda *_: with_check(done.append)(1), lambda _: {}, None, None)
    assert done == [1] and with_check(done.append) == done.append


def test_what_another_process_made_meanwhile_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(
        is_current=True, code_version="", md5="m", name="n", params={}, inputs={}, out=tmp_path, root=tmp_path
    )
    monkeypatch.setattr(step, "recording", lambda *_: contextlib.nullcontext((made, tmp_path)))
    monkeypatch.setattr(step, "workspace_root", lambda: tmp_path)
    logged = []

    def build(*_: Any) -> None:
        raise AssertionError("it is there")

    finished = step._one("evaluation", "a", build, lambda _: {}, None, lambda *_: logged.append(1) or {})
    assert finished.step.md5 == "m" and logged == [1]  # the other may have died before MLflow knew of it

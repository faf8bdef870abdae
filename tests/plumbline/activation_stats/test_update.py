"""A set that changed by a few samples against a collection of the whole new set."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner

from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.collect import collect
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import ActivationStats, extremes
from plumbline.activation_stats.store import HEADER, load
from plumbline.activation_stats.update import Change, change, update, updated
from plumbline.artifact import read_json, write_json, write_table
from plumbline.base_model.params import ModelParams
from plumbline.calibration_set.reader import SCHEMA, set_digest
from plumbline.cli.statistics import update_statistics
from tests.helpers.checkpoint import checkpoint

Sample = tuple[str, list[int]]
SETTINGS = StatisticsParams(cache=True)
MODEL = ModelParams(name="model", device="cpu")
EXACT = ("members", "sample_tokens", "sample_min", "sample_max", "top_values", "top_positions", "top_channels")
SUMS = ("sum", "sum_abs", "sum_sq", "hessian")


@pytest.fixture(scope="module")
def many() -> list[Sample]:
    rng = np.random.default_rng(1)
    return [(f"{i:02x}", rng.integers(0, 50, int(rng.integers(1, 60))).tolist()) for i in range(14)]


def fresh(model: Any, samples: list[Sample], **more: Any) -> ActivationStats:
    return collect(model, samples, SETTINGS, base_model_digest="m", fingerprint="t", **more)


def renewed(previous: ActivationStats, model: Any, samples: list[Sample], **more: Any) -> ActivationStats:
    return updated(
        previous, model, samples, **{"settings": SETTINGS, "base_model_digest": "m", "fingerprint": "t", **more}
    )


def check_same(found: ActivationStats, expected: ActivationStats) -> None:
    assert found.sample_ids == expected.sample_ids and list(found.sites) == list(expected.sites)
    assert torch.equal(found.sample_tokens, expected.sample_tokens)
    assert {field.name for field in fields(next(iter(found.sites.values())))} >= {*EXACT, *SUMS, "histogram"}
    for name, x in found.sites.items():
        y = expected.sites[name]
        assert x.histogram.first == y.histogram.first and torch.equal(x.histogram.counts, y.histogram.counts)
        assert extremes(found, name) == extremes(expected, name)
        for what in EXACT:
            left, right = getattr(x, what), getattr(y, what)
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
        for what in SUMS:
            left, right = getattr(x, what), getattr(y, what)
            assert (left is None) == (right is None) == (what == "hessian" and name.endswith((":k", ":v")))
            assert left is None or float((left - right).abs().max()) <= 1e-9 * float(right.abs().max())


@pytest.mark.parametrize(("stay_from", "until"), [(0, 14), (3, 12), (3, 14), (0, 11)], ids=["add", "swap", "s2", "cut"])
def test_only_the_samples_that_changed_are_run(llama: Any, many: list[Sample], stay_from: int, until: int) -> None:
    model, before, after = llama(torch.bfloat16), many[:12], many[stay_from:until]
    progress: list[int] = []
    found = renewed(fresh(model, before), model, after, leaving=before, progress=progress.append)
    check_same(found, fresh(model, after))
    run = {sample_id for sample_id, _ in before} ^ {sample_id for sample_id, _ in after}
    assert sorted(progress) == sorted(len(ids) for sample_id, ids in many if sample_id in run)


def test_an_unchanged_set_costs_nothing(llama: Any, many: list[Sample]) -> None:
    model = llama(torch.bfloat16)
    previous = fresh(model, many)
    assert renewed(previous, None, many[::-1], leaving=[]) is previous


def test_masks_hold_for_those_that_leave_and_come(llama: Any, many: list[Sample]) -> None:
    model = llama(torch.bfloat16)
    masks = {sample_id: torch.arange(len(ids)) % 2 == 0 for sample_id, ids in many}
    found = renewed(fresh(model, many[:12], masks=masks), model, many[2:], leaving=many, masks=masks)
    check_same(found, fresh(model, many[2:], masks=masks))


def test_what_left_and_what_came(llama: Any, many: list[Sample]) -> None:
    previous = fresh(llama(torch.bfloat16), many[:4])
    assert change(previous, many[1:6]) == Change(("00",), ("04", "05"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"base_model_digest": "other"}, "another origin cannot be updated: base model m there, other asked for"),
        ({"fingerprint": "other"}, "tokenization fingerprint t there, other asked for"),
        ({"settings": StatisticsParams(top_k=2)}, "settings .*top_k=8.* there, .*top_k=2.* asked for"),
        ({"leaving": []}, "1 samples left, first 00, and their token ids are not given"),
    ],
)
def test_what_cannot_be_updated_is_refused(llama: Any, many: list[Sample], more: dict[str, Any], message: str) -> None:
    model = llama(torch.bfloat16)
    with pytest.raises(ValueError, match=message):
        renewed(fresh(model, many[:3]), model, many[1:4], **{"leaving": many, **more})


def test_sets_without_a_sample_in_common_and_altered_samples_are_refused(llama: Any, many: list[Sample]) -> None:
    model = llama(torch.bfloat16)
    previous = fresh(model, many[:3])
    with pytest.raises(ValueError, match="no sample of the previous statistics is in the new set: collect anew"):
        renewed(previous, model, many[3:], leaving=many)
    with pytest.raises(ValueError, match="sample 00 has another sample_"):
        renewed(previous, model, many[1:3], leaving=[("00", [7, 7])])


@pytest.fixture
def workspace(llama: Any, many: list[Sample], tmp_path: Path) -> Path:
    """Two calibration sets that share ten samples, and the statistics of each."""
    llama(torch.bfloat16).save_pretrained(tmp_path / "model")
    (tmp_path / "params.yaml").write_text("model: {name: model, device: cpu}\n")
    for name, rows in (("old", many[:12]), ("new", many[2:])):
        folder = tmp_path / "data" / "calibration_set" / name
        columns: dict[str, list[Any]] = {column: [None] * len(rows) for column in SCHEMA.names}
        columns |= {"sample_id": [sample_id for sample_id, _ in rows], "input_ids": [ids for _, ids in rows]}
        write_table(folder / "samples.parquet", pa.table(columns, schema=SCHEMA))
        digest = set_digest([sample_id for sample_id, _ in rows], "t" * 64)
        counts = {"samples": len(rows), "tokens": sum(len(ids) for _, ids in rows)}
        write_json(folder / "manifest.json", {**counts, "fingerprint": "t" * 64, "digest": digest})
        (statistics := tmp_path / "data" / "activation_stats" / name).mkdir(parents=True)
        build_activation_stats(SETTINGS, checkpoint("model", tmp_path), folder, statistics)
    return tmp_path


def test_statistics_in_a_folder_say_which_set_they_were_updated_from(workspace: Path) -> None:
    sets, statistics, out = (workspace / "data" / name for name in ("calibration_set", "activation_stats", "mine"))
    out.mkdir()
    counts = update(statistics / "old", sets / "old", sets / "new", checkpoint("model", workspace), out)
    assert counts == {"left": 2, "came": 2, "stayed": 10}
    header, expected = (read_json(folder / HEADER) for folder in (out, statistics / "new"))
    assert header == {**expected, "updated_from": read_json(sets / "old" / "manifest.json")["digest"]}
    check_same(load(out), load(statistics / "new"))


def test_statistics_of_another_set_are_refused(workspace: Path) -> None:
    sets = workspace / "data" / "calibration_set"
    old, new = (read_json(sets / name / "manifest.json")["digest"][:12] for name in ("old", "new"))
    with pytest.raises(ValueError, match=f"set {old}, found {new}"):
        statistics = workspace / "data" / "activation_stats" / "old"
        update(statistics, sets / "new", sets / "new", checkpoint("model", workspace), workspace)


def test_the_command_writes_into_a_folder_outside_of_data(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.params.load_params", lambda root: SimpleNamespace(model=MODEL))
    monkeypatch.setenv("PLUMBLINE_ROOT", str(workspace))
    done = CliRunner().invoke(update_statistics, ["old", "new", str(workspace / "mine")])
    assert done.exit_code == 0 and "2 samples left, 2 came, 10 stayed" in done.output
    check_same(load(workspace / "mine"), load(workspace / "data" / "activation_stats" / "new"))
    assert sorted(path.name for path in (workspace / "mine").iterdir()) == [HEADER, "stats.safetensors"]

    inside = workspace / "data" / "activation_stats" / "new"
    refused = CliRunner().invoke(update_statistics, ["old", "new", str(inside)])
    assert refused.exit_code == 1 and "which belongs to the pipeline" in refused.output
    unknown = CliRunner().invoke(update_statistics, ["never", "new", str(workspace / "mine")])
    assert unknown.exit_code == 1 and "Error: " in unknown.output

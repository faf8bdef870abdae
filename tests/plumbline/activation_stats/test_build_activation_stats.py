"""The artifact's bytes under every way of collecting it, and which way is taken."""

from __future__ import annotations

import logging
import resource
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch
from threadpoolctl import threadpool_limits

from plumbline.activation_stats import memory, sharded
from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.kernel import BUFFERED
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.activation_stats.sharded import Shard, collect_shard, merged
from plumbline.activation_stats.store import HEADER, TENSORS, load, save_parts
from plumbline.activation_stats.summary import summary as summary_of
from plumbline.artifact import read_json, write_json, write_table
from plumbline.base_model.one_thread import one_thread
from plumbline.base_model.streamed import StreamedModel
from plumbline.base_model.threads import product_threads
from plumbline.calibration_set.reader import SCHEMA, set_digest
from plumbline.histogram import n_buckets
from tests.helpers.checkpoint import checkpoint

FAINT = range(40, 46)
"""Tokens whose activations are so small that float64 sums depend on the order in which they come in."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, llama: Any, samples: Any) -> Path:
    """A model and a calibration set on disk, the set's samples not in the order of their ids."""
    root = tmp_path_factory.mktemp("workspace")
    model = llama(torch.float32)
    model.model.embed_tokens.weight.data[FAINT.start :] *= 1e-9
    model.save_pretrained(root / "model", max_shard_size="20KB")
    rows = [*samples[::-1], *((f"f{token}", [token] * 3) for token in FAINT)]
    columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in SCHEMA.names}
    columns |= {"sample_id": [name for name, _ in rows], "input_ids": [ids for _, ids in rows]}
    write_table(root / "set" / "samples.parquet", pa.table(columns, schema=SCHEMA))
    manifest = {
        "samples": len(rows),
        "tokens": sum(len(ids) for _, ids in rows),
        "fingerprint": "t" * 64,
        "digest": set_digest([name for name, _ in rows], "t" * 64),
    }
    write_json(root / "set" / "manifest.json", manifest)
    return root


def build(workspace: Path, out: Path, settings: StatisticsParams, **execution: Any) -> dict[str, Any]:
    out.mkdir()
    base, how = checkpoint("model", workspace), ExecutionParams(**execution) if execution else None
    build_activation_stats(settings, base, workspace / "set", out, how)
    return summary_of(out)


@pytest.mark.parametrize(
    "execution",
    [
        {"mode": "layerwise"},
        {"mode": "layerwise", "hidden_gib": 0},
        pytest.param({"workers": 2}, marks=pytest.mark.integration),
        pytest.param({"workers": 2, "mode": "layerwise"}, marks=pytest.mark.integration),
        pytest.param({"workers": 2, "executor": "ray"}, marks=pytest.mark.integration),
    ],
    ids=lambda execution: " ".join(map(str, execution.values())),
)
def test_no_way_of_collecting_changes_a_byte(
    workspace: Path, tmp_path: Path, execution: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plumbline")
    if execution.get("executor") == "ray":
        pytest.importorskip("ray", reason="the optional extra `ray` is not installed")
    settings = StatisticsParams(shards=4, cache=True)
    expected = build(workspace, tmp_path / "whole", settings)
    found = build(workspace, tmp_path / "other", settings, **execution)
    for name in (HEADER, TENSORS):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [HEADER, TENSORS]
    assert found == expected
    assert f"mode: {execution.get('mode', 'whole')}, workers: {execution.get('workers', 1)}" in caplog.messages


@pytest.mark.parametrize("layerwise", [False, True])
def test_shards_are_put_together_in_their_order(workspace: Path, tmp_path: Path, layerwise: bool) -> None:
    settings = StatisticsParams(shards=5)
    build(workspace, tmp_path / "whole", settings)
    folders = []
    for number in range(5):
        shard = Shard(
            number=number,
            tokens=0,
            calibration_set=workspace / "set",
            base=checkpoint("model", workspace),
            settings=settings,
            layerwise=layerwise,
            in_memory=0,
            threads=product_threads(),
            key="k" * 64,
            folder=tmp_path,
        )
        folders.append(collect_shard(shard))
    provenance = {key: read_json(tmp_path / "whole" / HEADER)[key] for key in ("base_model", "calibration_set")}

    def written(order: list[Path], name: str) -> bytes:
        (tmp_path / name).mkdir()
        save_parts(merged(order, settings), tmp_path / name, provenance)
        return (tmp_path / name / TENSORS).read_bytes()

    assert written(folders, "merged") == (tmp_path / "whole" / TENSORS).read_bytes()
    assert (tmp_path / "merged" / HEADER).read_bytes() == (tmp_path / "whole" / HEADER).read_bytes()
    assert written(folders[::-1], "reversed") != (tmp_path / "whole" / TENSORS).read_bytes()


@pytest.mark.parametrize("same_name", [False, True])
@pytest.mark.parametrize("layerwise", [False, True])
def test_a_shard_of_other_settings_is_not_taken_over(
    workspace: Path, tmp_path: Path, layerwise: bool, same_name: bool
) -> None:
    """A worker whose parent was killed completes its shard after a run with other settings has begun."""
    base, threads = checkpoint("model", workspace), product_threads()

    def shards(normalization: str, key: str) -> list[Path]:
        settings = StatisticsParams.model_validate({"shards": 2, "normalization": normalization})
        jobs = (
            Shard(number, 0, workspace / "set", base, settings, layerwise, 0, threads, key, tmp_path)
            for number in range(2)
        )
        return [collect_shard(job) for job in jobs]

    after = "a" * 63 + "c" if same_name else "c" * 64
    token, sequence = shards("token", "a" * 64), shards("sequence", after)
    assert (token == sequence) is same_name
    wanted = StatisticsParams(shards=2, normalization="sequence")
    build(workspace, tmp_path / "whole", wanted)
    (tmp_path / "merged").mkdir()
    save_parts(merged(sequence, wanted), tmp_path / "merged", {})
    assert (tmp_path / "merged" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()
    before = [(path / HEADER).stat().st_mtime_ns for path in sequence]
    assert [(path / HEADER).stat().st_mtime_ns for path in shards("sequence", after)] == before  # taken over
    with pytest.raises(ValueError, match="found statistics of the settings .*normalization='sequence'.* expected"):
        list(merged(sequence, StatisticsParams(shards=2)))


def test_a_library_that_changes_openmps_threads_changes_no_byte(workspace: Path, tmp_path: Path) -> None:
    """As numba does when it is imported: then PyTorch names another number than MKL multiplies with."""
    settings, before = StatisticsParams(), product_threads()
    torch.set_num_threads(1)
    try:
        build(workspace, tmp_path / "before", settings)
        with threadpool_limits(limits=2, user_api="openmp"), one_thread():
            pass  # puts back what it finds
        with threadpool_limits(limits=2, user_api="openmp"):
            threads = sharded._threads(workspace / "model", 1)
            build(workspace, tmp_path / "whole", settings)
            build(workspace, tmp_path / "layerwise", settings, mode="layerwise")
            base = checkpoint("model", workspace)
            shard = Shard(0, 0, workspace / "set", base, settings, False, 0, threads, "k" * 64, tmp_path)
            collect_shard(shard).rename(tmp_path / "shard")
    finally:
        torch.set_num_threads(before)
    for name in ("whole", "layerwise", "shard"):
        assert (tmp_path / name / TENSORS).read_bytes() == (tmp_path / "before" / TENSORS).read_bytes(), name


def test_shards_change_sums_in_their_last_bits_and_nothing_else(workspace: Path, tmp_path: Path) -> None:
    build(workspace, tmp_path / "one", StatisticsParams())
    build(workspace, tmp_path / "four", StatisticsParams(shards=4))
    one, four = load(tmp_path / "one"), load(tmp_path / "four")
    assert read_json(tmp_path / "four" / HEADER)["settings"]["shards"] == 4
    changed = 0
    for name, x in one.sites.items():
        y = four.sites[name]
        assert torch.equal(x.sample_max, y.sample_max) and torch.equal(x.histogram.counts, y.histogram.counts)
        assert x.hessian is not None and y.hessian is not None
        scale = x.hessian.diagonal().sqrt().outer(x.hessian.diagonal().sqrt())
        assert bool(((x.hessian - y.hessian).abs() <= 1e-15 * len(one.sample_ids) * scale).all())
        changed += not torch.equal(x.sum_sq, y.sum_sq) or not torch.equal(x.hessian, y.hessian)
    assert changed  # else the bytes above would prove nothing about the order of merging


def test_auto_takes_the_layers_one_by_one_where_the_whole_does_not_fit(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plumbline")
    streamed = StreamedModel(workspace / "model", "cpu")
    weights = 4 * (2 * 50 * 32 + 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 44 * 32 + 2 * 32))
    hessians, widths = 8 * 2 * (6 * 32**2 + 44**2), 2 * (6 * 32 + 44)
    histograms, waiting = 12 * n_buckets(4) * widths, 4 * BUFFERED * widths
    whole = weights + hessians + histograms + waiting
    assert memory.needed_bytes(streamed.model, StatisticsParams()) == whole
    assert memory.needed_bytes(streamed.model, StatisticsParams(shards=2)) == whole + hessians
    assert memory.needed_bytes(streamed.model, StatisticsParams(hessian=False)) == weights + histograms
    free = int(whole / memory.SHARE)
    for there, mode in ((free + 2, "whole"), (free - 2, "layerwise")):
        monkeypatch.setattr(memory, "free_bytes", lambda device, there=there: there)
        build(workspace, tmp_path / mode, StatisticsParams())
        assert caplog.messages[-1] == f"mode: {mode}, workers: 1"


def test_free_memory_is_what_the_container_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_bytes("cpu") > 10000
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("10000\n")
    assert memory.free_bytes("cpu") == 7000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes("cpu") > 10000


def test_free_memory_is_what_the_process_may_take() -> None:
    """Under `ulimit -d` and `ulimit -v`; it may grow by a little between the two readings."""
    before = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)}
    used = psutil.Process().memory_info()
    for kind, size in ((resource.RLIMIT_DATA, used.data), (resource.RLIMIT_AS, used.vms)):
        room = 512 << 20
        resource.setrlimit(kind, (size + room, before[kind][1]))
        try:
            assert room - (64 << 20) < memory.free_bytes("cpu") <= room
        finally:
            resource.setrlimit(kind, before[kind])


def test_ray_is_asked_for_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Ray is not installed; install the extra"):
        build(tmp_path / "nowhere", tmp_path / "out", StatisticsParams(), executor="ray")

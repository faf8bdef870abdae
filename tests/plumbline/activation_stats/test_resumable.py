"""Statistics that a killed run left half collected: the next run goes on there, to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers.subjects import write_set
from plumbline.activation_stats import expert_calls, layerwise, memory, store, tensor_file
from plumbline.activation_stats.build import build_activation_stats
from plumbline.activation_stats.layerwise import Collection, CollectionInputs
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.activation_stats.pieces import KEY, Pieces
from plumbline.activation_stats.resumable import collect_pieces
from plumbline.activation_stats.tensor_file import TensorFile, join
from plumbline.base_model import weight_files
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams
from tests.architectures.catalogue import CATALOGUE
from tests.architectures.vocabulary import samples
from tests.helpers.paths import PROJECT

PARTS = ["model.layers.0", "model.layers.1", "outside"]
SETTINGS = StatisticsParams(ignore=())
FILES = (store.HEADER, store.TENSORS)


@pytest.fixture(scope="module", params=["llama-bias", "qwen3-moe"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, a calibration set, and the statistics of an undisturbed run."""
    root = tmp_path_factory.mktemp(request.param)
    CATALOGUE[request.param].write(root / "base")
    (root / "set").mkdir()
    write_set(root / "set", "sentences", samples())
    build(root, root / "undisturbed", None)
    return root


def build(root: Path, out: Path, parts: Path | None, mode: Any = "layerwise", **more: Any) -> list[bytes]:
    out.mkdir()
    base = BaseCheckpoint.of(ModelParams(name=str(root / "base"), device="cpu"))
    settings = more.pop("settings", SETTINGS)
    build_activation_stats(settings, base, root / "set", out, ExecutionParams(mode=mode, **more), "v", parts)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    return [(out / name).read_bytes() for name in FILES]


def undisturbed(root: Path) -> list[bytes]:
    return [(root / "undisturbed" / name).read_bytes() for name in FILES]


@contextmanager
def noted(collected: list[str], stop: str = "", before: str = "") -> Iterator[None]:
    """Within the context, note the parts that are collected; stop once `stop` is, or before `before` is written."""
    part, write = Collection.part, Pieces.write

    def note(collection: Any, name: str, *args: Any) -> Any:
        collected.append(name)
        stats = list(part(collection, name, *args))
        if name == stop:
            raise KeyboardInterrupt
        return stats

    def written(pieces: Any, name: str, tensors: Any, facts: Any) -> None:
        if name == before:
            list(tensors)
            raise KeyboardInterrupt
        write(pieces, name, tensors, facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collection, "part", note)
        patch.setattr(Pieces, "write", written)
        yield


@pytest.mark.parametrize("stop", range(3))
@pytest.mark.parametrize("when", ["stop", "before"])
def test_every_layer_is_a_point_to_resume_from(root: Path, tmp_path: Path, stop: int, when: str) -> None:
    """Stopped in the layer, and between its hidden states and what it is itself."""
    collected: list[str] = []
    with noted(collected, **{when: PARTS[stop]}), pytest.raises(KeyboardInterrupt):
        build(root, tmp_path / "stopped", tmp_path / "parts")
    with noted(collected):
        assert build(root, tmp_path / "last", tmp_path / "parts") == undisturbed(root)
        assert collected == [*PARTS[: stop + 1], *PARTS[stop:]]
        # the caller may fail to publish it
        assert build(root, tmp_path / "again", tmp_path / "parts") == undisturbed(root)
    assert collected == [*PARTS[: stop + 1], *PARTS[stop:]]


@pytest.mark.parametrize("torn", [KEY, f"{PARTS[0]}.json"])
def test_a_note_that_is_cut_short_is_as_good_as_none(root: Path, tmp_path: Path, torn: str) -> None:
    with noted([], PARTS[1]), pytest.raises(KeyboardInterrupt):
        build(root, tmp_path / "stopped", tmp_path / "parts")
    (tmp_path / "parts" / torn).write_text("")
    collected: list[str] = []
    with noted(collected):
        assert build(root, tmp_path / "last", tmp_path / "parts") == undisturbed(root)
    assert collected == PARTS


def test_parts_that_another_device_computed_are_not_used(root: Path, tmp_path: Path) -> None:
    with noted([], PARTS[1]), pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("plumbline.activation_stats.build.torch_device", lambda name: "cuda:0")
        build(root, tmp_path / "stopped", tmp_path / "parts")
    collected: list[str] = []
    with noted(collected):
        assert build(root, tmp_path / "last", tmp_path / "parts") == undisturbed(root)
    assert collected == PARTS


def test_a_part_is_on_the_disk_before_the_note_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk: dict[int, int] = {}

    def noted_fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        on_disk[found.st_ino] = found.st_size

    replaced, seen = Path.replace, list[str]()

    def noted_replace(path: Path, target: Path) -> Path:
        part = target.with_suffix(".safetensors")
        for file in (path, *([part] if part.exists() else [])):
            assert on_disk.get(file.stat().st_ino) == file.stat().st_size, file
        seen.append(target.name)
        return replaced(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    Pieces(tmp_path / "parts", "key").write("part", [{"x": torch.ones(3)}], {})
    assert seen == [KEY, "part.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from plumbline.activation_stats.layerwise import Collection
from tests.plumbline.activation_stats.test_resumable import build

root, out, parts, last = sys.argv[1:]
part = Collection.part

def killed(self, name, *args):
    print(name, flush=True)
    stats = list(part(self, name, *args))
    if name == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return stats

Collection.part = killed
build(Path(root), Path(out), Path(parts))
"""


@pytest.mark.integration
def test_a_killed_run_repeats_at_most_the_layer_it_was_in(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(root), str(tmp_path / "killed"), str(tmp_path / "parts"), PARTS[1]]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL and ended.stdout.split() == PARTS[:2], ended.stderr
    collected: list[str] = []
    with noted(collected):
        assert build(root, tmp_path / "last", tmp_path / "parts") == undisturbed(root)
    assert collected == PARTS[1:]


@pytest.mark.parametrize("copies", [0, 1, 7, 30])
def test_a_run_that_was_killed_while_it_joined_the_parts_collects_nothing_again(
    root: Path, tmp_path: Path, copies: int
) -> None:
    copied, count = tensor_file.copy, [0]

    def copy(source: Any, start: int, size: int, target: Any, name: str) -> None:
        if Path(target.name).name == store.JOINED:
            if count[0] == copies:
                raise KeyboardInterrupt
            count[0] += 1
        copied(source, start, size, target, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "copy", copy)
        patch.setattr(tensor_file, "FLUSHED", 1)
        with pytest.raises(KeyboardInterrupt):
            build(root, tmp_path / "stopped", tmp_path / "parts")
    assert (tmp_path / "parts" / store.JOINED).is_file()
    collected: list[str] = []
    with noted(collected):
        assert build(root, tmp_path / "last", tmp_path / "parts") == undisturbed(root)
    assert not collected


def test_parts_of_other_statistics_are_not_used(root: Path, tmp_path: Path) -> None:
    with noted([], PARTS[1]), pytest.raises(KeyboardInterrupt):
        build(root, tmp_path / "stopped", tmp_path / "parts", settings=StatisticsParams(ignore=(), top_k=3))
    assert build(root, tmp_path / "last", tmp_path / "parts") == undisturbed(root)


def test_hidden_states_that_are_cut_short_are_computed_again(root: Path, tmp_path: Path) -> None:
    with noted([], PARTS[1]), pytest.raises(KeyboardInterrupt):
        build(root, tmp_path / "stopped", tmp_path / "parts")
    [states] = (tmp_path / "parts").glob("*.states.safetensors")  # no more than one layer's are there
    states.write_bytes(states.read_bytes()[:-1])
    assert build(root, tmp_path / "last", tmp_path / "parts") == undisturbed(root)


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["whole", "layerwise"])
def test_workers_do_not_collect_a_complete_shard_again(
    root: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StatisticsParams(ignore=(), shards=2)
    expected = build(root, tmp_path / "expected", None, settings=settings)
    parts = tmp_path / "parts"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("plumbline.activation_stats.build.save_parts", lambda *args: stopped(args[0]))
        build(root, tmp_path / "stopped", parts, mode, workers=2, settings=settings)
    shards = [path for path in parts.glob("shard-*") if (path / store.TENSORS).is_file()]
    assert len(shards) == 2
    before = [(path / store.TENSORS).stat().st_ino for path in shards]
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "plumbline.activation_stats.build.save_parts",
            lambda shards, *args: (
                seen.extend((path / store.TENSORS).stat().st_ino for path in parts.glob("shard-*")),
                store.save_parts(shards, *args),
            ),
        )
        assert build(root, tmp_path / "last", parts, mode, workers=2, settings=settings) == expected
    assert sorted(seen) == sorted(before)


def stopped(shards: Any) -> None:
    next(shards)
    raise KeyboardInterrupt


def test_joining_holds_the_parts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at every tensor: blocks of the parts and of the file."""
    parts, once, most = [tmp_path / f"{number}" for number in range(4)], 0, 0
    for part in parts:
        with TensorFile(part) as file:
            for what, dtype in (("a", torch.float64), ("b", torch.int32)):
                tensor = torch.full((1 << 17,), 1, dtype=dtype)
                file.add(f"{part.name}:{what}", tensor)
                once += tensor.nbytes
            file.finish()
    copied = tensor_file.copy

    def counted(*args: Any) -> None:
        nonlocal most
        args[3].flush()
        most = max(most, sum(512 * path.stat().st_blocks for path in [*parts, tmp_path / "joined"]))
        copied(*args)

    monkeypatch.setattr(tensor_file, "copy", counted)
    monkeypatch.setattr(tensor_file, "FLUSHED", 1)
    join(parts, tmp_path / "joined")
    assert once <= most < once + (1 << 20) + (1 << 18)
    assert len(weight_files.header(tmp_path / "joined")) == 8


def test_collecting_twice_into_complete_parts_runs_nothing(root: Path, tmp_path: Path) -> None:
    base = BaseCheckpoint.of(ModelParams(name=str(root / "base"), device="cpu"))
    named = [(str(number), ids) for number, ids in enumerate(samples())]
    collection = Collection(base.streamed(), CollectionInputs(named, SETTINGS, "m", "t"))
    pieces, collected = Pieces(tmp_path / "parts", "key"), list[str]()
    with noted(collected):
        for _ in range(2):
            collect_pieces(collection, pieces, tmp_path, 0)
    assert collected == PARTS


@pytest.mark.parametrize(("experts", "budget"), [("routed", 0), ({"at_least": 3}, 0), ("all", 2)])
def test_experts_a_few_at_a_time_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, budget: int, experts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One expert at a time, which takes more than the budget, or two of the four."""
    root = tmp_path_factory.mktemp("experts")
    CATALOGUE["qwen3-moe"].write(root / "base")
    (root / "set").mkdir()
    write_set(root / "set", "sentences", samples())
    settings = StatisticsParams(ignore=(), experts=experts, shards=2)
    whole = build(root, tmp_path / "whole", None, "whole", settings=settings)
    config = json.loads((root / "base" / "config.json").read_text())
    width = max(config["hidden_size"], config["moe_intermediate_size"])  # that of both matrices counts as the larger
    monkeypatch.setattr(expert_calls, "EXPERTS", budget * 2 * memory.site_bytes(width, settings))
    groups, groups_of = list[int](), expert_calls.groups_of
    monkeypatch.setattr(layerwise, "groups_of", lambda *args: (found := groups_of(*args), groups.append(len(found)))[0])
    assert build(root, tmp_path / "few", None, settings=settings) == whole
    assert groups == ([2, 2] if budget else [4, 4])

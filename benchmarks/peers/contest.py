"""Runs the tools on one subject: each in a process of its own environment, on the same samples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import PROJECT, REQUIREMENTS, WORK, Unavailable, python_of
from benchmarks.peers.recipes import LIKE_SCHEME, LLM_COMPRESSOR, PLUMBLINE, Format, recipes
from benchmarks.peers.results import Results
from benchmarks.peers.stored_bits import check_bits
from benchmarks.peers.subjects import Subject
from plumbline.artifact import read_json, sha256_files, sha256_json
from plumbline.base_model.folder import base_model_digest
from plumbline.calibration_set.reader import read_calibration_set

LIMIT = 7200
"""Seconds after which a run is stopped."""


def run(tool: str, arguments: Sequence[str], threads: int, limit: float = LIMIT) -> dict[str, Any]:
    """Run a tool's contender and parse the last line it prints as JSON.

    Raises:
        Unavailable: the tool cannot be installed, the process failed, or it took longer than `limit` seconds.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(PROJECT),
    }
    WORK.mkdir(parents=True, exist_ok=True)  # some tools write logs where they run
    command = [python_of(tool), "-m", f"benchmarks.peers.contenders.{tool}", *arguments, "--threads", str(threads)]
    try:
        done = subprocess.run(command, cwd=WORK, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"stopped after {limit:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        print("\n" + done.stderr[-3000:], flush=True)
        raise Unavailable(lines[-1][:300])
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


class Contest:
    """The tools on one subject; models and exports are written to `folder`, and stay there."""

    def __init__(self, about: Subject, threads: int, folder: Path, results: Results, limit: float = LIMIT) -> None:
        self.about, self.threads, self.folder, self.results, self.limit = about, threads, folder, results, limit
        self._samples = read_json(about.samples / "manifest.json")["digest"]
        self._model = base_model_digest(about.model)

    def model(self, tool: str, form: Format, recipe: str) -> Path:
        """The folder of a quantized model."""
        return self.folder / tool / f"{form.name}-{recipe}"

    def row(self, tool: str, form: Format, recipe: str) -> dict[str, Any]:
        """Seconds, CPU seconds and peak bytes of a recipe, run now unless its figures and its model are there.

        Plumbline's include the statistics, which its recipes share.

        Raises:
            Unavailable: it does not run here, or wrote other bits than the format's.
        """
        settings, folder = recipes(tool, form)[recipe], self.model(tool, form, recipe)
        label = f"{form.name}, {recipe}"
        if tool != PLUMBLINE:
            decisive = settings or LIKE_SCHEME
            figures = self.measured(tool, label, decisive, lambda: self.peer(tool, form, recipe), folder)
            if tool != LLM_COMPRESSOR:  # which writes packed codes
                check_bits(folder, form)
            return figures
        home = folder.parent
        shared = self.measured(tool, "statistics", {}, lambda: self.ours(without(home), {}), home / "statistics")
        own = self.measured(tool, label, settings, lambda: self._scheme(folder, settings), folder)
        parts = shared["statistics"], own[folder.name]
        return {"bytes": max(p["bytes"] for p in parts), **{n: sum(p[n] for p in parts) for n in ("work", "cpu")}}

    def measured(
        self,
        tool: str,
        label: str,
        settings: Mapping[str, Any],
        measure: Callable[[], dict[str, Any]],
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """The figures of a run of a tool: stored, if samples, model, settings and the tool are the same, or new."""
        decided_by = {
            "samples": self._samples,
            "model": self._model,
            "threads": self.threads,
            "version": code("plumbline") if tool == PLUMBLINE else REQUIREMENTS[tool],
            "settings": dict(settings),
        }
        figures: dict[str, Any] = self.results.get(f"{self.about.name}: {tool}, {label}", decided_by, measure, folder)
        return figures

    def ours(self, out: Path, schemes: Mapping[str, Any]) -> dict[str, Any]:
        """Figures of a run of Plumbline: of the statistics, unless `out` has them, of every scheme, and of "all"."""
        arguments = [str(self.about.samples), str(self.about.model), str(out), json.dumps(schemes)]
        figures = run(PLUMBLINE, arguments, self.threads, self.limit)
        return {**figures.pop("parts"), "all": figures}

    def _scheme(self, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        return self.ours(without(folder).parent, {folder.name: settings})

    def peer(self, tool: str, form: Format, recipe: str) -> dict[str, Any]:
        """Figures of a run of another tool."""
        settings, out = recipes(tool, form)[recipe], without(self.model(tool, form, recipe))
        if tool == LLM_COMPRESSOR:
            scheme = {"method": "gptq", "weight_bits": form.bits, "group_size": form.group_size} | LIKE_SCHEME
            return self.handed_over(f"{form.name}-{recipe}", scheme, settings, out)
        ids = self.folder / "ids.json"
        rows = read_calibration_set(self.about.samples, ["input_ids"])["input_ids"].to_pylist()
        ids.write_text(json.dumps(rows))
        arguments = [str(ids), str(self.about.model), str(out), json.dumps(settings)]
        return run(tool, arguments, self.threads, self.limit)

    def handed_over(
        self, name: str, scheme: Mapping[str, Any], settings: Mapping[str, Any], out: Path
    ) -> dict[str, Any]:
        """Figures of llm-compressor on what `plumbline export` writes for a scheme, with how often it read the samples.

        Args:
            settings: a recipe instead of the exported one, unless empty.
        """
        from plumbline.export.llm_compressor import hand_over
        from plumbline.quantized_model.params import SchemeParams

        exported = without(self.folder / "handed-over" / name)
        hand_over(self.about.samples, name, SchemeParams.model_validate(dict(scheme)), exported)
        arguments = [str(exported), str(self.about.model), str(out), json.dumps(settings), "--watch"]
        figures = run(LLM_COMPRESSOR, arguments, self.threads, self.limit)
        return {**figures, "passes": self.passes(figures.pop("seen"))}

    def passes(self, seen: Mapping[str, Any]) -> int:
        """How many times llm-compressor read the samples of the set, each whole, in order.

        Raises:
            RuntimeError: it read something else.
        """
        table = read_calibration_set(self.about.samples, ["sample_id", "n_tokens"])
        names, lengths = table["sample_id"].to_pylist(), [[1, n] for n in table["n_tokens"].to_pylist()]
        passes = len(seen["embedding"]) // len(names)
        if seen["embedding"] != names * passes or seen["first_linear"] != lengths * passes:
            raise RuntimeError(f"{self.about.name}: llm-compressor saw other samples than those of the set")
        return passes


def code(*folders: str) -> str:
    """A digest of sources, so that figures of other code are not reused."""
    files = [
        path
        for folder in folders
        for path in (PROJECT / folder).rglob("*")
        if path.suffix in (".py", ".c", ".h") and "__pycache__" not in path.parts
    ]
    return sha256_json(sha256_files(PROJECT, [str(path.relative_to(PROJECT)) for path in files]))


def without(folder: Path) -> Path:
    """The folder, removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder

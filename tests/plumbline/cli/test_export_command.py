"""`plumbline export`, without the artifacts being made by a study."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmarks.peers.subjects import write_set
from plumbline.cli.main import main
from tests.helpers.paths import PROJECT


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    folder = tmp_path / "data" / "calibration_set" / "mine-4"
    folder.mkdir(parents=True)
    write_set(folder, "mine-4", [np.arange(5 + i, dtype=np.int32) for i in range(4)])
    monkeypatch.setenv("PLUMBLINE_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


def test_it_says_what_was_written_and_what_comes_next(workspace: Path) -> None:
    result = export("mine-4", "--to", "llm-compressor", "handed")
    assert result.exit_code == 0, result.output
    assert "handed: 4 samples, 26 tokens (5 to 8 each)" in result.output
    assert "recipe for w4a16-gptq" in result.output and "python handed/quantize.py MODEL OUT" in result.output
    assert {path.name for path in (workspace / "handed").iterdir()} == {
        "README.md",
        "quantize.py",
        "recipe.yaml",
        "samples",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("random-64", "--to", "llm-compressor", "x"), "no calibration_set of 'random-64' in this workspace"),
        (("mine-4", "--to", "imatrix", "x.gguf"), "no activation_stats of 'mine-4' in this workspace"),
        (("mine-4", "--to", "llm-compressor", "x", "--scheme", "w5"), "no scheme 'w5' in params.yaml; it has"),
        (("mine-4", "--to", "imatrix", "x", "--scheme", "w4a16-gptq"), "--scheme requires --to llm-compressor"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(workspace: Path, arguments: tuple[str, ...], said: str) -> None:
    result = export(*arguments)
    assert result.exit_code == 1 and said in result.output and "Traceback" not in result.output
    assert not (workspace / "x").exists()

"""DVC parses a parameter file once per content, and sees every change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dvc.dependency import param
from dvc.fs import LocalFileSystem
from dvc.repo import Repo

from plumbline.versioning.parameter_files import _once, read_once
from plumbline.versioning.pipeline import Pipeline


def test_a_file_is_parsed_again_when_it_changed_and_not_before(tmp_path: Path) -> None:
    path, parsed = tmp_path / "params.yaml", []

    def load_path(name: str, fs: Any, **options: Any) -> list[str]:
        parsed.append(name)
        return [Path(name).read_text()]

    load, fs = _once(load_path), LocalFileSystem()
    path.write_text("a: 1")
    assert load(str(path), fs) == load(str(path), fs) == ["a: 1"] and len(parsed) == 1
    path.unlink()
    path.write_text("a: 22")
    assert load(str(path), fs) == ["a: 22"] and len(parsed) == 2
    for _ in range(2):  # another commit, whose files have no modification time
        load(str(path), object())
    assert len(parsed) == 4


def test_a_pipeline_has_dvc_read_once_and_each_value_is_that_of_the_file(tmp_path: Path) -> None:
    stages = "stages:\n" + "".join(
        f"  {name}: {{cmd: 'true', params: [{name}], outs: [{name}.txt]}}\n" for name in "abc"
    )
    (tmp_path / "dvc.yaml").write_text(stages)
    Repo.init(str(tmp_path), no_scm=True).close()
    for second in (2, 10):
        (tmp_path / "params.yaml").write_text(f"a: [1]\nb: {{n: {second}}}\nc: 1e-06\n")
        dvc = Pipeline(tmp_path)
        before = param.load_path.parsed.cache_info().misses
        values = [dvc.stage(name).deps[0].read_params() for name in "abcabc"]
        assert values == 2 * [{"a": [1]}, {"b": {"n": second}}, {"c": 1e-06}]
        assert param.load_path.parsed.cache_info().misses - before <= 1
    patched = param.load_path
    read_once()
    assert param.load_path is patched

"""A YAML file is read as DVC reads it, or refused with file, line and fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml

from plumbline.yaml_file import read_yaml
from tests.helpers.paths import PROJECT

VALUES = "a: [1e3, 0128, yes, off, 1:30, 012, 0o17, 1_000, .5, 1e-06, ~, 2024-01-01, '0128', 0x1F, +1, .inf]"


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "intake.yaml", "requested.yaml"])
def test_the_projects_own_files_read_as_dvc_reads_them(name: str) -> None:
    assert read_yaml(PROJECT / name).content == load_yaml(str(PROJECT / name))


def test_every_scalar_is_what_dvc_makes_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(VALUES)
    assert repr(read_yaml(path).content) == repr(load_yaml(str(path)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: {c: 1,\n c: 2}\n", "line 3: the key 'c' occurs twice (first in line 2)"),
        (b"a:\n  0128: 1\n", "line 2: the key 0128 under `a` is read as int, expected text; put it in quotes: '0128'"),
        (b"1e3: 1\n", "line 1: the key 1e3 is read as float"),
        (b"[1]: 1\n", "is read as seq"),
        (b"a: 1\nb: [1, 2\nc: 3\n", "not YAML"),
        (b"a: 1\nb: caf\xe9\n", "line 2: the byte 0xe9 is not UTF-8"),
        (b"\xff\xfea\x00", "line 1: the byte 0xff"),
        (b"a: &x [*x]\n", "line 1: an alias refers to what contains it"),
        (b"a: !!python/object:os.system x\n", "line 1: not YAML"),
        (b"a: 1\n---\nb: 2\n", "line 2: not YAML"),
        (b"\ta: 1\n", "line 1: not YAML"),
        (b"a: \x00\n", "not YAML"),
        (b"a: " + b"[" * 2000, "not YAML"),
    ],
)
def test_what_is_refused_is_named_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_yaml(path)
    assert str(path) in str(error.value) and said in str(error.value)


def test_lines_are_those_of_keys_and_list_items(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("\ufeffa:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n", encoding="utf-8")
    file = read_yaml(path)
    assert file.content == {"a": {"b": 1, "c": ["x", {"d": 2}]}}
    assert file.line(["a"]) == 1 and file.line(["a", "c", 1, "d"]) == 5 and file.line(["a", "tag", "c", "nothing"]) == 3
    assert file.line([]) is None and file.line(["nothing"]) is None


def test_an_empty_file_has_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "a.yaml").content is None

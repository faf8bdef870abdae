"""Records of runs: we and DVC read the same values from the same text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import dump_yaml, parse_yaml

from plumbline.versioning.code import VERSIONS
from plumbline.versioning.lock import MALFORMED, dump, parse_lock, parse_run, read_lock, write_entry
from plumbline.versioning.verify import verify


@pytest.mark.parametrize("value", ["123e45678901", "41e1", "-1e5", "123456789012", "0x1f", "true", "1e-06", "ü: #"])
def test_dvc_reads_a_text_that_we_write_as_that_text(value: str) -> None:
    """A code version that looked like a number would change for DVC and not for us."""
    assert parse_yaml(dump({"version": value}), "dvc.lock") == {"version": value}


@pytest.mark.parametrize("value", [1e-06, 1e22, 0.5, 3, True, None, [1, {"a": 2.5e-300}]])
def test_dvc_reads_a_value_that_we_write_as_that_value(value: object) -> None:
    assert parse_yaml(dump({"value": value}), "dvc.lock") == {"value": value}


def test_we_read_numbers_as_dvc_writes_them() -> None:
    text = "stages:\n  a@b:\n    cmd: c\n    params:\n      params.yaml:\n        damping: 1e-06\n        seed: 3\n"
    text = f"schema: '2.0'\n{text}"
    assert parse_lock(text)["a@b"].params == {"damping": 1e-06, "seed": 3}


RECORD = {
    "cmd": "make",
    "deps": [{"path": "data/a", "md5": "1"}, {"path": "s3://bucket", "etag": "2"}],
    "params": {"params.yaml": {"n": 2}, VERSIONS: {"b": "abc", "other": "def"}},
    "outs": [{"path": "data/b/key", "md5": "3"}],
}


def test_an_entry_holds_what_a_stage_read_and_wrote(tmp_path: Path) -> None:
    write_entry(tmp_path, "b@key", RECORD)
    write_entry(tmp_path, "c", {"cmd": "make c"})
    entry = read_lock(tmp_path)["b@key"]
    assert (entry.asset, entry.cmd, entry.md5, entry.code_version) == ("b", "make", "3", "abc")
    assert (entry.deps, entry.outs, entry.params) == ({"data/a": "1"}, {"data/b/key": "3"}, {"n": 2})
    assert (read_lock(tmp_path)["c"].md5, read_lock(tmp_path)["c"].code_version) == ("", "")
    assert yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]["b@key"] == RECORD


STAGES = ["a", "b@key", "a", "c@1e5", "b@key"]


@pytest.mark.parametrize("between", [None, "dvc", "other"])
def test_entries_written_one_by_one_are_the_bytes_and_values_of_a_dump_of_all(
    tmp_path: Path, between: str | None
) -> None:
    """The rest of the file is kept as text: also where DVC, or another process, wrote it in between."""
    path, records = tmp_path / "dvc.lock", {}
    for n, name in enumerate(STAGES):
        path_of_wrapped_line = f"data/{name}/" + " long enough to be wrapped" * 4
        params = {"params.yaml": {"n": n, "rate": 1e-06, "text": "two\nlines: #"}, VERSIONS: {"b": f"12e{n}"}}
        record = {"cmd": "make", "params": params, "outs": [{"path": path_of_wrapped_line, "md5": f"{n}"}]}
        write_entry(tmp_path, name, record)
        records = {**records, name: record}
        assert path.read_text() == dump({"schema": "2.0", "stages": records})
        assert read_lock(tmp_path) == parse_lock(path.read_text())
        if between == "dvc":
            dump_yaml(path, {"schema": "2.0", "stages": records})
        elif between == "other":
            records = {**records, "d": {"cmd": f"make d {n}"}}
            path.write_text(dump({"schema": "2.0", "stages": records}))


def test_a_record_of_the_run_cache_is_named_by_what_it_made() -> None:
    assert parse_run(yaml.safe_dump(RECORD)).name == "b@key"
    assert parse_run(yaml.safe_dump(RECORD)).code_version == "abc"
    for text in ("", "[]", "outs: 3", "outs: [{}]", "a: ["):
        with pytest.raises(MALFORMED):
            parse_run(text)


def test_a_lock_that_is_none_is_named_with_the_fix(tmp_path: Path) -> None:
    assert read_lock(tmp_path) == {}
    for text in ("stages: 3", "stages: []", "stages: {a: 3}", "a: [", "stages: {a: {outs: [{md5: 1}]}}"):
        (tmp_path / "dvc.lock").write_text(f"schema: '2.0'\n{text}" + "\n" * len(text))
        with pytest.raises(ValueError, match=r"dvc\.lock, line \d+: .*git checkout dvc\.lock"):
            read_lock(tmp_path)
    for text in ("", "[]", "stages: {}", "schema: '2.0'\nstages: {a: {params: [1]}}"):  # DVC reads none of them either
        (tmp_path / "dvc.lock").write_text(text)
        with pytest.raises(ValueError, match=r"git checkout dvc\.lock"):
            read_lock(tmp_path)


@pytest.mark.parametrize("text", [None, "schema: '2.0'", "schema: '2.0'\nstages: {}"])
def test_a_lock_without_stages_verifies_nothing_and_says_so(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "dvc.lock").write_text(text)
    [bad] = verify(tmp_path)
    assert bad.path == "dvc.lock" and "nothing could be verified" in bad.what

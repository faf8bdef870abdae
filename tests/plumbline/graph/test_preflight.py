"""What can be known before the first step is said before it, all at once."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from transformers import DeepseekV3Config, GptOssConfig

from plumbline.cli.main import main
from plumbline.graph.preflight import NotReady, problems, require_ready
from plumbline.tracking import readiness
from plumbline.versioning.pipeline import resolved
from tests.helpers.paths import BUNDLED
from tests.helpers.workspace import SMALL, make_workspace

TEXTS = SMALL["corpus"]["sources"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace that is ready, with a copy of a model without a chat template; nothing was run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_workspace(tmp_path / "workspace", **SMALL, model={"name": "base"}).root
    (root / "texts/a.txt").write_text("text")
    (root / "base").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BUNDLED / name, root / "base" / name)
    (root / "base/model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return root


def set_params(root: Path, **sections: Any) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    (root / "params.yaml").write_text(yaml.safe_dump({**params, **sections}))


def found(root: Path, *assets: str) -> list[str]:
    return list(problems(root, [name for name in resolved(root) if not assets or name.split("@")[0] in assets]))


def test_a_good_workspace_has_none(root: Path) -> None:
    assert found(root) == []
    require_ready(root, resolved(root))


def test_all_are_said_at_once_and_nothing_is_run(root: Path) -> None:
    context = json.loads((BUNDLED / "config.json").read_text())["max_position_embeddings"]
    (root / "texts/b.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}) + "\n")
    set_params(
        root,
        tokenize={"max_length": context + 1},
        corpus={"sources": {**TEXTS, "more": {"kind": "directory", "path": "nowhere"}}},
        calibrations={**SMALL["calibrations"], "odd": {"strategy": "randum", "n": 1}},
        evaluation={"items": "items.jsonl"},
    )
    environment = {"PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(root / ".dagster")}
    result = CliRunner().invoke(main, ["run"], env={**environment, "MLFLOW_TRACKING_URI": "postgresql://u:secret@db/x"})
    assert result.exit_code == 1 and "problems found before the first step; nothing was run" in result.output
    for said in (
        "corpus source 'more': there is no nowhere; correct the path",
        f"tokenize.max_length: found {context + 1}, but the base model reads at most {context}",
        "b.jsonl holds chats, and the tokenizer of base has no chat template",
        "no strategy is called `randum`",
        "evaluation.items: there is no items.jsonl; correct the path",
        "the variable MLFLOW_TRACKING_URI: found 'postgresql://***@db/x'",
    ):
        assert said in result.output
    assert "secret" not in result.output and not (root / "data/raw_corpus").exists()


def test_only_what_will_run_is_checked(root: Path) -> None:
    set_params(root, tokenize={"max_length": 10**9}, tracking={"uri": "nothing"})
    assert found(root, "raw_corpus") == []
    assert [line.split(":")[0] for line in found(root, "tokenized_samples")] == ["tokenize.max_length"]
    (line,) = found(root, "evaluation")
    assert "params.yaml, tracking.uri: found 'nothing'" in line


@pytest.mark.parametrize(
    ("stages", "shards", "asked"),
    [
        (["study@lengths"], 1, True),
        (["activation_stats@random-8"], 2, True),
        (["activation_stats@random-8"], 1, False),
        (["activation_stats@random-8", "activation_stats@stratified-8"], 1, True),
        (["raw_corpus", "calibration_report"], 2, False),
    ],
)
def test_a_dead_cluster_is_said_before_whatever_would_use_it(
    root: Path, stages: list[str], shards: int, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # as if Ray were installed
    set_params(root, execution={"executor": "ray", "address": "127.0.0.1:9"}, statistics={"shards": shards})
    said = "execution.address in params.yaml: found '127.0.0.1:9', but no Ray cluster can be used there"
    assert [line.startswith(said) for line in problems(root, stages)] == [True] * asked


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.json", "model: base: no config.json"),
        ("model.safetensors", "model: base: no *.safetensors"),
        ("tokenizer.json", "model: base has no tokenizer"),
    ],
)
def test_a_model_that_lacks_a_file_is_noticed(root: Path, file: str, said: str) -> None:
    (root / "base" / file).unlink()
    (root / "base/tokenizer_config.json").unlink()
    assert said in "\n".join(found(root))


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("config.json", b"[1]", "base/config.json: not a JSON object"),
        ("config.json", '{"model_type": "llama"}'.encode("utf-16"), "base/config.json: not a JSON object"),
        (
            "config.json",
            b'{"quantization_config": [1]}',
            "base/config.json: quantization_config is [1], expected a map",
        ),
        (
            "config.json",
            b'{"model_type": "llama", "num_attention_heads": 0}',
            "transformers cannot read config.json: Zero",
        ),
        ("config.json", b'{"model_type": "llama", "vocab_size": "many"}', "transformers cannot read config.json: "),
        (
            "config.json",
            b'{"model_type": "llama", "hidden_act": "zzz"}',
            "no model can be built from config.json: KeyError",
        ),
        ("model.safetensors", b"", "base/model.safetensors: 0 bytes, too short"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "base/model.safetensors: "),
        ("tokenizer.json", b"{", "base/tokenizer.json: "),
        ("tokenizer_config.json", b"[]", "base/tokenizer_config.json: expected an object, found list"),
        ("tokenizer_config.json", b"\xff\xfe{\x00", "base/tokenizer_config.json: 'utf-8' codec"),
    ],
)
def test_a_damaged_file_of_the_model_is_noticed(root: Path, file: str, data: bytes, said: str) -> None:
    """With its name, and no error of transformers, which computes with values before it looks at them."""
    (root / "base" / file).write_bytes(data)
    assert said in "\n".join(found(root))


@pytest.mark.parametrize("model", [{"name": "gone/model"}, {"name": "texts/model", "revision": "0" * 40}])
def test_a_model_that_is_not_there_is_noticed(root: Path, model: dict[str, str]) -> None:
    set_params(root, model=model)
    assert found(root)[0].startswith("model: model.")


@pytest.mark.parametrize(
    "row",
    [
        {"conversation": [{"role": "user", "content": "x"}]},
        {"conversations": [{"from": "human", "value": "x"}]},
        {"instruction": "x", "input": "", "output": "y"},
        {"prompt": "x", "completion": "y"},
        {"dialogue": [{"role": "user", "content": "x"}]},
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_chat_in_any_form_that_is_read_needs_a_template(suffix: str, row: dict[str, Any], root: Path) -> None:
    path = root / f"texts/b.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text("\n" + json.dumps(row) + "\n")  # a blank row first
    named = {"chat": {"messages": "dialogue"}} if "dialogue" in row else {}
    set_params(root, corpus={"sources": {"texts": {**TEXTS["texts"], **named}}})
    assert any(f"b.{suffix} holds chats" in line for line in found(root))


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_found_wherever_it_is(root: Path, where: str) -> None:
    (root / "texts/b.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    assert "has no chat template" in found(root)[0]
    (root / "base" / where).write_text('{"chat_template": "{{ messages }}"}')
    assert found(root) == []


def test_a_locked_store_is_not_called_broken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "SECONDS", 0.05)
    connection = sqlite3.connect(root / "mlflow.db", isolation_level=None)
    connection.execute("CREATE TABLE alembic_version (version_num)")
    connection.execute("BEGIN EXCLUSIVE")
    [problem] = found(root, "evaluation")
    connection.close()
    assert "has been locked by another process" in problem and "fuser" in problem and "backup" not in problem
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != root / "mlflow.db")
    assert found(root, "evaluation")[-1].startswith(f"{root / 'mlflow.db'} cannot be written")


def test_a_choice_of_more_samples_than_the_pool_has_is_noticed(root: Path) -> None:
    samples = root / "data/tokenized_samples"
    samples.mkdir(parents=True)
    (samples / "accounting.json").write_text(json.dumps({"by_split": {"pool": {"samples": 7}}}))
    lines = found(root, "calibration_set")
    assert [line.split(":")[1].strip() for line in lines] == ["random-8", "stratified-8"]
    assert "asked for n = 8 samples, the pool has 7" in lines[0]
    assert found(root, "calibration_set", "tokenized_samples") == []  # the pool will be another
    set_params(root, calibrations={name: {**c, "allow_fewer": True} for name, c in SMALL["calibrations"].items()})
    assert found(root, "calibration_set") == []


class _Answering(BaseHTTPRequestHandler):
    artifacts = 503

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") in ("Basic dTpzZWNyZXQ=", "Bearer secret")  # u:secret
        self.send_response((type(self).artifacts if "artifacts" in self.path else 200) if known else 401)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), _Answering)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_server_that_does_not_answer_is_noticed(root: Path, server: HTTPServer) -> None:
    uri = f"http://u:secret@127.0.0.1:{server.server_port}"
    set_params(root, tracking={"uri": uri})
    assert found(root) == []
    server.shutdown()
    server.server_close()
    (line,) = found(root)
    assert "does not answer" in line and "secret" not in line


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "refuses these credentials (401); set MLFLOW_TRACKING_USERNAME"),
        ({"MLFLOW_TRACKING_TOKEN": "wrong"}, "refuses these credentials (401)"),
        ({"MLFLOW_TRACKING_TOKEN": "secret"}, ""),
        ({"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "secret"}, ""),
        ({"MLFLOW_TRACKING_AUTH": "plugin"}, ""),  # only MLflow knows
    ],
)
def test_a_server_that_refuses_the_credentials_is_noticed(
    variables: dict[str, str], said: str, root: Path, server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(root))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    problem = readiness.server_problem(f"http://127.0.0.1:{server.server_port}")
    assert said in problem and bool(said) is bool(problem)


def test_a_server_that_does_not_reach_its_artifacts_is_noticed(
    server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://u:secret@127.0.0.1:{server.server_port}"
    for status in (200, 503, 404):  # 503: it passes none through
        monkeypatch.setattr(_Answering, "artifacts", status)
        assert readiness.server_problem(uri) == ""
    monkeypatch.setattr(_Answering, "artifacts", 500)
    assert "cannot list its artifacts" in readiness.server_problem(uri)


def test_a_database_of_another_mlflow_is_noticed(root: Path) -> None:
    import sqlite3

    with sqlite3.connect(root / "mlflow.db") as database:
        assert found(root) == []  # empty: MLflow makes its tables
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('older')")
    (line,) = found(root)
    assert "mlflow.db was written by another version of MLflow (its tables are of revision older" in line
    assert "mlflow db upgrade sqlite:///" in line
    (root / "mlflow.db").write_bytes(b"nonsense" * 200)
    assert "cannot be read" in found(root)[0]


def test_the_step_of_dvc_repro_checks_too(root: Path) -> None:
    set_params(root, tokenize={"max_length": 10**9})
    with pytest.raises(NotReady, match=r"1 problem found.*\n- tokenize\.max_length"):
        require_ready(root, ["tokenized_samples"])


def test_a_scheme_that_the_model_does_not_suit_is_noticed(root: Path) -> None:
    """By config.json alone: transformers reads no quantized experts of GPT-OSS."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 4096}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    GptOssConfig(**sizes, **heads).save_pretrained(root / "base")
    (name,) = yaml.safe_load((root / "params.yaml").read_text())["grid"]["schemes"][:1]
    assert any(f"schemes.{name}: GptOssExperts" in line for line in found(root, "quantized_model"))
    assert not any("GptOssExperts" in line for line in found(root, "raw_corpus"))


def test_a_cache_that_the_statistics_leave_out_or_the_model_does_not_have_is_noticed(root: Path) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    (name,) = params["grid"]["schemes"][:1]
    schemes = {**params["schemes"], name: {**params["schemes"][name], "kv_cache": {"strategy": "attn_head"}}}
    set_params(root, schemes=schemes)
    with pytest.raises(ValueError, match=rf"schemes\.{name}.*\n?.*statistics: {{cache: true}}"):
        found(root, "quantized_model")
    set_params(root, schemes=schemes, statistics={"cache": True})
    assert not any("kv_cache" in line for line in found(root, "quantized_model"))
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 4096}
    latent = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 2}
    DeepseekV3Config(**sizes, **latent, **heads).save_pretrained(root / "base")
    assert any(
        f"schemes.{name}: kv_cache: model.layers.0.self_attn keeps a latent" in line
        for line in found(root, "quantized_model")
    )

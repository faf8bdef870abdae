"""A dozen metrics, what decides first, and tables of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.tracking.client import Tracking
from plumbline.tracking.figures import MOST_DOMAINS, evaluation_metrics, evaluation_tables, representativeness_metrics
from plumbline.tracking.samples import samples_page
from tests.helpers.tracking import log_evaluation, mlflow_client, table


def part(kl: float, **more: Any) -> dict[str, Any]:
    figures = {"kl_mean": kl, "kl_p99": 9 * kl, "perplexity_quantized": 7.5, "perplexity_base": 7.0}
    return figures | {"top1_agreement": 0.9, "rms_delta_p": 0.01, "tokens": 40, **more}


def content(domains: int = 2, layers: int = 400) -> dict[str, Any]:
    return part(0.125) | {
        "weights_bytes": 2_000_000,
        "bits_per_weight": 4.5,
        "share": 1.0,
        "base_model": "0" * 64,
        "by_domain": {f"d{i}": part(0.1 * (1 + i)) for i in range(domains)},
        "by_length": [part(0.2, shortest=1, longest=64), part(0.3, shortest=65, longest=None)],
        "layer_errors": {f"layers.{i}": (i + 1) / 1000 for i in range(layers)},
        "flips": {"flips": 0.04, "changed": 0.1},
        "out_of_domain": part(0.5),
    }


REPRESENTS = {
    "references": {
        "tuning": {
            "p_value": 0.25,
            "flagged": ["lengths"],
            "metrics": {"lengths": {"label": "lengths (KS)", "value": 0.5, "percentile": 99.0}},
        }
    }
}


def test_a_dozen_metrics_however_many_layers_and_the_one_that_decides_first() -> None:
    for layers in (2, 400):
        metrics = evaluation_metrics(content(layers=layers)) | representativeness_metrics(REPRESENTS)
        assert list(metrics) == [
            "kl_mean", "perplexity_quantized", "top1_agreement", "weights_bytes", "kl_p99", "perplexity_base",
            "bits_per_weight", "share", "kl_mean/d0", "kl_mean/d1", "out_of_domain/kl_mean", "flips/flips",
            "layer_error_max", "representativeness/tuning/p_value",
        ]  # fmt: skip
        assert metrics["layer_error_max"] == layers / 1000 and metrics["kl_mean/d1"] == 0.2
    many = evaluation_metrics(content(domains=MOST_DOMAINS + 1))
    assert not [name for name in many if name.startswith("kl_mean/")]


def test_every_layer_domain_and_length_is_in_a_table() -> None:
    tables = evaluation_tables(content(domains=9), REPRESENTS)
    assert [len(tables[name].rows) for name in ("layer_errors.json", "parts.json")] == [400, 1 + 9 + 2]
    assert tables["layer_errors.json"].rows[3] == ["layers.3", 0.004]
    rows = {row[0]: row[1:] for row in tables["parts.json"].rows}
    assert rows["domain d2"] == pytest.approx([0.1 * 3, 9 * (0.1 * 3), 7.5, 7.0, 0.9, 0.01, 40])
    assert rows["over-64 tokens"][0] == 0.3 and rows["all"][0] == 0.125
    assert tables["representativeness.json"].rows == [["tuning", "lengths (KS)", 0.5, 99.0, True]]
    assert "layer_errors.json" not in evaluation_tables(content(layers=0), REPRESENTS)


def test_a_run_has_the_tables_the_duration_and_the_page_of_its_samples(tmp_path: Path) -> None:
    tracking = Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    page = tmp_path / "samples.html"
    page.write_text("<p>a sample")
    tables = evaluation_tables(content(layers=3), REPRESENTS)
    seconds = {"quantization": 2.0, "evaluation": 61.5}
    run_id = log_evaluation(
        tracking,
        metrics=evaluation_metrics(content()),
        tables=tables,
        seconds=seconds,
        pages=[page],
        base_model={"name": "base", "revision": "r1"},
        dagster_run_id="16a384d2-6354-4e8d-bd18-96a26338b468",
    ).run_id
    client = mlflow_client(tracking)
    run = client.get_run(run_id)
    assert run.info.end_time - run.info.start_time == 61_500, "of the evaluation, not of the logging"
    assert run.data.tags["seconds.quantization"] == "2.00"
    layers = table(client, run_id, "layer_errors.json")
    assert layers[0] == {"layer": "layers.0", "relative error of its output": 0.001}
    assert (tmp_path / "mlruns" / run_id / "artifacts/samples.html").samefile(page), "no second copy"
    text = run.data.tags["mlflow.note.content"]
    for said in ("**base** at r1", "KL to the base model 0.125 nats", "2 MB", "`samples.html`", "/runs/16a384d2-6354"):
        assert said in text
    [version] = client.search_model_versions("name = 'plumbline'")
    assert "`w4a16-gptq`" in version.description and "perplexity 7.5" in version.description
    assert "alias `champion`" in client.get_registered_model("plumbline").description


@pytest.mark.parametrize(
    ("uri", "digest", "logged"),
    [
        ("sqlite:////w/mlflow.db", "d1", True),
        ("sqlite:////w/mlflow.db", "another", False),
        ("https://mlflow.example.org", "d1", False),
    ],
)
def test_texts_go_to_no_server_and_only_with_the_set_they_show(
    tmp_path: Path, uri: str, digest: str, logged: bool
) -> None:
    folder = tmp_path / "data/sample_page/random-8"
    folder.mkdir(parents=True)
    (folder / "samples.html").write_text("<p>secret")
    (folder / "page.json").write_text(json.dumps({"digest": digest}))
    assert samples_page(tmp_path, "random-8", "d1", uri) == ([folder / "samples.html"] if logged else [])
    assert samples_page(tmp_path, "other", "d1", uri) == []

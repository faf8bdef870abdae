"""The whole evaluation against both models run sample by sample and the definitions in float64."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from plumbline.artifact import read_json, write_json
from plumbline.evaluation import base_logits, evaluate
from plumbline.evaluation.build import build_evaluation
from plumbline.evaluation.params import EvaluationParams
from plumbline.evaluation.plots import DOMAINS, HISTOGRAM
from plumbline.evaluation.summary import summary as summary_of
from plumbline.tokenized_samples.reader import read_samples
from tests.helpers.checkpoint import checkpoint
from tests.helpers.evaluation import describe
from tests.helpers.tokenized_samples import FINGERPRINT, write_samples

ALL = EvaluationParams(tokens_per_domain=None, samples_per_document=None, batch_tokens=100)


def run(root: Path, samples: Path, out: Path, params: EvaluationParams = ALL, quantized: str = "perturbed") -> dict:
    out.mkdir()
    evaluate._measured.clear()
    build_evaluation(params, checkpoint("base", root), root / quantized, samples, out)
    return summary_of(out)


def log_probabilities(folder: Path, ids: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double().numpy()
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def reference(root: Path, samples: Path) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Per (domain, document): kl, nll of both and agreement of every predicted token."""
    tokens = defaultdict(lambda: defaultdict(list))
    for row in read_samples(samples, ["report"]).to_pylist():
        p, q = (log_probabilities(root / name, row["input_ids"]) for name in ("base", "perturbed"))
        at = np.arange(len(p)), np.array(row["input_ids"][1:])
        found = tokens[row["domain"], row["doc_id"]]
        found["kl"] += list((np.exp(p) * (p - q)).sum(-1))
        found["base"] += list(-p[at])
        found["quantized"] += list(-q[at])
        found["agree"] += list(p.argmax(-1) == q.argmax(-1))
        found["length"] += [len(row["input_ids"])] * len(p)
    return {key: {name: np.array(values) for name, values in found.items()} for key, found in tokens.items()}


def test_figures_and_documents_equal_the_definitions(root, samples, reference, tmp_path):
    summary = run(root, samples, tmp_path / "out")
    metrics = read_json(tmp_path / "out" / "metrics.json")
    every = {
        name: np.concatenate([d[name] for d in reference.values()]) for name in ("kl", "base", "quantized", "agree")
    }
    expected = {
        "kl_mean": every["kl"].mean(),
        "kl_median": np.median(every["kl"]),
        "kl_p95": np.percentile(every["kl"], 95),
        "kl_p99": np.percentile(every["kl"], 99),
        "kl_p999": np.percentile(every["kl"], 99.9),
        "kl_max": every["kl"].max(),
        "perplexity_base": np.exp(every["base"].mean()),
        "perplexity_quantized": np.exp(every["quantized"].mean()),
        "perplexity_ratio": np.exp((every["quantized"] - every["base"]).mean()),
        "top1_agreement": every["agree"].mean(),
        "rms_delta_p": np.sqrt(((np.exp(-every["quantized"]) - np.exp(-every["base"])) ** 2).mean()),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4), name
        assert summary[name] == metrics[name]
    assert metrics["tokens"] == len(every["kl"]) and metrics["documents"] == 10
    assert 0.001 < expected["kl_mean"] < 2 and 0.3 < expected["top1_agreement"] < 1  # the two models do differ

    for domain in ("code", "prose"):
        kl = np.concatenate([found["kl"] for (name, _), found in reference.items() if name == domain])
        assert metrics["by_domain"][domain]["kl_mean"] == pytest.approx(kl.mean(), rel=1e-4)
        assert metrics["by_domain"][domain]["tokens"] == len(kl)
        assert summary[f"kl_mean_{domain}"] == metrics["by_domain"][domain]["kl_mean"]

    table = pq.read_table(tmp_path / "out" / "documents.parquet").to_pylist()
    assert [(row["domain"], row["doc_id"]) for row in table] == sorted(reference)
    for row in table:
        found = reference[row["domain"], row["doc_id"]]
        assert row["n_tokens"] == len(found["kl"]) and row["agree"] == found["agree"].sum()
        assert row["kl_sum"] == pytest.approx(found["kl"].sum(), rel=1e-4)
        assert row["nll_base"] == pytest.approx(found["base"].sum(), rel=1e-5)
        assert row["nll_quantized"] == pytest.approx(found["quantized"].sum(), rel=1e-5)
        change = np.exp(-found["quantized"]) - np.exp(-found["base"])
        assert row["delta_p_squared"] == pytest.approx((change**2).sum(), rel=1e-3)


def test_figures_per_bucket_of_length(root, samples, reference, tmp_path):
    summary = run(root, samples, tmp_path / "out", ALL.model_copy(update={"length_buckets": (10, 12, 25)}))
    found = read_json(tmp_path / "out" / "metrics.json")["by_length"]
    kl, length = (np.concatenate([d[name] for d in reference.values()]) for name in ("kl", "length"))
    expected = [(1, 10), (11, 12), (13, 25), (26, None)]
    assert [(bucket["shortest"], bucket["longest"]) for bucket in found] == expected
    for bucket, (shortest, longest) in zip(found, expected, strict=True):
        inside = kl[(length >= shortest) & (length <= (longest or np.inf))]
        assert bucket["tokens"] == len(inside) > 0
        assert bucket["kl_mean"] == pytest.approx(inside.mean(), rel=1e-4)
    shown = [row["samples of tokens"] for row in summary["by_length"]]
    assert shown == ["1-10", "11-12", "13-25", "over-25"]


def test_out_of_domain_texts_are_evaluated_beside(root, samples, tmp_path):
    """Their figures are those that the same samples give as a report split; the report's do not move by a bit."""
    rng = np.random.default_rng(7)
    others = [
        {"doc_id": f"{number:064d}", "domain": "news", "input_ids": rng.integers(0, 96, 5 + 3 * number)}
        for number in range(7)
    ]
    given = read_samples(samples).to_pylist()
    both = write_samples(tmp_path / "both", [*given, *({**row, "split": "out_of_domain"} for row in others)])
    alone = write_samples(tmp_path / "alone", [{**row, "split": "report"} for row in others])
    without = run(root, samples, tmp_path / "a")
    summary = run(root, both, tmp_path / "b")
    expected = run(root, alone, tmp_path / "c")
    names = ["documents.parquet", "kl_by_domain.png", "kl_histogram.png", "metrics.json"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted([*names, "out_of_domain.parquet"])
    assert {name: summary[name] for name in without} == without
    for name in names[:3]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    found, reference = read_json(tmp_path / "b" / "metrics.json"), read_json(tmp_path / "c" / "metrics.json")
    assert found["out_of_domain"] == {name: reference[name] for name in found["out_of_domain"]}
    assert found["out_of_domain_digest"] == reference["samples_digest"] != found["samples_digest"]
    assert summary["out_of_domain_kl_mean"] == expected["kl_mean"] and found["out_of_domain"]["documents"] == 7
    tables = [pq.read_table(tmp_path / path) for path in ("b/out_of_domain.parquet", "c/documents.parquet")]
    assert tables[0].equals(tables[1])


def test_buckets_of_length_ascend():
    for wrong in ((5, 5), (7, 3), (0, 4)):
        with pytest.raises(ValueError, match="ascending without repeats"):
            EvaluationParams(length_buckets=wrong)


@pytest.mark.parametrize("batch_tokens", [1, 64, 100000])
def test_batches_and_padding_do_not_matter(root, samples, reference, tmp_path, batch_tokens):
    summary = run(root, samples, tmp_path / "out", ALL.model_copy(update={"batch_tokens": batch_tokens}))
    every = np.concatenate([found["kl"] for found in reference.values()])
    assert summary["tokens"] == len(every)
    assert summary["kl_mean"] == pytest.approx(every.mean(), rel=1e-4)
    assert summary["kl_max"] == pytest.approx(every.max(), rel=1e-4)


def test_base_model_against_itself(root, samples, tmp_path):
    shutil.copytree(root / "base", root / "same")
    describe(root / "same", root / "base")
    summary = run(root, samples, tmp_path / "out", quantized="same")
    assert summary["kl_max"] < 1e-6 and summary["top1_agreement"] == 1 and summary["perplexity_ratio"] == 1


def test_same_inputs_same_bytes(root, samples, tmp_path):
    for name in ("first", "second"):
        base_logits._latest = None
        run(root, samples, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["documents.parquet", "kl_by_domain.png", "kl_histogram.png", "metrics.json"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_size_and_digests(root, samples, tmp_path):
    summary = run(root, samples, tmp_path / "out")
    metrics = read_json(tmp_path / "out" / "metrics.json")
    weights = root / "perturbed" / "model.safetensors"
    assert metrics["weights_bytes"] == metrics["base_weights_bytes"] == weights.stat().st_size
    assert metrics["weights"] == read_json(root / "perturbed" / "calibration.json")["model"]
    assert metrics["fingerprint"] == FINGERPRINT
    assert metrics["calibration_set"] == "c" * 64 and metrics["scheme"]["name"] == "w4a16-rtn"
    assert metrics["group_sizes"] == {"32": 1, "per channel": 2} and metrics["fallbacks"] == {"b": "no tokens"}
    assert metrics["layer_errors"] == {"a": 0.25, "b": 0.5}
    assert (summary["layer_error_mean"], summary["layer_error_max"], summary["worst_layer"]) == (0.375, 0.5, "b")


def test_one_base_pass_for_all_models_of_a_run(root, samples, tmp_path, monkeypatch):
    passes = []
    genuine = base_logits.predicted_logits
    monkeypatch.setattr(base_logits, "predicted_logits", lambda model, batch: passes.append(1) or genuine(model, batch))
    first = run(root, samples, tmp_path / "a")
    batches = len(passes)
    assert batches > 1
    assert run(root, samples, tmp_path / "b") == first and len(passes) == batches
    run(root, samples, tmp_path / "c", ALL.model_copy(update={"batch_tokens": 50}))
    assert len(passes) > batches  # other batches, other logits


def test_models_that_compute_the_same_are_measured_once(root, samples, tmp_path, monkeypatch):
    loaded = []
    genuine = evaluate.load_model
    monkeypatch.setattr(evaluate, "load_model", lambda folder, *a: loaded.append(folder.name) or genuine(folder, *a))

    def again(name: str, **changes: object) -> dict:
        shutil.copytree(root / "perturbed", tmp_path / name)
        config = {**read_json(tmp_path / name / "config.json"), **changes}
        write_json(tmp_path / name / "config.json", config)
        (tmp_path / f"{name}-out").mkdir()
        build_evaluation(ALL, checkpoint("base", root), tmp_path / name, samples, tmp_path / f"{name}-out")
        return summary_of(tmp_path / f"{name}-out")

    first = run(root, samples, tmp_path / "out")
    assert again("other-provenance", calibration={"name": "another"}) == first
    assert loaded == ["perturbed"]
    assert again("other-model", rms_norm_eps=0.1)["kl_mean"] != first["kl_mean"]
    assert loaded == ["perturbed", "other-model"]


@pytest.mark.parametrize("budget", [0, 20000])
def test_recomputes_base_logits_that_do_not_fit(root, samples, tmp_path, monkeypatch, budget):
    expected = run(root, samples, tmp_path / "all in memory")
    passes = []
    genuine = base_logits.predicted_logits
    monkeypatch.setattr(base_logits, "predicted_logits", lambda model, batch: passes.append(1) or genuine(model, batch))
    tight = ALL.model_copy(update={"base_logits_bytes": budget})
    assert run(root, samples, tmp_path / "a", tight) == expected
    first = len(passes)
    assert run(root, samples, tmp_path / "b", tight) == expected
    again = len(passes) - first
    assert again == first if budget == 0 else 0 < again < first


def test_another_tokenization_is_an_error_that_names_both(root, samples, tmp_path):
    shutil.copytree(root / "perturbed", tmp_path / "other")
    describe(tmp_path / "other", root / "base", fingerprint="e" * 64)
    with pytest.raises(ValueError, match=f"other/calibration.json.*{'e' * 64}.*{FINGERPRINT}"):
        run(root, samples, tmp_path / "out", quantized=str(tmp_path / "other"))


def test_another_base_model_is_an_error_that_names_both(root, samples, tmp_path):
    shutil.copytree(root / "perturbed", tmp_path / "other")
    describe(tmp_path / "other", root / "perturbed")
    with pytest.raises(ValueError, match="other was quantized from a base model with digest [0-9a-f]{64}; .* now has"):
        run(root, samples, tmp_path / "out", quantized=str(tmp_path / "other"))


def test_changed_weights_are_an_error(root, samples, tmp_path):
    shutil.copytree(root / "perturbed", tmp_path / "other")
    record = json.loads((tmp_path / "other" / "calibration.json").read_text())
    record["model"]["model.safetensors"] = "0" * 64
    (tmp_path / "other" / "calibration.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"model\.safetensors is not what calibration\.json says"):
        run(root, samples, tmp_path / "out", quantized=str(tmp_path / "other"))


def test_quantized_activations_are_measured(root, samples, tmp_path):
    """Same weights, activations on a coarse and on a fine grid: the coarse one costs far more, which
    a loading path that drops activation scales (dequantize=True) would not see."""
    from plumbline.quantized_model.activation_params import ActivationParams
    from plumbline.quantized_model.export import export
    from plumbline.quantized_model.grid import Grid
    from plumbline.quantized_model.layer import Layer, Quantized
    from plumbline.quantized_model.params import SchemeParams
    from plumbline.quantized_model.rtn import rtn
    from plumbline.quantized_model.scheme import quantizable_linears

    model = AutoModelForCausalLM.from_pretrained(root / "base")
    linears = quantizable_linears(model, ("lm_head",))
    weights = {name: rtn(module.weight.data, Grid(8)) for name, module in linears.items()}
    scheme = SchemeParams(method="rtn", weight_bits=8, activations=ActivationParams())
    kl = {}
    for step in (1.0, 0.05):
        folder = tmp_path / f"w8a8-{step}"
        folder.mkdir()
        layers = {name: Layer(weight, torch.tensor([step]), None) for name, weight in weights.items()}
        export(model, Quantized(layers), scheme, root / "base", folder)
        describe(folder, root / "base")
        kl[step] = run(root, samples, tmp_path / f"out-{step}", quantized=str(folder))["kl_mean"]
    assert kl[1.0] > 5 * kl[0.05] > 0


def test_plots_are_small(root, samples, tmp_path):
    run(root, samples, tmp_path / "out")
    for name in (HISTOGRAM, DOMAINS):
        content = (tmp_path / "out" / name).read_bytes()
        assert content.startswith(b"\x89PNG") and b"Software" not in content and 2000 < len(content) < 60000

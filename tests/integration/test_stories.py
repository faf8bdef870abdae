"""The whole pipeline on a model and on texts that no one here wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.peers.articles import pieces
from tests.helpers.shared import made_once
from tests.helpers.workspace import SMALL_FEATURES, Workspace, make_workspace

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("stories")]

DRAWS = 3


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """stories260K with TinyStories, C4 and code as domains, several draws of each at 3 bits."""
    corpora = shared_data / "corpora"
    files = {
        "stories": corpora / "tinystories/tinystories_train_head.txt",
        "web": corpora / "exllamav2-cal/c4.utf8",
        "code": corpora / "exllamav2-cal/code.utf8",
    }

    def make(folder: Path) -> None:
        write_and_run(folder / "workspace", shared_data / "models/stories260K", files)

    return Workspace(made_once(tmp_path_factory, "stories", make) / "workspace")


def write_and_run(root: Path, model: Path, files: dict[str, Path]) -> None:
    texts = {domain: pieces(path.read_text(encoding="utf-8"), 1200) for domain, path in files.items()}
    domains = {"stories": "in-domain", "code": "code"}
    calibrations = {
        f"{domains[domain]}-{draw}": {"strategy": "random", "n": 48, "seed": draw, "domains": [domain]}
        for domain in domains
        for draw in range(DRAWS)
    }
    workspace = make_workspace(
        root,
        model={"name": str(model), "revision": None},
        corpus={"sources": {"texts": {"kind": "directory", "path": "texts"}}, "inbox": "inbox"},
        tokenize={"max_length": 256, "long_documents": "window", "splits": {"tuning": 0.1, "report": 0.2}},
        features=SMALL_FEATURES,
        calibrations=calibrations,
        schemes={"w3a16-gptq": {"method": "gptq", "weight_bits": 3, "group_size": 128}},
        grid={"calibrations": list(calibrations), "schemes": ["w3a16-gptq"]},
        evaluation={"tokens_per_domain": 8192},
        report={"resamples": 500, "confidence": 0.95},
        deployment={"scheme": "w3a16-gptq"},
        studies={},
    )
    for domain, documents in texts.items():
        folder = workspace.root / "texts" / domain
        folder.mkdir(parents=True)
        rows = (json.dumps({"text": text.strip()}) for text in documents if text.strip())
        (folder / f"{domain}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    workspace.plumbline("run")


def kl_on_stories(workspace: Workspace, calibration: str) -> float:
    metrics = workspace.root / f"data/evaluation/{calibration}-w3a16-gptq/metrics.json"
    return float(json.loads(metrics.read_text())["by_domain"]["stories"]["kl_mean"])


@pytest.mark.minutes(3)
def test_in_domain_calibration_comes_out_ahead_of_code_at_3_bits(stories: Workspace) -> None:
    in_domain = [kl_on_stories(stories, f"in-domain-{draw}") for draw in range(DRAWS)]
    code = [kl_on_stories(stories, f"code-{draw}") for draw in range(DRAWS)]
    assert max(in_domain) < min(code), (in_domain, code)


def test_widths_that_128_does_not_divide_are_quantized_in_the_largest_divisor(stories: Workspace) -> None:
    record = json.loads((stories.root / "data/quantized_model/code-0-w3a16-gptq/calibration.json").read_text())
    assert {64, 86} == {layer["group_size"] for layer in record["layers"].values()}


def test_the_chain_of_a_foreign_model_verifies(stories: Workspace) -> None:
    assert stories.plumbline("audit", "data/quantized_model/code-0-w3a16-gptq").returncode == 0

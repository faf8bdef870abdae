"""What a decision about a champion reads: two choices, evaluated, with their models, sets, samples and the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plumbline.raw_corpus.build import build_raw_corpus
from plumbline.raw_corpus.params import CorpusParams
from plumbline.tokenized_samples.build import build_tokenized_samples
from tests.helpers.checkpoint import checkpoint
from tests.helpers.paths import BUNDLED
from tests.helpers.promotion import POLICY, Workshop


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 documents of a few dozen random words each, really tokenized: some in the pool, some in the report split."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "texts").mkdir(), (root / "corpus").mkdir(), (root / "samples").mkdir()
    rng = np.random.default_rng(1)
    words = ["plumb", "line", "falls", "string", "gravity", "weight", "wall", "level", "true", "mason", "knot", "reel"]
    for number in range(40):
        (root / "texts" / f"{number}.txt").write_text(f"{number} " + " ".join(rng.choice(words, 30)))
    params = CorpusParams.model_validate({"sources": {"texts": {"kind": "directory", "path": "texts"}}})
    build_raw_corpus(params, root, root / "corpus")
    build_tokenized_samples(POLICY, checkpoint(BUNDLED), root / "corpus", root / "samples")
    return root / "samples"


@pytest.fixture
def workshop(tmp_path: Path, samples: Path) -> Workshop:
    return Workshop(tmp_path, samples)

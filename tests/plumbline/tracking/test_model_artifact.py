"""The champion loads by its URI, without a second copy of its weights, and a missing one does not stop a promotion."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import mlflow.transformers
import pytest

from plumbline.artifact import read_json
from plumbline.tracking.client import Tracking
from plumbline.tracking.promotion import promote
from plumbline.tracking.registry import Registry
from tests.helpers.small_chain import MODEL, chain, register, second

CHAMPION = "models:/plumbline@champion"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluated models, version 1 promoted."""
    root = chain(tmp_path_factory.mktemp("champion") / "workspace", "random")
    second(root)
    register(root)
    return root


@pytest.fixture
def store(root: Path) -> Any:
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    mlflow.set_registry_uri(f"sqlite:///{root / 'mlflow.db'}")
    yield
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def test_the_champion_generates_text(root: Path, store: None) -> None:
    pipeline = mlflow.transformers.load_model(CHAMPION)
    [answer] = pipeline("the quick model", max_new_tokens=5, do_sample=False)
    assert answer["generated_text"].startswith("the quick model") and len(answer["generated_text"]) > 15
    components = mlflow.transformers.load_model(CHAMPION, return_type="components")
    assert "compressed" in str(components["model"].config.quantization_config).lower()


def test_pyfunc_and_download_have_it_too(root: Path, store: None, tmp_path: Path) -> None:
    model = mlflow.pyfunc.load_model(CHAMPION)
    assert model.metadata.signature is not None and model.metadata.saved_input_example_info
    assert model.predict(["the quick model"])[0].startswith("the quick")
    about, record = model.metadata.metadata, read_json(root / MODEL / "calibration.json")
    assert about["base_model"] == "base" and about["base_model_digest"] == record["base_model"]["digest"]
    assert about["scheme"] == "w4a16-rtn" and about["calibration_set_digest"] == record["calibration_set"]["digest"]
    there = Path(mlflow.artifacts.download_artifacts(CHAMPION, dst_path=str(tmp_path)))
    weights = (root / MODEL / "model.safetensors").read_bytes()
    assert (there / "model/model.safetensors").read_bytes() == weights
    assert (there / "model/calibration.json").read_bytes() == (root / MODEL / "calibration.json").read_bytes()


def test_a_local_store_has_no_second_copy_of_the_weights(root: Path) -> None:
    [weights] = root.glob("mlruns/models/*/artifacts/model/model.safetensors")
    assert weights.stat().st_nlink >= 2 and not weights.is_symlink()
    objects = [path for path in root.glob(".dvc/cache/files/md5/*/*") if path.stat().st_ino == weights.stat().st_ino]
    assert len(objects) == 1
    assert str(root) not in (weights.parents[1] / "MLmodel").read_text(encoding="utf-8")  # no path of this machine


def test_the_version_says_what_it_is(root: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    text = client.get_model_version("plumbline", "1").description
    for part in (
        "**base**",
        "`w4a16-rtn`",
        "`random-8`",
        "KL to the base model",
        "plumbline audit models:/plumbline/1",
    ):
        assert part in text


def test_a_model_that_is_gone_is_promoted_with_a_warning(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    registry = Registry(Tracking(f"sqlite:///{copy / 'mlflow.db'}"))
    target = registry.version("2")
    shutil.rmtree(copy / target.path)
    shutil.rmtree(copy / ".dvc/cache")
    with caplog.at_level(logging.WARNING, logger="plumbline"):
        assert promote(registry, copy, "2", "Ada", "still better") is not None
    assert "models:/plumbline/2 cannot be loaded by its URI: neither data/quantized_model" in caplog.text
    champion = registry.champion()
    assert champion is not None and champion.version == "2"

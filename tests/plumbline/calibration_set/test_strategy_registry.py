from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from plumbline.calibration_set.strategies import BUILT_IN, get, names
from tests.helpers.calibration_pool import rows_of
from tests.helpers.tokenized_samples import sample, write_samples

Choose = Callable[..., Path]
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """install(strategy name, body of the module): a package with an entry point, as pip would leave it on disk."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def make(name: str, code: str, target: str = "select") -> None:
        module = f"third_party_{name}"
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[plumbline.strategies]\n{name} = {module}:{target}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


LONGEST = """
    from typing import Annotated
    import numpy as np
    from pydantic import Field
    from plumbline.calibration_set.strategies.base import Pool, Selection

    def select(pool: Pool, n: int, rng: np.random.Generator, *, skip: Annotated[int, Field(ge=0)] = 0) -> Selection:
        order = np.argsort(-pool.lengths, kind="stable")[skip : skip + n]
        return Selection(order, [{"length": int(pool.lengths[i])} for i in order])
"""


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "samples", [sample(i, 20 + i) for i in range(12)])


def test_a_third_party_strategy_is_found_by_its_entry_point(install: Install, samples: Path, choose: Choose) -> None:
    assert "longest" not in names()
    install("longest", LONGEST)
    assert names() == sorted([*BUILT_IN, "longest"])
    rows = rows_of(choose(samples, strategy="longest", n=3, skip=2))
    assert [row["n_tokens"] for row in rows] == [29, 28, 27]
    assert [row["reason"] for row in rows] == [{"length": 29}, {"length": 28}, {"length": 27}]
    with pytest.raises(ValueError, match="skip: Input should be greater than or equal to 0, found -1"):
        choose(samples, strategy="longest", n=3, skip=-1)
    with pytest.raises(ValueError, match="did you mean `skip`"):
        choose(samples, strategy="longest", n=3, skips=1)


def test_a_package_may_not_take_a_built_in_name(install: Install) -> None:
    install("random", LONGEST)
    with pytest.raises(ValueError, match="provided by plumbline and by third_party_random"):
        get("random")


def test_an_unknown_strategy_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="did you mean `random`.*length_stratified, .*random"):
        get("randon")


def test_a_package_that_does_not_import_is_named(install: Install) -> None:
    install("broken", "import nothing_of_that_name")
    with pytest.raises(ValueError, match="package third_party_broken does not import .ModuleNotFoundError"):
        get("broken")


@pytest.mark.parametrize(
    "signature", ["def select(pool, n): ...", "def select(pool, n, rng, *, seed: int = 0): ...", "select = 3"]
)
def test_a_wrong_signature_is_refused(install: Install, signature: str) -> None:
    install("wrong", signature)
    with pytest.raises(ValueError, match="expected"):
        get("wrong")


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ("Selection(np.array([0, 0]), [{}, {}])", "chose a sample twice"),
        ("Selection(np.array([0, 99]), [{}, {}])", "found indices 0 to 99, expected 0 to 11"),
        ("Selection(np.array([0, 1, 2]), [{}, {}, {}])", "chose 3 samples, asked for 2"),
        ("Selection(np.array([0]), [{}])", "asked for n = 2 samples, found 1"),
        ("Selection(np.array([0, 1]), [{}])", "one reason each"),
        ("Selection(np.array([0.0, 1.0]), [{}, {}])", "integer indices"),
    ],
)
def test_a_strategy_that_breaks_its_contract_makes_no_set(
    install: Install, samples: Path, choose: Choose, result: str, complaint: str
) -> None:
    install(
        "careless",
        f"""
        import numpy as np
        from plumbline.calibration_set.strategies.base import Selection

        def select(pool, n, rng):
            return {result}
        """,
    )
    with pytest.raises(ValueError, match=complaint):
        choose(samples, strategy="careless", n=2)


def test_embeddings_are_asked_for_only_by_strategies_that_use_them(
    install: Install, samples: Path, choose: Choose
) -> None:
    install("by_embedding", LONGEST.replace("order =", "pool.embeddings()\n        order ="))
    with pytest.raises(ValueError, match="run sample_features first"):
        choose(samples, strategy="by_embedding", n=2)


def test_choosing_imports_no_heavy_package() -> None:
    code = (
        "import sys, plumbline.calibration_choice.choice, plumbline.calibration_set.select;"
        "import plumbline.sample_features.embed;"
        "from plumbline.calibration_set.strategies import get; get('length_stratified'); get('random');"
        "print(sorted({'torch', 'transformers', 'sentence_transformers', 'datasets', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

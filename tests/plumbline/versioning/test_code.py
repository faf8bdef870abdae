"""Code versions: what changes one, what does not, and that computing them imports nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plumbline import kernels
from plumbline.versioning import code
from plumbline.versioning.code import LIBRARY, Library, builders_of, code_version, code_versions, link_library
from plumbline.versioning.pipeline import assets_with_code

PROJECT = LIBRARY.parent
ASSETS = assets_with_code(PROJECT)
PLUMBING = {"versioning", "tracking", "provenance", "graph", "cli"}


@pytest.fixture(scope="module")
def memo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Syntax trees are parsed once for all tests."""
    return tmp_path_factory.mktemp("memo") / "code.json"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A copy of the package that the test may edit."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.safetensors")
    return Path(shutil.copytree(LIBRARY, tmp_path / "plumbline", ignore=ignore))


def versions(folder: Path, memo: Path) -> dict[str, str]:
    library = Library(folder, memo)
    return {asset: code_version(asset, library) for asset in ASSETS}


def edit(library: Path, name: str, change: Callable[[str], str]) -> None:
    before = (library / name).read_text(encoding="utf-8")
    after = change(before)
    assert after != before
    (library / name).write_text(after, encoding="utf-8")


def substitute(pattern: str, replacement: str) -> Callable[[str], str]:
    return lambda text: re.sub(pattern, replacement, text, count=1, flags=re.DOTALL | re.MULTILINE)


GPTQ, SOLVER_C = "quantized_model/gptq.py", "quantized_model/solver.c"
NO_CHANGE: dict[str, tuple[str, Callable[[str], str]]] = {
    "a comment": (GPTQ, lambda text: f"# because\n{text}"),
    "the docstring of a module": (GPTQ, substitute(r'\A""".*?"""', '"""Another."""')),
    "the docstring of a function": (GPTQ, substitute(r'(\) -> [^\n]*:\n    )""".*?"""', r'\1"""Another."""')),
    "the text behind an attribute": (
        "activation_stats/kernel.py",
        substitute(r'(^VERSION = \d+\n)"""[^\n]*"""', r'\1"""Another."""'),
    ),
    "a docstring less": ("quantized_model/rtn.py", substitute(r'\A""".*?"""', "")),
    "blank lines": (GPTQ, lambda text: text.replace("\n\n", "\n\n\n\n")),
    "the order of imports": (GPTQ, substitute(r"^(import \w+\n)(from [^\n]*\n)", r"\2\1")),
    "a comment in C": (SOLVER_C, lambda text: f"// because\n/* of\nthis */{text}"),
    "how progress is told": ("progress.py", lambda text: text.replace("left", "to go")),
    "the layout of C": (SOLVER_C, lambda text: text.replace(";\n", " ;\n\n").replace("    ", "\t")),
}


@pytest.mark.parametrize("name", NO_CHANGE)
def test_what_decides_nothing_changes_no_version(name: str, library: Path, memo: Path) -> None:
    before = versions(library, memo)
    edit(library, *NO_CHANGE[name])
    assert versions(library, memo) == before


def test_imports_in_another_order_change_no_version(library: Path, memo: Path) -> None:
    """All of a file, as a sorting tool would move them."""

    def shuffled(text: str) -> str:
        blocks = re.findall(r"(?:^(?:import|from) [^\n(]*\n)+", text, re.MULTILINE)
        lines = max(blocks, key=len).splitlines()
        return text.replace("\n".join(lines), "\n".join(reversed(lines)))

    before = versions(library, memo)
    for name in ("quantized_model/awq.py", "calibration_set/select.py"):
        edit(library, name, shuffled)
    assert versions(library, memo) == before


CHANGES: dict[str, tuple[str, Callable[[str], str], set[str]]] = {
    # A choice checks the options of the strategies, which it imports; two of them quantize to score a set.
    "a constant of GPTQ": (
        GPTQ,
        substitute(r"^([A-Z_]+ = )(\d)", r"\g<1>9\2"),
        {"calibration_choice", "calibration_set", "quantized_model", "study"},
    ),
    "AdaRound's search in C": (
        "quantized_model/descent.c",
        lambda text: text + "int x;\n",
        {"quantized_model", "study"},
    ),
    "the report's template": ("calibration_report/template.html.j2", lambda text: text + "x", {"calibration_report"}),
    "a template of templates": (
        "calibration_report/macros.html.j2",
        lambda text: text + "x",
        {"calibration_report", "study"},
    ),
    "the study's template": ("study/study.html.j2", lambda text: text + "x", {"study"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_changes_exactly_the_stages_that_can_run_it(name: str, library: Path, memo: Path) -> None:
    file, change, expected = CHANGES[name]
    before = versions(library, memo)
    edit(library, file, change)
    after = versions(library, memo)
    assert {asset for asset in ASSETS if after[asset] != before[asset]} == expected


@pytest.mark.parametrize("name", ["activation_stats/kernel_avx2.h", "base_model/llama-stdlib-6m/config.json"])
def test_files_that_no_module_imports_count(name: str, library: Path, memo: Path) -> None:
    before = versions(library, memo)
    edit(library, name, lambda text: text.replace("0", "1"))
    after = versions(library, memo)
    assert after["activation_stats"] != before["activation_stats"]
    assert after["raw_corpus"] == before["raw_corpus"]


def test_every_asset_has_a_version_and_no_plumbing_in_it() -> None:
    library = Library()
    for asset in ASSETS:
        modules = library.modules(*builders_of(asset))
        assert "plumbline" in modules and f"plumbline.{asset}" in modules
        assert not {name for name in modules if {*name.split(".")[1:2]} & PLUMBING}, asset


def small_library(root: Path, **modules: str) -> Library:
    """A library of these modules (`a__b` is plumbline/a/b.py)."""
    for name, text in {"__init__": "", **modules}.items():
        path = root / "plumbline" / f"{name.replace('__', '/') if name != '__init__' else name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    return Library(root / "plumbline")


@pytest.mark.parametrize(
    "text",
    [
        "import plumbline.b.c",
        "from plumbline.b import c",
        "from plumbline.b.c import name",
        "from .b import c",
        "def late():\n    from plumbline.b import c",
        "MODULE = 'plumbline.b.c'",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import plumbline.b.c",
    ],
)
def test_an_import_is_found_wherever_it_stands(text: str, tmp_path: Path) -> None:
    library = small_library(tmp_path, a=text, b__c="x = 1")
    assert library.modules("plumbline.a") == {"plumbline", "plumbline.a", "plumbline.b", "plumbline.b.c"}


@pytest.mark.parametrize(
    "text",
    [
        "if TYPE_CHECKING:\n    import plumbline.b.c",
        "import typing\nif typing.TYPE_CHECKING:\n    from plumbline.b import c",
        "'''plumbline.b.c'''",
        "import other.b.c",
    ],
)
def test_what_is_not_imported_is_not_followed(text: str, tmp_path: Path) -> None:
    library = small_library(tmp_path, a=text, b__c="x = 1")
    assert library.modules("plumbline.a") == {"plumbline", "plumbline.a"}


def test_what_the_package_offers_to_notebooks_counts_with_its_own_code_alone(tmp_path: Path) -> None:
    library = small_library(tmp_path, a="x = 1", b="y = 1")
    (tmp_path / "plumbline/__init__.py").write_text("OFFERED = {'b': 'plumbline.b'}")
    assert library.modules("plumbline.a") == {"plumbline", "plumbline.a"}


def test_code_that_does_something_else_has_another_version(tmp_path: Path) -> None:
    texts = ["x = 1", "x = 1.0", "x = '1'", "x = -1", "x: int = 1", "x = 1\nx", "if x:\n    y = 1\nz = 1"]
    texts += ["if x:\n    y = 1\n    z = 1", "import a, b", "import a as b", "def f():\n    import a\nb", "a\nimport b"]
    digests = {small_library(tmp_path / str(i), a=text).digest("plumbline.a") for i, text in enumerate(texts)}
    assert len(digests) == len(texts)


def test_c_that_does_something_else_has_other_tokens() -> None:
    texts = ["a + ++b", "a++ + b", 'x = "a  b";', 'x = "a b";', 'x = "//";', "x = '\"'; // \"", "#define A (1)", "a/b"]
    texts += ["#define A(1)", "#define A\n1", "a / *b", "1e+5", "1e + 5", "a->b", "a - > b"]
    assert len({tuple(code._c_tokens(text)) for text in texts}) == len(texts)
    same = [
        "int f(int x) { return x+1; }",
        "int f( int x ){\n  return x + 1; /* one */\n}",
        "int f(int x){return x+1;}//",
    ]
    assert len({tuple(code._c_tokens(text)) for text in same}) == 1


def test_which_kernel_runs_is_part_of_the_version_where_bits_differ(
    monkeypatch: pytest.MonkeyPatch, memo: Path
) -> None:
    library = Library(memo=memo)
    using = {asset for asset in ASSETS if library.modules(*builders_of(asset)) & code.INEXACT.keys()}
    assert {"activation_stats", "quantized_model", "calibration_set"} <= using and "raw_corpus" not in using
    known = {}
    for answer in ("compiled", "fallback"):
        monkeypatch.setattr(kernels, "implementation", lambda *_, answer=answer: answer)
        known[answer] = versions(LIBRARY, memo)
    assert {asset for asset in ASSETS if known["compiled"][asset] != known["fallback"][asset]} == using


@pytest.mark.parametrize("module", code.INEXACT)
def test_the_kernels_whose_bits_differ_are_those_that_their_modules_load(module: str) -> None:
    source = Library()._source(module)
    assert code.INEXACT[module] in source.strings and source.interface > 0
    assert kernels.implementation(code.INEXACT[module], source.interface) in ("compiled", "fallback")
    assert kernels.implementation(code.INEXACT[module], source.interface + 1) == "fallback"


def test_versions_are_the_same_with_a_memo_and_without(tmp_path: Path) -> None:
    expected = {asset: code_version(asset) for asset in ASSETS}
    memo = tmp_path / ".plumbline" / code.MEMO
    assert code_versions(tmp_path, ASSETS) == expected and memo.is_file()
    assert code_versions(tmp_path, ASSETS) == expected
    for content in (
        "",
        "[]",
        '{"by": 1}',
        memo.read_text().replace('"by": "', '"by": "0').replace('"digest": "', '"digest": "0'),
    ):
        memo.write_text(content)
        code._versions.cache_clear()
        assert code_versions(tmp_path, ASSETS) == expected


def test_a_process_reads_the_library_again_when_a_file_changed_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plumbline"
    build = folder / "letters" / "build.py"
    build.parent.mkdir(parents=True)
    for path in (folder / "__init__.py", folder / "letters" / "__init__.py", build):
        path.write_text("N = 1\n")
        os.utime(path, ns=(1, 1))  # long ago
    monkeypatch.setattr(code, "LIBRARY", folder)
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    first = code_versions(tmp_path, ["letters"])
    assert read.count(build) == 1
    assert code_versions(tmp_path, ["letters"]) == first and read.count(build) == 1
    build.write_text("N = 2\n")  # of the same size
    second = code_versions(tmp_path, ["letters"])
    assert second != first and code_versions(tmp_path, ["letters"]) == second
    assert read.count(build) == 3  # a file written just now may be written again within a tick of its clock
    (folder / "letters" / "new.py").write_text("")
    assert code_versions(tmp_path, ["letters"]) == second


def test_an_asset_without_a_builder_is_named() -> None:
    with pytest.raises(ValueError, match=r"no module plumbline\.nothing\.build"):
        code_version("nothing")


def test_nothing_heavy_is_imported_to_compute_versions() -> None:
    heavy = ["torch", "numpy", "pyarrow", "dvc", "dagster", "mlflow"]
    script = (
        "import sys, pathlib\n"
        "from plumbline.versioning.code import code_version\n"
        f"[code_version(asset) for asset in {ASSETS}]\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_link_follows_the_installed_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link_library(tmp_path)
    assert (tmp_path / code.LINK).readlink() == LIBRARY
    monkeypatch.setattr(code, "LIBRARY", tmp_path)
    link_library(tmp_path)
    link_library(tmp_path)
    assert (tmp_path / code.LINK).readlink() == tmp_path
    assert [path.name for path in (tmp_path / ".plumbline").iterdir()] == ["library"]

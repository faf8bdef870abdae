"""What llama.cpp's quantizer gains by our importance matrix, beside none and beside llama-imatrix's own.

    python -m benchmarks.llama_cpp [--choice random-64] [--types Q2_K Q3_K_S Q4_K_S] [--chunks 40]
    python -m benchmarks.llama_cpp --convert OUT.gguf

In a workspace whose statistics exist. llama.cpp is built from the source in the sdist of llama-cpp-python (7 to 18 CPU
minutes, once, into .plumbline/engines/llama.cpp; it needs cmake, ninja and a C++ compiler). `--convert` alone writes
the base model as GGUF.

KL divergence to the 16-bit model over the report split's texts, in nats per token, by llama-perplexity.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.export.export import for_imatrix
from plumbline.params import load_params
from plumbline.tokenized_samples.reader import read_samples
from plumbline.workspace import workspace_root

SDIST = "llama_cpp_python-0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SENTENCEPIECE = "sentencepiece==0.2.3"
"""What llama.cpp's script imports beside what Plumbline has."""
PLACE = Path(".plumbline") / "engines" / "llama.cpp"
TOOLS = ("llama-quantize", "llama-perplexity", "llama-imatrix")
FLAGS = (
    "LLAMA_CURL=OFF",
    "LLAMA_OPENSSL=OFF",
    "BUILD_SHARED_LIBS=OFF",
    "LLAMA_BUILD_SERVER=OFF",
    "LLAMA_BUILD_TESTS=OFF",
)
CONVERT = """
import sys
sys.path[:0] = [{source!r}, {source!r} + "/gguf-py", {packages!r}]
import convert_hf_to_gguf
from conversion.base import TextModel
known = TextModel.get_vocab_base_pre
def pre_tokenizer(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:  # a vocabulary of its own: byte-level BPE as that of GPT-2
        return "gpt-2"
TextModel.get_vocab_base_pre = pre_tokenizer
sys.argv = ["convert_hf_to_gguf.py", {model!r}, "--outfile", {out!r}, "--outtype", "bf16"]
convert_hf_to_gguf.main()
"""
MEAN = re.compile(r"Mean\s+KLD:\s+([\d.]+)\s+±\s+([\d.]+)")


def source(root: Path) -> Path:
    """The source of llama.cpp; downloaded and unpacked once."""
    place = root / PLACE
    folder = place / SDIST / "vendor" / "llama.cpp"
    if not folder.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        name = SDIST.replace("_python-", "_python==")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--no-binary", ":all:", name.replace("_", "-"), "--dest", place], check=True)
        archive = place / f"{SDIST}.tar.gz"
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != SHA256:
            raise SystemExit(f"{archive}: SHA-256 {digest}, expected {SHA256}")
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter="data")
    return folder


def tools(root: Path) -> Path:
    """The folder with llama.cpp's tools; built once."""
    build = root / PLACE / "build"
    if not all((build / "bin" / name).is_file() for name in TOOLS):
        if missing := [name for name in ("cmake", "ninja", "c++") if shutil.which(name) is None]:
            raise SystemExit(f"llama.cpp cannot be built without {', '.join(missing)}")
        print("building llama.cpp: 7 to 18 CPU minutes", flush=True)
        options = [f"-D{flag}" for flag in ("CMAKE_BUILD_TYPE=Release", *FLAGS)]
        subprocess.run(["cmake", "-S", source(root), "-B", build, "-G", "Ninja", *options], check=True)
        subprocess.run(["cmake", "--build", build, "--target", *TOOLS], check=True)
    return build / "bin"


def convert(root: Path, model: Path, out: Path) -> None:
    """Write a model as GGUF in bfloat16, whatever its vocabulary.

    llama.cpp's script knows a tokenizer by a digest of what it makes of a text, so one trained anew is always unknown.
    """
    packages = root / PLACE / "packages"
    if not packages.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", packages, SENTENCEPIECE], check=True)
    code = CONVERT.format(source=str(source(root)), packages=str(packages), model=str(model), out=str(out))
    subprocess.run([sys.executable, "-P", "-c", code], check=True, stdout=subprocess.DEVNULL)


def texts(root: Path, choice: str, place: Path, tokens: int) -> tuple[Path, Path]:
    """Files with the texts of the calibration set and of the report split, the latter `tokens` long."""
    base = BaseCheckpoint.of(load_params(root).model, root)
    tokenizer = base.tokenizer()
    calibration = pq.read_table(root / "data/calibration_set" / choice / "samples.parquet", columns=["input_ids"])
    report = read_samples(root / "data/tokenized_samples", ["report"], ["doc_id", "input_ids"]).sort_by("doc_id")
    files = []
    for name, ids in (("calibration", calibration["input_ids"]), ("report", report["input_ids"])):
        parts, count = [], 0
        for sample in ids.to_pylist():
            if name == "report" and count >= tokens:
                break
            parts.append(tokenizer.decode(sample, skip_special_tokens=True))
            count += len(sample)
        files.append(place / f"{name}.txt")
        files[-1].write_text("\n\n".join(parts), encoding="utf-8")
    return files[0], files[1]


def divergence(binaries: Path, model: Path, text: Path, logits: Path, chunks: int) -> str:
    """Mean KL divergence to the model whose logits are stored, with its standard error."""
    command = [binaries / "llama-perplexity", "-m", model, "-f", text, "-c", "512", "--chunks", str(chunks)]
    command += ["--kl-divergence-base", logits, "--kl-divergence"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    match = MEAN.search(ended.stdout + ended.stderr)
    if match is None:
        raise SystemExit(f"{model.name}: llama-perplexity printed no mean KL divergence")
    return f"{float(match[1]):.5f} ± {float(match[2]):.5f}"


def compare(root: Path, choice: str, types: Sequence[str], chunks: int) -> None:
    """Print the table."""
    place = root / PLACE / "comparison"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    binaries, base = tools(root), BaseCheckpoint.of(load_params(root).model, root)
    full, logits = place / "full.gguf", place / "logits"
    convert(root, base.folder, full)
    calibration, report = texts(root, choice, place, 700 * chunks)
    matrices = {"without": None, "ours": place / "ours.gguf", "llama-imatrix": place / "theirs.gguf"}
    print(for_imatrix(root, choice, base, place / "ours.gguf"), flush=True)
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    own = [binaries / "llama-imatrix", "-m", full, "-f", calibration, "-c", "512", "-o", place / "theirs.gguf"]
    subprocess.run([*own, "--output-format", "gguf"], **quiet)
    run = [binaries / "llama-perplexity", "-m", full, "-f", report, "-c", "512", "--chunks", str(chunks)]
    subprocess.run([*run, "--kl-divergence-base", logits], **quiet)
    print(f"{'KL, nats per token':12}" + "".join(f"{name:>22}" for name in matrices), flush=True)
    for kind in types:
        cells = []
        for name, matrix in matrices.items():
            model = place / f"{kind}-{name}.gguf"
            use = [] if matrix is None else ["--imatrix", matrix]
            ended = subprocess.run([binaries / "llama-quantize", *use, full, model, kind], capture_output=True)
            cells.append("refused" if ended.returncode else divergence(binaries, model, report, logits, chunks))
            model.unlink(missing_ok=True)
        print(f"{kind:18}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choice", default="random-64")
    parser.add_argument("--types", nargs="+", default=["Q2_K", "Q3_K_S", "Q4_K_S"])
    parser.add_argument("--chunks", type=int, default=40, help="of 512 tokens")
    parser.add_argument("--convert", type=Path, metavar="OUT", help="write the base model as GGUF, and nothing else")
    arguments = parser.parse_args()
    workspace = workspace_root()
    if arguments.convert is not None:
        convert(workspace, BaseCheckpoint.of(load_params(workspace).model, workspace).folder, arguments.convert)
    else:
        compare(workspace, arguments.choice, arguments.types, arguments.chunks)

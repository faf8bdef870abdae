"""A calibration set for llm-compressor: the samples as a `datasets` folder, a recipe, and the script that runs both.

llm-compressor must read every sample once, in order, with no token added or cut off. Of its data inputs (release 0.14,
`datasets/utils.py`) only a `DataLoader` guarantees that: it is used unchanged. A `Dataset` gets its own sampler,
shuffled without a seed or longest first, with at most 512 samples by default. Text columns would be tokenized again, by
another rule. So the samples are exported as token ids, for a DataLoader of batch size 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import yaml

from plumbline.calibration_set.reader import read_calibration_set, read_manifest
from plumbline.export.modifiers import differences, reads_samples, recipe
from plumbline.quantized_model.params import SchemeParams

SAMPLES, RECIPE, SCRIPT, README = "samples", "recipe.yaml", "quantize.py", "README.md"
CHECKED = "0.14.0.1"
"""The release of llm-compressor for which benchmarks/peers verified that it reads exactly the exported samples."""


def hand_over(calibration_set: Path, scheme_name: str, scheme: SchemeParams, out: Path) -> dict[str, Any]:
    """Write a calibration set and a scheme so that llm-compressor uses both unchanged.

    Args:
        calibration_set: a calibration_set artifact.
        scheme_name, scheme: an entry of `schemes:`.
        out: the folder to write; may exist if it is empty.

    Returns:
        samples, tokens, shortest and longest sample in tokens, the set's digest, and what the recipe does otherwise
        than the scheme.

    Raises:
        FileExistsError: `out` is not empty.
        ValueError: the set is damaged, or llm-compressor has no counterpart for the scheme.
    """
    steps = recipe(scheme_name, scheme)
    manifest = read_manifest(calibration_set)
    ids = read_calibration_set(calibration_set, ["input_ids"])["input_ids"].combine_chunks()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    _write_samples(ids, manifest["digest"], out / SAMPLES)
    (out / RECIPE).write_text(yaml.safe_dump(steps, sort_keys=False), encoding="utf-8")
    lengths = ids.value_lengths().to_numpy()
    facts = {
        "samples": len(ids),
        "tokens": int(lengths.sum()),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "largest_id": int(ids.flatten().to_numpy().max()),
        "digest": manifest["digest"],
        "fingerprint": manifest["fingerprint"],
        "differences": differences(scheme),
    }
    variables = facts | {
        "name": manifest["choice"]["name"],
        "scheme": scheme_name,
        "reads_samples": reads_samples(scheme),
        "checked": CHECKED,
    }
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    for name in (SCRIPT, README):
        (out / name).write_text(templates.get_template(f"{name}.j2").render(variables), encoding="utf-8")
    return facts


def _write_samples(ids: pa.ListArray, digest: str, folder: Path) -> None:
    """Write input_ids and attention_mask (all ones) with `datasets.save_to_disk`, a row per sample, in order."""
    import datasets

    ones = pa.array(np.ones(len(ids.flatten()), dtype=np.int8))
    offsets = pa.array(np.concatenate([[0], np.cumsum(ids.value_lengths().to_numpy())]), pa.int32())
    mask = pa.ListArray.from_arrays(offsets, ones)
    table = pa.table({"input_ids": ids, "attention_mask": mask})
    # datasets identifies content by its fingerprint, and would generate a random one.
    datasets.Dataset(table, fingerprint=digest[:16]).save_to_disk(str(folder))

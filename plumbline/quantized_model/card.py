"""The model card of a quantized model: what it was made of, how, and what stayed in full precision."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from plumbline.artifact import read_json
from plumbline.quantized_model.kv_cache_words import card_lines
from plumbline.quantized_model.share import bits_per_weight, rows_of, sentence


def write_card(folder: Path) -> None:
    """Write README.md into an exported folder that has its weights and calibration.json."""
    record = read_json(folder / "calibration.json")
    base, chosen = record["base_model"], record["calibration_set"]
    scheme, facts = record["scheme"], rows_of(record["coverage"])
    weight_files = [file for file in record["model"] if file.endswith(".safetensors")]
    said = sentence(facts, bits_per_weight(folder, weight_files, record["coverage"]))
    is_hub = "/" in base["name"] and not Path(base["name"]).exists()
    data = ModelCardData(
        base_model=base["name"] if is_hub else None,
        base_model_relation="quantized" if is_hub else None,
        library_name="transformers",
        tags=["compressed-tensors", "plumbline"],
    )
    kinds = "\n".join(f"| {row['kind']} | {row['weights']:,} | {100 * row['share']:.1f} % |" for row in facts["kinds"])
    left = "\n".join(f"- {row['kind']}, {row['matrices']}: {row['why']}" for row in facts["left"])
    remarks = "".join(f"- {remark}\n" for remark in record["notes"].get("remarks", []))
    cache = record["coverage"].get("cache")
    cached = "" if cache is None else "\n".join(["", *card_lines(scheme["kv_cache"], cache), ""])
    text = f"""# {base["name"]}, quantized under {scheme["name"]}

{said}

It was calibrated with {len(chosen["samples"])} samples of the choice `{chosen["choice"]["name"]}` (strategy
{chosen["choice"]["strategy"]}, seed {chosen["choice"]["seed"]}); `calibration.json` names each of them with its
document. `plumbline audit FOLDER` checks that these weights come from them.

| kind | weights | quantized |
|---|---:|---:|
{kinds}

In full precision:

{left}
{cached}
Base model: {base["name"]}{f", commit {base['revision']}" if base["revision"] else ""}, digest `{base["digest"]}`.
Loaded by transformers with the default settings, {record["loads"]["tokens"]} tokens give the logits that were
simulated, bit for bit. Loaded and saved again, transformers writes the weights in full width.
{remarks}"""
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}", ignore_metadata_errors=True).save(folder / "README.md")

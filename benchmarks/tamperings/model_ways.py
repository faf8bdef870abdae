"""Tamperings with the model's folder and with what its weights were computed from."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.tamperings import chain, forging
from benchmarks.tamperings.forging import edit_json, edit_rows, flip, relock
from benchmarks.tamperings.way import Way
from plumbline.artifact import read_json

MODEL, SET, STATS = chain.MODEL, chain.SET, chain.STATS


def other_weights(root: Path) -> None:
    shutil.copy(root / chain.OTHER_MODEL / "model.safetensors", root / MODEL / "model.safetensors")


def other_weights_resealed(root: Path) -> None:
    other_weights(root)
    forging.weights_in_record(root)


def other_weights_resealed_and_relocked(root: Path) -> None:
    other_weights_resealed(root)
    relock(root)


def other_weights_everywhere(root: Path) -> None:
    other_weights(root)
    forging.forge_all(root, forging.weights_in_record(root))


def whole_other_model(root: Path) -> None:
    shutil.rmtree(root / MODEL)
    shutil.copytree(root / chain.OTHER_MODEL, root / MODEL)


def other_record(root: Path) -> None:
    shutil.copy(root / chain.OTHER_MODEL / "calibration.json", root / MODEL / "calibration.json")


def second_shard(root: Path) -> None:
    shutil.copy(root / MODEL / "model.safetensors", root / MODEL / "model-00002-of-00002.safetensors")


def code(root: Path) -> None:
    (root / MODEL / "modeling_llama.py").write_text("import os\n")
    edit_json(root / MODEL / "config.json", lambda c: c.update(auto_map={"AutoModelForCausalLM": "modeling_llama.X"}))


def code_from_elsewhere(root: Path) -> None:
    edit_json(root / MODEL / "config.json", lambda c: c.update(auto_map={"AutoModelForCausalLM": "evil/repo--m.X"}))


def rope(root: Path) -> None:
    edit_json(root / MODEL / "config.json", lambda c: c.update(rms_norm_eps=1e-3))


def rope_relocked(root: Path) -> None:
    rope(root)
    relock(root)


def temperature(root: Path) -> None:
    edit_json(root / MODEL / "generation_config.json", lambda c: c.update(temperature=2.0, do_sample=True))


def temperature_everywhere(root: Path) -> None:
    temperature(root)
    forging.forge_all(root)


def template(root: Path) -> None:
    (root / MODEL / "chat_template.jinja").write_text("{{ messages }}")


def vocabulary(root: Path) -> None:
    def swap(content: dict) -> None:  # type: ignore[type-arg]
        ids = content["model"]["vocab"]
        a, b = sorted(ids, key=ids.get)[40:42]
        ids[a], ids[b] = ids[b], ids[a]

    edit_json(root / MODEL / "tokenizer.json", swap)


def special_token(root: Path) -> None:
    edit_json(root / MODEL / "tokenizer_config.json", lambda c: c.update(eos_token="<s>"))


def links(root: Path) -> None:
    (root.parent / f"{root.name}-elsewhere").mkdir()
    for name in ("config.json", "calibration.json"):
        target = root.parent / f"{root.name}-elsewhere" / name
        shutil.move(root / MODEL / name, target)
        (root / MODEL / name).symlink_to(target)


def relabelled_record(root: Path) -> None:
    samples = "calibration_set"
    edit_json(root / MODEL / "calibration.json", lambda c: c[samples]["samples"][0].update(domain="licensed"))
    forging.seal(root / MODEL)


def seed_in_record(root: Path) -> None:
    edit_json(root / MODEL / "calibration.json", lambda c: c["calibration_set"]["choice"].update(seed=5))
    forging.seal(root / MODEL)
    relock(root)


def scheme_in_record(root: Path) -> None:
    edit_json(root / MODEL / "calibration.json", lambda c: c["scheme"].update(damping=0.5))
    forging.seal(root / MODEL)
    relock(root)


def code_version_in_record(root: Path) -> None:
    edit_json(root / MODEL / "calibration.json", lambda c: c.update(code_version="f" * 12))
    forging.seal(root / MODEL)
    relock(root)


def other_statistics(root: Path) -> None:
    for path in (root / chain.OTHER_STATS).iterdir():
        shutil.copy(path, root / STATS / path.name)


def statistics_under_a_forged_header(root: Path) -> None:
    digest = read_json(root / STATS / "header.json")["calibration_set"]
    other_statistics(root)
    edit_json(root / STATS / "header.json", lambda c: c.update(calibration_set=digest))


def set_without_a_sample(root: Path) -> None:
    edit_rows(root / SET / "samples.parquet", lambda rows: rows[:-1])


def set_in_other_order(root: Path) -> None:
    edit_rows(root / SET / "samples.parquet", lambda rows: rows[::-1])


def token_edited(root: Path) -> None:
    def change(rows: forging.Rows) -> forging.Rows:
        rows[0]["input_ids"][3] ^= 1
        return [forging.named(row) for row in rows]

    edit_rows(root / SET / "samples.parquet", change)


def reasons(root: Path) -> None:
    edit_rows(root / SET / "samples.parquet", lambda rows: rows[0].update(reason='{"why": "asked for"}') and None)


def counts(root: Path) -> None:
    edit_json(root / SET / "manifest.json", lambda c: c["counts"].update(pool_samples=9999))


def representativeness(root: Path) -> None:
    path = root / SET / "representativeness.json"
    path.write_text(path.read_text().replace('"p_value": 0', '"p_value": 1').replace("percentile", "percentil"))


def set_of_the_other(root: Path) -> None:
    shutil.rmtree(root / SET)
    shutil.copytree(root / chain.OTHER_SET, root / SET)


def base_weights(root: Path) -> None:
    flip(root / "base" / "model.safetensors")


def base_config(root: Path) -> None:
    edit_json(root / "base" / "config.json", lambda c: c.update(rms_norm_eps=1e-3))


WAYS = [
    Way("weights: one bit", lambda r: flip(r / MODEL / "model.safetensors"), "weights"),
    Way("weights of the other model", other_weights, "weights"),
    Way("weights of the other model, record resealed", other_weights_resealed, "model folder"),
    Way("weights, record, dvc.lock and cache agree", other_weights_resealed_and_relocked, "dvc.lock", reference=MODEL),
    Way("weights: a second shard", second_shard, "weights"),
    Way("the whole other model in the champion's place", whole_other_model, "registry"),
    Way("record of the other model", other_record, "record"),
    Way("record removed", lambda r: (r / MODEL / "calibration.json").unlink(), "record"),
    Way("record: a sample's domain, resealed", relabelled_record, "model folder"),
    Way("record: seed, resealed and relocked", seed_in_record, "dvc.lock", reference=MODEL),
    Way("record: scheme, resealed and relocked", scheme_in_record, "dvc.lock", reference=MODEL),
    Way("record: code version, resealed and relocked", code_version_in_record, "dvc.lock", reference=MODEL),
    Way("code in the folder", code, "weights"),
    Way("code from elsewhere", code_from_elsewhere, "model folder"),
    Way("config.json: a field that decides a number", rope, "model folder"),
    Way("config.json and dvc.lock and cache", rope_relocked, "dvc.lock", reference=MODEL),
    Way("sampling temperature", temperature, "model folder"),
    Way("chat template replaced", template, "tokenizer"),
    Way("two tokens exchanged", vocabulary, "tokenizer"),
    Way("special token changed", special_token, "tokenizer"),
    Way("links out of the folder", links, "model folder"),
    Way("statistics: one bit", lambda r: flip(r / STATS / "stats.safetensors"), "statistics"),
    Way("statistics of the other set", other_statistics, "statistics"),
    Way("statistics of the other set, header forged", statistics_under_a_forged_header, "statistics"),
    Way("set: a sample dropped", set_without_a_sample, "calibration set"),
    Way("set: other order", set_in_other_order, "calibration set"),
    Way("set: a token, ids recomputed", token_edited, "calibration set"),
    Way("set: reasons rewritten", reasons, "calibration set"),
    Way("set: counts of the manifest", counts, "calibration set"),
    Way("set: representativeness rewritten", representativeness, "calibration set"),
    Way("set of the other choice", set_of_the_other, "calibration set"),
    Way("base model: one bit", base_weights, "base model"),
    Way("base model: config.json", base_config, "base model"),
    Way("weights replaced, every record forged", other_weights_everywhere, "", "signature"),
    Way("sampling temperature, every record forged", temperature_everywhere, "", "signature"),
]

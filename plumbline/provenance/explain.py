"""The links of an audit: what each means to a reader, and what it compares with what."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from plumbline.text_layout import wrapped


@dataclass(frozen=True)
class Explanation:
    """A link of the chain."""

    name: str
    meaning: str
    """What a verified link says."""
    compares: str
    """What is compared with what."""


LINKS = (
    Explanation(
        "DVC's cache",
        "The folder was restored from DVC's cache by its hash.",
        "each object of DVC's cache with the MD5 that is its name",
    ),
    Explanation(
        "weights file",
        "The file belongs to a model that is known here.",
        "the file's SHA-256 with calibration.json of every model in the workspace, its MD5 with DVC's cache",
    ),
    Explanation(
        "hub cache",
        "Every file of the snapshot has the content that its name in the hub's cache states.",
        "each blob's SHA-256, or git's hash, with the blob's name",
    ),
    Explanation(
        "signature",
        "The holder of the private key signed every file of the folder.",
        "every file of the folder with NAME.sig and the public key",
    ),
    Explanation(
        "statement",
        "The signed in-toto statement agrees with the model's record, and what it names is still on record.",
        "NAME.intoto.json and the public key with calibration.json, and with the runs and promotions on record",
    ),
    Explanation(
        "registry",
        "The registered versions are this folder and load it; what MLflow states of them agrees with it.",
        "each version's tags with the folder's hash, calibration.json and the recorded runs; its source and location "
        "with its logged model, and the files there, if they are on this machine, with the folder's hash; its run's "
        "dataset with the set, parameters with the choice, the scheme and the base model, metrics, tables, plots and "
        "descriptions with metrics.json, representativeness.json and manifest.json",
    ),
    Explanation(
        "promotion history",
        "Who made this model the champion, when and why is recorded without a gap, and the alias agrees.",
        "each entry with the digest of the one before it, with promotions.jsonl, with the tags of its version, "
        "with the descriptions in MLflow and with promotion.json; the newest entry with the alias",
    ),
    Explanation(
        "record",
        "The model has a record of what it was calibrated on; config.json has the digest of that record.",
        "the SHA-256 and the entries of calibration.json with those in config.json",
    ),
    Explanation(
        "weights",
        "The weights are those that were written together with the record.",
        "the SHA-256 of every weights file with calibration.json; of a re-saved copy every tensor with the original's",
    ),
    Explanation(
        "model folder",
        "No file was added, removed or changed since the model was made.",
        "the folder's DVC hash with dvc.lock or DVC's cache; of a re-saved copy every field of config.json and "
        "generation_config.json that decides a number with the original's",
    ),
    Explanation(
        "tokenizer",
        "The tokenizer is the one that tokenized the calibration texts.",
        "the fingerprint of tokenizer, special tokens, chat template and settings with calibration.json",
    ),
    Explanation(
        "base model",
        "The full-precision model is the one whose activations were measured.",
        "the digest of the base model's weights, configuration and code with calibration.json",
    ),
    Explanation(
        "statistics",
        "The stored statistics are those that scales and rounding were computed from.",
        "the SHA-256 of each file with calibration.json; the header's base model, tokenization and set with the record",
    ),
    Explanation(
        "calibration set",
        "The statistics were collected on these samples; every id is the digest of its tokens.",
        "each sample's tokens with its id; ids, order, labels and parameters with calibration.json; the folder's hash "
        "with dvc.lock",
    ),
    Explanation(
        "calibration choice",
        "The set was chosen by the parameters that the model names.",
        "choice.json with calibration.json, the folder's hash with dvc.lock",
    ),
    Explanation(
        "pool",
        "The samples and features that the set was chosen from are the recorded ones.",
        "the hashes of data/tokenized_samples and data/sample_features with dvc.lock",
    ),
    Explanation(
        "documents",
        "The texts behind the samples are in the corpus, under the labels that the model names.",
        "each document's content with its id, its domain and source with calibration.json, the corpus's hash with "
        "dvc.lock",
    ),
    Explanation(
        "texts",
        "The samples are the text of the documents that they name.",
        "the documents, tokenized again by the model's tokenizer, with the tokens of every sample",
    ),
    Explanation(
        "dvc.lock",
        "The recorded stages are the runs that led to the model, with the parameters that the model names.",
        "the entries of dvc.lock with DVC's run cache and git's commit, with each other, and their parameters and code "
        "version with calibration.json",
    ),
    Explanation(
        "evaluation",
        "The model's figures were measured on these weights.",
        "the evaluation's hash with dvc.lock and the registry; weights, scheme, set, tokenization and base model in "
        "metrics.json with calibration.json",
    ),
    Explanation(
        "promotion",
        "The last decision, and the report it rests on, are the recorded ones.",
        "the hashes of data/deployed_model and data/calibration_report with dvc.lock; figures, digests and report in "
        "promotion.json with metrics.json, calibration.json and report.html",
    ),
)
BEYOND = (
    "Out of reach without a signature: whoever changes the artifacts, calibration.json, dvc.lock, DVC's cache and "
    "runs, the registry and promotions.jsonl, all in agreement. `plumbline sign` and --public-key find that, too, "
    "from the day of signing on. Documents are compared with what was ingested, not with the source they came from."
)


def as_list() -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(link) for link in LINKS]


def render_explanation() -> str:
    """Format the links in the order of a report; each with what it compares."""
    lines = ["the links of an audit, and what each compares; one that does not apply is left out", ""]
    for link in LINKS:
        lines += wrapped(f"{link.name}: {link.meaning}", "  ")
        lines += wrapped(f"  compares {link.compares}", "    ")
    return "\n".join([*lines, "", *wrapped(BEYOND, "  ")])

"""The links from the samples to their documents: content and labels of the corpus, and the text behind every token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plumbline.artifact import sha256_json
from plumbline.provenance.link import Case, Link, Status, dig, how_to_restore
from plumbline.provenance.model_files import RESTORE, documents_of, samples_of
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.reader import duplicates
from plumbline.versioning.cache import cached_listing
from plumbline.versioning.code import code_version
from plumbline.versioning.digest import differences, dvc_digest

if TYPE_CHECKING:
    from plumbline.base_model.checkpoint import BaseCheckpoint
    from plumbline.tokenized_samples.encode import Encoder

CORPUS = "data/raw_corpus"
FIRST = 3
"""Number of items that a message lists."""
WRITERS = ("self_generated",)
"""The built-in strategies whose samples the base model writes."""
PIECES_PER_PARENT = 2
"""Most pieces of one parent in a joined sample: special tokens before a window, and a run of its text."""
Tokens = NDArray[np.int32]


def documents(case: Case) -> Link:
    """Check that every document of a sample is in the corpus, with the content of its id and the sample's labels."""
    name = "documents"
    wanted, samples = documents_of(case.record), samples_of(case.record)
    if samples and all(sample.get("doc_ids") == [] for sample in samples):
        return Link(name, "verified", "none: the base model wrote every sample itself")
    if not wanted:
        return Link(name, "missing", "the model does not list its samples' documents", fix=RESTORE)
    corpus = case.root / CORPUS
    if not corpus.is_dir():
        return Link(name, "missing", f"{CORPUS} does not exist", fix=how_to_restore(case, CORPUS))
    rows, problems = _look_up(corpus, wanted)
    altered = bool(problems)
    if absent := sorted(wanted - rows.keys()):
        shown = ", ".join(document[:12] for document in absent[:FIRST])
        problems.append(f"{len(absent)} of {len(wanted)} documents are missing (first {shown})")
    mislabelled = _other_labels(samples, rows)
    problems += mislabelled[:FIRST]
    digest, recorded, read = dvc_digest(corpus, case.hasher), case.recorded(CORPUS), case.wanted(CORPUS)
    if recorded is not None and digest not in (recorded, read):
        altered = True
        before = cached_listing(case.root, recorded)
        found = differences(before, case.hasher.files(corpus))[:FIRST] if before else []
        problems += found or [f"{CORPUS} is not what dvc.lock records"]
    if not problems:
        case.documents = rows
        meaning = f"{len(wanted)} documents in {CORPUS}, every id recomputed from its content, labels as recorded"
        return Link(name, "verified", meaning)
    altered |= bool(mislabelled) and read in (None, digest)
    status: Status = "tampered" if altered else "missing"
    meaning = f"{'altered' if altered else 'the corpus has changed since'}: {'; '.join(problems[: 2 * FIRST])}"
    return Link(name, status, meaning, fix=how_to_restore(case, CORPUS))


def _look_up(corpus: Path, wanted: set[str]) -> tuple[dict[str, list[Document]], list[str]]:
    """Return the rows whose content matches their id, by document, and the problems of the others.

    Only row groups that contain one of the documents are read in full.
    """
    found: dict[str, list[Document]] = {}
    problems: list[str] = []
    skipped: Mapping[str, set[int]] = {}
    try:
        skipped = duplicates(corpus)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        problems.append(f"duplicates.parquet cannot be read ({str(error).splitlines()[0]:.120})")
    for shard in sorted(corpus.glob("shards/*.parquet")):
        try:
            with pq.ParquetFile(shard) as file:
                for group in range(file.num_row_groups):
                    ids = file.read_row_group(group, ["doc_id"])["doc_id"].to_pylist()
                    rows = [row for row, document in enumerate(ids) if document in wanted]
                    for stored in file.read_row_group(group).take(pa.array(rows)).to_pylist() if rows else []:
                        recorded, messages = stored.pop("doc_id"), stored.pop("messages")
                        chat = None if messages is None else tuple(messages)
                        document = Document(messages=chat, **stored)
                        if document.doc_id != recorded:
                            what = f"the content of document {recorded[:12]} does not match its id"
                            problems.append(f"{shard.name}: {what}")
                        elif document.row not in skipped.get(shard.stem, ()):
                            found.setdefault(recorded, []).append(document)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            problems.append(f"{shard.name} cannot be read ({str(error).splitlines()[0]:.120})")
    return found, problems


def _other_labels(samples: Sequence[Mapping[str, Any]], rows: Mapping[str, list[Document]]) -> list[str]:
    """A sentence per sample whose domain or source is not that of its documents."""
    wrong = []
    for number, sample in enumerate(samples):
        listed = sample.get("doc_ids")
        if not isinstance(listed, list) or not listed or not all(document in rows for document in listed):
            continue  # written by the base model, or reported as missing
        of = [rows[document][0] for document in listed]
        labels = {
            "domain": " + ".join(sorted({document.domain for document in of})),
            "source": " + ".join(dict.fromkeys(document.source for document in of)),
        }
        for key, label in labels.items():
            if sample.get(key) != label:
                wrong.append(f"sample {number}: its {key} is {str(sample.get(key))[:40]!r}, the corpus has {label!r}")
    return wrong


# ---------------------------------------------------------------------------------------------------------------------
# The text behind the tokens


def texts(case: Case) -> Link | None:
    """Tokenize the documents again and compare every sample with them.

    None while the links that it needs (record, tokenizer, calibration set, documents) are not verified: they say why.
    """
    name, settings = "texts", dig(case.record, "fingerprint_parts")
    if not (case.record_holds and case.tokenizer_holds) or case.samples is None or not isinstance(settings, dict):
        return None
    listed = {document for sample in case.samples for document in sample["doc_ids"]}
    if not listed <= case.documents.keys() or sha256_json(settings) not in case.claims("fingerprint"):
        return None
    encoder = _encoder(case.model, settings)
    pieces = {document: _samples_of(encoder, settings, case.documents[document][0]) for document in sorted(listed)}
    problems = []
    written = 0
    for number, sample in enumerate(case.samples):
        problem = _problem(case, sample, pieces)
        written += not sample["doc_ids"]
        if problem:
            source = str(sample["source"])[:60]
            problems.append(f"sample {number} ({source}): {problem}")
    if not problems:
        meaning = f"{len(case.samples) - written} samples are the tokens of their documents, which were tokenized again"
        meaning += f"; no text is on record of {written} that the base model wrote" if written else ""
        return Link(name, "verified", meaning)
    made_with = case.runs["data/tokenized_samples"].code_version if "data/tokenized_samples" in case.runs else ""
    if made_with and made_with != code_version("tokenized_samples"):
        meaning = f"another version of Plumbline tokenized them, and this one gives other tokens: {problems[0]}"
        return Link(name, "missing", meaning, made_with, code_version("tokenized_samples"), "audit with that version")
    meaning = f"{len(problems)} of {len(case.samples)} samples are not their documents' text: "
    fix = "do not rely on what the model says of its calibration data; make the set again from the corpus"
    return Link(name, "tampered", meaning + "; ".join(problems[:FIRST]), fix=fix)


@dataclass(frozen=True)
class _Served:
    """What an `Encoder` reads of a base model, from the quantized model's folder, which holds the same tokenizer."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def tokenizer(self) -> Any:
        from plumbline.base_model.load import load_tokenizer

        return load_tokenizer(self.folder)


def _encoder(model: Path, settings: Mapping[str, Any]) -> Encoder:
    from plumbline.tokenized_samples.encode import Encoder
    from plumbline.tokenized_samples.fingerprint import policy_of

    return Encoder(cast("BaseCheckpoint", _Served(model)), policy_of(settings))


def _samples_of(encoder: Encoder, settings: Mapping[str, Any], document: Document) -> dict[str, Tokens]:
    """Every sample of a document by its id, also those that are too short to be used."""
    from plumbline.tokenized_samples.batches import sample_id
    from plumbline.tokenized_samples.fingerprint import policy_of
    from plumbline.tokenized_samples.windows import windows

    [encoded] = encoder.encode([document])
    if isinstance(encoded, str):  # the chat template refuses it
        return {}
    policy = policy_of(settings).model_copy(update={"min_tokens": 1})
    cut, _ = windows(encoded.content, encoded.prefix, encoded.suffix, policy)
    return {sample_id(window.input_ids): window.input_ids for window in cut}


def _problem(case: Case, sample: Mapping[str, Any], pieces: Mapping[str, Mapping[str, Tokens]]) -> str:
    """Why a sample is not the text of its documents; empty if it is."""
    listed, parents = sample["doc_ids"], sample["parents"] or []
    if not listed:
        strategy = str(dig(case.record, "calibration_set", "choice", "strategy"))
        return "" if _may_write(strategy) else f"it names no document, and strategy {strategy} writes no text itself"
    windows = {key: tokens for document in listed for key, tokens in pieces[document].items()}
    if not parents:
        return "" if sample["sample_id"] in windows else f"document {listed[0][:12]} does not give these tokens"
    if unknown := [parent for parent in parents if parent not in windows]:
        return f"its documents have no sample {unknown[0][:12]}, of which it is said to be cut"
    tokens = np.asarray(sample["input_ids"], np.int32)
    count = fewest_pieces(tokens, [windows[parent] for parent in parents])
    return "" if count and count <= PIECES_PER_PARENT * len(parents) else "it is not joined of the samples it names"


def _may_write(strategy: str) -> bool:
    """Whether samples of this strategy may have no document: a built-in one that writes, or one of another package."""
    from plumbline.calibration_set.strategies import get

    if strategy in WRITERS:
        return True
    try:
        return get(strategy).package != "plumbline"
    except ValueError:
        return True  # of a package that is not installed here


def fewest_pieces(tokens: Tokens, sources: Sequence[Tokens]) -> int:
    """The smallest number of runs of the sources that together give the tokens; 0 if none do.

    Args:
        tokens: int32 (t,).
        sources: int32 arrays; a piece is a run of consecutive tokens of one of them.
    """
    longest: Callable[[int], int] = lambda at: max((_longest_run(tokens[at:], source) for source in sources), default=0)  # noqa: E731
    place = count = 0
    while place < len(tokens):
        length = longest(place)
        if not length:
            return 0
        place, count = place + length, count + 1
    return count


def _longest_run(tokens: Tokens, source: Tokens) -> int:
    """Number of first tokens that occur in the source in one run."""
    places = np.arange(len(source))
    length = 0
    while length < len(tokens):
        places = places[places + length < len(source)]
        places = places[source[places + length] == tokens[length]]
        if not len(places):
            break
        length += 1
    return length

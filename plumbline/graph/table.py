"""The table of an artifact: its number of rows, and its columns with descriptions, as Dagster's pages show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

TABLES = {
    "raw_corpus": "shards/*.parquet",
    "tokenized_samples": "shards/*.parquet",
    "sample_features": "*.parquet",
    "calibration_set": "samples.parquet",
    "evaluation": "documents.parquet",
    "study": "documents.parquet",
}
"""Asset -> its table, in one file or in one per source file."""
COLUMNS = {
    "doc_id": "Id of the document: SHA-256 of its content.",
    "doc_ids": "Ids of the documents of which the sample consists.",
    "sample_id": "Id of the sample: a digest of its token ids.",
    "text": "The document's text; null for a chat.",
    "messages": "The turns of a chat; null for a text.",
    "more": "Of a chat: what else its template reads, such as tools, as JSON.",
    "domain": "Domain of the document, such as prose or code.",
    "source": "The file within its source, as source/path.",
    "row": "Row in the source file, from 0.",
    "group": "Documents of a group are in the same split.",
    "split": "pool, tuning, report or production.",
    "window": "Number of the window within the document, from 0.",
    "start": "Position of the window's first token in the document.",
    "n_tokens": "Number of tokens.",
    "n_special": "Number of them that the tokenizer added.",
    "input_ids": "Token ids.",
    "assistant_spans": "Of a chat: start and stop of each part that the assistant wrote, in tokens.",
    "position": "Place of the sample in the set, from 0.",
    "reason": "Why it was picked.",
    "parents": "Ids of the samples from which it was put together; empty for one of the pool.",
    "nll_base": "Negative log-likelihood under the base model, nats, summed over the tokens.",
    "nll_quantized": "Negative log-likelihood under the quantized model, nats, summed over the tokens.",
    "kl_sum": "KL divergence of the quantized from the base model, nats, summed over the tokens.",
    "agree": "Tokens for which both models rank the same token first.",
    "delta_p_squared": "Squared difference of the probabilities of the true token, summed over the tokens.",
    "scheme": "Name of the scheme.",
    "n": "Size of the calibration set.",
    "rule": "Rule that drew the calibration set.",
    "draw": "Number of the draw, from 0.",
}
"""Column -> what is in it."""


def table_metadata(asset: str, folder: Path) -> dict[str, Any]:
    """Row count and column schema of an artifact's table; nothing for an artifact without one."""
    files = sorted(folder.glob(TABLES[asset])) if asset in TABLES else []
    if not files:
        return {}
    import pyarrow.parquet as pq

    schema = pq.read_schema(files[0])
    columns = [
        dg.TableColumn(
            field.name,
            str(field.type).replace("element: ", ""),
            description=COLUMNS.get(field.name),
            constraints=dg.TableColumnConstraints(nullable=field.nullable),
        )
        for field in schema
    ]
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    return {"dagster/row_count": rows, "dagster/column_schema": dg.TableSchema(columns)}

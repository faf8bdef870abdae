"""`corpus:` in params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from plumbline.raw_corpus.document import OUT_OF_DOMAIN, PRODUCTION


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PythonStdlib(_Source):
    """The standard library of the running Python: domains `prose` and `code`."""

    kind: Literal["python_stdlib"]


class Directory(_Source):
    """Every `.txt`, `.md`, `.jsonl`, `.jsonl.gz` and `.parquet` file below a folder."""

    kind: Literal["directory"]
    path: str
    domain: str | None = None
    """Domain of every document; None: the name of the first folder below `path`, or of the source."""
    column: str = "text"
    """Field of a row that holds the text; a row with `messages` (chat) is read as such."""


class HuggingFace(_Source):
    """A dataset of the hub."""

    kind: Literal["huggingface"]
    name: str
    config: str | None = None
    split: str = "train"
    revision: str
    """Commit of the dataset: without it the corpus could change under the same parameters."""
    follow: str | None = None
    """Branch to follow: a sensor asks the hub for its newest commit, which then stands in intake.yaml in place of
    `revision`, and starts a run."""
    column: str = "text"
    streaming: bool = True
    domain: str | None = None
    limit: int | None = Field(default=None, gt=0)


Source = Annotated[PythonStdlib | Directory | HuggingFace, Field(discriminator="kind")]


class CorpusParams(BaseModel):
    """Where documents come from, and how many bad rows a run puts up with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, Source]
    production: Source | None = None
    """A sample of what the model will meet in production. No calibration set takes from it: it is what a set should
    represent (strategies that look at production, representativeness). A document that another source holds, too,
    counts as production's. Without it, the tuning split stands for production."""
    out_of_domain: Source | None = None
    """Texts unlike the corpus. No calibration set takes from them; every quantized model is evaluated on them, too, and
    reported beside: a guard against a set that suits its own domain alone. A document that another source but
    production holds, too, counts as one of these."""
    inbox: str = "inbox"
    """A folder, or a URL that fsspec opens (`s3://bucket/prefix`): a source named `inbox`; new files start a run."""
    max_file_bytes: int = Field(default=2_000_000_000, gt=0)
    """A file of the inbox that is larger, or unpacks to more, is not read."""
    max_document_bytes: int = Field(default=2_000_000, gt=0)
    max_rejected: float = Field(default=0.05, ge=0, le=1)
    """Share of rows that may be bad (duplicates aside) before the run fails; of a file of the inbox, before the file as
    a whole is held back, which stops nothing."""

    def folders(self) -> dict[str, str]:
        """The folders that are read, by what names them, for a message."""
        sources = self.in_order().items()
        return {f"corpus source {name!r}": source.path for name, source in sources if isinstance(source, Directory)}

    def in_order(self) -> dict[str, Source]:
        """Every source by name in the order of ingestion, the inbox aside: what comes first keeps a shared document."""
        apart = {PRODUCTION: self.production, OUT_OF_DOMAIN: self.out_of_domain}
        return {**{name: source for name, source in apart.items() if source is not None}, **self.sources}

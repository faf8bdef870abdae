"""`corpus:` in params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from plumbline.raw_corpus.document import OUT_OF_DOMAIN, PRODUCTION


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    license: str | None = None
    """Licence of the texts, by SPDX's identifier where it has one. It is named in the papers of a model (`plumbline
    audit --bom`, `--croissant`), and decides nothing."""


class ChatFields(BaseModel):
    """Names under which a source's rows have their chats; None: the usual names (see chats.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: str | None = None
    """Field of a row with the list of messages."""
    role: str | None = None
    content: str | None = None
    """Fields of a message."""
    roles: dict[str, str] = {}
    """Other names of roles, such as {bot: assistant}."""
    user: str | None = None
    context: str | None = None
    assistant: str | None = None
    """Fields of a row that is one question, with what it is about, and one answer."""
    system: str | None = None
    tools: str | None = None
    """Fields of a row beside its messages."""


class _Rows(_Source):
    """What is read of a row."""

    column: str = "text"
    """Field with the text. A row with a chat and no text is read as a chat."""
    read: Literal["text", "chat"] | None = None
    """Which is meant where a row has both; None: such rows are rejected as ambiguous."""
    chat: ChatFields = ChatFields()


class PythonStdlib(_Source):
    """The standard library of the running Python: domains `prose` and `code`."""

    kind: Literal["python_stdlib"]


class Directory(_Rows):
    """Every `.txt`, `.md`, `.jsonl`, `.jsonl.gz` and `.parquet` file below a folder."""

    kind: Literal["directory"]
    path: str
    domain: str | None = None
    """Domain of every document; None: the name of the first folder below `path`, else of the source."""


class HuggingFace(_Rows):
    """A dataset of the hub."""

    kind: Literal["huggingface"]
    name: str
    config: str | None = None
    split: str = "train"
    revision: str
    """Commit of the dataset; required, so that the corpus cannot change under the same parameters."""
    follow: str | None = None
    """Branch to follow: a sensor writes its newest commit to intake.yaml, where it overrides `revision`, and starts a
    run."""
    streaming: bool = True
    domain: str | None = None
    limit: int | None = Field(default=None, gt=0)


Source = Annotated[PythonStdlib | Directory | HuggingFace, Field(discriminator="kind")]


class CorpusParams(BaseModel):
    """The sources of documents, and how many rejected rows a run tolerates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, Source]
    production: Source | None = None
    """A sample of production data. No calibration set contains it; it is what a set should represent, for strategies
    and for representativeness. A document that is also in another source counts as production's. Without it, the tuning
    split is the reference."""
    out_of_domain: Source | None = None
    """Texts unlike the corpus. No calibration set contains them; every quantized model is evaluated on them, too, to
    detect a set that suits only its own domain. A document that is also in another source, except production, counts as
    one of these."""
    inbox: str = "inbox"
    """A folder, or a URL that fsspec opens (`s3://bucket/prefix`): a source named `inbox`; new files start a run."""
    max_file_bytes: int = Field(default=2_000_000_000, gt=0)
    """Largest file of the inbox that is read, packed or unpacked."""
    max_document_bytes: int = Field(default=2_000_000, gt=0)
    max_rejected: float = Field(default=0.05, ge=0, le=1)
    """Largest share of rejected rows, without blank rows and duplicates. Above it the run fails; a file of the inbox
    above it is quarantined, and the run continues. An unreadable file of any source is always quarantined."""

    def folders(self) -> dict[str, str]:
        """The folders that are read, by what names them, for a message."""
        sources = self.in_order().items()
        return {f"corpus source {name!r}": source.path for name, source in sources if isinstance(source, Directory)}

    def in_order(self) -> dict[str, Source]:
        """Every source by name in the order of ingestion, without the inbox; the first one keeps a shared document."""
        apart = {PRODUCTION: self.production, OUT_OF_DOMAIN: self.out_of_domain}
        return {**{name: source for name, source in apart.items() if source is not None}, **self.sources}

"""Does a worker run the code that will be recorded? Its machine may have another version of what computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from plumbline.execution.packages import other_packages, package_versions
from plumbline.execution.share_out import WorkerPlace
from plumbline.versioning.code import code_version, library_of


class OtherCode(RuntimeError):
    """The code of this machine is not that of the machine that shares out."""


@dataclass(frozen=True)
class RecordedCode:
    """The code of an asset on the machine that shares out."""

    asset: str
    version: str
    """Its code version; empty: none is recorded, and any will do."""
    root: Path
    """The workspace."""
    packages: Mapping[str, str] = field(default_factory=package_versions)

    def require(self) -> None:
        """Check this machine.

        Raises:
            OtherCode: its code, or a package, has another version.
        """
        host = WorkerPlace.here().host
        for sentence in other_packages(host, package_versions(), self.packages):
            raise OtherCode(sentence)
        if self.version and self.version != code_version(self.asset, library_of(self.root)):
            raise OtherCode(
                f"{host} has another version of the code of {self.asset} than the machine that shares out: install the "
                "same version of Plumbline there, with or without its compiled kernels on both"
            )

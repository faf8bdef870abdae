"""Silence of libraries that write progress bars and advice of their own to standard error."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the context, discard what Python code writes to standard error."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield

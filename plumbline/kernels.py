"""Loading the compiled kernels: absent, unloadable or of another version, PyTorch does the same work instead."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

PACKAGE = Path(__file__).parent


@cache
def load(source: str, version: int) -> ctypes.CDLL | None:
    """The library that was compiled from a C source of the package, or None where it cannot be used.

    Says once why it cannot. Each library exports `plumbline_version()`, the version of its interface.

    Args:
        source: its path in the package, such as `activation_stats/kernel.c`, compiled to `activation_stats/_kernel`.
        version: the interface that the caller expects.
    """
    name = str(Path(source).with_name(f"_{Path(source).stem}"))
    log = logging.getLogger(__name__)
    built = [file for suffix in EXTENSION_SUFFIXES if (file := PACKAGE / f"{name}{suffix}").is_file()]
    if not built:
        log.info(
            "%s was not compiled: PyTorch does its work, more slowly; installing with a C compiler builds it", name
        )
        return None
    try:
        library = ctypes.CDLL(str(built[0]))
        found = int(library.plumbline_version())
    except (OSError, AttributeError) as error:  # built on another machine, or not a kernel
        log.warning("%s cannot be loaded (%s): PyTorch does its work; install Plumbline again to build it", name, error)
        return None
    if found != version:
        log.warning(
            "%s has interface %d, expected %d: PyTorch does its work; install Plumbline again", name, found, version
        )
        return None
    return library


def implementation(source: str, version: int) -> str:
    """`compiled` if the compiled library does the work on this machine, else `fallback`.

    A library may say by `plumbline_level()` that this processor lacks its instructions.
    """
    library = load(source, version)
    level = getattr(library, "plumbline_level", None)
    return "fallback" if library is None or (level is not None and not level()) else "compiled"

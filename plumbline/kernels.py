"""Loads the compiled kernels. If one is missing, unloadable or of another version, PyTorch is used instead."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from threading import Lock

PACKAGE = Path(__file__).parent
log = logging.getLogger(__name__)
_lock = Lock()


def load(source: str, version: int) -> ctypes.CDLL | None:
    """Return the library compiled from a C source of the package, or None if it cannot be used.

    The reason is logged once. Each library exports `plumbline_version()`, the version of its interface.

    Args:
        source: its path in the package; `activation_stats/kernel.c`, say, is compiled to `activation_stats/_kernel`.
        version: the interface that the caller expects.
    """
    with _lock:  # concurrent calls must log the reason only once
        return _load(PACKAGE / source, version)


@cache
def _load(source: Path, version: int) -> ctypes.CDLL | None:
    stem = f"_{source.stem}"
    name = f"{source.parent.name}/{stem}"
    built = [file for suffix in EXTENSION_SUFFIXES if (file := source.with_name(f"{stem}{suffix}")).is_file()]
    if not built:
        log.info(
            "%s was not compiled: PyTorch does its work, more slowly; installing with a C compiler builds it", name
        )
        return None
    try:
        library = ctypes.CDLL(str(built[0]))
        interface = int(library.plumbline_version())
    except (OSError, AttributeError) as error:  # built on another machine, or not a kernel
        log.warning("%s cannot be loaded (%s): PyTorch does its work; install Plumbline again to build it", name, error)
        return None
    if interface != version:
        log.warning(
            "%s has interface %d, expected %d: PyTorch does its work; install Plumbline again", name, interface, version
        )
        return None
    return library


def implementation(source: str, version: int) -> str:
    """Return `compiled` if the compiled library is used on this machine, else `fallback`.

    A library may export `plumbline_level()`, which is 0 if this processor lacks the required instructions.
    """
    library = load(source, version)
    level = getattr(library, "plumbline_level", None)
    return "fallback" if library is None or (level is not None and not level()) else "compiled"

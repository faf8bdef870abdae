"""Loading the compiled kernels: absent, unloadable or of another version, PyTorch does the same work instead."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

PACKAGE = Path(__file__).parent


@cache
def load(name: str, version: int) -> ctypes.CDLL | None:
    """The compiled library `name` (a path below the package, without suffix), or None where it cannot be used.

    Says once why it cannot. Each library exports `plumbline_version()`, the version of its interface.

    Args:
        name: such as `activation_stats/_kernel`.
        version: the interface that the caller expects.
    """
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

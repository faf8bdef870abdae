"""Expected failures: an error that the library raised with a sentence becomes a `dg.Failure` with that sentence."""

from __future__ import annotations

import contextlib
import dis
from collections.abc import Iterator

import dagster as dg

EXPECTED = (ValueError, KeyError, RuntimeError)
"""What the library raises when an input or a parameter is not as it must be."""
PACKAGE = "plumbline"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Within the context, turn an expected error into a failure of the run whose description is the error's message.

    So does an error of the operating system, such as a full disk. Others are faults of the library, or come from
    another library and do not say what to do: they keep their type and their stack.
    """
    try:
        yield
    except (*EXPECTED, OSError) as error:
        if not isinstance(error, OSError) and not raised_by_us(error):
            raise
        # Nothing changes by itself: the same inputs and parameters give the same error.
        raise dg.Failure(sentence(error), allow_retries=False) from error


def raised_by_us(error: BaseException) -> bool:
    """Whether a `raise` statement of the library made this error.

    What C code raises, such as a product of matrices that do not fit, has no frame of its own: it seems to come from
    the line of the library that called it, but that line raises nothing.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return False
    module = str(traceback.tb_frame.f_globals.get("__name__", ""))
    instruction = traceback.tb_frame.f_code.co_code[traceback.tb_lasti]
    return module.split(".")[0] == PACKAGE and dis.opname[instruction] == "RAISE_VARARGS"


def sentence(error: BaseException) -> str:
    """The message of an error; a KeyError's without its quotes."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)

"""Peak memory of this process."""

import contextlib
import re
from pathlib import Path


def peak_bytes() -> int:
    """Peak resident memory since the program started or `forget_peak` (Linux); `getrusage` would include the parent's
    peak."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return 1024 * int(match[1])


def forget_peak() -> None:
    """Reset the peak to the memory that is resident now (Linux, proc_pid_clear_refs(5)), where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

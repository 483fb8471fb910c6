"""Memory of a training on the processor: what a step frees is kept for the next one."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the C library not to hand freed memory back to the operating system.

    Large tensors are otherwise mapped anew whenever they are made, and the system clears every page of them; a step
    that reads all texts of a batch in one pass makes gigabytes of them.

    Returns:
        Whether the C library knows the request (glibc does).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))

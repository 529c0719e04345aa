"""How this process's allocator treats memory that is freed."""

import ctypes
import platform

# From glibc's malloc.h; values are ints.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Keeps freed memory for what comes next; does nothing without glibc.

    Left alone, glibc gives the large tensors of each step back to the system and gets them anew, page by page, at the
    next. The process does not shrink then, and may grow where blocks of tens of MiB alternate with small ones.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, 2**30)  # below it blocks come from the heap
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 2**28)

"""Keeps freed memory in the process, which is half of the speed of training on CPUs, and takes it in large pages.

glibc hands every large tensor back to the system when it is freed and faults fresh pages in for the next one: at
large batches a step spends most of its time there.
"""

from __future__ import annotations

import ctypes
import os
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


def keep_freed_memory() -> bool:
    """Tells glibc to serve large blocks from its heap and to keep what is freed. Call it before tensors are made.

    For the whole process, from now on; no effect on results. Returns False, and does nothing, without glibc. What
    is kept is in pieces, so that whatever is not a weight takes about twice its size: see `return_freed_memory`.
    """
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 256 * 2**20})


def return_freed_memory() -> bool:
    """Gives every freed tensor back to the system, for models that barely fit.

    Costs time: two thirds more for a training step of SmolLM2-135M, whose vocabulary makes large tensors.
    """
    return _set({_M_MMAP_THRESHOLD: 128 * 2**10})  # setting it stops glibc from raising it to 32 MB by and by


def use_huge_pages() -> None:
    """Has PyTorch ask Linux for pages of 2 MB. Call it before any tensor is made.

    A training step of SmolLM2-135M then takes 4.4 GB instead of 5.2 where freed memory is kept; nothing gets slower.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _set(options: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, value) == 1 for option, value in options.items())


def release_freed_memory() -> None:
    """Gives freed memory back to the system once. Does nothing without glibc."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

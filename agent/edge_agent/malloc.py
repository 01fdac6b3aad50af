"""What glibc's malloc does with the memory of large messages: give it back at once, or keep it for the next one.

Given back, each message of some megapixels faults its pages in anew, three times over: as gRPC's bytes, as the parsed
message and as the image. The parameters are those of mallopt(3).
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
# More than any message, and what its growth is rounded up to.
LARGE = 1 << 30
PAD = 64 << 20


def keep_large_allocations() -> bool:
    """Let malloc keep what it is given back, however large; return whether this C library can."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    set_all = [mallopt(M_MMAP_THRESHOLD, LARGE), mallopt(M_TOP_PAD, PAD), mallopt(M_TRIM_THRESHOLD, LARGE)]
    return all(set_all)

"""What glibc's malloc does with the memory of messages: kept for the next one, or given back to the system at once.

What is given back has to be found again, page by page, for the next message: as gRPC's bytes, as those of Python, as a
mask. The parameters are those of mallopt(3); that of the threads' arenas bounds what can be kept, since glibc makes
eight for each processor, and each keeps its own.
"""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
MIB = 1 << 20
# Frames of up to 10 megapixels are kept, larger ones given back: 0.83 of the time of an inline image of 1.3 MB with its
# mask. One arena, since malloc_trim(3) gives back the top of no other one: with two, up to 50 MB stayed, by chance, and eight
# clients at once were not faster.
ORDINARY = {M_MMAP_THRESHOLD: 32 * MIB, M_TRIM_THRESHOLD: 64 * MIB, M_TOP_PAD: 16 * MIB, M_ARENA_MAX: 1}
# More than any message, and what its growth is rounded up to.
ALL = {M_MMAP_THRESHOLD: 1024 * MIB, M_TRIM_THRESHOLD: 1024 * MIB, M_TOP_PAD: 64 * MIB}


def give_back() -> None:
    """Give the system back what is free (malloc_trim(3)), where this C library can."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def keep_messages(*, all_sizes: bool) -> bool:
    """Let malloc keep the memory of ordinary messages, or of all sizes; return whether this C library can."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    parameters = ALL if all_sizes else ORDINARY
    return all(mallopt(parameter, value) for parameter, value in parameters.items())

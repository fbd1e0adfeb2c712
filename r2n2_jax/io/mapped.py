"""Arrays too long to hold in memory: in a temporary file of which only the pages in use are there."""

import mmap
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike


def mapped(shape: Sequence[int], *, kind: DTypeLike = np.float32) -> np.ndarray:
    """An array of zeros in a temporary file that goes away with it.

    Args:
        shape: its shape; the first axis is the one that it is read along.
        kind: the type of its values.

    Raises:
        OSError: where the disk is full.
    """
    row = bytes(np.dtype(kind).itemsize * int(np.prod(shape[1:])))
    with tempfile.TemporaryFile() as file:
        # Written, not skipped over: on a full disk a page that was never written ends the process at its first use.
        for _ in range(shape[0]):
            file.write(row)
        file.flush()
        buffer = mmap.mmap(file.fileno(), shape[0] * len(row))
    return np.frombuffer(buffer, kind).reshape(shape)


def rows(array: np.ndarray) -> Iterator[np.ndarray]:
    """Along the first axis, letting go of what has passed."""
    for row in array:
        yield row
        release(array)


def release(array: np.ndarray) -> None:
    """Lets go of the memory that a mapped array takes: its content stays, and comes back where it is used.

    Nothing happens to an array in memory, nor where the system has no such call.
    """
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    owner = getattr(base, "obj", None)
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)

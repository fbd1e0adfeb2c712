"""What ITK reads of a NIfTI file without a word: one that ends too early, and numbers that are not finite, as zeros."""

import gzip
import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

_FLOATS = {16: "f4", 64: "f8"}  # by the format's code of its type
_BYTES_AT_ONCE = 1 << 24
_HEADER_SIZES = (348, 540)


def count_not_finite(path: Path, *, datatype: int, bits: int, first: int, values: int) -> int:
    """How many of a file's values are NaN or infinite.

    Args:
        path: ``.nii``, or either file of a ``.hdr`` and ``.img`` pair, compressed or not.
        datatype: the format's code of the values' type.
        bits: of one value.
        first: the byte at which they begin.
        values: how many.

    Raises:
        EOFError: where the file ends before the last of them.
    """
    with _opened(_sibling(path, "img")) as file:
        if datatype not in _FLOATS:
            if file.seek(0, os.SEEK_END) < first + values * bits // 8:
                raise EOFError
            return 0
        kind = np.dtype(_FLOATS[datatype]).newbyteorder(_byte_order(path))
        file.seek(first)
        found, left = 0, values * kind.itemsize
        while left:
            part = file.read(min(left, _BYTES_AT_ONCE))
            if len(part) < min(left, _BYTES_AT_ONCE):
                raise EOFError
            found += int(np.count_nonzero(~np.isfinite(np.frombuffer(part, kind))))
            left -= len(part)
    return found


def _byte_order(path: Path) -> str:
    """A header begins with its own size."""
    with _opened(_sibling(path, "hdr")) as file:
        return "<" if int.from_bytes(file.read(4), "little") in _HEADER_SIZES else ">"


def _sibling(path: Path, kind: str) -> Path:
    """Of a pair of header and values the one asked for; a single file is both."""
    return path.with_name(re.sub(r"\.(hdr|img)(\.gz)?$", rf".{kind}\2", path.name, flags=re.IGNORECASE))


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")

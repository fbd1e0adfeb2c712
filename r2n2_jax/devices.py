"""Batches of pairs in chunks of few sizes, each shared among this process's devices: its accelerators, or a CPU's cores."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PAIRS = P("pairs")
EVERYWHERE = P()


def mesh(count: int) -> Mesh:
    """The devices that share ``count`` pairs: one for a single pair, else all."""
    return Mesh(np.array(jax.local_devices()[: 1 if count == 1 else None]), ("pairs",))


def spread(pairs: Any) -> Any:
    """Arrays ``[N, ...]`` with their pairs on the devices of ``mesh(N)``; ``N`` as ``in_chunks`` makes it."""
    count = len(jax.tree.leaves(pairs)[0])
    return jax.device_put(pairs, NamedSharding(mesh(count), PAIRS))


def copy_to_all(tree: Any, count: int) -> Any:
    """Arrays that every device of ``mesh(count)`` needs."""
    return jax.device_put(tree, NamedSharding(mesh(count), EVERYWHERE))


def chunks(register: Callable[..., Any], fixed: np.ndarray, moving: np.ndarray, *, share: int) -> Iterator[Any]:
    """``register(fixed, moving)`` for pairs ``[N, *spatial]``, a chunk at a time, as NumPy arrays.

    A chunk is one pair, or a power of two for every device, ``share`` at most; the last one is filled up with pairs that
    are left out of its result. So a program is compiled for a few sizes and not for every length of a series.
    """
    at_once = _size(len(fixed), share)
    for start in range(0, len(fixed), at_once):
        chunk = np.arange(start, min(start + at_once, len(fixed)))
        filled, kept = np.resize(chunk, at_once), slice(len(chunk))
        result = register(fixed[filled], moving[filled])
        yield jax.tree.map(lambda array, kept=kept: np.asarray(array)[kept], result)


def in_chunks(register: Callable[..., Any], fixed: np.ndarray, moving: np.ndarray, *, share: int) -> Any:
    """As ``chunks``, the results joined along ``N``."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *chunks(register, fixed, moving, share=share))


def _size(count: int, share: int) -> int:
    if count == 1:
        return 1
    devices = jax.local_device_count()
    each = -(-count // devices)
    return devices * min(1 << (each - 1).bit_length(), share)

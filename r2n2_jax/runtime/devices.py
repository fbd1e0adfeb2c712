"""Who computes what: registration shares chunks of pairs among this process's devices (its accelerators, or a CPU's cores),
training shares every batch among the devices of all processes.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from r2n2_jax.errors import InputError

PAIRS = P("pairs")
EVERYWHERE = P()

_SHUTDOWN_SECONDS = 3600  # the other processes wait for the one that judges and writes


def mesh(count: int) -> Mesh:
    """The devices that share ``count`` pairs: one for a single pair, else all."""
    return Mesh(np.array(jax.local_devices()[: 1 if count == 1 else None]), ("pairs",))


def shard(pairs: Any) -> Any:
    """Arrays ``[N, ...]`` with their pairs on the devices of ``mesh(N)``; ``N`` as ``in_chunks`` makes it."""
    count = len(jax.tree.leaves(pairs)[0])
    return jax.device_put(pairs, NamedSharding(mesh(count), PAIRS))


def copy_to_all(tree: Any, count: int) -> Any:
    """Arrays that every device of ``mesh(count)`` needs."""
    return jax.device_put(tree, NamedSharding(mesh(count), EVERYWHERE))


def chunks(register: Callable[..., Any], fixed: np.ndarray, moving: np.ndarray, *, at_once: int) -> Iterator[Any]:
    """``register(fixed, moving)`` for pairs ``[N, *spatial]``, a chunk at a time, as NumPy arrays.

    A chunk is one pair, or for every device the smaller of a power of two and ``at_once``. The last one is filled up with
    pairs that are left out of its result. So a program is compiled for a few sizes and not for every length of a series.
    """
    size = _size(len(fixed), at_once)
    for start in range(0, len(fixed), size):
        chunk = np.arange(start, min(start + size, len(fixed)))
        filled, kept = np.resize(chunk, size), slice(len(chunk))
        result = register(fixed[filled], moving[filled])
        yield jax.tree.map(lambda array, kept=kept: np.asarray(array)[kept], result)


def in_chunks(register: Callable[..., Any], fixed: np.ndarray, moving: np.ndarray, *, at_once: int) -> Any:
    """As ``chunks``, the results joined along ``N``."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *chunks(register, fixed, moving, at_once=at_once))


def _size(count: int, at_once: int) -> int:
    if count == 1:
        return 1
    devices = jax.local_device_count()
    each = -(-count // devices)
    return devices * min(1 << (each - 1).bit_length(), at_once)


def join_processes() -> None:
    """Makes several processes one run, where SLURM or Open MPI started them or JAX's variables name them.

    The variables are ``JAX_COORDINATOR_ADDRESS`` (host:port of process 0), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.

    Raises:
        InputError: where a coordinator is named and the others are missing.
    """
    told = os.environ
    if "JAX_COORDINATOR_ADDRESS" in told:
        try:
            count, index = int(told["JAX_NUM_PROCESSES"]), int(told["JAX_PROCESS_ID"])
        except (KeyError, ValueError):
            raise InputError("JAX_COORDINATOR_ADDRESS is set: JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers") from None
        jax.distributed.initialize(num_processes=count, process_id=index, shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
    elif int(told.get("SLURM_STEP_NUM_TASKS", 1)) > 1 or int(told.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_SECONDS)


def leads() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """A block that process 0 leaves before the others enter it."""
    if not leads():
        multihost_utils.sync_global_devices("leader first")
    try:
        yield
    finally:
        # Where it fails, the others are let in all the same: they fail by the same, and nobody waits.
        if leads():
            multihost_utils.sync_global_devices("leader first")


def training_mesh(batch: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices that share every training batch: of one process as many as share it evenly, of several all.

    Args:
        batch: pairs in it, or in each of the parts that its gradient is added up from.
        devices: by default those of all processes.

    Raises:
        InputError: where several processes cannot share it evenly.
    """
    devices = jax.devices() if devices is None else devices
    if jax.process_count() == 1:
        devices = devices[: max(n for n in range(1, len(devices) + 1) if batch % n == 0)]
    elif batch % len(devices):
        raise InputError(
            f"{batch} pairs at once (--training.batch by --training.accumulate): {len(devices)} devices cannot share them "
            "evenly; name a multiple"
        )
    return Mesh(np.array(devices), ("pairs",))


def own_part(batch: Any) -> Any:
    """Of a batch that every process knows, the pairs that are this one's."""
    size = len(jax.tree.leaves(batch)[0]) // jax.process_count()
    first = size * jax.process_index()
    return jax.tree.map(lambda array: array[first : first + size], batch) if jax.process_count() > 1 else batch


def whole_batch(part: Any, mesh: Mesh) -> Any:
    """The parts of all processes as one batch on the mesh's devices."""
    sharding = NamedSharding(mesh, PAIRS)
    if jax.process_count() == 1:
        return jax.device_put(part, sharding)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), part)


def own_copy(tree: Any) -> Any:
    """Arrays that every device holds, as this process's first device has them."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)

"""Programs that outlive the command: what tracing made of a function, beside the compiled programs that JAX keeps.

JAX's own cache spares the next command the compilation. Tracing and lowering, most of what is left, it does not.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pickle
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export

_DIGEST = hashlib.sha256
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy")
_SETTINGS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_random_seed_offset",
    "jax_threefry_partitionable",
    "jax_use_shardy_partitioner",
)


def kept(jitted: Callable[..., Any], *, depends: Any = None, donate: int = 0) -> Callable[..., Any]:
    """The jitted function, read as StableHLO from JAX's folder of compiled programs where an earlier process left it there.

    A file is named by what a trace depends on: this package's code, the libraries' versions, JAX's settings, the devices, the
    arguments' shapes and places, the options. Nothing is kept without such a folder (``jax_compilation_cache_dir``), of several
    processes, while debugging, and of what cannot be written down; under ``jit``, ``grad`` and ``vmap`` it is the function.

    Args:
        jitted: positional arguments are pytrees of arrays, keywords are static.
        depends: what it depends on beside its arguments, where it closes over something; its ``repr`` says all.
        donate: how many of the first arguments ``jitted`` donates.
    """
    programs: dict[Any, Callable[..., Any]] = {}

    @functools.wraps(jitted)
    def call(*arrays: Any, **options: Any) -> Any:
        leaves, structure = jax.tree.flatten(arrays)
        folder = _folder(leaves)
        if folder is None:
            return jitted(*arrays, **options)
        settings = tuple(getattr(jax.config, name, None) for name in _SETTINGS)
        key = (structure, tuple(map(_kind, leaves)), tuple(options.items()), settings)
        if key not in programs:
            whole = (f"{jitted.__module__}.{jitted.__qualname__}", depends, key, _CODE, _environment())
            path = folder / f"{jitted.__name__}-{_DIGEST(repr(whole).encode()).hexdigest()}-program"
            donated = tuple(range(len(jax.tree.leaves(arrays[:donate]))))
            programs[key] = _program(path, jitted, arrays, options, donated)
        return programs[key](*arrays, **options)

    return call


def _folder(leaves: Sequence[Any]) -> Path | None:
    """Where programs are kept; None where they are not, or not for such arguments."""
    config, name = jax.config, jax.config.jax_compilation_cache_dir
    if not name or "://" in name or not config.jax_enable_compilation_cache or jax.process_count() > 1:
        return None
    if config.jax_debug_nans or config.jax_disable_jit or config.jax_default_device is not None:
        return None
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return None
    # A program is made for the default backend.
    places = {device.platform for leaf in leaves if isinstance(leaf, jax.Array) for device in leaf.sharding.device_set}
    return Path(name) if places <= {jax.devices()[0].platform} else None


def _kind(leaf: Any) -> tuple[Any, ...]:
    return jax.typeof(leaf), getattr(leaf, "sharding", None)


@functools.cache
def _environment() -> tuple[Any, ...]:
    versions = [importlib.metadata.version(name) for name in _LIBRARIES]
    return versions, [(device.platform, device.device_kind) for device in jax.devices()]


def _code(package: Path) -> str:
    code = _DIGEST()
    for path in sorted(package.rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()


# Now, as the package is imported: later the files may be others than those that run.
_CODE = _code(Path(__file__).parents[1])


def _program(
    path: Path, jitted: Callable[..., Any], arrays: tuple[Any, ...], options: dict[str, Any], donated: tuple[int, ...]
) -> Callable[..., Any]:
    try:
        program, returned = _read(path) or _build(path, jitted, arrays, options)
    except NotImplementedError:  # what calls Python from within, say
        return jitted
    compiled = jax.jit(program.call, donate_argnums=donated)

    def call(*arrays: Any, **_: Any) -> Any:
        return jax.tree.unflatten(returned, compiled(*jax.tree.leaves(arrays)))

    return call


def _build(path: Path, jitted: Callable[..., Any], arrays: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """Traces the function on flat arrays, and keeps that where the disk has room."""
    leaves, structure = jax.tree.flatten(arrays)
    returned = []

    def flat(*leaves: Any) -> list[Any]:
        result = jitted(*jax.tree.unflatten(structure, leaves), **options)
        returned.append(jax.tree.structure(result))
        return jax.tree.leaves(result)

    flat.__name__ = jitted.__name__
    program = export.export(jax.jit(flat))(*leaves)
    content = pickle.dumps((bytes(program.serialize()), returned[0]))
    with contextlib.suppress(OSError):
        _write(path, _DIGEST(content).digest() + content)
    return program, returned[0]


def _read(path: Path) -> tuple[Any, Any] | None:
    """What ``_build`` left; None where nothing is there, or not all of it."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    size = _DIGEST().digest_size
    digest, content = whole[:size], whole[size:]
    if _DIGEST(content).digest() != digest:
        return None
    program, returned = pickle.loads(content)
    return export.deserialize(bytearray(program)), returned


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, also where two processes write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

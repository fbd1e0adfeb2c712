"""Programs that outlive the command: what tracing made of a function, beside the compiled programs that JAX keeps.

JAX's own cache spares the next command the compilation. Tracing and lowering, most of what is left, it does not.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax import export

_PACKAGE = Path(__file__).parent
_DIGEST = hashlib.sha256


def kept(jitted: Callable[..., Any], *, depends: Any = None, donate: int = 0) -> Callable[..., Any]:
    """The jitted function, read as StableHLO from JAX's folder of compiled programs where an earlier process left it there.

    A file is named by all that a trace depends on: this package's code, JAX's version, the devices, the arguments' shapes
    and the options. Without such a folder (``jax_compilation_cache_dir``), and of several processes, nothing is kept.

    Args:
        jitted: positional arguments are pytrees of arrays, keywords are static.
        depends: what it depends on beside its arguments, where it closes over something; its ``repr`` says all.
        donate: how many of the first arguments ``jitted`` donates.
    """
    programs: dict[Any, Callable[..., Any]] = {}

    @functools.wraps(jitted)
    def call(*arrays: Any, **options: Any) -> Any:
        folder = jax.config.jax_compilation_cache_dir
        if folder is None or "://" in folder or jax.process_count() > 1:
            return jitted(*arrays, **options)
        leaves, structure = jax.tree.flatten(arrays)
        key = (structure, tuple(map(_kind, leaves)), tuple(options.items()))
        if key not in programs:
            whole = (f"{jitted.__module__}.{jitted.__qualname__}", depends, key, _environment())
            path = Path(folder) / f"{jitted.__name__}-{_DIGEST(repr(whole).encode()).hexdigest()}-program"
            program, returned = _read(path) or _build(path, jitted, arrays, options)
            donated = tuple(range(len(jax.tree.leaves(arrays[:donate]))))
            programs[key] = jax.jit(program.call, donate_argnums=donated), returned
        program, returned = programs[key]
        return jax.tree.unflatten(returned, program(*leaves))

    return call


def _kind(leaf: Any) -> tuple[Any, ...]:
    return jax.typeof(leaf), getattr(leaf, "sharding", None)


@functools.cache
def _environment() -> tuple[Any, ...]:
    code = _DIGEST()
    for path in sorted(_PACKAGE.rglob("*.py")):
        code.update(path.read_bytes())
    devices = [(device.platform, device.device_kind) for device in jax.devices()]
    settings = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
    return code.hexdigest(), jax.__version__, jaxlib.__version__, devices, settings


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
    handle, partial = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)

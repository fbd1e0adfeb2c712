"""Programs that outlive the command: what tracing made of a function, beside the compiled programs that JAX keeps.

JAX's own cache spares the next command the compilation. Tracing and lowering, most of what is left, it does not.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from flax.core import FrozenDict
from jax import export

from r2n2_jax.runtime.folders import make_own

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
_SUFFIX = "-export"
_MOST_KEPT = 64
# With what a writer that was killed has left. Older code pickled its programs, and they are not read any more.
_PROGRAM = re.compile(rf".+-[0-9a-f]{{64}}{_SUFFIX}(\.[0-9a-f]{{32}})?")
_PICKLED = re.compile(r".+-[0-9a-f]{64}-program(\.[0-9a-f]{32})?")


def kept(
    jitted: Callable[..., Any], *, depends: Any = None, donate: int = 0, returns: Sequence[type] = ()
) -> Callable[..., Any]:
    """The jitted function, read as StableHLO from JAX's folder of compiled programs where an earlier process left it there.

    A file is named by what a trace depends on: this package's code, the libraries' versions, JAX's settings, the devices, the
    arguments' shapes and places, the options. Nothing is kept without such a folder (``jax_compilation_cache_dir``), in one
    that others can write to, of several processes, while debugging, and of what cannot be written down; under ``jit``,
    ``grad`` and ``vmap`` it is the function.

    Args:
        jitted: positional arguments are pytrees of arrays, keywords are static.
        depends: what it depends on beside its arguments, where it closes over something; its ``repr`` says all.
        donate: how many of the first arguments ``jitted`` donates.
        returns: the NamedTuples in its result that are in no argument. Their names alone are in the file.
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
            path = folder / f"{jitted.__name__}-{_DIGEST(repr(whole).encode()).hexdigest()}{_SUFFIX}"
            program = _program(path, jitted, arrays, options, _types(structure).union(returns))
            programs[key] = jitted if program is None else _compiled(program, donate)
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
    path: Path, jitted: Callable[..., Any], arrays: tuple[Any, ...], options: dict[str, Any], types: Iterable[type]
) -> export.Exported | None:
    """The program that is kept at ``path``, now if not before; None where the folder or the function forbids it."""
    if not make_own(path.parent):
        return None
    try:
        for node in types:
            _register(node)
        return _read(path) or _build(path, jitted, arrays, options)
    except (NotImplementedError, TypeError, ValueError):
        # What calls Python from within, say, or is made of what JAX cannot name. An error of the function's own comes again.
        return None


def _compiled(program: export.Exported, donate: int) -> Callable[..., Any]:
    compiled = jax.jit(program.call, donate_argnums=tuple(range(donate)))
    return lambda *arrays, **_: compiled(*arrays)


def _types(structure: jax.tree_util.PyTreeDef) -> set[type]:
    """What a pytree's inner nodes are."""
    node = structure.node_data()
    return {node[0]}.union(*map(_types, structure.children())) if node else set()


@functools.cache
def _register(node: type) -> None:
    """Lets JAX write a type's name into a program; it takes every type once.

    Raises:
        ValueError: where another type has that name.
    """
    name = f"{node.__module__}.{node.__qualname__}"
    if node is FrozenDict:
        export.register_pytree_node_serialization(
            node,
            serialized_name=name,
            serialize_auxdata=lambda keys: json.dumps(keys).encode(),
            deserialize_auxdata=lambda keys: tuple(json.loads(keys)),
        )
    elif hasattr(node, "_fields"):
        export.register_namedtuple_serialization(node, serialized_name=name)


def _build(path: Path, jitted: Callable[..., Any], arrays: tuple[Any, ...], options: dict[str, Any]) -> export.Exported:
    """Traces the function, and keeps that where the disk has room."""
    program = export.export(jitted)(*arrays, **options)
    content = bytes(program.serialize())
    with contextlib.suppress(OSError):
        _write(path, _DIGEST(content).digest() + content)
        _prune(path.parent)
    return program


def _read(path: Path) -> export.Exported | None:
    """What ``_build`` left; None where nothing is there, or not all of it, or something else."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    size = _DIGEST().digest_size
    digest, content = whole[:size], whole[size:]
    if _DIGEST(content).digest() != digest:
        return None
    try:
        program = export.deserialize(bytearray(content))
    except Exception:  # JAX does not say which: it takes the bytes for what they are not
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used just now: others are pruned before it
    return program


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, also where two processes write the same."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _prune(folder: Path) -> None:
    """Deletes the programs that older code pickled, and all but those that were used last."""
    files = list(folder.iterdir())
    pickled = [path for path in files if _PICKLED.fullmatch(path.name)]
    programs = sorted((path for path in files if _PROGRAM.fullmatch(path.name)), key=lambda path: path.stat().st_mtime_ns)
    for path in pickled + programs[:-_MOST_KEPT]:
        with contextlib.suppress(OSError):
            path.unlink()

"""What the three commands share: arguments from dataclasses, one-line errors, exit codes."""

import contextlib
import io
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import tyro
from threadpoolctl import threadpool_limits

from r2n2_jax.errors import DivergedError, InputError
from r2n2_jax.runtime.devices import join_processes, leads
from r2n2_jax.runtime.folders import make_own

T = TypeVar("T")

_BAD_INPUT = 2
_INTERRUPTED = 130
_WORTH_KEEPING = 0.3  # seconds of compilation
_MOST_CORES = 16


def parse(arguments: type[T], args: Sequence[str] | None = None, *, default: T | None = None, description: str) -> T:
    """A dataclass from the command line.

    Raises:
        InputError: where the words do not fit, with tyro's explanation in one line.
        SystemExit: after ``--help``.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(arguments, args=args, description=description, **({} if default is None else {"default": default}))
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise InputError(_one_line(printed.getvalue())) from None
    except ValueError as error:
        raise InputError(str(error)) from error


def run(main: Callable[[], None], *, share_cores: bool = False) -> int:
    """Runs a command and returns its exit code: 0, 2 for bad input and a full disk, 130 when interrupted.

    Args:
        main: the command.
        share_cores: a CPU's cores become JAX's devices, which share batches of pairs. Registration gains by it; a training
            step on all cores of one device is a little faster than on a device for each.
    """
    try:
        if share_cores:
            make_cores_devices()
        join_processes()
        main()
    except (InputError, DivergedError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


def make_cores_devices() -> None:
    """A CPU's cores become JAX's devices, before it is asked for any; JAX's own settings come first.

    Every core then solves the small systems of its own pairs. OpenBLAS, which JAX calls for them, must not share one system
    among all cores as well: its threads would wait for each other, three times as long from a hundred unknowns on.
    """
    told = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices > 0
    if not told:
        jax.config.update("jax_num_cpu_devices", min(_cores(), _MOST_CORES))
    threadpool_limits(1, user_api="blas")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def announce_device() -> None:
    """Says what computes, so that nobody trains on a CPU without knowing, and where its compiled programs are kept."""
    kept, devices = _keep_compiled_programs(), jax.devices()
    if not leads():
        return
    print(f"compiled programs are {kept}")
    if jax.process_count() > 1:
        print(f"{jax.process_count()} processes share the work")
    if jax.default_backend() == "cpu":
        print(f"computing on the CPU ({_cores()} cores): JAX found no accelerator")
    else:
        print(f"computing on {len(devices)} x {devices[0].device_kind}")


def _keep_compiled_programs() -> str:
    """Lets compiled programs outlive the command: the next one starts at once. JAX's own setting comes first.

    They are run as they are found. So only a folder that others cannot write to is chosen; into one that is named JAX puts
    its own whosever it is.

    Returns:
        where they are kept, in words.
    """
    named = jax.config.jax_compilation_cache_dir
    if named:
        trusted = "://" in named or make_own(Path(named))
        return f"kept in {named}" if trusted else f"kept in {named}, but JAX's alone: the folder is not yours alone to write to"
    if named is not None:
        return "not kept"
    folder = next(filter(make_own, _folders()), None)
    if folder is None:
        return "not kept: no folder is yours alone to write to"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
    return f"kept in {folder}"


def _folders() -> Iterator[Path]:
    """Where programs can be kept, the best place first.

    A home that several machines share gets a folder for each, as their programs are not each other's. A user without a home,
    as a container may have, gets a folder among the temporary ones.
    """
    with contextlib.suppress(RuntimeError):
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r2n2_jax" / platform.node()
    with contextlib.suppress(OSError):
        yield Path(tempfile.gettempdir()) / f"r2n2_jax-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def _one_line(message: str) -> str:
    """The parser's message without its box, the box's title, the colours and the option's whole help."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", message).partition("\n")[2]
    plain = " ".join(re.sub(r"[\u2500-\u257f]", " ", plain).split())
    plain = re.sub(r"\.?( Got errors:.*?)? Argument helptext:.*?(?= For full helptext|$)", ";", plain)
    return plain.replace("invalid literal for int() with base 10:", "not a whole number:")

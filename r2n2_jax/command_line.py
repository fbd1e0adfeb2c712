"""What the three commands share: arguments from dataclasses, one-line errors, exit codes."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import tyro

from r2n2_jax.errors import InputError
from r2n2_jax.training.loop import DivergedError

T = TypeVar("T")

_BAD_INPUT = 2
_INTERRUPTED = 130


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


def run(main: Callable[[], None]) -> int:
    """Runs a command and returns its exit code: 0, 2 for bad input and a full disk, 130 when interrupted."""
    try:
        main()
    except (InputError, DivergedError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


def announce_device() -> None:
    """Says what computes, so that nobody trains on a CPU without knowing."""
    devices = jax.devices()
    if jax.default_backend() == "cpu":
        print(f"computing on the CPU ({os.cpu_count()} cores): JAX found no accelerator")
    else:
        print(f"computing on {len(devices)} x {devices[0].device_kind}")


def _one_line(message: str) -> str:
    """The parser's message without its box, the box's title and the colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", message).partition("\n")[2]
    plain = re.sub(r"[\u2500-\u257f]", " ", plain)
    return " ".join(plain.split())

"""The commands ``r2n2-jax train``, ``r2n2-jax eval`` and ``r2n2-jax register``, and what they share."""

import importlib
import sys

_MODULES = {"train": "train", "eval": "evaluate", "register": "register"}


def main() -> int:
    """``r2n2-jax NAME ...``: runs the command of that name and returns its exit code."""
    name, *words = sys.argv[1:] or ["--help"]
    if name not in _MODULES:
        asked = name in ("-h", "--help")
        text = f"r2n2-jax {' | '.join(_MODULES)}, each with --help"
        print(text if asked else f"error: {name}: no such command; {text}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    sys.argv = [f"r2n2-jax {name}", *words]
    return importlib.import_module(f"{__name__}.{_MODULES[name]}").command()

"""Deformable registration of medical image series by a recurrent network."""

import importlib
from typing import TYPE_CHECKING, Any

from r2n2_jax.version import VERSION

if TYPE_CHECKING:
    from r2n2_jax.errors import InputError
    from r2n2_jax.registration.registrar import Registrar, load
    from r2n2_jax.registration.result import Registration

__version__ = VERSION
__all__ = ["InputError", "Registrar", "Registration", "load"]

_HOMES = {
    "InputError": "r2n2_jax.errors",
    "Registrar": "r2n2_jax.registration.registrar",
    "Registration": "r2n2_jax.registration.result",
    "load": "r2n2_jax.registration.registrar",
}


def __getattr__(name: str) -> Any:
    """The public names, imported at first use: the pure functions need none of what reads files and trains networks."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Deformable registration of medical image series by a recurrent network."""

from r2n2_jax.errors import InputError
from r2n2_jax.registration import Registrar, Registration, load
from r2n2_jax.version import VERSION

__version__ = VERSION
__all__ = ["InputError", "Registrar", "Registration", "load"]

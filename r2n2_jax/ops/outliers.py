r"""Residuals of which a large one counts no more than a constant, so that what no motion explains does not pull at the field.

.. math:: \phi(r) = r / \sqrt{1 + r^2 / \tau^2}

References:
    Geman and McClure, Statistical methods for tomographic image reconstruction, Bulletin of the International Statistical
    Institute 52(4), 1987.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

OUTLIER = 2.0  # tau, of images in units of their local contrast


@jax.jit
def bounded(residuals: Array, outlier: Array | float) -> Array:
    """``phi`` of the module's docstring, of residuals ``[...]``; ``outlier`` is its ``tau``."""
    return residuals / jnp.sqrt(1.0 + (residuals / outlier) ** 2)


@jax.jit
def bounded_slope(residuals: Array, outlier: Array | float) -> Array:
    """The derivative of ``bounded`` in every residual: one where they are small, none where they are large."""
    return (1.0 + (residuals / outlier) ** 2) ** -1.5

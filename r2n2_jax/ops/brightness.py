r"""What a smooth change of brightness explains of the difference of two images ``[*spatial, 1]``, float32.

A coil's sensitivity stays where it is while tissue moves through it, and would be taken for motion. So the mismatch is

.. math:: \min_c \overline{(r - B^T c)^2} + \rho |c|^2

where ``r`` is the difference and the rows of ``B`` are polynomials of second degree, and those times the fixed image: an offset
and a gain. ``c`` is solved for in place (variable projection; Golub and Pereyra, SIAM Journal on Numerical Analysis 10(2),
1973).
"""

import functools
import itertools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from r2n2_jax.ops.grid import components, coordinates

Array = jax.Array

PRIOR = 1e-2


@jax.jit
def brightness_terms(fixed: Array, points: Array) -> Array:
    """What the terms of a smooth change of brightness do to the fixed image: ``B [terms, pixels]``.

    Args:
        fixed: ``[pixels]``, the fixed image's values.
        points: ``[pixels, d]``, where they are, normalised.
    """
    at = components(points)
    mixed = [part * other for part, other in itertools.combinations(at, 2)]
    smooth = jnp.stack([jnp.ones_like(at[0]), *at, *mixed, *(2.0 * part**2 - 1.0 for part in at)])
    return jnp.concatenate([smooth, smooth * fixed[None]])


def explained(terms: Array, counted: Array) -> tuple[Array, Callable[[Array], Array]]:
    """``B [terms, pixels]``, zero at the pixels that are not ``counted [pixels]``; and what solves for ``c``, given ``B r``."""
    terms = jnp.where(counted[None], terms, 0.0)
    pixels = jnp.maximum(jnp.sum(counted), 1)
    factor = jax.scipy.linalg.cho_factor(terms @ terms.T + PRIOR * pixels * jnp.eye(len(terms)))
    return terms, functools.partial(jax.scipy.linalg.cho_solve, factor)


@jax.jit
def compensated_mse(fixed: Array, warped: Array, mask: Array) -> Array:
    """The mean squared error over the masked pixels, apart from what a smooth change of brightness explains.

    It has first derivatives, not second ones.

    Args:
        fixed: ``[*spatial, 1]``.
        warped: the same shape.
        mask: ``[*spatial]`` bool.

    Returns:
        a scalar, at most ``ops.similarity.mse``; zero where the mask is empty.
    """
    chex.assert_equal_shape([fixed, warped])
    chex.assert_shape(mask, fixed.shape[:-1])
    points = coordinates(mask.shape).reshape(-1, mask.ndim)
    terms, solve = explained(brightness_terms(fixed.ravel(), points), mask.ravel())
    residuals = jnp.where(mask.ravel(), (warped - fixed).ravel(), 0.0)
    # At its minimum the mismatch does not change with c: the gradient is exact without c's own.
    found = jax.lax.stop_gradient(solve(terms @ residuals))
    pixels = jnp.maximum(jnp.sum(mask), 1)
    return jnp.sum((residuals - found @ terms) ** 2) / pixels + PRIOR * found @ found

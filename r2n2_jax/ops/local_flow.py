r"""What the residual of two images says of the motion around EVERY pixel, to first order and at several scales, float32.

Around each pixel :math:`p` stands a Gaussian window :math:`w`. With the residual :math:`r = F - W` and the slope :math:`g`, as
in ``ops.flow``, the shift :math:`v` whose field :math:`w\,v` explains most of the residual is

.. math:: v = (A + \mu I)^{-1} b, \qquad A = \sum_x w^2 g g^T, \qquad b = \sum_x w\,r\,g

and :math:`v^T b` is how much it explains. The sums of all windows are convolutions (Lucas and Kanade, An iterative image
registration technique, IJCAI 1981).
"""

import functools
import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from r2n2_jax.ops.matrix import inverse

Array = jax.Array

_DAMPING, _NO_SLOPE = 0.05, 1e-3


@functools.partial(jax.jit, static_argnames="deviations")
def local_flow(residual: Array, slopes: Sequence[Array], *, deviations: tuple[float, ...]) -> tuple[Array, Array]:
    """The best shift around every second pixel, and how much of the residual it explains.

    Args:
        residual: ``[*spatial]``, what is to be explained, zero where a pixel does not count.
        slopes: of what is shown in the displacement's ``d`` components, ``[*spatial]`` each, likewise.
        deviations: of the windows, normalised units.

    Returns:
        ``[*spatial / 2, scales]``, the explained sum of squares over the number of pixels; and ``[*spatial / 2, scales, d]``,
        the shifts, normalised, in ``(x, y[, z])`` order.
    """
    d = residual.ndim
    chex.assert_equal_shape([residual, *slopes])
    chex.assert_axis_dimension(jnp.stack(slopes), 0, d)
    pairs = [(i, j) for i in range(d) for j in range(i, d)]
    pulls = _halved(jnp.stack([residual * slope for slope in slopes]))
    tensors = _halved(jnp.stack([slopes[i] * slopes[j] for i, j in pairs]))
    pixels = math.prod(pulls.shape[1:])
    gains, shifts = [], []
    for deviation in deviations:
        b = jnp.moveaxis(_windowed(pulls, deviation), 0, -1)
        # The window's square is a window as well, narrower by the root of two.
        sums = dict(zip(pairs, _windowed(tensors, deviation / math.sqrt(2.0)), strict=True))
        floor = _DAMPING * sum(sums[i, i] for i in range(d)) + _NO_SLOPE * pixels * deviation**d
        rows = [[sums[min(i, j), max(i, j)] + (floor if i == j else 0.0) for j in range(d)] for i in range(d)]
        matrices = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
        inverses = jax.vmap(inverse)(matrices.reshape(-1, d, d)).reshape(matrices.shape)
        shift = jnp.einsum("...ij,...j->...i", inverses, b)
        gains.append(jnp.sum(shift * b, axis=-1) / pixels)
        shifts.append(shift)
    return jnp.stack(gains, axis=-1), jnp.stack(shifts, axis=-2)


def _halved(maps: Array) -> Array:
    """The means of ``2^d`` neighbours: ``[C, *spatial]`` to ``[C, *spatial / 2]``; of odd sizes the last pixel twice."""
    maps = jnp.pad(maps, [(0, 0), *((0, n % 2) for n in maps.shape[1:])], mode="edge")
    for axis in range(1, maps.ndim):
        first, second = (jax.lax.slice_in_dim(maps, start, None, 2, axis) for start in (0, 1))
        maps = 0.5 * (first + second)
    return maps


def _windowed(maps: Array, deviation: float) -> Array:
    """Sums under a Gaussian window of height one around every pixel, for each of ``[C, *spatial]``."""
    for axis in range(1, maps.ndim):
        n = maps.shape[axis]
        at = (2.0 * jnp.arange(n) + 1.0) / n - 1.0
        window = jnp.exp(-0.5 * ((at[:, None] - at[None]) / deviation) ** 2)
        maps = jnp.moveaxis(jnp.tensordot(window, maps, (1, axis)), 0, axis)
    return maps

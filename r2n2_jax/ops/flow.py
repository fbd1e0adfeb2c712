"""What ONE pair of images ``[*spatial, 1]`` float32 says about their motion to first order, in normalised units."""

import chex
import jax
import jax.numpy as jnp

from r2n2_jax.ops.grid import half_extent
from r2n2_jax.ops.matrix import inverse

Array = jax.Array

_DAMPING = 0.05
_NO_SLOPE = 1e-3  # what is added where a window sees no slope at all: standardised images have slopes of one and more


@jax.jit
def flow(fixed: Array, warped: Array, window: Array) -> Array:
    r"""The shift ``v`` whose field ``window * v`` best explains the difference of two images (Lucas and Kanade, 1981).

    To first order :math:`W(x + w(x)\,v) = W(x) + w(x)\,v^T g(x)`. Least squares over the pixels give

    .. math:: v = (A + \mu I)^{-1} b, \qquad A = \sum_x w^2 g g^T, \qquad b = \sum_x w\,(F - W)\,g

    with the mean slope :math:`g` of both images, which makes the step right to second order (Benhimane and Malis, 2004), and
    a damping :math:`\mu` of a twentieth of :math:`\mathrm{tr} A`, which keeps ``v`` small where the images show no slope.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        warped: the same shape.
        window: ``[*spatial]``, how far each pixel follows ``v``, in ``[0, 1]``; zero where a pixel is not to count.

    Returns:
        ``[d]``: the shift of the fixed image's points towards their places in the warped one, in ``(x, y[, z])`` order.
    """
    chex.assert_equal_shape([fixed, warped])
    chex.assert_shape(window, fixed.shape[:-1])
    difference = (fixed - warped)[..., 0]
    mean = 0.5 * (fixed + warped)[..., 0]
    extents = half_extent(window.shape)
    d = window.ndim
    slopes = [extents[i] * jnp.gradient(mean, axis=d - 1 - i) * window for i in range(d)]
    # Sums of products, one loop over the pixels, where a stacked [*spatial, d] would be short along its last axis.
    matrix = jnp.stack([jnp.stack([jnp.sum(a * b) for b in slopes]) for a in slopes])
    damped = matrix + (_DAMPING * jnp.trace(matrix) + _NO_SLOPE) * jnp.eye(d)
    return inverse(damped) @ jnp.stack([jnp.sum(difference * slope) for slope in slopes])

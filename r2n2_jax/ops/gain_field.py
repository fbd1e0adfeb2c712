r"""How much brighter one image is than another, smoothly over the whole image: as two coils see it, or one that has moved.

Local contrast hardly changes with the gain where there is much of it. Where there is little, next to its floor, it does. So the
ratio of both images' contrast in wide neighbourhoods is taken as :math:`\exp(q(x))`, with a polynomial :math:`q` of the second
degree, and half of it is given to each image.
"""

import jax
import jax.numpy as jnp

from r2n2_jax.ops.grid import components, coordinates
from r2n2_jax.ops.local_contrast import FLOOR, around

Array = jax.Array

_WIDENED = 2.0  # times the window of local contrast: an organ that has moved is still in it
_PRIOR, _LEAST_POWER = 1e-3, 2e-3


@jax.jit
def even(fixed: Array, moving: Array, noise: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Both images with the same gain.

    Args:
        fixed: ``[*spatial, 1]``, after ``local_contrast.quiet``.
        moving: the same shape.
        noise: a scalar, the noise's standard deviation before that.
        mask: ``[*spatial]`` bool, the pixels that count; by default all.

    Returns:
        the same shapes.
    """
    # Of the scale of local contrast the floor is left out, which has no gain.
    scales = [around(image, noise, mask, widened=_WIDENED).scale.ravel() for image in (fixed, moving)]
    powers = [jnp.maximum(scale**2 - FLOOR**2, 0.0) + _LEAST_POWER for scale in scales]
    counted = jnp.minimum(*powers)
    counted = counted if mask is None else jnp.where(mask.ravel(), counted, 0.0)
    at = [part.ravel() for part in components(coordinates(fixed.shape[:-1]))]
    terms = jnp.stack([jnp.ones_like(at[0]), *at, *(at[i] * at[j] for i in range(len(at)) for j in range(i + 1))])
    weighted = terms * counted[None]
    normal = weighted @ terms.T + (_PRIOR * jnp.sum(counted) + jnp.finfo(jnp.float32).tiny) * jnp.eye(len(terms))
    exponent = jnp.linalg.solve(normal, weighted @ (0.5 * jnp.log(powers[0] / powers[1]))) @ terms
    half = jnp.exp(0.5 * exponent).reshape(fixed.shape)
    return fixed / half, moving * half

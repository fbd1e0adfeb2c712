"""The sum of local Gaussians (eqs 7 and 8) as free parameters, float32, normalised units."""

import functools

import jax
import jax.numpy as jnp

from r2n2_jax.baseline.transform import Transform
from r2n2_jax.ops.gaussian import FreeGaussians, Gaussians, displacement, from_free, to_free
from r2n2_jax.ops.grid import coordinates

_SCATTERED_VARIANCE = 0.05


@functools.lru_cache
def gaussians(count: int) -> Transform:
    """``count`` local Gaussians; where no network says better they start round, of weight zero, at scattered positions."""

    def init(shape: tuple[int, ...]) -> FreeGaussians:
        d = len(shape)
        position = jax.random.uniform(jax.random.key(0), (count, d), minval=-0.8, maxval=0.8)
        round_ = jnp.full((count, d), _SCATTERED_VARIANCE)
        return to_free(Gaussians(position, round_, jnp.zeros((count, d * (d - 1) // 2)), jnp.zeros((count, d))))

    return Transform(
        init=init,
        displacement=lambda params, shape: displacement(from_free(params), coordinates(shape)),
        carry=lambda params, shape: params,
    )

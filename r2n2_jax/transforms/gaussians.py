"""The sum of local Gaussians (eqs 7 and 8) as free parameters, float32, normalised units."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.ops.gaussian import Gaussians, displacement
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.transforms.model import Transform

Array = jax.Array

_SCATTERED_VARIANCE = 0.05


class FreeGaussians(NamedTuple):
    """``Gaussians`` without bounds: the logarithm of the variance in place of the variance.

    Attributes:
        position: ``[T, d]``.
        log_variance: ``[T, d]``.
        rotation: ``[T, d (d - 1) / 2]``.
        weight: ``[T, d]``.
    """

    position: Array
    log_variance: Array
    rotation: Array
    weight: Array


def to_free(gaussians: Gaussians) -> FreeGaussians:
    """Free parameters of the same transformations."""
    return FreeGaussians(gaussians.position, jnp.log(gaussians.variance), gaussians.rotation, gaussians.weight)


def from_free(free: FreeGaussians) -> Gaussians:
    """The inverse of ``to_free``."""
    return Gaussians(free.position, jnp.exp(free.log_variance), free.rotation, free.weight)


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

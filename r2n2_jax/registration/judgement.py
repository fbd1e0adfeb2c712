"""How well ONE pair matches by some local transformations, at the size that it is looked at."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.ops.gaussian import Gaussians, displacement
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.local_contrast import disagreement, local_contrast, noise_of_pair, quiet
from r2n2_jax.ops.similarity import ncc
from r2n2_jax.ops.warp import inside, sample

Array = jax.Array

_LEAST_COMPARED = 0.3  # of the pixels that count; where fewer still lie in the moving image, they say little
_NOISE_DIFFERS = 0.5  # how much of a doubt noise of deviation 1 leaves after all smoothing


class Judged(NamedTuple):
    """Scalars of a pair.

    Attributes:
        correlation: the normalised cross-correlation of what is compared, but for the noise.
        compared: how many pixels that is.
        differs: the share of the images' structure in which they differ; 1 where too little of them is compared.
        doubt: the same less what noise leaves.
    """

    correlation: Array
    compared: Array
    differs: Array
    doubt: Array


@jax.jit
def judge(fixed: Array, moving: Array, gaussians: Gaussians, *, mask: Array | None = None) -> Judged:
    """How well a pair matches.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        moving: the same shape.
        gaussians: fields ``[T, ...]``.
        mask: ``[*spatial]`` bool, the fixed image's pixels that count; by default all.
    """
    there = coordinates(fixed.shape[:-1])
    there = there + displacement(gaussians, there)
    counted = inside(there) if mask is None else inside(there) & mask
    compared = jnp.sum(counted)
    noise = noise_of_pair(fixed, moving, mask)
    fixed, moving = (quiet(image, noise, mask) for image in (fixed, moving))
    warped = sample(moving, jnp.clip(there, -1.0, 1.0))
    differs = disagreement(*(local_contrast(image, noise, mask) for image in (fixed, warped)), counted)
    left = compared < _LEAST_COMPARED * (counted.size if mask is None else jnp.sum(mask))
    by_noise = jnp.where(left, 0.0, _NOISE_DIFFERS * noise**2)
    differs = jnp.where(left, 1.0, differs)
    return Judged(ncc(fixed, warped, counted), compared, differs, jnp.maximum(differs - by_noise, 0.0))

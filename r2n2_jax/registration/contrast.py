"""What refinement compares of ONE pair: its local contrast, that of the moving image as some Gaussians warp it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from r2n2_jax.ops.gaussian import FreeGaussians, displacement, from_free
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.local_contrast import around, noise_of_pair, quiet
from r2n2_jax.ops.outliers import OUTLIER
from r2n2_jax.ops.warp import sample
from r2n2_jax.registration.least_squares import Problem, pose

Array = jax.Array

_AROUND_PIXELS = {2: 64, 3: 32}  # per axis, at most, for the neighbourhoods' means and scales: they are smooth


def contrast_problem(
    fixed: Array, moving: Array, mask: Array | None = None, *, outlier: float = OUTLIER
) -> Callable[[FreeGaussians], Problem]:
    """The problem of a pair's local contrast, given the Gaussians by which the moving image is warped.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        moving: the same shape.
        mask: ``[*spatial]`` bool, the fixed image's pixels that count; by default all.
        outlier: the residual from which on a larger one hardly costs more.
    """
    noise = noise_of_pair(fixed, moving, mask)
    fixed, moving = (quiet(image, noise, mask) for image in (fixed, moving))
    coarse = coordinates(tuple(min(n, _AROUND_PIXELS[fixed.ndim - 1]) for n in fixed.shape[:-1]))
    counted = None if mask is None else _nearly_in(mask, coarse)
    plain = pose(fixed, moving, mask, outlier=outlier)
    every_pixel = coarse.shape[:-1] == fixed.shape[:-1] and len(plain.points) * coarse.shape[-1] == coarse.size

    def neighbourhood(image: Array, there: Array) -> tuple[Array, Array]:
        """Mean and scale around the pixels that are looked at, of an image carried by a map of the coarse grid."""
        # Beyond the border the border's pixels go on: nothing ends there.
        carried = sample(image, jnp.clip(there, -1.0, 1.0))
        found = jnp.stack(around(carried, noise, counted), axis=-1)
        found = found.reshape(-1, 2) if every_pixel else sample(found, plain.points)
        return found[:, 0], found[:, 1]

    of_fixed, of_still = (neighbourhood(image, coarse) for image in (fixed, moving))
    undisplaced = plain._replace(fixed=_against(plain.fixed, *of_fixed), still=_against(plain.still, *of_still), noise=noise)

    def problem(free: FreeGaussians) -> Problem:
        mean, scale = neighbourhood(moving, coarse + displacement(from_free(free), coarse))
        return undisplaced._replace(mean=mean, scale=scale)

    return problem


def _against(values: Array, mean: Array, scale: Array) -> Array:
    return (values - mean) / scale


def _nearly_in(mask: Array, points: Array) -> Array:
    """The points that lie in a mask ``[*spatial]`` by half; of a mask finer than they are, those nearest it."""
    share = sample(mask[..., None].astype(jnp.float32), points)[..., 0]
    return share >= 0.5 * jnp.max(share)

r"""What an image ``[*spatial, 1]`` shows apart from how bright it is there: each pixel against its neighbourhood, float32.

.. math:: c(x) = \frac{I(x) - \mu(x)}{\sqrt{\sigma^2(x) + \epsilon^2 + \kappa s^2}}

with the mean and the variance of a Gaussian window around ``x``, and the noise ``s`` that is left in the image. Where contrast
agent arrives, a coil looks less closely, or a curve has changed all intensities, ``c`` hardly changes. Where there is only
noise it stays small.
"""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

_WINDOW = 0.095  # the window's standard deviation, normalised units: three pixels of 64
_FLOOR, _NOISE_FLOOR = 0.2, 10.0
_NO_NOISE, _BLUR_BY_NOISE, _MOST_BLUR = 0.1, 10.0, 2.5
_OUTSIDE = 1e-3


@jax.jit
def noise_deviation(image: Array, mask: Array | None = None) -> Array:
    """The standard deviation of white noise in an image.

    What a second difference along every axis leaves is noise alone, but at edges; its median does not see those (after
    Immerkaer, Computer Vision and Image Understanding 64(2), 1996).

    Args:
        image: ``[*spatial, 1]``.
        mask: ``[*spatial]`` bool, the pixels that are looked at; by default all.

    Returns:
        a scalar.
    """
    d, rough = image.ndim - 1, image[..., 0]
    for axis in range(d):
        rough = jnp.diff(rough, 2, axis=axis)
    inner = () if mask is None else (mask[(slice(1, -1),) * d].ravel(),)
    middle = _median(jnp.abs(rough).ravel(), *inner)
    return middle / (0.6745 * 6.0 ** (d / 2))


@jax.jit
def quiet(image: Array, mask: Array | None = None) -> Array:
    """An image with its noise blurred away, and detail with it: not at all where there is no noise, by pixels where much is.

    Noise is smooth between pixels, where a warp interpolates, and images whose noise is not blurred would be taken to match
    better by any displacement of half a pixel.

    Args:
        image: ``[*spatial, 1]``, standardised.
        mask: ``[*spatial]`` bool, the pixels whose noise is looked at; by default all.

    Returns:
        the same shape.
    """
    blur = _blur(noise_deviation(image, mask))
    return _blurred(image[..., 0], (blur,) * (image.ndim - 1))[..., None]


@jax.jit
def local_contrast(image: Array, mask: Array | None = None) -> Array:
    """The image against its neighbourhood, see the module.

    Args:
        image: ``[*spatial, 1]``, standardised.
        mask: ``[*spatial]`` bool, the pixels that a neighbourhood is made of; by default all.

    Returns:
        the same shape, mostly within ``[-2, 2]``.
    """
    noise = noise_deviation(image, mask)
    shape = image.shape[:-1]
    left = noise**2 / (1.0 + 4.0 * jnp.pi * _blur(noise) ** 2) ** (len(shape) / 2)
    windows = [0.5 * _WINDOW * (n - 1) for n in shape]
    weight = jnp.ones(shape) if mask is None else jnp.where(mask, 1.0, _OUTSIDE)
    mean = functools.partial(_blurred, deviations=windows)
    whole = mean(weight)
    offset = _blurred(image[..., 0], (_blur(noise),) * len(shape))
    offset = offset - mean(weight * offset) / whole
    variance = mean(weight * offset**2) / whole
    return (offset / jnp.sqrt(variance + _FLOOR**2 + _NOISE_FLOOR * left))[..., None]


def _blur(noise: Array) -> Array:
    """The standard deviation of the blur, pixels."""
    return jnp.clip(_BLUR_BY_NOISE * (noise - _NO_NOISE), 0.0, _MOST_BLUR)


def _blurred(image: Array, deviations: Sequence[Array | float]) -> Array:
    """The image ``[*spatial]`` under a Gaussian of so many pixels along each axis, cut off at its border."""
    chex.assert_rank(image, len(deviations))
    for axis, (n, deviation) in enumerate(zip(image.shape, deviations, strict=True)):
        apart = jnp.arange(n)[:, None] - jnp.arange(n)[None]
        kernel = jnp.exp(-0.5 * (apart / jnp.maximum(deviation, 1e-2)) ** 2)
        kernel = kernel / jnp.sum(kernel, axis=1, keepdims=True)
        image = jnp.moveaxis(jnp.tensordot(kernel, image, (1, axis)), 0, axis)
    return image


def _median(values: Array, counted: Array | None = None) -> Array:
    """The median of the values ``[n]`` that are counted; zero of none."""
    if counted is None:
        return jnp.median(values)
    middle = jnp.nanmedian(jnp.where(counted, values, jnp.nan))
    return jnp.where(jnp.any(counted), middle, 0.0)

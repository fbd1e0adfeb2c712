r"""What an image ``[*spatial, 1]`` shows apart from how bright it is there: each pixel against its neighbourhood, float32.

.. math:: c(x) = \frac{I(x) - \mu(x)}{\sqrt{\sigma^2(x) + \epsilon^2 + \kappa s^2}}

with the mean and the variance of a Gaussian window around ``x``, and the noise ``s`` that is left in the image. Where contrast
agent arrives, a coil looks less closely, or a curve has changed all intensities, ``c`` hardly changes. Where there is only
noise it stays small.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

_WINDOW = 0.095  # the window's standard deviation, normalised units: three pixels of 64
_FLOOR, _NOISE_FLOOR = 0.2, 10.0
_NO_NOISE, _BLUR_BY_NOISE, _MOST_BLUR = 0.1, 10.0, 2.5
_BLUR_OF_ALL = {2: 0.6, 3: 0.01}  # pixels, of a volume as good as none: see ``quiet``
_HALVINGS = 24  # to the precision of float32
_STRUCTURE = 0.048  # what a residual's structure is told from noise by, normalised units: a pixel and a half of 64


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
    counted = jnp.ones(rough.shape, bool) if mask is None else mask
    for axis in range(d):
        rough = jnp.diff(rough, 2, axis=axis)
        parts = (jax.lax.slice_in_dim(counted, start, start + rough.shape[axis], axis=axis) for start in range(3))
        counted = functools.reduce(jnp.logical_and, parts)
    return jnp.where(jnp.any(counted), _median(jnp.abs(rough), counted) / (0.6745 * 6.0 ** (d / 2)), 0.0)


@jax.jit
def quiet(image: Array, noise: Array, mask: Array | None = None) -> Array:
    """An image with its noise blurred away, and detail with it: hardly where there is no noise, by pixels where much is.

    Noise is smooth between pixels, where a warp interpolates, and images whose noise is not blurred would be taken to match
    better by any displacement of half a pixel. Both images of a pair are blurred alike. In the plane they are a little in any
    case: of stripes finer than a pixel resampling leaves wider ones, which move the other way.

    Args:
        image: ``[*spatial, 1]``, standardised.
        noise: a scalar, its standard deviation.
        mask: ``[*spatial]`` bool, the pixels with which nothing from outside is blurred; by default all.

    Returns:
        the same shape.
    """
    d = image.ndim - 1
    blurred = functools.partial(mean_around, image[..., 0], deviations=(_blur(noise, d),) * d)
    return (blurred(None) if mask is None else jnp.where(mask, blurred(mask), blurred(None)))[..., None]


class Around(NamedTuple):
    """What a pixel is compared with: its neighbourhood's ``mean [*spatial]``, and its contrast's unit, ``scale [*spatial]``."""

    mean: Array
    scale: Array


@jax.jit
def around(quieted: Array, noise: Array, mask: Array | None = None, *, widened: Array | float = 1.0) -> Around:
    """The neighbourhood of every pixel.

    Args:
        quieted: ``[*spatial, 1]``, an image after ``quiet``.
        noise: a scalar, the noise's standard deviation before.
        mask: ``[*spatial]`` bool, the pixels that a neighbourhood is made of; by default all.
        widened: how many times as wide as usual the window is.
    """
    shape = quieted.shape[:-1]
    windows = [0.5 * widened * _WINDOW * (n - 1) for n in shape]
    mean = mean_around(quieted[..., 0], mask, windows)
    variance = mean_around((quieted[..., 0] - mean) ** 2, mask, windows)
    return Around(mean, jnp.sqrt(variance + _FLOOR**2 + _NOISE_FLOOR * left_noise(noise, len(shape))))


@functools.partial(jax.jit, static_argnames="d")
def left_noise(noise: Array, d: int) -> Array:
    """The variance of the noise that ``quiet`` leaves in an image of ``d`` axes, given its standard deviation before."""
    return noise**2 / (1.0 + 4.0 * jnp.pi * _blur(noise, d) ** 2) ** (d / 2)


@jax.jit
def local_contrast(quieted: Array, noise: Array, mask: Array | None = None, *, widened: Array | float = 1.0) -> Array:
    """An image against its neighbourhood, see the module and ``around``: ``[*spatial, 1]``, mostly within ``[-2, 2]``."""
    mean, scale = around(quieted, noise, mask, widened=widened)
    return (quieted - mean[..., None]) / scale[..., None]


@jax.jit
def disagreement(fixed: Array, warped: Array, mask: Array) -> Array:
    """The share of their power in which two images of local contrast differ: of their structure, as noise is smoothed away.

    Args:
        fixed: ``[*spatial, 1]``, local contrast.
        warped: the same shape.
        mask: ``[*spatial]`` bool, the pixels that count.

    Returns:
        a scalar: 0 where the images agree, about 1 where they have nothing in common, and where nothing counts.
    """
    deviations = [0.5 * _STRUCTURE * (n - 1) for n in mask.shape]
    a, b = (mean_around(image[..., 0], mask, deviations) for image in (fixed, warped))
    power = jnp.sum(jnp.where(mask, a**2 + b**2, 0.0))
    differs = jnp.sum(jnp.where(mask, (a - b) ** 2, 0.0)) / jnp.where(power > 0, power, 1.0)
    return jnp.where(jnp.any(mask), differs, 1.0)


@jax.jit
def noise_of_pair(fixed: Array, moving: Array, mask: Array | None = None) -> Array:
    """The noise of the noisier image of a pair, see ``noise_deviation``."""
    return jnp.maximum(noise_deviation(fixed, mask), noise_deviation(moving, mask))


def _blurred(image: Array, deviations: Sequence[Array | float]) -> Array:
    """The image ``[*spatial]`` under a Gaussian of so many pixels along each axis, cut off at its border."""
    chex.assert_rank(image, len(deviations))
    for axis, (n, deviation) in enumerate(zip(image.shape, deviations, strict=True)):
        apart = jnp.arange(n)[:, None] - jnp.arange(n)[None]
        kernel = jnp.exp(-0.5 * (apart / jnp.maximum(deviation, 1e-2)) ** 2)
        kernel = kernel / jnp.sum(kernel, axis=1, keepdims=True)
        image = jnp.moveaxis(jnp.tensordot(kernel, image, (1, axis)), 0, axis)
    return image


@jax.jit
def mean_around(image: Array, mask: Array | None, deviations: Sequence[Array | float]) -> Array:
    """The mean of the pixels in the mask around every pixel; zero where none is near."""
    if mask is None:
        return _blurred(image, deviations)
    weight = mask.astype(jnp.float32)
    return _blurred(weight * image, deviations) / jnp.maximum(_blurred(weight, deviations), jnp.finfo(jnp.float32).tiny)


def _median(values: Array, counted: Array) -> Array:
    """The median of the counted ones, of which none is negative, by bisection: to sort them takes ten times as long."""

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = 0.5 * (ends[0] + ends[1])
        below = 2 * jnp.sum(counted & (values <= middle)) >= jnp.sum(counted)
        return jnp.where(below, ends[0], middle), jnp.where(below, middle, ends[1])

    largest = jnp.max(jnp.where(counted, values, 0.0))
    return jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(largest), largest))[1]


def _blur(noise: Array, d: int) -> Array:
    """The standard deviation of the blur of an image of ``d`` axes, pixels."""
    return jnp.hypot(_BLUR_OF_ALL[d], jnp.clip(_BLUR_BY_NOISE * (noise - _NO_NOISE), 0.0, _MOST_BLUR))

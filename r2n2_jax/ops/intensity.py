"""Intensities of ONE image ``[*spatial, C]``: standardised to what the network expects, and resampled between grids."""

import functools

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


@jax.jit
def standardise(image: Array) -> Array:
    """Minus the mean, over the standard deviation, clipped to ``[-2, 2]``.

    Args:
        image: ``[*spatial, C]``, any finite range; a constant image gives zeros.

    Returns:
        the same shape, float32, in ``[-2, 2]``.
    """
    image = image.astype(jnp.float32)
    deviation = jnp.std(image)
    return jnp.clip((image - jnp.mean(image)) / jnp.where(deviation > 0, deviation, 1.0), -2.0, 2.0)


@functools.partial(jax.jit, static_argnums=1)
def resample(image: Array, shape: tuple[int, ...]) -> Array:
    """The image on another grid over the same domain: corner-aligned, linear, anti-aliased where it shrinks.

    Args:
        image: ``[*spatial, C]`` float.
        shape: the new spatial shape.

    Returns:
        ``[*shape, C]``.
    """
    axes = tuple(range(image.ndim - 1))
    chex.assert_equal(len(shape), len(axes))
    sizes = zip(shape, image.shape[:-1], strict=True)
    scale = jnp.array([(new - 1) / (old - 1) if min(new, old) > 1 else 1.0 for new, old in sizes])
    # scale_and_translate places pixel i at i + 1/2; this translation keeps the first centre on the first centre.
    return jax.image.scale_and_translate(
        image, (*shape, image.shape[-1]), axes, scale, 0.5 * (1.0 - scale), method="linear", antialias=True
    )


@functools.partial(jax.jit, static_argnums=1)
def prepare(image: Array, shape: tuple[int, ...]) -> Array:
    """The image as every registration sees it: resampled to ``shape``, then standardised.

    Args:
        image: ``[*spatial]``, without channels.
        shape: the spatial shape to look at it.

    Returns:
        ``[*shape, 1]`` float32, in ``[-2, 2]``.
    """
    return standardise(resample(image[..., None], shape))

"""Intensities of ONE image ``[*spatial, C]``: outliers cut, resampled between grids, standardised to what a network expects."""

import functools
import math

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

_CLIP = 2.0
_OUTLIERS, _SAMPLES, _HALVINGS = 1e-3, 1 << 13, 40
_BINS, _MOST_BACKGROUND = 32, 0.5


@jax.jit
def cut_outliers(image: Array) -> Array:
    """The image with its brightest and its darkest thousandth cut to the next values.

    A few hot pixels, a label burned in or a metal artefact would rule every statistic of the image. The bounds are those of at
    most 8192 pixels, spread evenly. Where they would leave a constant, nothing is cut.

    Args:
        image: ``[*spatial, C]``, any finite range.

    Returns:
        the same shape, float32.
    """
    image = image.astype(jnp.float32)
    sample = _spread_evenly(image, _SAMPLES)
    low, high = -_upper_bound(-sample), _upper_bound(sample)
    return jnp.where(low < high, jnp.clip(image, low, high), image)


@functools.partial(jax.jit, static_argnames="clip")
def standardise(image: Array, mask: Array | None = None, *, clip: bool = True) -> Array:
    """Minus the mean, over the standard deviation, of what carries signal; clipped to ``[-2, 2]``.

    Signal is what lies in the mask. Of a background (the intensities around the most frequent one, where they are more than
    half of all) only as much counts as there is of the rest: an empty field of view does not flatten what lies in it.

    Args:
        image: ``[*spatial, C]``, any finite range; a constant image gives zeros.
        mask: ``[*spatial]`` bool, the pixels whose statistics count; by default all.
        clip: whether to clip.

    Returns:
        the same shape, float32.
    """
    image = image.astype(jnp.float32)
    inside = jnp.ones(image.shape[:-1], bool) if mask is None else mask | ~jnp.any(mask)
    weight = _signal_weight(image, jnp.broadcast_to(inside[..., None], image.shape).astype(jnp.float32))
    total = jnp.sum(weight)
    mean = jnp.sum(weight * image) / total
    deviation = jnp.sqrt(jnp.sum(weight * (image - mean) ** 2) / total)
    standard = (image - mean) / jnp.where(deviation > 0, deviation, 1.0)
    return jnp.clip(standard, -_CLIP, _CLIP) if clip else standard


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
def prepare(image: Array, shape: tuple[int, ...], mask: Array | None = None) -> Array:
    """The image as every registration sees it: its outliers cut, resampled to ``shape``, then standardised.

    Args:
        image: ``[*spatial]``, without channels.
        shape: the spatial shape to look at it.
        mask: ``[*shape]`` bool, the pixels whose statistics count; by default all.

    Returns:
        ``[*shape, 1]`` float32, in ``[-2, 2]``.
    """
    return standardise(resample(cut_outliers(image[..., None]), shape), mask)


def _spread_evenly(image: Array, most: int) -> Array:
    """At most so many of the image's values, ``[n]``."""
    flat = image.ravel()
    every = -(-flat.size // most)
    # A stride that shares no factor with a row's length passes through all columns.
    while every > 1 and math.gcd(every, image.shape[-2]) > 1:
        every += 1
    return flat[::every]


def _upper_bound(sample: Array) -> Array:
    """What a thousandth of the values ``[n]`` lies above, by bisection: a sort takes twenty times as long."""
    most = _OUTLIERS * sample.size

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + 0.5 * (high - low)
        too_low = jnp.sum(sample > middle) > most
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.min(sample), jnp.max(sample)))[1]


def _signal_weight(image: Array, inside: Array) -> Array:
    """How much each pixel of an image counts, given which are ``inside``."""
    low = jnp.min(jnp.where(inside > 0, image, jnp.inf))
    high = jnp.max(jnp.where(inside > 0, image, -jnp.inf))
    bins = jnp.clip(jnp.floor(_BINS * (image - low) / jnp.where(high > low, high - low, 1.0)), 0, _BINS - 1)
    counts = jnp.zeros(_BINS).at[bins.astype(int).ravel()].add(inside.ravel())
    around = jnp.convolve(counts, jnp.ones(3), mode="same")
    fullest = jnp.argmax(around)
    background = jnp.abs(bins - fullest) <= 1
    fraction = around[fullest] / jnp.sum(counts)
    excess = (fraction > _MOST_BACKGROUND) & (fraction < 1.0)
    return inside * jnp.where(excess & background, (1.0 - fraction) / fraction, 1.0)

"""Phantom pairs made into pairs of anything, for ONE pair ``[*spatial, 1]`` float32.

A network must see such pairs to work on images of other organs than the phantom's. Pure, on device; no landmark or exact field
goes with them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from r2n2_jax.data.shapes import random_shapes
from r2n2_jax.ops.gaussian import Gaussians, displacement, rotation_matrix
from r2n2_jax.ops.grid import components, coordinates
from r2n2_jax.ops.intensity import standardise
from r2n2_jax.ops.warp import sample

Array = jax.Array

_ZOOM, _SHIFT = (0.4, 1.1), 0.3
_BUMPS, _DEVIATION, _STEEPNESS = 6, (0.08, 0.4), 0.35
_KNOTS = 7
_ENHANCED, _STRUCTURES, _RADIUS, _EDGE, _FACTOR = 0.5, 3, (0.08, 0.4), (0.05, 0.5), 4.0
_NOISE = 0.05


def vary(key: Array, fixed: Array, moving: Array, *, shapes: float = 0.0) -> tuple[Array, Array]:
    """Turns, mirrors, zooms and shifts both images alike, adds a random smooth motion, and redraws the contrast.

    Half of the patients' pairs keep the phantom's own motion beneath the random one; the others are one frame under the random
    one alone. In half some structures of the moving image are brighter or darker than in the fixed one, as contrast agent makes
    them. Half keep their contrast; in the others a random curve replaces every intensity, alike in both images.

    Args:
        key: decides everything.
        fixed: ``[*spatial, 1]``, any range.
        moving: the same shape.
        shapes: how probably both are replaced by one image of random shapes before.

    Returns:
        both, standardised.
    """
    key_view, key_motion, key_frame, key_contrast, key_noise, key_agent, key_use, key_shapes = jax.random.split(key, 8)
    if shapes > 0:
        replaced, image = jax.random.bernoulli(key_use, shapes), random_shapes(key_shapes, fixed.shape[:-1])
        fixed, moving = (jnp.where(replaced, image, patient) for patient in (fixed, moving))
    points = coordinates(fixed.shape[:-1])
    d = points.shape[-1]
    view = _random_view(key_view, d)
    behind = jnp.where(jax.random.bernoulli(key_frame), moving, fixed)
    field = displacement(_random_bumps(key_motion, d), points)
    pair = jnp.stack([_pulled(fixed, view(points)), _enhanced(key_agent, _pulled(behind, view(points + field)))])
    pair = _recoloured(key_contrast, pair)
    pair = pair + _NOISE * jax.random.normal(key_noise, pair.shape)
    return standardise(pair[0]), standardise(pair[1])


def _random_view(key: Array, d: int) -> Callable[[Array], Array]:
    """A random similarity of space, as a function of points."""
    turn, mirror, zoom, shift = jax.random.split(key, 4)
    flip = jnp.where(jax.random.bernoulli(mirror), 1.0, -1.0)
    scale = jnp.exp(jax.random.uniform(zoom, minval=jnp.log(_ZOOM[0]), maxval=jnp.log(_ZOOM[1])))
    rotation = rotation_matrix(jax.random.uniform(turn, (_angles(d),), maxval=2 * jnp.pi))
    matrix = scale * rotation @ jnp.diag(jnp.stack([flip, *[jnp.ones(())] * (d - 1)]))
    centre = jax.random.uniform(shift, (d,), minval=-_SHIFT, maxval=_SHIFT)
    return lambda points: points @ matrix.T + jnp.broadcast_to(centre, points.shape)


def _random_bumps(key: Array, d: int) -> Gaussians:
    """A few Gaussians, each too flat to fold; their common size is anything between nearly none and the largest."""
    place, size, turn, push, all_ = jax.random.split(key, 5)
    deviation = jnp.exp(jax.random.uniform(size, (_BUMPS, d), minval=jnp.log(_DEVIATION[0]), maxval=jnp.log(_DEVIATION[1])))
    weight = jax.random.normal(push, (_BUMPS, d)) * jnp.min(deviation, axis=1, keepdims=True)
    return Gaussians(
        position=jax.random.uniform(place, (_BUMPS, d), minval=-0.9, maxval=0.9),
        variance=deviation**2,
        rotation=jax.random.uniform(turn, (_BUMPS, _angles(d)), maxval=jnp.pi),
        weight=_STEEPNESS * jax.random.uniform(all_) * weight,
    )


def _angles(d: int) -> int:
    return d * (d - 1) // 2


def _pulled(image: Array, points: Array) -> Array:
    """The image at the points; beyond its border the border's pixels go on."""
    return sample(image, jnp.clip(points, -1.0, 1.0))


def _enhanced(key: Array, image: Array) -> Array:
    """In half of the cases with some structures up to fourfold as bright above its darkest pixel, or as little."""
    use, agent = jax.random.split(key)
    darkest = jnp.min(image)
    changed = darkest + _agent(agent, coordinates(image.shape[:-1]))[..., None] * (image - darkest)
    return jnp.where(jax.random.bernoulli(use, _ENHANCED), changed, image)


def _agent(key: Array, points: Array) -> Array:
    """What contrast agent multiplies the signal with at points ``[..., d]``: a few ellipsoids, sharp or soft: ``[...]``."""
    d = points.shape[-1]
    place, size, turn, soft, change = jax.random.split(key, 5)
    centre = jax.random.uniform(place, (_STRUCTURES, d), minval=-0.7, maxval=0.7)
    radius = jnp.exp(jax.random.uniform(size, (_STRUCTURES, d), minval=jnp.log(_RADIUS[0]), maxval=jnp.log(_RADIUS[1])))
    rotation = rotation_matrix(jax.random.uniform(turn, (_STRUCTURES, _angles(d)), maxval=jnp.pi))
    edge = jax.random.uniform(soft, (_STRUCTURES,), minval=_EDGE[0], maxval=_EDGE[1])
    power = jax.random.uniform(change, (_STRUCTURES,), minval=-1.0, maxval=1.0)
    at = components(points)

    def one(centre: Array, radius: Array, rotation: Array, edge: Array, power: Array) -> Array:
        offset = [part - centre[i] for i, part in enumerate(at)]
        along = [sum(rotation[i, j] * offset[i] for i in range(d)) / radius[j] for j in range(d)]
        return power * jax.nn.sigmoid((1.0 - jnp.sqrt(sum(part**2 for part in along))) / edge)

    powers = jnp.sum(jax.vmap(one)(centre, radius, rotation, edge, power), axis=0)
    return _FACTOR ** jnp.clip(powers, -1.0, 1.0)


def _recoloured(key: Array, pair: Array) -> Array:
    """Standardised, in half of the cases under a random curve that need not rise."""
    use, curve = jax.random.split(key)
    mean, deviation = jnp.mean(pair), jnp.std(pair) + 1e-6
    plain = (pair - mean) / deviation
    turned = jnp.interp(plain, jnp.linspace(-2.0, 2.0, _KNOTS), jax.random.normal(curve, (_KNOTS,)))
    return jnp.where(jax.random.bernoulli(use), turned, plain)

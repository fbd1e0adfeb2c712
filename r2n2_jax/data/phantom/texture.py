"""The phantom's texture: waves from coarse to fine, which move with the tissue."""

import jax
import jax.numpy as jnp

from r2n2_jax.ops.grid import components

Array = jax.Array

_WAVES = 32


def waves(key: Array, ndim: int) -> Array:
    """Random waves, ``[K, d + 2]``: wave vector, phase, amplitude; wavelengths 1 down to 0.12, the finer the fainter."""
    key_angle, key_phase = jax.random.split(key)
    angle = jax.random.uniform(key_angle, (_WAVES,), maxval=2.0 * jnp.pi)
    frequency = 2.0 * jnp.pi * jnp.geomspace(1.0, 8.0, _WAVES)
    phase = jax.random.uniform(key_phase, (_WAVES,), maxval=2.0 * jnp.pi)
    amplitude = frequency**-0.5 / jnp.sqrt(0.5 * jnp.sum(1.0 / frequency))
    direction = [jnp.cos(angle), jnp.sin(angle)]
    if ndim == 3:
        height = jax.random.uniform(jax.random.fold_in(key_angle, 1), (_WAVES,), minval=-1.0, maxval=1.0)
        direction = [jnp.sqrt(1.0 - height**2) * part for part in direction] + [height]
    return jnp.stack([*(frequency * part for part in direction), phase, amplitude], axis=-1)


def texture(waves: Array, points: Array) -> Array:
    """The waves' sum at points ``[..., d]``, of variance about one: ``[...]``."""
    parts = components(points)

    def add(total: Array, wave: Array) -> tuple[Array, None]:
        phase = sum(wave[i] * part for i, part in enumerate(parts)) + wave[-2]
        return total + wave[-1] * jnp.sin(phase), None

    return jax.lax.scan(add, jnp.zeros(points.shape[:-1]), waves)[0]

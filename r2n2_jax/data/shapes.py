"""Images of random shapes ``[*spatial, 1]`` float32, of no organ in particular: what a network learns from them holds for any.

Smoothed noise is cut into labels, each label gets a brightness and all a faint texture.

References:
    Hoffmann et al., SynthMorph: learning contrast-invariant registration without acquired images, IEEE Transactions on Medical
    Imaging 41(3), 2022.
"""

import jax
import jax.numpy as jnp

from r2n2_jax.ops.local_contrast import mean_around

Array = jax.Array

_LABELS = 12
_SIZE, _GRAIN = (0.06, 0.35), (0.03, 0.15)  # of the shapes and of their texture: the smoothing, normalised units
_CONTRAST = 0.2  # of the texture at most, where labels are between 0 and 1 bright
_SHARPEST, _SOFTEST = 0.3, 1.0  # standard deviation of the image's own blur, pixels


def random_shapes(key: Array, shape: tuple[int, ...]) -> Array:
    """One image.

    Args:
        key: decides everything.
        shape: ``spatial``.

    Returns:
        ``[*spatial, 1]``, mostly within ``[0, 1]``.
    """
    size, drawn, brightness, grain, speckle, contrast, blur = jax.random.split(key, 7)
    fields = jax.vmap(_smoothed, in_axes=(0, None))(jax.random.normal(drawn, (_LABELS, *shape)), _length(size, _SIZE))
    labels = jnp.argmax(fields, axis=0)
    flat = jax.random.uniform(brightness, (_LABELS,))[labels]
    texture = _smoothed(jax.random.normal(speckle, shape), _length(grain, _GRAIN))
    texture = _CONTRAST * jax.random.uniform(contrast) * texture / (jnp.std(texture) + 1e-6)
    deviation = jax.random.uniform(blur, minval=_SHARPEST, maxval=_SOFTEST)
    return mean_around(flat + texture, None, [deviation] * len(shape))[..., None]


def _length(key: Array, between: tuple[float, float]) -> Array:
    return jnp.exp(jax.random.uniform(key, minval=jnp.log(between[0]), maxval=jnp.log(between[1])))


def _smoothed(noise: Array, length: Array) -> Array:
    """Noise ``[*spatial]`` smoothed by a length in normalised units along every axis."""
    return mean_around(noise, None, [0.5 * length * (n - 1) for n in noise.shape])

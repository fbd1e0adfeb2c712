"""The dense model (eq 3): one displacement vector a pixel, float32, normalised units."""

import jax.numpy as jnp

from r2n2_jax.baseline.transform import Transform
from r2n2_jax.ops.intensity import resample

DENSE = Transform(
    init=lambda shape: jnp.zeros((*shape, len(shape))),
    displacement=lambda params, shape: params if params.shape[:-1] == tuple(shape) else resample(params, shape),
    carry=resample,
)

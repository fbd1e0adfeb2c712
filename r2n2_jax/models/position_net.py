"""The position network (figure 4a, eqs 14, 15, 17) on batches of feature maps ``[B, *spatial, C]``."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2n2_jax.models.convolution import Convolution
from r2n2_jax.ops.spatial_softmax import agreement, expected_position, spatial_softmax

Array = jax.Array


class PositionNetwork(nn.Module):
    """Where the next local transformation belongs, seen from one resolution level, and how sure that is.

    Two 1x1 convolutions to one channel each, a spatial softmax of each; the left one's expected coordinate is the position,
    the agreement of the two is its weight.

    Attributes:
        gain: factor on what the softmaxes see. Nearly even softmaxes put every position near the centre; the larger the gain,
            the fewer optimiser steps make them sharp.
    """

    gain: float = 1.0

    @nn.compact
    def __call__(self, features: Array) -> tuple[Array, Array]:
        """``position [B, d]`` in ``(x, y[, z])`` order and ``weight [B, 1]`` in ``[0, 2]``."""
        features = features.astype(jnp.float32)
        left = jax.vmap(spatial_softmax)(self.gain * Convolution(1, 1, name="left")(features))
        right = jax.vmap(spatial_softmax)(self.gain * Convolution(1, 1, name="right")(features))
        return jax.vmap(expected_position)(left)[:, 0], jax.vmap(agreement)(left, right)

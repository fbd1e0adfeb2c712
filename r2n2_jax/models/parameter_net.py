"""The parameter network (figure 4b, eq 18) on batches of feature maps ``[B, *spatial, C]``."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2n2_jax.models.residual import Activation, NormalisedConv, activate
from r2n2_jax.ops.spatial_softmax import spatial_softmax

Array = jax.Array
SigmaIs = Literal["variance", "std"]

_SMALLEST_VARIANCE = 1e-6  # a deviation of a thousandth: an eighth of a pixel at 256²


class ParameterNetwork(nn.Module):
    r"""Shape and weight of the next local transformation.

    A convolution; the first half of its channels goes through the activation and a second convolution, the second half through
    a spatial softmax; their product is summed over space (the expectation of the left half under the right), then one
    hidden layer. Eq 18 bounds the outputs :math:`c` (the paper's :math:`\sigma_{\min}` is zero):

    .. math::
        \sigma = \sigma_{\min} + \psi(c_\sigma)(\sigma_{\max} - \sigma_{\min}), \quad v = \phi(c_v), \quad
        \alpha = \psi(c_\alpha)\,\pi

    The weight is handed out as :math:`c_v`, so that what the images themselves say can be added before it is bounded. The last
    layer starts at zero, so an untrained network answers with :math:`c_v = 0`.

    Attributes:
        hidden: units of the hidden layer (the paper: 1024).
        sigma_max: the largest extension of the shape.
        sigma_min: the smallest.
        sigma_is: whether ``sigma`` is the variance (eq 9 to the letter) or the standard deviation (the authors' code).
        activation: of the convolution and the hidden layer.
        norm: instance norm after the convolutions.
        logarithmic: bound the logarithm of ``sigma`` in place of ``sigma``, so that small ones are as near as large ones.
    """

    hidden: int = 1024
    sigma_max: float = 0.3
    sigma_min: float = 0.0
    sigma_is: SigmaIs = "variance"
    activation: Activation = "tanh"
    norm: bool = False
    logarithmic: bool = False

    @nn.compact
    def __call__(self, features: Array, beside: Array | None = None) -> tuple[Array, Array, Array]:
        """``(variance [B, d], rotation [B, d (d - 1) / 2], c_v [B, d])``; ``beside [B, any]`` is what else is known."""
        d = features.ndim - 2
        channels = features.shape[-1]
        features = NormalisedConv(channels, norm=self.norm, name="first")(features.astype(jnp.float32))
        left, right = jnp.split(features, [channels // 2], axis=-1)
        left = NormalisedConv(right.shape[-1], norm=self.norm, name="second")(activate(self.activation, left))
        pooled = jnp.sum(left * jax.vmap(spatial_softmax)(right), axis=tuple(range(1, d + 1)))
        pooled = pooled if beside is None else jnp.concatenate([pooled, beside], axis=-1)
        pooled = activate(self.activation, nn.Dense(self.hidden, name="hidden")(pooled))
        zeros = nn.initializers.zeros_init()
        raw = nn.Dense(2 * d + d * (d - 1) // 2, kernel_init=zeros, name="output")(pooled)
        sigma, weight, rotation = jnp.split(raw, [d, 2 * d], axis=-1)
        sigma = self._bounded(nn.sigmoid(sigma))
        variance = sigma if self.sigma_is == "variance" else sigma**2
        # The logistic can underflow to zero, where the covariance has no inverse; no useful Gaussian is that narrow.
        return jnp.maximum(variance, _SMALLEST_VARIANCE), nn.sigmoid(rotation) * jnp.pi, weight

    def _bounded(self, share: Array) -> Array:
        if self.logarithmic:
            return self.sigma_min * (self.sigma_max / self.sigma_min) ** share
        return self.sigma_min + share * (self.sigma_max - self.sigma_min)

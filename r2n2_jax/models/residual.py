"""Convolutions with their norm and activation, and the residual block, on batches ``[B, *spatial, C]``."""

from typing import Literal

import flax.linen as nn
import jax

from r2n2_jax.models.convolution import Convolution

Array = jax.Array
Activation = Literal["tanh", "leaky_relu"]


def activate(activation: Activation, features: Array) -> Array:
    """``tanh`` as in the paper, or the leaky ReLU (slope 0.01) of the authors' code."""
    return nn.tanh(features) if activation == "tanh" else nn.leaky_relu(features)


class NormalisedConv(nn.Module):
    """A convolution and, with ``norm``, an instance norm (per image and channel, learned scale and bias).

    Attributes:
        features: channels out.
        width: kernel width along every axis.
        stride: the same for every axis.
        norm: normalise each channel of each image over space.
    """

    features: int
    width: int = 3
    stride: int = 1
    norm: bool = False

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """``[B, *spatial / stride, features]``."""
        features = Convolution(self.features, self.width, self.stride, name="conv")(features)
        return nn.InstanceNorm(dtype=features.dtype, name="norm")(features) if self.norm else features


class ResidualBlock(nn.Module):
    """``act(x + conv(act(conv(x))))`` with convolutions of width 3 that keep the channels.

    References:
        He et al., Deep residual learning for image recognition, CVPR 2016.

    Attributes:
        activation: see ``activate``.
        norm: instance norm after each convolution.
    """

    activation: Activation = "tanh"
    norm: bool = False

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """The same shape."""
        channels = features.shape[-1]
        inner = activate(self.activation, NormalisedConv(channels, norm=self.norm, name="first")(features))
        return activate(self.activation, features + NormalisedConv(channels, norm=self.norm, name="second")(inner))

"""The gated recurrent registration unit (figure 4c) on batches of feature maps ``[B, *spatial, C]``."""

import flax.linen as nn
import jax

from r2n2_jax.models.conv_gru import ConvGRU
from r2n2_jax.models.residual import Activation, ResidualBlock, activate

Array = jax.Array


class GR2U(nn.Module):
    r"""Residual blocks, then a C-GRU, with a skip connection around the C-GRU.

    .. math:: y = \mathrm{res}(x), \quad (o, h_t) = \mathrm{CGRU}(y, h_{t-1}), \quad \mathrm{out} = \phi(y + o)

    Attributes:
        residual_blocks: how many (the paper: 3).
        activation: of the blocks and after the skip.
        norm: instance norm inside the residual blocks.
        noise: see ``ConvGRU``.
    """

    residual_blocks: int = 3
    activation: Activation = "tanh"
    norm: bool = False
    noise: float = 0.0

    @nn.compact
    def __call__(self, features: Array, state: Array) -> tuple[Array, Array]:
        """``(output, new state)``; features and state have the same shape ``[B, *spatial, C]``."""
        for block in range(self.residual_blocks):
            features = ResidualBlock(self.activation, self.norm, name=f"residual_{block}")(features)
        output, state = ConvGRU(features.shape[-1], self.noise, name="gru")(features, state)
        return activate(self.activation, features + output), state

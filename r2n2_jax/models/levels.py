"""What one look sees of its input ``[B, *spatial, C]`` at three resolutions, finest first."""

import jax
import jax.numpy as jnp

from r2n2_jax.config import ModelConfig
from r2n2_jax.models.gr2u import GR2U
from r2n2_jax.models.residual import NormalisedConv, activate

Array = jax.Array


def levels(
    config: ModelConfig, features: Array, before: tuple[Array, ...], *, noise: bool
) -> tuple[list[Array], tuple[Array, ...], Array]:
    """A GR2U at each of three resolutions, with a convolution of stride two after each.

    Its modules belong to the one whose compact method calls it.

    Args:
        config: the architecture.
        features: ``[B, *spatial, C]``, the finest.
        before: the states of the last look, finest first.
        noise: draw the training noise.

    Returns:
        the features at each resolution, the new states, and the coarsest features, which the parameter network sees.
    """
    norm, seen, states = config.norm == "instance", [], []
    for level, width in enumerate(config.channels[1:]):
        unit = GR2U(config.residual_blocks, config.activation, norm, config.noise if noise else 0.0, name=f"gr2u_{level}")
        features, state = unit(features, before[level])
        seen.append(features)
        states.append(state)
        features = activate(config.activation, NormalisedConv(width, 3, 2, norm, name=f"down_{level}")(features))
    return seen, tuple(states), features


def first_states(config: ModelConfig, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """The states before the first look at images ``[B, *spatial]``: nothing."""
    batch, *spatial = shape
    states = []
    for channels in config.channels[:-1]:
        spatial = [-(-n // 2) for n in spatial]
        states.append(jnp.zeros((batch, *spatial, channels), config.precision))
    return tuple(states)


def stem(config: ModelConfig, channels: Array) -> NormalisedConv:
    """The first convolution, of width seven and stride two, of input ``[B, *spatial, C]``, before its activation."""
    return NormalisedConv(config.channels[0], 7, 2, config.norm == "instance", name="stem")(channels.astype(config.precision))

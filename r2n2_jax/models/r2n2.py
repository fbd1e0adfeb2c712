"""The recurrent registration neural network (figure 3, eq 7) on batches of image pairs ``[B, *spatial, 1]`` float32."""

import functools
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from r2n2_jax.config import ModelConfig
from r2n2_jax.models.joint import JointStep, first_carry, quieted
from r2n2_jax.models.levels import first_states, levels, stem
from r2n2_jax.models.parameter_net import ParameterNetwork
from r2n2_jax.models.position_net import PositionNetwork
from r2n2_jax.models.residual import activate
from r2n2_jax.ops.flow import flow
from r2n2_jax.ops.gaussian import Gaussians, bell, covariance, local_transformation
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.warp import inside, warp

Array = jax.Array


class Carry(NamedTuple):
    """What is carried from one look at the images to the next.

    Attributes:
        displacement: ``[B, *spatial, d]``, ``f_t``, normalised.
        warped: ``[B, *spatial, 1]``, the ORIGINAL moving image under ``f_t``.
        states: the C-GRU states ``h_t``, finest level first.
    """

    displacement: Array
    warped: Array
    states: tuple[Array, ...]


class Sequence(NamedTuple):
    """A registration, step by step.

    Attributes:
        gaussians: the local transformations, fields ``[T, B, ...]``.
        warped: ``[T, B, *spatial, 1]``, the moving image under ``f_t``; of joint looks with its noise blurred away,
            and the border going on where it has been left.
        inside: ``[T, B, *spatial]`` bool, where ``x + f_t(x)`` is inside the moving image.
        displacement: ``[B, *spatial, d]``, the final ``f_T``, normalised.
    """

    gaussians: Gaussians
    warped: Array
    inside: Array
    displacement: Array


class RegistrationStep(nn.Module):
    r"""One look: :math:`f_t = f_{t-1} + l(x, g_\theta(F, M \circ f_{t-1}))`.

    Attributes:
        config: the architecture.
        noise: draw the training noise (needs the ``noise`` random stream).
    """

    config: ModelConfig
    noise: bool = False

    @nn.compact
    def __call__(self, carry: Carry, fixed: Array, moving: Array) -> tuple[Carry, tuple[Gaussians, Array, Array]]:
        """What the next look needs, and what this one leaves: the local transformation, the warped image and its mask."""
        points = coordinates(fixed.shape[1:-1])
        gaussian, states = self._next_transformation(carry, fixed, points)
        local = jax.vmap(functools.partial(local_transformation, points))(
            gaussian.position, covariance(gaussian.variance, gaussian.rotation), gaussian.weight
        )
        displacement = carry.displacement + local
        warped = jax.vmap(warp)(moving, displacement)
        return Carry(displacement, warped, states), (gaussian, warped, inside(points[None] + displacement))

    def _next_transformation(self, carry: Carry, fixed: Array, points: Array) -> tuple[Gaussians, tuple[Array, ...]]:
        """``g_theta``: features at three resolutions, a position from each, shape and weight from the coarsest."""
        c = self.config
        norm = c.norm == "instance"
        grid = jnp.broadcast_to(points[None], (*fixed.shape[:-1], c.ndim))
        features = activate(c.activation, stem(c, jnp.concatenate([fixed, carry.warped, grid], axis=-1)))
        seen, states, features = levels(c, features, carry.states, noise=self.noise)
        found = [PositionNetwork(c.position_gain, name=f"position_{level}")(part) for level, part in enumerate(seen)]
        head = ParameterNetwork(c.hidden, c.sigma_max, c.sigma_min, c.sigma_is, c.activation, norm, name="parameters")
        position = _weighted_mean(*zip(*found, strict=True))
        variance, rotation, weight = head(features)
        if c.flow:
            weight += _flow_under(points, carry, fixed, position, covariance(variance, rotation))
        return Gaussians(position, variance, rotation, jnp.tanh(weight)), states


class R2N2(nn.Module):
    """The recurrence: one look scanned over time, its weights the same at every step and for any ``steps``.

    Attributes:
        config: the architecture.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from r2n2_jax.config import ModelConfig
        >>> network = R2N2(ModelConfig(resolution=32, steps=3, channels=(2, 4, 8, 16), hidden=8))
        >>> pair = jnp.zeros((1, 32, 32, 1)), jnp.ones((1, 32, 32, 1))
        >>> sequence, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), *pair)
        >>> sequence.gaussians.position.shape, sequence.displacement.shape
        ((3, 1, 2), (1, 32, 32, 2))
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, fixed: Array, moving: Array, *, mask: Array | None = None, steps: int | None = None, noise: bool = False
    ) -> Sequence:
        """Registers a batch of standardised pairs.

        Args:
            fixed: ``[B, *spatial, 1]``, see ``ops.intensity.standardise``.
            moving: the same shape.
            mask: ``[B, *spatial]`` bool, the fixed images' pixels that count, by default all; of joint looks alone.
            steps: how many local transformations; by default the config's.
            noise: draw the multiplicative training noise from the ``noise`` random stream.

        Returns:
            the sequence of ``steps`` looks.
        """
        c = self.config
        chex.assert_equal_shape([fixed, moving])
        chex.assert_rank(fixed, c.ndim + 2)
        chex.assert_axis_dimension(fixed, -1, 1)
        length = c.steps if steps is None else steps
        look = JointStep if c.joint else RegistrationStep
        cell = nn.remat(look, prevent_cse=False) if c.remat else look
        scan = nn.scan(
            cell,
            variable_broadcast="params",
            split_rngs={"params": False, "noise": True},
            in_axes=nn.broadcast,
            length=length,
        )(c, noise, name="step")
        if c.joint:
            pair = quieted(fixed, moving, mask)
            joint, (warped, shown) = scan(first_carry(c, pair, length), pair)
            gaussians = jax.tree.map(lambda field: jnp.swapaxes(field, 0, 1), joint.gaussians)
            return Sequence(gaussians, warped, shown, joint.displacement)
        field = jnp.zeros((*fixed.shape[:-1], c.ndim), fixed.dtype)
        first = Carry(field, moving, first_states(c, fixed.shape[:-1]))
        last, (gaussians, warped, shown) = scan(first, fixed, moving)
        return Sequence(gaussians, warped, shown, last.displacement)


def init_params(key: Array, model: ModelConfig) -> Any:
    """Fresh weights, decided by the key. They do not depend on the image size, so a small one stands in."""
    spatial = (32,) * model.ndim
    # XLA compiles dozens of threefry draws in half a minute, as many of its own generator's in a few seconds.
    key = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key), 2), impl="rbg")
    pair = jnp.zeros((1, *spatial, 1))
    return jax.jit(R2N2(model).init, static_argnames="steps")(key, pair, pair, steps=1)["params"]


def _flow_under(points: Array, carry: Carry, fixed: Array, position: Array, covariance: Array) -> Array:
    """``[B, d]``: what the images say of the motion under each pair's next Gaussian."""
    window = jax.vmap(functools.partial(bell, points))(position, covariance)
    return jax.vmap(flow)(fixed, carry.warped, jnp.where(inside(points[None] + carry.displacement), window, 0.0))


def _weighted_mean(positions: tuple[Array, ...], weights: tuple[Array, ...]) -> Array:
    """Eq 16. The tiny constant decides only where all weights vanish, which their sums of ``|p - q| = 2`` never quite reach."""
    total = sum(weights) + 1e-12
    return sum(weight * position for weight, position in zip(weights, positions, strict=True)) / total

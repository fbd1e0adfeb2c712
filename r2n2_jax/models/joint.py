r"""Looks that know what the images say: on batches of pairs ``[B, *spatial, 1]`` float32.

As in the paper each look places one local transformation. Three things are added to it.

* **What is compared** is local contrast, ``ops.local_contrast``: at first blurred, and against so wide a window that the whole
  image counts, so that large motion is seen; then against an ever narrower one, so that neither a coil nor contrast agent is
  taken for motion.
* **What is seen** is also how much of the residual a motion around each pixel would explain, and which, ``ops.local_flow``.
* **The weights** of ALL local transformations so far are solved for anew, ``ops.joint_weights``. So a look mends what the looks
  before it left, and more looks than trained do no harm. The network adds its own to the newest, for motion that is too large
  for a first order.

All is differentiated through, but for what is seen of the motion and for how far outliers are held back.
"""

import functools
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from r2n2_jax.config import ModelConfig
from r2n2_jax.models.convolution import Convolution
from r2n2_jax.models.levels import first_states, levels, stem
from r2n2_jax.models.parameter_net import ParameterNetwork
from r2n2_jax.models.residual import NormalisedConv, activate
from r2n2_jax.ops.gaussian import Gaussians, bell, covariance
from r2n2_jax.ops.grid import coordinates, half_extent
from r2n2_jax.ops.joint_weights import weights_step
from r2n2_jax.ops.local_contrast import local_contrast, mean_around, noise_of_pair, quiet
from r2n2_jax.ops.local_flow import local_flow
from r2n2_jax.ops.outliers import OUTLIER, bounded, bounded_slope
from r2n2_jax.ops.spatial_softmax import expected_position, spatial_softmax
from r2n2_jax.ops.warp import inside, sample

Array = jax.Array

_WIDEST, _WIDE = 16.0, 2  # how many times as wide as usual the window is at first; the last look at which it is
_NARROWING = 4  # looks that make it narrow
_BLUR = 0.0952  # of what is linearised at first, normalised units: three pixels of 64
SCALES = (0.1, 0.2, 0.4)  # of the windows in which motion is seen, normalised units
_SMOOTHNESS = 0.1  # see ops.joint_weights
_LONGEST = 0.5  # by which a weight may change in a look


class Pair(NamedTuple):
    """What every look compares.

    Attributes:
        fixed: ``[B, *spatial, 1]``, its noise blurred away.
        moving: the same.
        noise: ``[B]``, see ``ops.local_contrast``.
        mask: ``[B, *spatial]`` bool, the pixels that count, or None: all.
    """

    fixed: Array
    moving: Array
    noise: Array
    mask: Array | None


class JointCarry(NamedTuple):
    """What is carried from one look to the next.

    Attributes:
        displacement: ``[B, *spatial, d]``, normalised.
        warped: ``[B, *spatial, 1]``, the pair's moving image under it.
        states: the C-GRU states, finest level first.
        gaussians: the local transformations, fields ``[B, T, ...]``, of which ``placed`` are there.
        bells: ``[B, T, pixels]``, each of height one, zero where none is there.
        placed: scalar int32.
    """

    displacement: Array
    warped: Array
    states: tuple[Array, ...]
    gaussians: Gaussians
    bells: Array
    placed: Array


@jax.jit
def distinct(look: Array) -> Array:
    """How far the looks, counted from 0, have come from seeing large motion to seeing detail, from 0 to 1."""
    return jnp.clip((look - _WIDE) / _NARROWING, 0.0, 1.0)


@jax.jit
def widening(look: Array) -> Array:
    """How many times as wide as usual the window of local contrast is, and as large a residual must be to be held back."""
    return _WIDEST ** (1.0 - distinct(look))


def quieted(fixed: Array, moving: Array, mask: Array | None = None) -> Pair:
    """Standardised pairs ``[B, *spatial, 1]`` as the looks compare them."""
    noise = jax.vmap(noise_of_pair)(fixed, moving, mask)
    return Pair(jax.vmap(quiet)(fixed, noise, mask), jax.vmap(quiet)(moving, noise, mask), noise, mask)


def first_carry(config: ModelConfig, pair: Pair, length: int) -> JointCarry:
    """Nothing is placed, of ``length`` that there may be."""
    batch, *spatial = pair.fixed.shape[:-1]
    d = len(spatial)
    sizes = (d, d, d * (d - 1) // 2, d)
    nothing = Gaussians(*(jnp.zeros((batch, length, size)) for size in sizes))
    bells = jnp.zeros((batch, length, pair.fixed[0].size))
    field = jnp.zeros((batch, *spatial, d))
    states = first_states(config, pair.fixed.shape[:-1])
    return JointCarry(field, pair.moving, states, nothing._replace(variance=nothing.variance + 1.0), bells, jnp.array(0))


class _Compared(NamedTuple):
    """Local contrast ``[B, *spatial, 1]``; its residual ``[B, *spatial]``; the slope in each component."""

    fixed: Array
    warped: Array
    residual: Array
    slopes: list[Array]


class JointStep(nn.Module):
    """One look: a new local transformation, and the weights of all.

    Attributes:
        config: the architecture.
        noise: draw the training noise (needs the ``noise`` random stream).
    """

    config: ModelConfig
    noise: bool = False

    @nn.compact
    def __call__(self, carry: JointCarry, pair: Pair) -> tuple[JointCarry, tuple[Array, Array]]:
        """What the next look needs; and the warped images and where they show something."""
        batch, *spatial = pair.fixed.shape[:-1]
        points = coordinates(tuple(spatial))
        compared = _compared(carry, pair, points)
        states, position, variance, rotation, own = self._proposed(carry, compared)

        placed = functools.partial(_placed, carry.placed)
        gaussians = carry.gaussians._replace(
            position=placed(carry.gaussians.position, position),
            variance=placed(carry.gaussians.variance, variance),
            rotation=placed(carry.gaussians.rotation, rotation),
        )
        new = jax.vmap(functools.partial(bell, points))(position, covariance(variance, rotation))
        bells = placed(carry.bells, new.reshape(batch, -1))
        taken = jnp.arange(bells.shape[1]) <= carry.placed
        residual, *slopes = (part.reshape(batch, -1) for part in (compared.residual, *compared.slopes))
        # Its rows are as many numbers as all else a look keeps; to make them twice is cheaper.
        solve = jax.checkpoint(jax.vmap(weights_step, in_axes=(0, 0, 0, 0, None, None)), prevent_cse=False)
        step = solve(bells, residual, slopes, gaussians, taken, _SMOOTHNESS)
        step = _LONGEST * jnp.tanh(step.at[:, carry.placed].add(own) / _LONGEST)
        gaussians = gaussians._replace(weight=gaussians.weight + step)

        moved = jnp.moveaxis(jnp.einsum("btd,btn->bdn", step, bells), 1, -1)
        displacement = carry.displacement + moved.reshape(carry.displacement.shape)
        # Beyond its border the border's pixels go on, so that nothing ends there which would be taken for an edge.
        shown = jax.vmap(sample)(pair.moving, jnp.clip(points[None] + displacement, -1.0, 1.0))
        following = JointCarry(displacement, shown, states, gaussians, bells, carry.placed + 1)
        return following, (shown, inside(points[None] + displacement))

    def _proposed(self, carry: JointCarry, compared: _Compared) -> tuple[Any, ...]:
        """``g_theta``: the new states; position, variance and rotation of the next one, and what its weight gets beside."""
        c = self.config
        norm = c.norm == "instance"
        fixed, warped, motion = compared.fixed, compared.warped, _motion(compared.residual, compared.slopes)
        grid = jnp.broadcast_to(coordinates(fixed.shape[1:-1])[None], (*fixed.shape[:-1], c.ndim))
        moved = NormalisedConv(c.channels[0], norm=norm, name="motion")(motion.astype(c.precision))
        features = activate(c.activation, stem(c, jnp.concatenate([fixed, warped, grid], axis=-1)) + moved)
        seen, states, coarsest = levels(c, features, carry.states, noise=self.noise)
        # The levels' maps are added up before ONE softmax: a mean of positions lies where no level wants it.
        maps = [Convolution(1, 1, name=f"position_{level}")(part.astype(jnp.float32)) for level, part in enumerate(seen)]
        total = sum(_enlarged(part, 2**level, maps[0].shape) for level, part in enumerate(maps))
        position = jax.vmap(lambda logits: expected_position(spatial_softmax(c.position_gain * logits))[0])(total)
        there = jax.vmap(lambda image, point: sample(image, point[None])[0])(motion, position)
        head = ParameterNetwork(
            c.hidden, c.sigma_max, c.sigma_min, c.sigma_is, c.activation, norm, logarithmic=True, name="parameters"
        )
        return states, position, *head(coarsest, jnp.concatenate([position, there], axis=-1))


def _compared(carry: JointCarry, pair: Pair, points: Array) -> _Compared:
    widened = widening(carry.placed)
    contrast = jax.vmap(functools.partial(local_contrast, widened=widened))
    fixed, warped = (_masked(contrast(image, pair.noise, pair.mask), pair.mask) for image in (pair.fixed, carry.warped))
    counted = inside(points[None] + carry.displacement)
    counted = counted if pair.mask is None else counted & pair.mask
    blur = functools.partial(_blurred, mask=pair.mask, share=1.0 - distinct(carry.placed))
    linear = jax.vmap(functools.partial(_linear, outlier=OUTLIER * widened))
    return _Compared(fixed, warped, *linear(blur(fixed), blur(warped), counted))


def _linear(fixed: Array, warped: Array, counted: Array, *, outlier: Array) -> tuple[Array, list[Array]]:
    """Of one pair the bounded residual ``F - W [*spatial]``, and the slope of both images in the mean in each component."""
    d = counted.ndim
    difference, mean = (fixed - warped)[..., 0], 0.5 * (fixed + warped)[..., 0]
    held = jax.lax.stop_gradient(jnp.where(counted, bounded_slope(difference, outlier), 0.0))
    extents = half_extent(counted.shape)
    slopes = [extents[i] * jnp.gradient(mean, axis=d - 1 - i) * held for i in range(d)]
    return jnp.where(counted, bounded(difference, outlier), 0.0), slopes


def _masked(images: Array, mask: Array | None) -> Array:
    return images if mask is None else jnp.where(mask[..., None], images, 0.0)


def _blurred(images: Array, *, mask: Array | None, share: Array) -> Array:
    """Images ``[B, *spatial, 1]`` blurred in the mask, by that share of the most: their slopes reach as far as large motion."""
    deviations = [0.5 * _BLUR * (n - 1) * share for n in images.shape[1:-1]]
    return jax.vmap(lambda image, mask: mean_around(image[..., 0], mask, deviations)[..., None])(images, mask)


def _motion(residual: Array, slopes: list[Array]) -> Array:
    """What is seen of the motion, ``[B, *spatial / 2, scales (2 + d)]``: gains against their mean, gains, shifts."""
    chex.assert_equal_shape([residual, *slopes])
    gains, shifts = jax.vmap(functools.partial(local_flow, deviations=SCALES))(residual, slopes)
    mean = jnp.mean(gains, axis=tuple(range(1, gains.ndim - 1)), keepdims=True)
    relative = 0.5 * jnp.log(gains / (mean + 1e-6) + 0.02)
    directions = jnp.tanh(4.0 * shifts.reshape(*shifts.shape[:-2], -1))
    return jax.lax.stop_gradient(jnp.concatenate([relative, jnp.sqrt(gains + 1e-8), directions], axis=-1))


def _placed(index: Array, many: Array, one: Array) -> Array:
    return many.at[:, index].set(one)


def _enlarged(maps: Array, times: int, shape: tuple[int, ...]) -> Array:
    """Maps ``[B, *spatial, 1]`` on the finest grid, each pixel's value for all that it covers."""
    for axis in range(1, maps.ndim - 1):
        maps = jnp.repeat(maps, times, axis=axis)
        maps = jax.lax.slice_in_dim(maps, 0, shape[axis], axis=axis)
    return maps

"""From raw images ``[B, *spatial]`` to registered ones: the network's looks, instance refinement, the warp at full size."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r2n2_jax.config import ModelConfig
from r2n2_jax.devices import EVERYWHERE, PAIRS, copy_to_all, mesh, spread
from r2n2_jax.levenberg_marquardt import best_share, refine_batch
from r2n2_jax.models.r2n2 import R2N2
from r2n2_jax.ops.gaussian import Gaussians, displacement
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.intensity import prepare
from r2n2_jax.ops.warp import inside, sample_nearest, warp

Array = jax.Array


class Answer(NamedTuple):
    """Registered pairs.

    Attributes:
        gaussians: the local transformations, fields ``[B, T, ...]``.
        displacement: ``[B, *spatial, d]``, normalised, on the images' own grid.
        warped: ``[B, *spatial]``, the moving images in the fixed ones' positions, zero where they show nothing.
        inside: ``[B, *spatial]`` bool, where they show something.
    """

    gaussians: Gaussians
    displacement: Array
    warped: Array
    inside: Array


def register_pairs(
    params: Any,
    model: ModelConfig,
    fixed: Array,
    moving: Array,
    *,
    steps: int,
    refine: int = 0,
    mask: Array | None = None,
) -> Answer:
    """Registers a batch in one compiled call, shared among the local devices.

    Args:
        params: the network's weights.
        model: its architecture.
        fixed: ``[B, *spatial]``, any size and range; ``B`` is 1 or a multiple of the devices.
        moving: the same shape.
        steps: local transformations.
        refine: Levenberg-Marquardt steps on them at the model's resolution; half as many follow at twice that, where the
            images have it.
        mask: ``[*spatial]`` bool, the pixels that refinement looks at in all of them; by default all.
    """
    count = len(fixed)
    params, mask = copy_to_all((params, mask), count)
    fixed, moving = spread((fixed, moving))
    return _shared(params, fixed, moving, mask, model=model, steps=steps, refine=refine, devices=mesh(count))


@functools.partial(jax.jit, static_argnames=("model", "steps", "refine", "devices"))
def _shared(
    params: Any, fixed: Array, moving: Array, mask: Array | None, *, model: ModelConfig, steps: int, refine: int, devices: Mesh
) -> Answer:
    def share(params: Any, fixed: Array, moving: Array, mask: Array | None) -> Answer:
        gaussians = propose(params, model, fixed, moving, steps=steps)
        if refine:
            gaussians = _refined(gaussians, model, fixed, moving, mask, iterations=refine)
        else:
            gaussians = _best_shares(gaussians, model, fixed, moving, mask)
        return Answer(gaussians, *_applied(gaussians, moving))

    # No device needs another's pairs, so that nothing is to be checked about what varies between them.
    specs = (EVERYWHERE, PAIRS, PAIRS, EVERYWHERE)
    return jax.shard_map(share, mesh=devices, in_specs=specs, out_specs=PAIRS, check_vma=False)(params, fixed, moving, mask)


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def propose(params: Any, model: ModelConfig, fixed: Array, moving: Array, *, steps: int) -> Gaussians:
    """The network's local transformations for a batch of raw images.

    Args:
        params: the weights.
        model: the architecture.
        fixed: ``[B, *spatial]``, any size and range.
        moving: the same shape.
        steps: how many.

    Returns:
        fields ``[B, steps, ...]``.
    """
    seen = (_prepared(images, (model.resolution,) * model.ndim) for images in (fixed, moving))
    sequence = R2N2(model).apply({"params": params}, *seen, steps=steps)
    return jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1), sequence.gaussians)


def _best_shares(gaussians: Gaussians, model: ModelConfig, fixed: Array, moving: Array, mask: Array | None) -> Gaussians:
    """As much of the network's answer as makes its pair match best, at the model's resolution: none where it does harm."""
    shape = (model.resolution,) * model.ndim
    counted = None if mask is None else _resampled(mask, shape)
    pairs = _prepared(fixed, shape), _prepared(moving, shape), gaussians
    return jax.lax.map(lambda pair: best_share(*pair, mask=counted), pairs)


def _refined(
    gaussians: Gaussians, model: ModelConfig, fixed: Array, moving: Array, mask: Array | None, *, iterations: int
) -> Gaussians:
    """At the model's resolution, and half as many steps at twice that where the images have it."""
    levels = [(model.resolution, iterations)]
    if min(fixed.shape[1:]) >= 2 * model.resolution and iterations > 1:
        levels.append((2 * model.resolution, iterations // 2))
    for resolution, steps in levels:
        shape = (resolution,) * model.ndim
        counted = None if mask is None else _resampled(mask, shape)
        gaussians = refine_batch(_prepared(fixed, shape), _prepared(moving, shape), gaussians, mask=counted, iterations=steps)
    return gaussians


def _prepared(images: Array, shape: tuple[int, ...]) -> Array:
    """``[B, *spatial]`` as the network sees them."""
    return jax.vmap(lambda image: prepare(image, shape))(images)


def _resampled(mask: Array, shape: tuple[int, ...]) -> Array:
    return sample_nearest(mask[..., None].astype(jnp.float32), coordinates(shape))[..., 0] > 0.5


def _applied(gaussians: Gaussians, moving: Array) -> tuple[Array, Array, Array]:
    """Displacement, warped image and mask on the moving images' own grid: ``[B, ...]``."""
    points = coordinates(moving.shape[1:])
    field = jax.vmap(displacement, in_axes=(0, None))(gaussians, points)
    warped = jax.vmap(warp)(moving[..., None], field)[..., 0]
    return field, warped, inside(points[None] + field)

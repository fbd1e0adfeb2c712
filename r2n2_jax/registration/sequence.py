"""From raw images ``[B, *spatial]`` to registered ones: the network's looks, instance refinement, the warp at full size.

Three programs one after the other. What is seen and what is applied depend on the images' size and compile in a moment; what
is found in between, the long one, is at the model's own resolution: compiled once, it serves images of every size.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r2n2_jax.config import ModelConfig
from r2n2_jax.io.geometry import Placement, same_place
from r2n2_jax.models.r2n2 import R2N2
from r2n2_jax.ops.gaussian import Gaussians, displacement
from r2n2_jax.ops.grid import components, coordinates
from r2n2_jax.ops.intensity import prepare, resample
from r2n2_jax.ops.warp import inside, sample
from r2n2_jax.registration.levenberg_marquardt import best_fraction, refine_batch
from r2n2_jax.runtime.devices import EVERYWHERE, PAIRS, copy_to_all, mesh, shard
from r2n2_jax.runtime.programs import kept

Array = jax.Array


class Applied(NamedTuple):
    """What a field does to its moving images.

    Attributes:
        displacement: ``[B, *spatial, d]``, normalised, on the fixed images' grid.
        warped: ``[B, *spatial]``, the moving images in the fixed ones' positions, zero where they show nothing.
        inside: ``[B, *spatial]`` bool, where they show something.
    """

    displacement: Array
    warped: Array
    inside: Array


def find(
    params: Any,
    model: ModelConfig,
    fixed: Array,
    moving: Array,
    *,
    steps: int,
    refine: int,
    mask: Array | None = None,
) -> Gaussians:
    """The local transformations of a batch of pairs, found in compiled calls that the local devices share.

    Args:
        params: the network's weights.
        model: its architecture.
        fixed: ``[B, *spatial]``, any size and range; ``B`` is 1 or a multiple of the devices.
        moving: the same shape.
        steps: local transformations.
        refine: Levenberg-Marquardt steps on them at the model's resolution; half as many follow at twice that, where the
            images have it.
        mask: ``[*spatial]`` bool, the pixels that refinement looks at in all of them; by default all.

    Returns:
        fields ``[B, steps, ...]``.
    """
    count = len(fixed)
    devices = mesh(count)
    params, mask = copy_to_all((params, mask), count)
    fixed, moving = shard((fixed, moving))
    views = [view(fixed, moving, mask, shape=shape, devices=devices) for shape in _shapes(model, fixed.shape[1:], refine)]
    return _found(params, views, model=model, steps=steps, refine=refine, devices=devices)


def apply(gaussians: Gaussians, moving: Array, placement: Placement | None = None, *, shape: tuple[int, ...]) -> Applied:
    """The field on the fixed grid, and what it does to the moving images.

    Args:
        gaussians: fields ``[B, T, ...]``.
        moving: ``[B, *any]``, their own pixels.
        placement: where the fixed points lie in them; by default both are on one grid.
        shape: of the fixed grid.
    """
    placement = same_place(len(shape)) if placement is None else placement
    moving, placement = shard(moving), copy_to_all(placement, len(moving))
    return _applied(gaussians, moving, placement, shape=shape, devices=mesh(len(moving)))


@functools.partial(jax.jit, static_argnames="shape")
def place(moving: Array, placement: Placement, *, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The undisplaced moving image ``[*any]`` on a fixed grid: ``[*shape]``, zero where it is not; and where it is."""
    return _pulled(moving, placement, coordinates(shape))


class View(NamedTuple):
    """Pairs at the size that they are looked at.

    Attributes:
        fixed: ``[B, *shape, 1]``, standardised.
        moving: the same.
        mask: ``[*shape]`` bool, the pixels that count in all of them; None: all.
    """

    fixed: Array
    moving: Array
    mask: Array | None = None


_VIEW = View(PAIRS, PAIRS, EVERYWHERE)


def _shapes(model: ModelConfig, spatial: tuple[int, ...], refine: int) -> list[tuple[int, ...]]:
    """The model's resolution, and twice that where refinement goes on there: where the images have it."""
    shape = (model.resolution,) * model.ndim
    finer = refine > 1 and min(spatial) >= 2 * model.resolution
    return [shape, tuple(2 * size for size in shape)] if finer else [shape]


@functools.partial(jax.jit, static_argnames=("shape", "devices"))
def view(fixed: Array, moving: Array, mask: Array | None = None, *, shape: tuple[int, ...], devices: Mesh) -> View:
    """Raw pairs ``[B, *spatial]``, and a mask ``[*spatial]``, as they are looked at."""

    def own(fixed: Array, moving: Array, mask: Array | None) -> View:
        images = (jax.vmap(lambda image: prepare(image, shape))(images) for images in (fixed, moving))
        return View(*images, None if mask is None else _resampled(mask, shape))

    return _on_each(own, devices, (PAIRS, PAIRS, EVERYWHERE), _VIEW)(fixed, moving, mask)


@functools.partial(kept, returns=[Gaussians])
@functools.partial(jax.jit, static_argnames=("model", "steps", "refine", "devices"))
def _found(params: Any, views: list[View], *, model: ModelConfig, steps: int, refine: int, devices: Mesh) -> Gaussians:
    """The network's answer to the first view, refined on all of them, or as much of it as makes its pair match best."""

    def own(params: Any, views: list[View]) -> Gaussians:
        gaussians = propose(params, model, views[0], steps=steps)
        if not refine:
            return _best_fractions(gaussians, views[0])
        for index, seen in enumerate(views):
            gaussians = refine_batch(seen.fixed, seen.moving, gaussians, mask=seen.mask, iterations=refine // 2**index)
        return gaussians

    return _on_each(own, devices, (EVERYWHERE, [_VIEW] * len(views)), PAIRS)(params, views)


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def propose(params: Any, model: ModelConfig, seen: View, *, steps: int) -> Gaussians:
    """The network's local transformations for a batch.

    Args:
        params: the weights.
        model: the architecture.
        seen: the pairs at its resolution.
        steps: how many.

    Returns:
        fields ``[B, steps, ...]``.
    """
    sequence = R2N2(model).apply({"params": params}, seen.fixed, seen.moving, steps=steps)
    return jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1), sequence.gaussians)


def _best_fractions(gaussians: Gaussians, seen: View) -> Gaussians:
    """None of it where it does harm."""
    pairs = seen.fixed, seen.moving, gaussians
    return jax.lax.map(lambda pair: best_fraction(*pair, mask=seen.mask), pairs)


@functools.partial(jax.jit, static_argnames=("shape", "devices"))
def _applied(gaussians: Gaussians, moving: Array, placement: Placement, *, shape: tuple[int, ...], devices: Mesh) -> Applied:
    def own(gaussians: Gaussians, moving: Array, placement: Placement) -> Applied:
        points = coordinates(shape)
        field = jax.vmap(displacement, in_axes=(0, None))(gaussians, points)
        return Applied(field, *jax.vmap(_pulled, in_axes=(0, None, 0))(moving, placement, points[None] + field))

    return _on_each(own, devices, (PAIRS, PAIRS, EVERYWHERE), PAIRS)(gaussians, moving, placement)


def _pulled(moving: Array, placement: Placement, points: Array) -> tuple[Array, Array]:
    """A moving image ``[*any]`` at points ``[..., d]`` of the fixed one: its values ``[...]``, and where it has any."""
    at = components(points)
    rows = [sum(row[j] * part for j, part in enumerate(at)) + shift for row, shift in zip(*placement, strict=True)]
    there = jnp.stack(rows, axis=-1)
    return sample(moving[..., None], there)[..., 0], inside(there)


def _resampled(mask: Array, shape: tuple[int, ...]) -> Array:
    """Pixels of which half is in the mask; of one that is smaller than a pixel, those that hold the most of it."""
    coverage = resample(mask[..., None].astype(jnp.float32), shape)[..., 0]
    return coverage >= 0.5 * jnp.max(coverage)


def _on_each(function: Callable[..., Any], devices: Mesh, inputs: Any, outputs: Any) -> Callable[..., Any]:
    """Every device does its own pairs; none needs another's, so nothing is to be checked about what varies between them."""
    return jax.shard_map(function, mesh=devices, in_specs=inputs, out_specs=outputs, check_vma=False)

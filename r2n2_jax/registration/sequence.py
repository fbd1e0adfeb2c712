"""From raw images ``[B, *spatial]`` to registered ones: the network's looks, instance refinement, the warp at full size.

Four programs one after the other. What is seen and what is applied depend on the images' size and compile in a moment; what is
found in between and what it is continued by, the long ones, are at the model's own resolution: compiled once, they serve images
of every size.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r2n2_jax.config import ModelConfig
from r2n2_jax.io.geometry import Placement, same_place
from r2n2_jax.models.r2n2 import R2N2
from r2n2_jax.ops.affine import Affine, carry, identity, shift
from r2n2_jax.ops.gaussian import Gaussians, displacement, mirror
from r2n2_jax.ops.grid import components, coordinates, over_planes
from r2n2_jax.ops.intensity import prepare, resample
from r2n2_jax.ops.local_contrast import noise_of_pair, quiet
from r2n2_jax.ops.warp import inside, sample
from r2n2_jax.registration.course import SURE, Found, Stages, View, Wanted, begin, ended, go_on
from r2n2_jax.registration.judgement import Judged
from r2n2_jax.registration.levenberg_marquardt import best_fraction
from r2n2_jax.registration.start import Kind, Start, find_start, no_start
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


def views(model: ModelConfig, fixed: Array, moving: Array, mask: Array | None = None, *, refine: int) -> list[View]:
    """Pairs at every size that they are looked at: the model's resolution, and twice that where refinement goes on there.

    Args:
        model: the network's architecture.
        fixed: ``[B, *spatial]``, any size and range; ``B`` is 1 or a multiple of the devices.
        moving: the same shape.
        mask: ``[B, *spatial]`` bool, the fixed images' pixels that count; by default all.
        refine: Levenberg-Marquardt steps that follow.
    """
    devices, shapes = mesh(len(fixed)), _shapes(model, fixed.shape[1:], refine)
    return _viewed(*shard((fixed, moving, mask)), shapes=shapes, devices=devices)


def find(
    params: Any,
    model: ModelConfig,
    seen: list[View],
    wanted: Wanted,
    *,
    looks: int,
    refine: int,
    needed: np.ndarray | None = None,
    mirrored: bool = False,
) -> Found:
    """The local transformations of a batch of pairs, found in compiled calls that the local devices share.

    Args:
        params: the network's weights.
        model: its architecture.
        seen: the pairs, see ``views``.
        wanted: the accuracy at which a sequence ends.
        looks: local transformations that the network places.
        refine: Levenberg-Marquardt steps on them, see ``course``.
        needed: ``[B]`` bool, the pairs that are looked at; of the others nothing is known. By default all are.
        mirrored: the network looks at the pairs in a mirror; what it has learnt is not the same from both sides.
    """
    count = len(seen[0].fixed)
    options = {"model": model, "looks": looks, "refine": refine, "devices": mesh(count)}
    params, wanted, mirrored = copy_to_all((params, wanted, np.asarray(mirrored)), count)
    return _found(params, seen, wanted, shard(np.ones(count, bool) if needed is None else needed), mirrored, **options)


def proceed(seen: list[View], found: Found, wanted: Wanted, *, most: int, refine: int) -> Found:
    """What was found for a batch of pairs, continued where it is not sure yet, see ``course.go_on``.

    Args:
        seen: the pairs, see ``views``.
        found: for them.
        wanted: the accuracy at which a sequence ends.
        most: local transformations.
        refine: see ``find``.
    """
    count = len(seen[0].fixed)
    # Where all are sure, what takes long to compile is not needed.
    refine = refine if (np.asarray(found.stopped) != SURE).any() else 0
    return _continued(*shard((seen, found)), copy_to_all(wanted, count), most=most, refine=refine, devices=mesh(count))


def apply(
    gaussians: Gaussians,
    moving: Array,
    affine: Affine | None = None,
    placement: Placement | None = None,
    *,
    shape: tuple[int, ...],
) -> Applied:
    r"""The field :math:`f(x) = A (x + l(x)) + b - x` on the fixed grid, and what it does to the moving images.

    Args:
        gaussians: of ``l``, fields ``[B, T, ...]``.
        moving: ``[B, *any]``, their own pixels.
        affine: ``A`` and ``b`` of each pair, fields ``[B, ...]``; by default the identity.
        placement: where the fixed points lie in the moving images; by default both are on one grid.
        shape: of the fixed grid.
    """
    count, d = len(moving), len(shape)
    affine = identity(count, d) if affine is None else affine
    placement = copy_to_all(same_place(d) if placement is None else placement, count)
    return _applied(gaussians, *shard((moving, affine)), placement, shape=shape, devices=mesh(count))


@functools.partial(jax.jit, static_argnames="shape")
def place(moving: Array, placement: Placement, *, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The undisplaced moving image ``[*any]`` on a fixed grid: ``[*shape]``, zero where it is not; and where it is."""
    return _pulled(moving, placement, coordinates(shape))


def start(seen: View, wanted: Array, extent: Array, *, kind: Kind) -> Start:
    """Where the ``wanted [B]`` of ``[B]`` pairs start, see ``start.find_start``; the others at the identity."""
    count = len(seen.fixed)
    return _started(seen, shard(wanted), copy_to_all(extent, count), kind=kind, devices=mesh(count))


@functools.partial(kept, returns=[Start, Affine])
@functools.partial(jax.jit, static_argnames=("kind", "devices"))
def _started(seen: View, wanted: Array, extent: Array, *, kind: Kind, devices: Mesh) -> Start:
    def own(seen: View, wanted: Array, extent: Array) -> Start:
        mask = jnp.ones(seen.fixed.shape[:-1], bool) if seen.mask is None else seen.mask

        def one(pair: tuple[Array, ...]) -> Start:
            fixed, moving, mask, needed = pair
            noise = noise_of_pair(fixed, moving, mask)
            images = (quiet(image, noise, mask) for image in (fixed, moving))
            search = functools.partial(find_start, *images, mask, extent, kind=kind)
            return jax.lax.cond(needed, search, functools.partial(no_start, len(extent)))

        return jax.lax.map(one, (seen.fixed, seen.moving, mask, wanted))

    return _on_each(own, devices, (_VIEW, PAIRS, EVERYWHERE), PAIRS)(seen, wanted, extent)


def move(moving: Array, affine: Affine) -> tuple[Array, Array]:
    """Moving images ``[B, *spatial]`` under their affine maps: what is seen of them at ``A x + b``; and where anything is.

    Beyond its border the border's pixels go on, so that nothing ends there which would be taken for an edge.
    """
    return _moved(*shard((moving, affine)), devices=mesh(len(moving)))


@functools.partial(jax.jit, static_argnames="devices")
def _moved(moving: Array, affine: Affine, *, devices: Mesh) -> tuple[Array, Array]:
    def own(moving: Array, affine: Affine) -> tuple[Array, Array]:
        points = coordinates(moving.shape[1:])

        def one(image: Array, affine: Affine) -> tuple[Array, Array]:
            there = carry(affine, points)
            return sample(image[..., None], jnp.clip(there, -1.0, 1.0))[..., 0], inside(there)

        return jax.vmap(one)(moving, affine)

    return _on_each(own, devices, (PAIRS, PAIRS), PAIRS)(moving, affine)


_VIEW = View(PAIRS, PAIRS, PAIRS)


def _shapes(model: ModelConfig, spatial: tuple[int, ...], refine: int) -> tuple[tuple[int, ...], ...]:
    """The model's resolution, and twice that where refinement goes on there: where the images have it.

    Volumes have it along one axis and not along another: each axis is looked at by as many voxels as it has, at most.
    """
    if model.ndim == 3:
        sizes = list(zip(spatial, model.shape, strict=True))
        coarse, fine = (tuple(_within(n, times * most) for n, most in sizes) for times in (1, 2))
        return (coarse, fine) if refine > 1 and fine != coarse else (coarse,)
    finer = refine > 1 and min(spatial) >= 2 * model.resolution
    return (model.shape, tuple(2 * size for size in model.shape)) if finer else (model.shape,)


def seen_shape(model: ModelConfig, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """The shape at which the network looks at images ``[*spatial]``."""
    return _shapes(model, spatial, 0)[0]


def _within(voxels: int, most: int) -> int:
    """The power of two nearest to so many voxels, or ``most``: few sizes, as programs are compiled for every one."""
    return min(most, 1 << round(math.log2(voxels)))


@functools.partial(jax.jit, static_argnames=("shapes", "devices"))
def _viewed(
    fixed: Array, moving: Array, mask: Array | None = None, *, shapes: tuple[tuple[int, ...], ...], devices: Mesh
) -> list[View]:
    """Raw pairs ``[B, *spatial]``, and masks of the same shape, as they are looked at; outliers are cut once for all sizes."""

    def own(fixed: Array, moving: Array, mask: Array | None) -> list[View]:
        return [_view(fixed, moving, mask, shape) for shape in shapes]

    return _on_each(own, devices, (PAIRS, PAIRS, PAIRS), [_VIEW] * len(shapes))(fixed, moving, mask)


def _view(fixed: Array, moving: Array, mask: Array | None, shape: tuple[int, ...]) -> View:
    small = None if mask is None else jax.vmap(lambda one: _resampled(one, shape))(mask)
    prepared = jax.vmap(lambda image, where: prepare(image, shape, where), in_axes=(0, None if mask is None else 0))
    return View(prepared(fixed, small), prepared(moving, small), small)


@functools.partial(kept, returns=[Gaussians, Judged, Stages, Found])
@functools.partial(jax.jit, static_argnames=("model", "looks", "refine", "devices"))
def _found(
    params: Any,
    views: list[View],
    wanted: Wanted,
    needed: Array,
    mirrored: Array,
    *,
    model: ModelConfig,
    looks: int,
    refine: int,
    devices: Mesh,
) -> Found:
    """The network's answer to the first view, fitted on all of them, or as much of it as makes its pair match best."""

    def own(params: Any, views: list[View], wanted: Wanted, needed: Array, mirrored: Array) -> Found:
        def looked(seen: View) -> Gaussians:
            shown = jax.tree.map(lambda array: jnp.where(mirrored, jnp.flip(array, model.ndim - 1), array)[None], seen)
            proposed = jax.tree.map(lambda array: array[0], propose(params, model, shown, steps=looks))
            return jax.tree.map(functools.partial(jnp.where, mirrored), mirror(proposed), proposed)

        def begun(seen: list[View], gaussians: Gaussians) -> Found:
            if refine:
                return begin(seen, gaussians, wanted, iterations=refine)
            gaussians = best_fraction(seen[0].fixed, seen[0].moving, gaussians, mask=seen[0].mask)
            return ended(seen, gaussians, wanted)

        def one(pair: tuple[list[View], Array]) -> Found:
            seen, needed = pair
            sizes = model.ndim, model.ndim, model.ndim * (model.ndim - 1) // 2, model.ndim
            some = Gaussians(*(jnp.zeros((looks, size)) for size in sizes))
            blank = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(begun, seen, some))
            return jax.lax.cond(needed, lambda seen: begun(seen, looked(seen[0])), lambda _: blank, seen)

        return _one_by_one(one, (views, needed))

    inputs = (EVERYWHERE, [_VIEW] * len(views), EVERYWHERE, PAIRS, EVERYWHERE)
    return _on_each(own, devices, inputs, PAIRS)(params, views, wanted, needed, mirrored)


@functools.partial(kept, returns=[Gaussians, Judged, Stages, Found])
@functools.partial(jax.jit, static_argnames=("most", "refine", "devices"))
def _continued(views: list[View], found: Found, wanted: Wanted, *, most: int, refine: int, devices: Mesh) -> Found:
    def own(views: list[View], found: Found, wanted: Wanted) -> Found:
        def one(pair: tuple[list[View], Found]) -> Found:
            return go_on(*pair, wanted, most=most, iterations=refine)

        return _one_by_one(one, (views, found))

    return _on_each(own, devices, ([_VIEW] * len(views), PAIRS, EVERYWHERE), PAIRS)(views, found, wanted)


def _one_by_one(one: Callable[[Any], Found], pairs: Any) -> Found:
    """Each pair by itself on a CPU: a batch, even of one, would take both branches of every condition."""
    return jax.lax.map(one, pairs) if jax.default_backend() == "cpu" else jax.vmap(one)(pairs)


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
    sequence = R2N2(model).apply({"params": params}, seen.fixed, seen.moving, mask=seen.mask, steps=steps)
    return jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1), sequence.gaussians)


@functools.partial(jax.jit, static_argnames=("shape", "devices"))
def _applied(
    gaussians: Gaussians, moving: Array, affine: Affine, placement: Placement, *, shape: tuple[int, ...], devices: Mesh
) -> Applied:
    def one(gaussians: Gaussians, moving: Array, affine: Affine, placement: Placement) -> Applied:
        def at(points: Array) -> Applied:
            local = displacement(gaussians, points)
            field = local + shift(affine, points + local)
            return Applied(field, *_pulled(moving, placement, points + field))

        return over_planes(at, shape)

    own = jax.vmap(one, in_axes=(0, 0, 0, None))
    return _on_each(own, devices, (PAIRS, PAIRS, PAIRS, EVERYWHERE), PAIRS)(gaussians, moving, affine, placement)


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

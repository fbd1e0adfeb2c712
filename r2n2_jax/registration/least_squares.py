r"""The least-squares problem of ONE pair: T Gaussians, their mismatch, and its normal equations of ``T x 7`` unknowns (2D).

The residuals are the image differences :math:`r(x) = M(x + f_\theta(x)) - F(x)` inside the moving image, of which a large one
counts no more than a constant: :math:`\phi(r)` of ``ops/outliers``. The images are those of local contrast: of the warped
image, with a mean and a scale that are held for a step. With the image's slope :math:`\nabla M` at the warped points, every
local transformation adds its own columns to the Jacobian, :math:`\phi'(r) \nabla M \cdot \partial l / \partial\theta`: seven
maps made of one Gaussian. The total variation enters as a sum of squares whose weights are those of the last step (lagged
diffusivity; Vogel and Oman, SIAM Journal on Scientific Computing 17(1), 1996).

A local transformation hardly varies between neighbouring pixels. So in the plane the curvature need not know every pixel, but
what the pixels of a cell sum up to: their structure tensor :math:`\sum (\phi')^2\,\nabla M \nabla M^T`, which stands as two
slopes (its Cholesky factor's columns) where the cell's slopes are in the mean. The right side, half the objective's slope, is
exact, and takes time in proportion to the number of Gaussians.

A pixel that leaves the moving image is charged what it cost undisplaced, times what the others have gained: a field wins
nothing by carrying pixels out.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.ops.gaussian import FreeGaussians, displacement, displacement_and_determinant, from_free
from r2n2_jax.ops.grid import components, coordinates, half_extent
from r2n2_jax.ops.local_contrast import left_noise
from r2n2_jax.ops.outliers import OUTLIER, bounded, bounded_slope
from r2n2_jax.ops.warp import inside, sample
from r2n2_jax.registration.rows import all_rows, field_rows, gram, products, pulls

Array = jax.Array

# The field is smooth, so few pixels show its differences; those below the floor, a slope of an eighth, count as squares.
_TV_PIXELS, _TV_REFERENCE, _TV_FLOOR = {2: 9, 3: 6}, 256, 1e-3
_MOST_PIXELS = {2: 6000, 3: 12000}  # a hundred unknowns need no more, and the time grows with them
_MOST_CELLS = 800
_LEAST_ENERGY = 1e-12
_UNGAINED = 0.05  # of the cost without displacement: where few pixels are left, they say little of the others' gain


class Problem(NamedTuple):
    """What is compared, of ONE pair.

    Attributes:
        points: ``[pixels, d]``, the fixed image's pixels that are looked at.
        fixed: ``[pixels]``, their values.
        still: ``[pixels]``, those of the moving image, undisplaced.
        counted: ``[pixels]`` bool, those that count.
        moving: ``[*spatial, 1]``, the whole moving image.
        mean: ``[pixels]``, what is taken from its values, warped,
        scale: ``[pixels]``, and what they are divided by.
        outlier: a scalar, the residual from which on a larger one hardly costs more.
        cells: ``[cells, most]``, which pixels lie in each cell; ``pixels`` where it has fewer.
        noise: a scalar, the standard deviation of the images' noise; 0 where they are compared as they are.
    """

    points: Array
    fixed: Array
    still: Array
    counted: Array
    moving: Array
    mean: Array
    scale: Array
    outlier: Array
    cells: Array
    noise: Array


def looked_at(shape: tuple[int, ...]) -> np.ndarray:
    """A lattice of at most ``_MOST_PIXELS`` of an image's pixels, as indices ``[pixels]``."""
    every = -(-math.prod(shape) // _MOST_PIXELS[len(shape)])
    shear = round(0.618 * every)  # neighbouring rows begin far from each other
    return np.flatnonzero(sum(n * shear**axis for axis, n in enumerate(np.indices(shape))) % every == 0)


def in_cells(points: np.ndarray) -> np.ndarray:
    """Which of the points ``[pixels, d]`` lie in each cell, ``[cells, most]``; ``pixels`` where a cell has fewer."""
    d = points.shape[-1]
    per_axis = round(_MOST_CELLS ** (1 / d))
    cell = np.clip(((points + 1.0) * (per_axis / 2)).astype(int), 0, per_axis - 1)
    _, cell, sizes = np.unique(cell @ per_axis ** np.arange(d), return_inverse=True, return_counts=True)
    order = np.argsort(cell, kind="stable")
    cells = np.full((len(sizes), sizes.max()), len(points))
    cells[cell[order], np.arange(len(points)) - np.repeat(np.cumsum(sizes) - sizes, sizes)] = order
    return cells


def pose(fixed: Array, moving: Array, mask: Array | None, *, outlier: float = OUTLIER) -> Problem:
    """The problem of images as they are; that of plain squares with ``outlier=inf``."""
    shape = fixed.shape[:-1]
    lattice = looked_at(shape)
    counted = jnp.ones(len(lattice), bool) if mask is None else mask.ravel()[lattice]
    with jax.ensure_compile_time_eval():
        points = np.asarray(coordinates(shape)).reshape(-1, len(shape))[lattice]
    values, still = fixed.ravel()[lattice], moving.ravel()[lattice]
    asis = jnp.zeros(len(lattice)), jnp.ones(len(lattice))
    weak = jnp.asarray(outlier, jnp.float32)
    cells = jnp.asarray(in_cells(points))
    return Problem(jnp.asarray(points), values, still, counted, moving, *asis, weak, cells, jnp.zeros(()))


def objective(problem: Problem, free: FreeGaussians, tv_weight: float) -> tuple[Array, Array]:
    """The masked mean of squares + ``tv_weight`` * TV, and the Jacobian determinants ``[pixels]`` of the map."""
    field, determinants = displacement_and_determinant(from_free(free), problem.points)
    residuals, counted = _residuals(problem, field)
    coarse = displacement(from_free(free), _few_points(field.shape[-1]))
    return _mean_cost(problem, residuals, counted) + tv_weight * jnp.mean(_steepness(coarse)), determinants


def normal_equations(
    problem: Problem, free: FreeGaussians, tv_weight: float, used: Array | None = None
) -> tuple[Array, Array, Array]:
    """The objective; half its curvature ``[7 T, 7 T]``, to the first order of its squares; and half its slope ``[7 T]``.

    In space only the ``used`` first Gaussians are looked at; by default all.
    """
    residuals, slopes, counted = _linear(problem, displacement(from_free(free), problem.points))
    if problem.points.shape[-1] == 3:
        normal, pulled = products(free, slopes, problem.points, residuals, len(free.weight) if used is None else used)
    else:
        normal = gram(all_rows(free, *_summed_up(problem, slopes)))
        pulled = pulls(free, slopes, problem.points, residuals)
    per_pixel = _charge(problem, counted)[0]
    tv, tv_normal, tv_slope = total_variation(free)
    cost = _mean_cost(problem, residuals, counted) + tv_weight * tv
    return cost, per_pixel * normal + tv_weight * tv_normal, per_pixel * pulled + tv_weight * tv_slope


def gain(problem: Problem, free: FreeGaussians) -> tuple[Array, Array]:
    """How much of the images' mean squared difference a displacement explains: by their covariance, and by what is left.

    The first is twice the rise of their covariance, the second the fall of the difference, over the difference undisplaced:
    both near one where a motion explains all. Of noise alone the first is near zero; the second is not, as interpolation
    smooths. Of detail as fine as a pixel the first falls short, as interpolation smooths that as well.
    """
    moved = problem.points + displacement(from_free(free), problem.points)
    counted = inside(moved) & problem.counted
    warped = (sample(problem.moving, moved)[..., 0] - problem.mean) / problem.scale

    def total(values: Array) -> Array:
        return jnp.sum(jnp.where(counted, values, 0.0))

    different = jnp.maximum(total((problem.still - problem.fixed) ** 2), jnp.finfo(jnp.float32).tiny)
    agreed = 2.0 * total(problem.fixed * (warped - problem.still))
    return agreed / different, 1.0 - total((warped - problem.fixed) ** 2) / different


def gain_beyond_noise(problem: Problem, free: FreeGaussians) -> Array:
    """How much of the images' mean squared difference a displacement explains, but for the noise that interpolation takes.

    Between two pixels at the fraction ``a`` linear interpolation leaves ``1 - 2 a (1 - a)`` of the variance of white noise:
    what it takes away is charged. So of noise alone it is zero, but for what chance finds; of detail as fine as a pixel, which
    interpolation smooths as well, it is positive.
    """
    d = problem.points.shape[-1]
    moved = problem.points + displacement(from_free(free), problem.points)
    counted = inside(moved) & problem.counted
    warped = (sample(problem.moving, moved)[..., 0] - problem.mean) / problem.scale
    extent = half_extent(problem.moving.shape[:-1])
    part = [((at + 1.0) * half) % 1.0 for at, half in zip(components(moved), extent, strict=True)]
    taken = left_noise(problem.noise, d) / problem.scale**2 * (1.0 - math.prod(1.0 - 2.0 * a * (1.0 - a) for a in part))

    def total(values: Array) -> Array:
        return jnp.sum(jnp.where(counted, values, 0.0))

    different = jnp.maximum(total((problem.still - problem.fixed) ** 2), jnp.finfo(jnp.float32).tiny)
    return 1.0 - total((warped - problem.fixed) ** 2 + taken) / different


def flat(free: FreeGaussians) -> Array:
    """Free parameters as one vector: the first coordinate of all positions, then the second, and so on."""
    return jnp.concatenate([part.T.ravel() for part in free])


def unflat(vector: Array, like: FreeGaussians) -> FreeGaussians:
    """The inverse of ``flat``."""
    ends = np.cumsum([part.size for part in like])[:-1]
    parts = zip(jnp.split(vector, ends), like, strict=True)
    return FreeGaussians(*(part.reshape(old.shape[::-1]).T for part, old in parts))


def _mean_cost(problem: Problem, residuals: Array, counted: Array) -> Array:
    """What all pixels cost in the mean, given those that are ``counted``: the others have left."""
    factor, ungained = _charge(problem, counted)
    return factor * (residuals @ residuals + ungained) - ungained / jnp.maximum(jnp.sum(problem.counted), 1)


def _charge(problem: Problem, counted: Array) -> tuple[Array, Array]:
    """What a mean over all pixels makes of the counted ones' total; and the part of the cost that nothing is gained of."""
    cost = jnp.where(problem.counted, bounded(problem.still - problem.fixed, problem.outlier) ** 2, 0.0)
    whole = jnp.sum(cost)
    ungained = _UNGAINED * whole + jnp.finfo(jnp.float32).tiny
    left = jnp.sum(jnp.where(counted, cost, 0.0))
    return (whole + ungained) / (left + ungained) / jnp.maximum(jnp.sum(problem.counted), 1), ungained


def _residuals(problem: Problem, field: Array) -> tuple[Array, Array]:
    """Bounded residuals ``[pixels]``, zero where they do not count; where they do."""
    moved = problem.points + field
    counted = inside(moved) & problem.counted
    warped = (sample(problem.moving, moved)[..., 0] - problem.mean) / problem.scale
    residuals = bounded(warped - problem.fixed, problem.outlier)
    return jnp.where(counted, residuals, 0.0), counted


def linearised(problem: Problem, free: FreeGaussians) -> tuple[Array, Array, Array]:
    """Bounded residuals ``[pixels]``; their Jacobian, transposed, ``[7 T, pixels]``, ordered as ``flat``; where they count."""
    residuals, slopes, counted = _linear(problem, displacement(from_free(free), problem.points))
    return residuals, all_rows(free, slopes, problem.points), counted


def _linear(problem: Problem, field: Array) -> tuple[Array, list[Array], Array]:
    """Bounded residuals ``[pixels]``; their slopes in the field's ``d`` components; where they count."""
    moved = problem.points + field
    value, slopes = _value_and_slopes(problem.moving, moved)
    counted = inside(moved) & problem.counted
    residuals = (value - problem.mean) / problem.scale - problem.fixed
    held = jnp.where(counted, bounded_slope(residuals, problem.outlier) / problem.scale, 0.0)
    bent = jnp.where(counted, bounded(residuals, problem.outlier), 0.0)
    return bent, [held * slope for slope in slopes], counted


def _summed_up(problem: Problem, slopes: list[Array]) -> tuple[list[Array], Array]:
    """Slopes ``[2 cells]`` in the plane, and the points ``[2 cells, 2]`` at which they stand, of the same structure tensors."""
    held = jnp.stack([*slopes, *components(problem.points)])
    x, y, *point = jnp.concatenate([held, jnp.zeros((4, 1))], axis=1)[:, problem.cells]
    xx, xy, yy = (jnp.sum(product, axis=1) for product in (x * x, x * y, y * y))
    total = xx + yy + _LEAST_ENERGY
    centres = [jnp.sum((x * x + y * y) * at, axis=1) / total for at in point]
    least = _LEAST_ENERGY + jnp.finfo(jnp.float32).eps * total
    first = jnp.sqrt(xx + least)
    second = jnp.sqrt(jnp.maximum(yy + least - (xy / first) ** 2, 0.0))
    found = [jnp.concatenate([first, jnp.zeros_like(first)]), jnp.concatenate([xy / first, second])]
    return found, jnp.tile(jnp.stack(centres, axis=-1), (2, 1))


def total_variation(free: FreeGaussians) -> tuple[Array, Array, Array]:
    """The isotropic TV; half its curvature ``[7 T, 7 T]`` and half its slope ``[7 T]``, with its weights held fixed."""
    d = free.position.shape[-1]
    points = _few_points(d)
    differences = jnp.concatenate([_finite_differences(row, d) for row in field_rows(free, points)], axis=-2)
    now = _field_differences(displacement(from_free(free), points))
    tv = jnp.mean(_length(now) - _TV_FLOOR)
    length = _length(now)[None, None]
    weighted = (differences / (2 * length.size * length)).reshape(len(differences), -1)
    return tv, weighted @ differences.reshape(len(differences), -1).T, weighted @ now.ravel()


def _few_points(d: int) -> Array:
    return coordinates((_TV_PIXELS[d],) * d)


def _steepness(field: Array) -> Array:
    """The length ``[pixels]`` of all differences of a field ``[*spatial, d]`` taken together, rounded off below the floor."""
    return _length(_field_differences(field)) - _TV_FLOOR


def _field_differences(field: Array) -> Array:
    return jnp.concatenate([_finite_differences(part, field.shape[-1]) for part in components(field)], axis=-2)


def _length(differences: Array) -> Array:
    return jnp.sqrt(jnp.sum(differences**2, axis=-2) + _TV_FLOOR**2)


def _finite_differences(maps: Array, d: int) -> Array:
    """Forward differences ``[..., d, pixels]`` of maps ``[..., *spatial]`` along their axes, as on the reference grid."""
    scale = (maps.shape[-1] - 1) / (_TV_REFERENCE - 1)
    differences = []
    for axis in range(-d, 0):
        others = tuple(slice(None) if k == axis else slice(-1) for k in range(-d, 0))
        differences.append(jnp.diff(maps, axis=axis)[(..., *others)].reshape(*maps.shape[:-d], -1))
    return scale * jnp.stack(differences, axis=-2)


def _value_and_slopes(image: Array, points: Array) -> tuple[Array, list[Array]]:
    """The image ``[...]`` at the points, and its derivative along every component."""
    along = functools.partial(jax.jvp, functools.partial(sample, image), (points,))
    found = [along((jnp.broadcast_to(axis, points.shape),)) for axis in jnp.eye(points.shape[-1])]
    return found[0][0][..., 0], [slope[..., 0] for _, slope in found]

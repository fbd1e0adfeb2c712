r"""How sure the Gaussians of ONE pair are: the covariance of their numbers, and of the displacement at any point.

Near the optimum the numbers answer to the residuals :math:`r` by :math:`-H^{-1} J^T r / N`, with half the objective's curvature
:math:`H`, of which the smoothness' is :math:`S`, and the residuals' Jacobian :math:`J`. Neighbouring residuals are alike, and
where tissue slides or contrast changes they are large: so their covariance is taken from themselves, tile by tile (the sandwich
of White, Econometrica 48(4), 1980, with the clusters of Liang and Zeger, Biometrika 73(1), 1986),

.. math:: C = k^2\,H^{-1} \Big(\sum_b g_b g_b^T + \frac{\overline{r^2}}N S\Big) H^{-1}, \qquad g_b = \frac1N \sum_{x \in b}
    J(x)^T r(x)

where what no pixel shows is as unsure as smoothness leaves it, and one factor ``k`` makes what is said true of landmarks:
``python -m benchmarks.uncertainty`` finds it. What is near the optimum says nothing of a better one far away. So ``k`` grows
with the doubt where that is large.
"""

import jax
import jax.numpy as jnp

from r2n2_jax.ops.affine import Affine
from r2n2_jax.ops.gaussian import Gaussians, to_free
from r2n2_jax.ops.outliers import OUTLIER
from r2n2_jax.registration.contrast import contrast_problem
from r2n2_jax.registration.least_squares import linearised, total_variation
from r2n2_jax.registration.rows import field_rows, gram

Array = jax.Array

_FACTOR = 3.0
_TILES = {2: 12, 3: 8}  # per axis
_DOUBT_FROM, _DOUBLED_BY = 0.035, 0.0075  # the doubt from which k grows, and by which it doubles
_PRIOR = 1e-2  # of the mean curvature, for what no pixel tells


@jax.jit
def posterior(
    fixed: Array,
    moving: Array,
    gaussians: Gaussians,
    *,
    taken: Array | None = None,
    mask: Array | None = None,
    doubt: Array | float = 0.0,
    tv_weight: float = 0.1,
    outlier: float = OUTLIER,
) -> Array:
    """The covariance of a pair's Gaussians, as ``FreeGaussians`` laid out by ``least_squares.flat``.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        moving: the same shape.
        gaussians: what was found, fields ``[T, ...]``.
        taken: ``[T]`` bool, the Gaussians that were fitted; there is no doubt of the others. By default all.
        mask: ``[*spatial]`` bool, the fixed image's pixels that count; by default all.
        doubt: about the result, see ``sequence.Found``.
        tv_weight: weight of the isotropic total variation, as in ``refine``.
        outlier: as in ``refine``.

    Returns:
        ``[7 T, 7 T]`` (2D).
    """
    free = to_free(gaussians)
    problem = contrast_problem(fixed, moving, mask, outlier=outlier)(free)
    residuals, rows, counted = linearised(problem, free)
    fitted = jnp.ones(len(rows)) if taken is None else jnp.tile(taken, len(rows) // len(taken)).astype(jnp.float32)
    rows = fitted[:, None] * rows
    pixels = jnp.maximum(jnp.sum(counted), 1)
    prior = _PRIOR / jnp.maximum(jnp.sum(fitted), 1.0) * jnp.eye(len(rows))
    smooth = tv_weight * jnp.outer(fitted, fitted) * total_variation(free)[1] + prior
    curvature = gram(rows) / pixels + smooth
    per_axis = _TILES[problem.points.shape[-1]]
    tiles = jnp.clip(((problem.points + 1.0) * (per_axis / 2)).astype(int), 0, per_axis - 1)
    tile = jnp.ravel_multi_index(tuple(tiles.T), (per_axis,) * tiles.shape[-1], mode="clip")
    pulls = jax.ops.segment_sum((rows * residuals[None]).T / pixels, tile, num_segments=per_axis ** tiles.shape[-1])
    factor = _FACTOR * (1.0 + jnp.maximum(doubt - _DOUBT_FROM, 0.0) / _DOUBLED_BY)
    unseen = jnp.sum(residuals**2) / pixels**2 * jnp.outer(fitted, fitted) * smooth
    half = jnp.linalg.solve(curvature, factor * (pulls.T @ pulls + unseen))
    return factor * jnp.linalg.solve(curvature, half.T)


@jax.jit
def spread(gaussians: Gaussians, covariance: Array, affine: Affine, points: Array) -> Array:
    r"""The covariance of :math:`A (x + l(x)) + b - x` at any points, of a start ``A, b`` that is taken as it is.

    Args:
        gaussians: of ``l``, fields ``[T, ...]``.
        covariance: theirs, see ``posterior``.
        affine: the start.
        points: ``[*any, d]``.

    Returns:
        ``[*any, d, d]``, normalised units.
    """
    rows = jnp.einsum("ij,jp...->ip...", affine.matrix, jnp.stack(field_rows(to_free(gaussians), points)))
    return jnp.einsum("ip...,pq,jq...->...ij", rows, covariance, rows)


@jax.jit
def deviation(gaussians: Gaussians, covariance: Array, affine: Affine, points: Array, unit: Array) -> Array:
    """The standard deviation of the displacement, the root of its mean squared length, row by row.

    Args:
        gaussians: see ``spread``.
        covariance: see ``spread``.
        affine: see ``spread``.
        points: ``[*spatial, d]``.
        unit: ``[d]``, what 1 is along each coordinate, millimetres say.

    Returns:
        ``[*spatial]``, in that unit.
    """

    def of_row(row: Array) -> Array:
        variances = jnp.diagonal(spread(gaussians, covariance, affine, row), axis1=-2, axis2=-1)
        return jnp.sqrt(jnp.maximum(jnp.sum(variances * jnp.broadcast_to(unit**2, variances.shape), axis=-1), 0.0))

    rows = points.reshape(-1, *points.shape[-2:])
    return jax.lax.map(of_row, rows).reshape(points.shape[:-1])

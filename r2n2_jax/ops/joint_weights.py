r"""The weights of ALL local transformations of ONE pair, solved for together: one Gauss-Newton step, float32, normalised units.

A field is linear in its weights. So with the residual :math:`r = F - W` and the slope :math:`g` of what is shown, the step
:math:`\delta` of the weights is the solution of

.. math::
    \left(\tfrac1N \sum_x J^T J + \lambda H + \mu D\right) \delta = \tfrac1N \sum_x J^T r - \lambda H w,
    \qquad J_{ki}(x) = g_i(x)\,e_k(x)

where :math:`e_k` is the k-th Gaussian of height one and :math:`H w` half the derivative of the field's total variation, in
normalised units, by the present slopes (lagged diffusivity; Vogel and Oman, SIAM Journal on Scientific Computing 17(1), 1996).
As eq 6 counts differences, 0.1 here is about 12 there. :math:`D` is the diagonal of what stands before it; a floor is added.
That the weights are solved for while position and shape are proposed is variable projection (Golub and Pereyra, SIAM Journal on
Numerical Analysis 10(2), 1973).
"""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from r2n2_jax.ops.gaussian import Gaussians, covariance
from r2n2_jax.ops.grid import components, coordinates
from r2n2_jax.ops.matrix import inverse, solve_definite

Array = jax.Array

_DAMPING, _FLOOR = 0.02, 1e-3
_LEAST_SLOPE = 0.1  # of a field, below which its total variation counts as a square
_POINTS = {2: 16, 3: 8}  # per axis, at which the field's slopes are looked at: enough from a deviation of 0.14 on, 0.22 in 3D


@jax.jit
def weights_step(
    bells: Array, residual: Array, slopes: Sequence[Array], gaussians: Gaussians, taken: Array, smoothness: float
) -> Array:
    """The step ``delta`` of the module's docstring.

    Args:
        bells: ``[T, pixels]``, the Gaussians of height one; zero for those that are not taken.
        residual: ``[pixels]``, what the field is to explain, zero where a pixel does not count.
        slopes: of what is shown in the displacement's ``d`` components, ``[pixels]`` each, likewise.
        gaussians: the local transformations as they are, fields ``[T, ...]``.
        taken: ``[T]`` bool, those that there are; the others' step is none.
        smoothness: ``lambda``.

    Returns:
        ``[T, d]``.
    """
    count, pixels = bells.shape
    d = len(slopes)
    chex.assert_shape([residual, *slopes], (pixels,))
    chex.assert_shape(gaussians.weight, (count, d))
    rows = jnp.concatenate([bells * slope[None] for slope in slopes])
    smooth = smoothness * _energy(gaussians, taken)
    normal = rows @ rows.T / pixels + jax.scipy.linalg.block_diag(*[smooth] * d)
    pulls = rows @ residual / pixels - (smooth @ gaussians.weight).T.ravel()
    normal = normal + jnp.diag(_DAMPING * jnp.diag(normal) + _FLOOR)
    return solve_definite(normal, pulls).reshape(d, count).T


def _energy(gaussians: Gaussians, taken: Array) -> Array:
    """``H [T, T]``: the total variation is about ``w^T H w``, for every component."""
    d = gaussians.weight.shape[-1]
    points = coordinates((_POINTS[d],) * d).reshape(-1, d)
    steep = jax.vmap(functools.partial(_steep, points))(gaussians) * taken[:, None, None]
    now = jnp.einsum("tan,tc->can", steep, gaussians.weight)
    share = 1.0 / (2.0 * jnp.sqrt(jnp.sum(now**2, axis=(0, 1)) + _LEAST_SLOPE**2))
    weighted = (steep * share[None, None]).reshape(len(steep), -1)
    return weighted @ steep.reshape(len(steep), -1).T / len(points)


def _steep(points: Array, gaussian: Gaussians) -> Array:
    """The slopes ``[d, N]`` of one Gaussian of height one at ``points [N, d]``."""
    precision = inverse(covariance(gaussian.variance, gaussian.rotation))
    offset = [part - gaussian.position[i] for i, part in enumerate(components(points))]
    pulled = [sum(precision[i, j] * other for j, other in enumerate(offset)) for i in range(len(offset))]
    height = jnp.exp(-0.5 * sum(part * pull for part, pull in zip(offset, pulled, strict=True)))
    return jnp.stack([-height * pull for pull in pulled])

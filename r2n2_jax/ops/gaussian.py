"""Local Gaussian transformations (eqs 8 and 9), float32, normalised units, components in ``(x, y[, z])`` order."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from r2n2_jax.ops.grid import components
from r2n2_jax.ops.matrix import determinant, inverse

Array = jax.Array


class Gaussians(NamedTuple):
    """``[...]`` local transformations: ``T`` of them, ``T x 7`` numbers in 2D and ``T x 12`` in 3D, are a whole registration.

    Attributes:
        position: ``[..., d]``, the centre, in the domain ``[-1, 1]^d``.
        variance: ``[..., d]``, positive, the variances along the principal axes (the diagonal of eq 9).
        rotation: ``[..., d (d - 1) / 2]``, radians: one angle in 2D, three in 3D (see ``rotation_matrix``).
        weight: ``[..., d]``, the displacement at the centre.
    """

    position: Array
    variance: Array
    rotation: Array
    weight: Array


class FreeGaussians(NamedTuple):
    """``Gaussians`` without bounds: the logarithm of the variance in place of the variance.

    Attributes:
        position: ``[..., d]``.
        log_variance: ``[..., d]``.
        rotation: ``[..., d (d - 1) / 2]``.
        weight: ``[..., d]``.
    """

    position: Array
    log_variance: Array
    rotation: Array
    weight: Array


def to_free(gaussians: Gaussians) -> FreeGaussians:
    """The free parameters of the same transformations."""
    return FreeGaussians(gaussians.position, jnp.log(gaussians.variance), gaussians.rotation, gaussians.weight)


def from_free(free: FreeGaussians) -> Gaussians:
    """The inverse of ``to_free``."""
    return Gaussians(free.position, jnp.exp(free.log_variance), free.rotation, free.weight)


def mirror(gaussians: Gaussians) -> Gaussians:
    r"""The same local transformations as a mirror shows them that turns ``x`` round.

    With :math:`M = \mathrm{diag}(-1, 1[, 1])` the field becomes :math:`M f(M x)`; :math:`M R_z(a) R_y(b) R_x(c) M` is
    :math:`R_z(-a) R_y(-b) R_x(c)`.
    """
    d = gaussians.position.shape[-1]
    along = jnp.array([-1.0, 1.0, 1.0][:d])
    angles = jnp.array([-1.0, -1.0, 1.0][: d * (d - 1) // 2])
    along, angles = (
        jnp.broadcast_to(signs, part.shape) for signs, part in ((along, gaussians.weight), (angles, gaussians.rotation))
    )
    return Gaussians(gaussians.position * along, gaussians.variance, gaussians.rotation * angles, gaussians.weight * along)


def rotation_matrix(rotation: Array) -> Array:
    """The matrix ``R`` of eq 9.

    In 2D ``R = [[cos a, -sin a], [sin a, cos a]]``. In 3D ``R = R_z(a) R_y(b) R_x(c)`` for ``rotation = (a, b, c)``. A
    positive angle turns the first axis towards the second.

    Args:
        rotation: ``[..., 1]`` or ``[..., 3]``, radians.

    Returns:
        ``[..., d, d]`` with ``d`` 2 or 3.

    Raises:
        ValueError: for any other last axis.
    """
    cos, sin = jnp.cos(rotation), jnp.sin(rotation)
    if rotation.shape[-1] == 1:
        c, s = cos[..., 0], sin[..., 0]
        return jnp.stack([jnp.stack([c, -s], -1), jnp.stack([s, c], -1)], -2)
    if rotation.shape[-1] != 3:
        raise ValueError(f"rotation needs 1 angle (2D) or 3 angles (3D) on its last axis, got shape {rotation.shape}")
    (ca, cb, cc), (sa, sb, sc) = (jnp.moveaxis(part, -1, 0) for part in (cos, sin))
    rows = (
        (ca * cb, ca * sb * sc - sa * cc, ca * sb * cc + sa * sc),
        (sa * cb, sa * sb * sc + ca * cc, sa * sb * cc - ca * sc),
        (-sb, cb * sc, cb * cc),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


@jax.jit
def covariance(sigma: Array, rotation: Array) -> Array:
    r"""The covariance of eq 9, :math:`\Sigma = R\,\mathrm{diag}(\sigma)\,R^T`.

    As in the paper's equation, ``sigma`` stands on the diagonal itself: it is a VARIANCE. (The authors' released code reads it
    as a standard deviation; square it before calling to get theirs.)

    Args:
        sigma: ``[..., d]``, positive.
        rotation: ``[..., d (d - 1) / 2]``, radians.

    Returns:
        ``[..., d, d]``, symmetric positive definite.
    """
    matrix = rotation_matrix(rotation)
    chex.assert_equal_shape_suffix([sigma, matrix], 1)
    return jnp.einsum("...ij,...j,...kj->...ik", matrix, sigma, matrix)


@jax.jit
def bell(points: Array, position: Array, covariance: Array) -> Array:
    r"""The Gaussian of height one, :math:`\exp\!\left(-\tfrac12 (x - p)^T \Sigma^{-1} (x - p)\right)`, at any points.

    Args:
        points: ``[..., d]``, where to evaluate, of any batch shape.
        position: ``[d]``, the centre ``p``.
        covariance: ``[d, d]``, ``Sigma``.

    Returns:
        ``[...]``, in ``(0, 1]``.
    """
    dimension = points.shape[-1]
    chex.assert_shape(position, (dimension,))
    chex.assert_shape(covariance, (dimension, dimension))
    precision = inverse(covariance)
    # Component by component: XLA makes one loop over the pixels of it, where it would call a matrix product for an einsum.
    offset = [points[..., i] - position[i] for i in range(dimension)]
    exponent = sum(precision[i, j] * offset[i] * offset[j] for i in range(dimension) for j in range(dimension))
    return jnp.exp(-0.5 * exponent)


@jax.jit
def local_transformation(points: Array, position: Array, covariance: Array, weight: Array) -> Array:
    r"""One Gaussian deformation (eq 8) at any points.

    .. math:: l(x) = v \exp\!\left(-\tfrac12 (x - p)^T \Sigma^{-1} (x - p)\right)

    Args:
        points: ``[..., d]``, where to evaluate, of any batch shape.
        position: ``[d]``, the centre ``p``.
        covariance: ``[d, d]``, ``Sigma``.
        weight: ``[d]``, the displacement ``v`` at the centre.

    Returns:
        ``[..., d]``, the displacement at each point.
    """
    dimension = points.shape[-1]
    chex.assert_shape(weight, (dimension,))
    faded = bell(points, position, covariance)
    return jnp.stack([weight[i] * faded for i in range(dimension)], axis=-1)


@jax.jit
def displacement(gaussians: Gaussians, points: Array) -> Array:
    """The sum of ``T`` local transformations (eq 7 unrolled) at any points: exact on every grid.

    Args:
        gaussians: fields with one leading axis ``T``.
        points: ``[..., d]``.

    Returns:
        ``[..., d]``, normalised units.
    """

    # Carried component by component: adding along a last axis of two or three is many times slower.
    def add(totals: list[Array], gaussian: Gaussians) -> tuple[list[Array], None]:
        faded = bell(points, gaussian.position, covariance(gaussian.variance, gaussian.rotation))
        return [total + gaussian.weight[i] * faded for i, total in enumerate(totals)], None

    nothing = [jnp.zeros(points.shape[:-1], points.dtype)] * points.shape[-1]
    return jnp.stack(jax.lax.scan(add, nothing, gaussians)[0], axis=-1)


@jax.jit
def displacement_and_determinant(gaussians: Gaussians, points: Array) -> tuple[Array, Array]:
    r"""The field of ``displacement``, and ``det(I + df/dx)`` at the same points, exact where differences of pixels are not.

    With :math:`o = x - p`, one local transformation adds :math:`\partial l / \partial x = -l(x)\,(\Sigma^{-1} o)^T`.

    Args:
        gaussians: fields with one leading axis ``T``.
        points: ``[..., d]``.

    Returns:
        ``[..., d]`` and ``[...]``; the map ``x -> x + f(x)`` folds where the second is not positive.
    """
    field, slopes = _field_and_slopes(gaussians, points)
    rows = [[slope + float(i == j) for j, slope in enumerate(row)] for i, row in enumerate(slopes)]
    return jnp.stack(field, axis=-1), determinant(rows)


@jax.jit
def displacement_gradient(gaussians: Gaussians, points: Array) -> Array:
    """The derivative of ``displacement``: its component ``i`` along the coordinate ``j``, exact.

    Args:
        gaussians: fields with one leading axis ``T``.
        points: ``[..., d]``.

    Returns:
        ``[..., d, d]``, normalised units.
    """
    slopes = _field_and_slopes(gaussians, points)[1]
    return jnp.stack([jnp.stack(row, axis=-1) for row in slopes], axis=-2)


def _field_and_slopes(gaussians: Gaussians, points: Array) -> tuple[list[Array], list[list[Array]]]:
    """The field's ``d`` components ``[...]`` and their derivatives along the ``d`` coordinates, one by one."""
    d = points.shape[-1]
    at = components(points)

    def add(totals: tuple[list[Array], list[list[Array]]], gaussian: Gaussians) -> tuple[tuple, None]:
        field, slopes = totals
        precision = inverse(covariance(gaussian.variance, gaussian.rotation))
        offset = [at[i] - gaussian.position[i] for i in range(d)]
        pulled = [sum(precision[i, j] * offset[j] for j in range(d)) for i in range(d)]
        height = jnp.exp(-0.5 * sum(o * pull for o, pull in zip(offset, pulled, strict=True)))
        steep = [height * pull for pull in pulled]
        field = [total + gaussian.weight[i] * height for i, total in enumerate(field)]
        slopes = [[total - gaussian.weight[i] * steep[j] for j, total in enumerate(row)] for i, row in enumerate(slopes)]
        return (field, slopes), None

    zero = jnp.zeros(points.shape[:-1], points.dtype)
    # A derivative computes each one's maps again: to store them all takes longer, and far longer to compile.
    add = jax.checkpoint(add, prevent_cse=False)
    return jax.lax.scan(add, ([zero] * d, [[zero] * d] * d), gaussians)[0]

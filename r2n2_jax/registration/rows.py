r"""What each of the numbers of ONE pair's T Gaussians does to the field and to the image, and the products of that.

Gaussians are few and pixels are many. So what one number does is a map of all pixels, a row; and the product of all rows with
each other, of which least squares are made, is what takes long.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.ops.gaussian import FreeGaussians, bell, covariance
from r2n2_jax.ops.grid import components

Array = jax.Array

_BLOCK = 8  # Gaussians whose rows are multiplied or left out together


def all_rows(free: FreeGaussians, slopes: list[Array], points: Array) -> Array:
    """What each parameter does to the image ``[7 T, *any]`` at points ``[*any, d]`` where it has these slopes."""
    bells = jax.vmap(_bell_of)(free)
    # A loop, whose every turn leaves seven plain arrays: what XLA makes of one array stacked for all is ten times slower.
    return jnp.concatenate(jax.lax.map(lambda one: _rows(slopes, one, components(points)), bells))


def gram(rows: Array) -> Array:
    """``rows @ rows.T``, of which a quarter is a mirror of another."""
    first, second = jnp.split(rows, [len(rows) // 2])
    across = first @ second.T
    return jnp.block([[first @ first.T, across], [across.T, second @ second.T]])


def pulls(free: FreeGaussians, slopes: list[Array], points: Array, values: Array) -> Array:
    r"""``all_rows @ values`` ``[7 T]`` at points ``[pixels, d]``, without the rows.

    A row is a Gaussian's height :math:`g` times a polynomial. So of all pixels only the moments
    :math:`\sum_x g\,v\,s\,(1, x, x x^T)` of the values :math:`v` and slopes :math:`s` are needed.
    """
    at, d = jnp.stack(components(points)), points.shape[-1]
    powers = jnp.concatenate([jnp.ones_like(at[:1]), at, (at[:, None] * at[None]).reshape(d * d, -1)])
    heights = jax.lax.map(lambda one: bell(points, one.position, covariance(jnp.exp(one.log_variance), one.rotation)), free)
    weighted = (values[None] * jnp.stack(slopes))[:, None] * powers[None]
    moments = jnp.matmul(heights, weighted.reshape(-1, len(points)).T, precision="highest").reshape(len(heights), d, -1)

    def of_one(gaussian: _Bell, moments: Array) -> tuple[Array, ...]:
        total, first, second = jnp.split(gaussian.weight @ moments, (1, 1 + d))
        about = first - total * gaussian.position
        squares = second.reshape(d, d) - jnp.outer(first, gaussian.position) - jnp.outer(gaussian.position, about)
        return gaussian.precision @ about, -0.5 * jnp.einsum("ij,ijq->q", squares, gaussian.reshaped), moments[:, 0]

    return jnp.concatenate([part.T.ravel() for part in jax.vmap(of_one)(jax.vmap(_bell_of)(free), moments)])


def products(free: FreeGaussians, slopes: list[Array], points: Array, values: Array, used: Array | int) -> tuple[Array, Array]:
    """``rows @ rows.T`` and ``rows @ values`` of ``all_rows``, of as many blocks of Gaussians as hold the ``used`` first.

    The others' products take no time, and are zero.
    """
    count = len(free.weight)
    bells = jax.vmap(_bell_of)(free)
    maps = jax.lax.map(lambda one: _rows(slopes, one, components(points)), bells)

    def of_first(some: int) -> tuple[Array, Array]:
        rows = jnp.concatenate([each[:some] for each in maps])
        rest, shape = (0, count - some), (len(maps), some)
        normal = jnp.pad(gram(rows).reshape(*shape, *shape), ((0, 0), rest, (0, 0), rest))
        by_values = jnp.pad((rows @ values).reshape(shape), ((0, 0), rest))
        return normal.reshape(by_values.size, by_values.size), by_values.ravel()

    sizes = [*range(_BLOCK, count, _BLOCK), count]
    return jax.lax.switch((used - 1) // _BLOCK, [functools.partial(of_first, some) for some in sizes])


def field_rows(free: FreeGaussians, points: Array) -> list[Array]:
    """What each parameter does to each component of the field at any points ``[*any, d]``: ``d`` times ``[7 T, *any]``."""
    d = points.shape[-1]
    bells = jax.vmap(_bell_of)(free)

    def of_component(i: int) -> Array:
        slopes = [jnp.full(points.shape[:-1], float(i == j)) for j in range(d)]
        return jnp.concatenate(jax.vmap(lambda one: _rows(slopes, one, components(points)))(bells))

    return [of_component(i) for i in range(d)]


class _Bell(NamedTuple):
    """One Gaussian as its derivatives need it: ``precision [d, d]``, and that one's derivative in the shape's numbers."""

    position: Array
    weight: Array
    precision: Array
    reshaped: Array


def _bell_of(gaussian: FreeGaussians) -> _Bell:
    def precision(log_variance: Array, rotation: Array) -> Array:
        return covariance(jnp.exp(-log_variance), rotation)

    shape = (gaussian.log_variance, gaussian.rotation)
    reshaped = jnp.concatenate(jax.jacfwd(precision, argnums=(0, 1))(*shape), axis=-1)
    return _Bell(gaussian.position, gaussian.weight, precision(*shape), reshaped)


def _rows(slopes: list[Array], bell: _Bell, points: list[Array]) -> list[Array]:
    r"""What each parameter of one Gaussian does to the image, ``[*spatial]``, in the order of ``FreeGaussians``.

    With :math:`o = x - p`, :math:`P = \Sigma^{-1}`, :math:`g = \exp(-\tfrac12 o^T P o)` and the image's slope :math:`s`:

    .. math:: \partial_p = (s^T v)\,g\,P o, \qquad \partial_\theta = -\tfrac12 (s^T v)\,g\,o^T (\partial_\theta P)\,o, \qquad
        \partial_v = g\,s
    """
    d = len(points)
    offset = [points[i] - bell.position[i] for i in range(d)]
    pulled = [sum(bell.precision[i, j] * offset[j] for j in range(d)) for i in range(d)]
    height = jnp.exp(-0.5 * sum(o * pull for o, pull in zip(offset, pulled, strict=True)))
    moved = height * sum(slope * bell.weight[i] for i, slope in enumerate(slopes))
    squares = {(i, j): (1 if i == j else 2) * offset[i] * offset[j] for i in range(d) for j in range(i + 1)}
    reshaped = [
        -0.5 * moved * sum(bell.reshaped[i, j, k] * square for (i, j), square in squares.items())
        for k in range(bell.reshaped.shape[-1])
    ]
    return [*(moved * pull for pull in pulled), *reshaped, *(height * slope for slope in slopes)]

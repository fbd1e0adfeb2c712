"""The phantom's vessels: binary trees of round segments."""

import jax
import jax.numpy as jnp

Array = jax.Array

_LEVELS = 3


def tree(key: Array, ndim: int) -> Array:
    """Nodes of a binary tree, level by level, in an organ's unit square or cube: ``[2^(L+1) - 1, d]``, the root first."""
    levels = [jnp.array([[0.0, 0.5, 0.5][:ndim]])]
    for level in range(1, _LEVELS + 1):
        key, one = jax.random.split(key)
        count = 2**level
        even = [jnp.full(count, 0.3 * level - 0.05), (jnp.arange(count) + 0.5) / count]
        spread = [0.12, 0.28 / count]
        if ndim == 3:  # neighbours along one axis lie apart along the other: the numbers' bits in reverse
            reverse = [int(f"{i:0{level}b}"[::-1], 2) for i in range(count)]
            even.append((jnp.array(reverse) + 0.5) / count)
            spread.append(0.28 / count)
        levels.append(
            jnp.stack(even, axis=-1) + jnp.array([spread]) * jax.random.uniform(one, (count, ndim), minval=-1.0, maxval=1.0)
        )
    return jnp.concatenate(levels)


def segments(nodes: Array) -> Array:
    """The edges of a tree of nodes ``[N, d]``, thinner level by level: start, end and radius, ``[N - 1, 2 d + 1]``."""
    child = jnp.arange(1, nodes.shape[0])
    level = jnp.floor(jnp.log2(child + 1.5))
    radius = 0.03 * 0.72**level
    return jnp.concatenate([nodes[(child - 1) // 2], nodes[child], radius[:, None]], axis=-1)


def vessel_distance(vessels: Array, points: Array) -> Array:
    """Positive inside the thickest vessel near, of segments ``[S, 2 d + 1]``: ``[...]``."""
    d = points.shape[-1]

    def nearest(best: Array, segment: Array) -> tuple[Array, None]:
        start, end, radius = segment[:d], segment[d : 2 * d], segment[2 * d]
        shape = (1,) * (points.ndim - 1) + (d,)
        along, offset = (end - start).reshape(shape), points - start.reshape(shape)
        along_it = jnp.clip(jnp.sum(offset * along, -1) / (jnp.sum(along**2) + 1e-9), 0.0, 1.0)
        distance = jnp.linalg.norm(offset - along_it[..., None] * along, axis=-1)
        return jnp.maximum(best, radius - distance), None

    return jax.lax.scan(nearest, jnp.full(points.shape[:-1], -1.0), vessels)[0]

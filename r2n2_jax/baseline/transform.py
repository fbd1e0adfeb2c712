"""What a transformation model is: pure functions between parameters and a displacement field, normalised units."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Params = Any


class Transform(NamedTuple):
    """A transformation model of ONE pair; every function is pure, and its ``shape`` static.

    Attributes:
        init: ``shape -> params``, the identity (or the model's starting point) for a grid of that shape.
        displacement: ``(params, shape) -> [*shape, d]``, the field on that grid.
        carry: ``(params, shape) -> params``, the same field's parameters for the next, finer grid.
    """

    init: Callable[[tuple[int, ...]], Params]
    displacement: Callable[[Params, tuple[int, ...]], Array]
    carry: Callable[[Params, tuple[int, ...]], Params]


def count_parameters(transform: Transform, shape: tuple[int, ...]) -> int:
    """How many parameters a registration has at ``shape``."""
    params = jax.eval_shape(lambda: transform.init(shape))
    return sum(leaf.size for leaf in jax.tree.leaves(params))

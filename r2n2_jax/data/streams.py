"""The random streams of one training run, by name: every key of a run comes from one of them."""

from typing import NamedTuple

import jax

Array = jax.Array


class Streams(NamedTuple):
    """Keys that share nothing.

    Attributes:
        weights: of the initial weights.
        noise: of the training noise; step ``t`` draws from ``fold_in(noise, t)``.
        data: of the phantoms; the batch of step ``t`` is drawn from ``fold_in(data, t)``.
    """

    weights: Array
    noise: Array
    data: Array


def streams(seed: int) -> Streams:
    """The streams of a run.

    With JAX's default generator ``split(key, n)[i]`` is ``fold_in(key, i)``. A key is therefore split or folded, never both,
    and every stream of a run is named here.
    """
    return Streams(*jax.random.split(jax.random.key(seed), len(Streams._fields)))

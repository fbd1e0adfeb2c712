"""One training step: register a batch, measure eq 6, follow its gradient."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r2n2_jax.config import Config
from r2n2_jax.models.r2n2 import R2N2
from r2n2_jax.training.losses import contrast_loss, sequence_loss
from r2n2_jax.training.state import TrainState, make_optimiser

Array = jax.Array


def make_train_step(config: Config) -> Callable[[TrainState, Array, Array], tuple[TrainState, dict[str, Array]]]:
    """The jitted step ``(state, fixed, moving) -> (state, metrics)``; the old state's memory is reused.

    ``fixed`` and ``moving`` are standardised batches ``[B, *spatial, 1]``. The metrics are scalars: the loss and its terms, the
    gradient's norm before clipping, and how many steps were skipped so far, ``skipped``, and just now in a row,
    ``skipped_in_a_row``.
    """
    network = R2N2(config.model)
    optimiser = make_optimiser(config.optimiser, config.training.steps)
    asked = config.optimiser

    def pair(fixed: Array, moving: Array, *parts: Array) -> tuple[Array, dict[str, Array]]:
        if asked.contrast:
            return contrast_loss(fixed, moving, *parts, asked.tv_weight, charge_leaving=asked.charge_leaving)
        still = moving if asked.charge_leaving else None
        return sequence_loss(fixed, *parts, asked.tv_weight, brightness=asked.brightness, still=still)

    def loss(params: Any, key: Array, fixed: Array, moving: Array) -> tuple[Array, dict[str, Array]]:
        sequence = network.apply({"params": params}, fixed, moving, noise=True, rngs={"noise": key})
        # The sequence has time in front of the batch; the loss is per pair.
        each = jax.vmap(pair, in_axes=(0, 0, 1, 1, 0))
        losses, terms = each(fixed, moving, sequence.warped, sequence.inside, sequence.displacement)
        return jnp.mean(losses), jax.tree.map(jnp.mean, terms)

    slope = jax.value_and_grad(loss, has_aux=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, fixed: Array, moving: Array) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        (value, terms), gradient = _in_parts(config.training.accumulate, slope, state.params, key, fixed, moving)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            **terms,
            "gradient_norm": optax.tree.norm(gradient),
            "skipped": opt_state.total_notfinite,
            "skipped_in_a_row": opt_state.notfinite_count,
        }
        return TrainState(params, opt_state, state.step + 1, state.key), metrics

    return train_step


def _in_parts(parts: int, slope: Callable[..., Any], params: Any, key: Array, fixed: Array, moving: Array) -> Any:
    """The mean of ``slope(params, key, fixed, moving)`` over the batch's parts, of which one at a time is in memory."""
    if parts == 1:
        return slope(params, key, fixed, moving)

    def add(total: Any, part: tuple[Array, Array, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, slope(params, *part)), None

    # Every part takes pairs from all over the batch, so that each device works on its own.
    split = [jnp.swapaxes(images.reshape(-1, parts, *images.shape[1:]), 0, 1) for images in (fixed, moving)]
    shapes = jax.eval_shape(slope, params, key, split[0][0], split[1][0])
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, nothing, (jax.random.split(key, parts), *split))
    return jax.tree.map(lambda leaf: leaf / parts, total)

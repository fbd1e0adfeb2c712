"""Registering unseen pairs while training: landmark error where landmarks are known, image error always."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.config import ModelConfig
from r2n2_jax.data.dataset import Examples
from r2n2_jax.models.r2n2 import R2N2
from r2n2_jax.ops.gaussian import displacement
from r2n2_jax.ops.grid import half_extent
from r2n2_jax.ops.similarity import mse
from r2n2_jax.ops.warp import warp

Array = jax.Array


class Validation(NamedTuple):
    """What one validation found.

    Attributes:
        tre_px: mean landmark error in pixels of the model's resolution, or None without landmarks.
        mse: mean masked MSE after registration.
        coverage: share of the pixels that see the moving image then.
        warped: ``[N, *spatial, 1]``, the moving images registered.
    """

    tre_px: float | None
    mse: float
    coverage: float
    warped: Array

    @property
    def score(self) -> float:
        """What the best checkpoint is chosen by: lower is better."""
        return self.mse if self.tre_px is None else self.tre_px


def make_validate(config: ModelConfig, examples: Examples) -> Callable[[Any], Validation]:
    """The function ``params -> Validation`` on ``examples``, compiled once."""
    network = R2N2(config)
    scale = jnp.array(half_extent(examples.fixed.shape[1:-1]))

    @jax.jit
    def measure(params: Any, data: Examples) -> tuple[Array | None, Array, Array, Array]:
        sequence = network.apply({"params": params}, data.fixed, data.moving)
        # The sequence's own images may have their noise blurred away.
        warped, inside = jax.vmap(warp)(data.moving, sequence.displacement), sequence.inside[-1]
        error = jnp.mean(jax.vmap(mse)(data.fixed, warped, inside))
        if data.fixed_landmarks is None:
            return None, error, jnp.mean(inside), warped
        per_pair = jax.vmap(displacement, in_axes=(1, 0))(sequence.gaussians, data.fixed_landmarks)
        missed = (data.fixed_landmarks + per_pair - data.moving_landmarks) * scale[None, None]
        return jnp.mean(jnp.linalg.norm(missed, axis=-1)), error, jnp.mean(inside), warped

    def validate(params: Any) -> Validation:
        tre_px, error, coverage, warped = measure(params, examples)
        return Validation(None if tre_px is None else float(tre_px), float(error), float(coverage), warped)

    return validate

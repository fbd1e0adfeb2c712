"""What training carries from step to step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r2n2_jax.config import Config, ModelConfig, OptimiserConfig
from r2n2_jax.models.r2n2 import R2N2
from r2n2_jax.programs import kept

Array = jax.Array


class TrainState(NamedTuple):
    """Everything a checkpoint needs to go on as if nothing had happened.

    Attributes:
        params: the network's weights.
        opt_state: AMSGrad's moments and the count of skipped steps.
        step: scalar int32, steps done.
        key: the run's random key; step ``t`` draws its noise from ``fold_in(key, t)``.
    """

    params: Any
    opt_state: Any
    step: Array
    key: Array


def make_optimiser(config: OptimiserConfig, steps: int) -> optax.GradientTransformation:
    """AMSGrad after clipping by the global norm; a step whose gradient is not finite changes nothing and is counted.

    Optax takes the running maximum of the second moment AFTER bias correction, PyTorch before: early steps differ a little.

    References:
        Reddi et al., On the convergence of Adam and beyond, ICLR 2018.
    """
    chain = optax.chain(optax.clip_by_global_norm(config.clip), optax.amsgrad(learning_rate(config, steps)))
    return optax.apply_if_finite(chain, max_consecutive_errors=np.iinfo(np.int32).max)


def learning_rate(config: OptimiserConfig, steps: int) -> optax.Schedule:
    """The rate at each step: a linear warm-up, then constant or a cosine down to a hundredth."""
    after = (
        optax.constant_schedule(config.learning_rate)
        if config.decay == "constant"
        else optax.cosine_decay_schedule(config.learning_rate, max(steps - config.warmup, 1), alpha=0.01)
    )
    # The first step is taken at a rate above zero.
    rise = optax.linear_schedule(config.learning_rate / (config.warmup + 1), config.learning_rate, config.warmup)
    return optax.join_schedules([rise, after], [config.warmup])


def init_params(key: Array, model: ModelConfig) -> Any:
    """Fresh weights, decided by the key. They do not depend on the image size, so a small one stands in."""
    spatial = (32,) * model.ndim
    # XLA compiles dozens of threefry draws in half a minute, as many of its own generator's in a few seconds.
    key = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key), 2), impl="rbg")
    pair = jnp.zeros((1, *spatial, 1))
    return jax.jit(R2N2(model).init, static_argnames="steps")(key, pair, pair, steps=1)["params"]


@kept
@functools.partial(jax.jit, static_argnames=("model", "seed"))
def first_params(*, model: ModelConfig, seed: int) -> Any:
    """The fresh weights that a run starts from."""
    return init_params(jax.random.split(jax.random.key(seed))[0], model)


def fits(params: Any, config: Config) -> bool:
    """Whether weights are those of the config's architecture."""
    wanted = jax.eval_shape(lambda: first_params(model=config.model, seed=0))
    alike = jax.tree.structure(params) == jax.tree.structure(wanted)
    return alike and jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)


def init_state(config: Config, params: Any = None) -> TrainState:
    """The state before the first step, with fresh weights where none are given."""
    seed = config.training.seed
    params = first_params(model=config.model, seed=seed) if params is None else jax.tree.map(jnp.array, params)
    opt_state = make_optimiser(config.optimiser, config.training.steps).init(params)
    key_noise = jax.random.split(jax.random.key(seed))[1]
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32), key_noise)

"""What training carries from step to step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r2n2_jax.config import Config, ModelConfig, OptimiserConfig
from r2n2_jax.data.streams import streams
from r2n2_jax.models.r2n2 import init_params
from r2n2_jax.pretrained.checkpoints import Checkpoints
from r2n2_jax.runtime.programs import kept

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


@kept
@functools.partial(jax.jit, static_argnames=("model", "seed"))
def first_params(*, model: ModelConfig, seed: int) -> Any:
    """The fresh weights that a run starts from."""
    return init_params(streams(seed).weights, model)


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
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32), streams(seed).noise)


def save_state(checkpoints: Checkpoints, state: TrainState, config: Config, score: float) -> None:
    """Writes a checkpoint from which ``restore_state`` goes on."""
    checkpoints.save(int(state.step), state.params, _rest(state), config, score)


def restore_state(checkpoints: Checkpoints, config: Config, sharding: jax.sharding.Sharding | None = None) -> TrainState:
    """The last state saved; by default on this process's first device, on whichever it was."""
    template = jax.eval_shape(lambda: init_state(config))
    params, rest = checkpoints.restore(template.params, jax.eval_shape(_rest, template), sharding)
    return TrainState(params, rest["opt_state"], rest["step"], jax.random.wrap_key_data(rest["key"]))


def _rest(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step, "key": jax.random.key_data(state.key)}

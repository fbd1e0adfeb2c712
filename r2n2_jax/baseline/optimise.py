"""Registration by optimisation: any transformation model, fitted to batches of pairs by multi-resolution AMSGrad (eq 2)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from r2n2_jax.baseline.transform import Transform
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.intensity import prepare
from r2n2_jax.ops.regularisers import isotropic_tv
from r2n2_jax.ops.similarity import mse
from r2n2_jax.ops.warp import inside, warp

Array = jax.Array

ITERATIONS_AT_ONCE = 10  # iterations per compiled call, between two looks at whether anything still improves


@dataclasses.dataclass(frozen=True)
class Settings:
    """The engine's numbers; the defaults are the paper's baseline."""

    shrink: tuple[int, ...] = (4, 2, 1)
    """By how much the images are reduced at each level, coarse to fine."""
    iterations: int = 250
    """The most at each level, rounded up to tens."""
    learning_rate: float = 1e-3
    """AMSGrad's, normalised units."""
    tv_weight: float = 0.01
    """The weight of the isotropic total variation."""
    patience: int = 50
    """Iterations without improvement after which a pair stops at a level."""
    improvement: float = 1e-4
    """The least relative decrease of the loss that counts as improvement."""

    def __post_init__(self) -> None:
        if not self.shrink or min(self.shrink) < 1:
            raise ValueError(f"shrink must name at least one level, each at least 1, got {self.shrink}")
        for name in ("iterations", "learning_rate", "patience"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class Fit(NamedTuple):
    """Fitted pairs.

    Attributes:
        params: the transformation model's parameters, every leaf ``[N, ...]``.
        displacement: ``[N, *spatial, d]``, normalised, on the images' own grid.
        losses: one array ``[N, iterations]`` a level: the convergence curves, NaN after a pair stopped.
    """

    params: Any
    displacement: Array
    losses: list[np.ndarray]


class _State(NamedTuple):
    params: Any
    opt_state: Any
    best_params: Any
    best: Array
    stale: Array


def fit(
    fixed: Array,
    moving: Array,
    model: Transform,
    *,
    start: Any = None,
    settings: Settings | None = None,
    progress: bool = False,
) -> Fit:
    """Minimises masked MSE + ``tv_weight`` * isotropic TV for every pair of a batch.

    Args:
        fixed: ``[N, *spatial]``, any intensity range; standardised here.
        moving: the same shape.
        model: the transformation model.
        start: its parameters at the coarsest level to start from, every leaf ``[N, ...]``; by default ``model.init``.
        settings: see ``Settings``.
        progress: show a bar.

    Returns:
        the best parameters seen at the finest level, pair by pair.
    """
    settings = Settings() if settings is None else settings
    full = fixed.shape[1:]
    levels = [tuple(max(2, -(-n // factor)) for n in full) for factor in settings.shrink]
    params = start
    if params is None:
        params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (len(fixed), *leaf.shape)), model.init(levels[0]))
    losses = []
    with tqdm(total=settings.iterations * len(levels), unit="iteration", disable=not progress) as bar:
        for number, shape in enumerate(levels):
            images = _prepare(fixed, shape), _prepare(moving, shape)
            if number:
                params = jax.vmap(lambda leaf, shape=shape: model.carry(leaf, shape))(params)
            params, curve = _fit_level(model, settings, params, *images, bar)
            losses.append(curve)
    return Fit(params, _fields(model, params, full), losses)


@jax.jit
def pair_loss(fixed: Array, moving: Array, displacement: Array, tv_weight: float) -> Array:
    r"""Eqs 1 and 2 for one field: what registration by optimisation minimises.

    .. math:: \mathrm{MSE}(F, M \circ f) + \lambda\,\mathrm{TV}(f)

    Args:
        fixed: ``[*spatial, 1]``.
        moving: the same shape.
        displacement: ``[*spatial, d]``.
        tv_weight: ``lambda``.

    Returns:
        a scalar; the MSE is over the pixels that see the moving image.
    """
    seen = inside(coordinates(fixed.shape[:-1]) + displacement)
    return mse(fixed, warp(moving, displacement), seen) + tv_weight * isotropic_tv(displacement)


def _fit_level(
    model: Transform, settings: Settings, params: Any, fixed: Array, moving: Array, bar: tqdm
) -> tuple[Any, np.ndarray]:
    run, start = _programs(model, dataclasses.replace(settings, shrink=(1,), iterations=1))
    calls = -(-settings.iterations // ITERATIONS_AT_ONCE)
    state, curve, done = start(params), np.full((len(fixed), calls * ITERATIONS_AT_ONCE), np.nan, np.float32), 0
    while done < settings.iterations and bool((state.stale < settings.patience).any()):
        state, values = run(state, fixed, moving)
        curve[:, done : done + ITERATIONS_AT_ONCE] = np.asarray(values).T
        done += ITERATIONS_AT_ONCE
        bar.set_postfix(loss=f"{float(state.best.mean()):.4f}", refresh=False)
        bar.update(ITERATIONS_AT_ONCE)
    bar.update(max(settings.iterations - done, 0))
    return state.best_params, curve


@functools.lru_cache(maxsize=16)
def _programs(model: Transform, settings: Settings) -> tuple[Callable, Callable]:
    """The compiled step and start; ``settings`` without what they do not depend on, so that they are found again."""
    optimiser = optax.amsgrad(settings.learning_rate)

    def loss(params: Any, fixed: Array, moving: Array) -> Array:
        field = model.displacement(params, fixed.shape[:-1])
        return pair_loss(fixed, moving, field, settings.tv_weight)

    def step(state: _State, fixed: Array, moving: Array) -> tuple[_State, Array]:
        value, gradient = jax.value_and_grad(loss)(state.params, fixed, moving)
        updates, opt_state = optimiser.update(gradient, state.opt_state)
        active = state.stale < settings.patience
        improved = active & (value < state.best)
        enough = active & (value < state.best * (1.0 - settings.improvement))
        new = _State(
            params=_where(active, optax.apply_updates(state.params, updates), state.params),
            opt_state=opt_state,
            best_params=_where(improved, state.params, state.best_params),
            best=jnp.where(improved, value, state.best),
            stale=jnp.where(enough, 0, state.stale + 1),
        )
        return new, jnp.where(active, value, jnp.nan)

    @jax.jit
    def run(state: _State, fixed: Array, moving: Array) -> tuple[_State, Array]:
        batched = jax.vmap(step)
        return jax.lax.scan(lambda s, _: batched(s, fixed, moving), state, None, length=ITERATIONS_AT_ONCE)

    @jax.jit
    def start(params: Any) -> _State:
        pairs = jax.tree.leaves(params)[0].shape[0]
        opt_state = jax.vmap(optimiser.init)(params)
        return _State(params, opt_state, params, jnp.full(pairs, jnp.inf), jnp.zeros(pairs, jnp.int32))

    return run, start


def _where(condition: Array, chosen: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


@functools.partial(jax.jit, static_argnums=1)
def _prepare(images: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda image: prepare(image, shape))(images)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _fields(model: Transform, params: Any, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda one: model.displacement(one, shape))(params)

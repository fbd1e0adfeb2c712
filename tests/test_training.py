"""The loss, the optimiser, one step, checkpoints, and a run killed in the middle."""

import contextlib
import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_reference import random_params, smooth_pair

from r2n2_jax.config import Config, ModelConfig, OptimiserConfig, TrainingConfig
from r2n2_jax.data.dataset import Examples
from r2n2_jax.errors import InputError
from r2n2_jax.ops.brightness import compensated_mse
from r2n2_jax.pretrained.checkpoints import Checkpoints
from r2n2_jax.registration.registrar import load
from r2n2_jax.training import loop
from r2n2_jax.training.losses import sequence_loss
from r2n2_jax.training.state import TrainState, learning_rate, make_optimiser, restore_state, save_state
from r2n2_jax.training.step import make_train_step
from r2n2_jax.training.validation import Validation

CONFIG = Config(
    model=ModelConfig(resolution=32, steps=2, channels=(4, 4, 4, 4), residual_blocks=1, hidden=8, noise=0.0, remat=False),
    optimiser=OptimiserConfig(learning_rate=1e-2),
    training=TrainingConfig(steps=60, batch=1, checkpoint_every=10, validation_pairs=4),
)


compiled_step = functools.cache(make_train_step)


def fresh_state(config=CONFIG):
    params = random_params(config.model)
    params["step"]["parameters"]["output"] = jax.tree.map(jnp.zeros_like, params["step"]["parameters"]["output"])
    optimiser = make_optimiser(config.optimiser, config.training.steps)
    return TrainState(params, optimiser.init(params), jnp.zeros((), jnp.int32), jax.random.key(3))


def test_sequence_loss_is_eq_6(key):
    fixed, *warped = np.asarray(jax.random.normal(key, (4, 8, 9, 1)))
    inside = np.asarray(jax.random.uniform(key, (3, 8, 9)) < 0.7)
    field = 0.1 * np.asarray(jax.random.normal(key, (8, 9, 2)))
    errors = [((fixed - w)[mask] ** 2).mean() for w, mask in zip(warped, inside, strict=True)]
    dy = np.pad(np.diff(field, axis=0) * 7 / 255, [(0, 1), (0, 0), (0, 0)])
    dx = np.pad(np.diff(field, axis=1) * 8 / 255, [(0, 0), (0, 1), (0, 0)])
    tv = np.sqrt((dx**2 + dy**2).sum(-1)).mean()
    loss, terms = sequence_loss(fixed, np.stack(warped), inside, field, 0.1)
    np.testing.assert_allclose(loss, np.mean(errors) + 0.1 * tv, rtol=1e-5)
    np.testing.assert_allclose([terms["mse"], terms["tv"]], [errors[-1], tv], rtol=1e-5)
    loss, _ = sequence_loss(fixed, np.stack(warped), inside, field, 0.1, brightness=True)
    errors = [compensated_mse(fixed, w, mask) for w, mask in zip(warped, inside, strict=True)]
    np.testing.assert_allclose(loss, np.mean(errors) + 0.1 * tv, rtol=1e-5)


@pytest.mark.parametrize("brightness", [False, True])
def test_nothing_is_won_by_carrying_everything_out(brightness, key):
    """A pixel that has left costs what it cost undisplaced; the control is the paper's loss, to which it costs nothing."""
    fixed, moving = smooth_pair(key)
    field, nothing = jnp.zeros((*fixed.shape[:-1], 2)), jnp.zeros_like(fixed)

    def loss(warped, share, still):
        """The first rows, ``share`` of all, stay inside."""
        inside = (jnp.arange(len(fixed)) < share * len(fixed))[:, None] & jnp.ones(fixed.shape[:-1], bool)
        shown = jnp.where(inside[..., None], warped, 0.0)
        found, terms = sequence_loss(fixed, shown[None], inside[None], field, 0.1, brightness=brightness, still=still)
        assert float(terms["coverage"]) == pytest.approx(share)
        return float(found)

    before, gone, half = loss(moving, 1.0, moving), loss(nothing, 0.0, moving), loss(moving, 0.5, moving)
    assert before == pytest.approx(loss(moving, 1.0, None), rel=1e-6)
    assert before > 0.01
    assert gone == half == pytest.approx(before, rel=1e-6)
    assert loss(nothing, 0.0, None) == 0.0
    assert loss(fixed, 0.5, moving) < before


@pytest.mark.numerical
@pytest.mark.parametrize("brightness", [False, True])
def test_the_sequence_loss_has_its_own_slope(brightness, key):
    """In the warped images and in the field, by finite differences in float64."""
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        fixed, *warped = jnp.asarray(random.normal(size=(4, 6, 7, 1)))
        inside, field = jnp.asarray(random.random((3, 6, 7)) < 0.7), jnp.asarray(0.1 * random.normal(size=(6, 7, 2)))

        def loss(warped, field):
            return sequence_loss(fixed, warped, inside, field, 0.1, brightness=brightness)[0]

        chex.assert_numerical_grads(loss, (jnp.stack(warped), field), order=1, atol=1e-4, rtol=1e-4)


def test_the_optimiser_is_clipped_amsgrad():
    """Three steps by hand; the third gradient is small, where AMSGrad's maximum tells it from Adam."""
    optimiser = make_optimiser(OptimiserConfig(learning_rate=0.1), 100)
    weights = {"w": jnp.array([1.0, -2.0])}
    state = optimiser.init(weights)
    w, m, v, most = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), np.zeros(2)
    for t, gradient in enumerate(np.array([[30.0, 40.0], [0.1, -0.2], [0.01, 0.02]]), start=1):
        updates, state = optimiser.update({"w": jnp.asarray(gradient, jnp.float32)}, state, weights)
        weights = optax.apply_updates(weights, updates)
        g = gradient / max(1.0, np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        most = np.maximum(most, v / (1 - 0.999**t))
        w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(most) + 1e-8)
        np.testing.assert_allclose(weights["w"], w, rtol=1e-4)


def test_the_learning_rate_rises_and_falls():
    config = OptimiserConfig(learning_rate=1e-3, warmup=10, decay="cosine")
    rate = [float(learning_rate(config, 100)(step)) for step in range(100)]
    assert 0 < rate[0] < rate[5] < rate[10] == pytest.approx(1e-3)
    assert rate[99] == pytest.approx(1e-5, rel=0.1)
    assert float(learning_rate(OptimiserConfig(), 100)(99)) == pytest.approx(1e-4)


def test_training_overfits_one_pair_without_retracing(key):
    fixed, moving = smooth_pair(key)[:, None]
    step = compiled_step(CONFIG)
    state, losses = fresh_state(), []
    for _ in range(60):
        state, metrics = step(state, fixed, moving)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert int(state.step) == 60
    assert int(metrics["skipped"]) == 0
    assert step._cache_size() == 1


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(key):
    fixed, moving = smooth_pair(key)[:, None]
    step = compiled_step(CONFIG)
    state, _ = step(fresh_state(), fixed, moving)
    before = jax.tree.map(np.array, state.params)
    state, metrics = step(state, fixed.at[0, 3, 3, 0].set(jnp.nan), moving)
    chex.assert_trees_all_equal(before, jax.tree.map(np.array, state.params))
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (1, 1)
    state, metrics = step(state, fixed, moving)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (1, 0)
    assert (
        np.abs(before["step"]["stem"]["conv"]["kernel"] - np.asarray(state.params["step"]["stem"]["conv"]["kernel"])).max() > 0
    )


def test_a_batch_in_parts_has_the_whole_batchs_gradient(key):
    """By AMSGrad's first moments, linear in it; the control, one of the parts alone, has another."""
    fixed, moving = jnp.stack([smooth_pair(each) for each in jax.random.split(key, 4)], axis=1)

    def gradient(accumulate, pairs=(0, 1, 2, 3)):
        training = dataclasses.replace(CONFIG.training, batch=4, accumulate=accumulate)
        step, chosen = compiled_step(dataclasses.replace(CONFIG, training=training)), jnp.array(pairs)
        state, metrics = step(fresh_state(), fixed[chosen], moving[chosen])
        assert int(state.step) == 1
        return jax.tree.leaves(state.opt_state.inner_state[1][0].mu), float(metrics["loss"])

    # Each pair twice is those pairs alone, and needs no other program.
    (whole, loss), (parts, same), (half, _) = gradient(1), gradient(2), gradient(1, (0, 2, 0, 2))
    assert same == pytest.approx(loss, rel=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in whole)
    chex.assert_trees_all_close(parts, whole, atol=1e-4 * scale)
    assert max(float(jnp.abs(one - two).max()) for one, two in zip(half, whole, strict=True)) > 0.01 * scale


def test_a_batch_that_cannot_be_parted_evenly_is_refused():
    with pytest.raises(ValueError, match="batch must be a multiple of accumulate"):
        TrainingConfig(batch=8, accumulate=3)


def test_the_step_reuses_the_old_states_memory(key):
    fixed, moving = smooth_pair(key)[:, None]
    state = fresh_state()
    leaf = jax.tree.leaves(state.params)[0]
    compiled_step(CONFIG)(state, fixed, moving)
    assert leaf.is_deleted()


def test_checkpoints_keep_the_best_and_the_last_and_restore_everything(tmp_path):
    state = fresh_state()
    with Checkpoints(tmp_path, create=True) as checkpoints:
        for step, score in ((1, 3.0), (2, 1.0), (3, 2.0)):
            params = jax.tree.map(lambda leaf, step=step: leaf + step, state.params)
            save_state(checkpoints, state._replace(step=jnp.int32(step), params=params), CONFIG, score)
        assert (checkpoints.latest, checkpoints.best) == (3, 2)
        restored = restore_state(checkpoints, CONFIG)
    chex.assert_trees_all_equal(restored.params, jax.tree.map(lambda leaf: leaf + 3, state.params))
    chex.assert_trees_all_equal(restored.opt_state, state.opt_state)
    assert (jax.random.key_data(restored.key) == jax.random.key_data(state.key)).all()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert kept == ["2", "3"]
    registrar = load(tmp_path)
    assert registrar.config == CONFIG
    chex.assert_trees_all_equal(registrar.params, jax.tree.map(lambda leaf: leaf + 2, state.params))


def test_the_bar_is_one_step_ahead_of_the_device_at_most(tmp_path, monkeypatch):
    """Of every step that it counts, all before that one have been waited for, but not that one too; the first one compiles."""
    finished, counted = [0], []

    class Bar(contextlib.nullcontext):
        set_postfix = unpause = lambda *_, **__: None

        def update(self):
            counted.append((len(counted) + 1, max(finished)))

    class Images:
        def batches(self, start):
            return itertools.repeat((np.zeros((1, 8, 8, 1)),) * 2)

        def examples(self, count):
            return Examples(*(np.zeros((1, 8, 8, 1)),) * 2)

    def step(state, fixed, moving):
        names = ("loss", "skipped", "skipped_in_a_row")
        return state._replace(step=state.step + 1), {"number": state.step + 1} | dict.fromkeys(names, jnp.zeros(()))

    bar = Bar()
    monkeypatch.setattr(Bar, "__enter__", lambda self: self)
    monkeypatch.setattr(loop, "_bar", lambda *_, **__: bar)
    monkeypatch.setattr(loop, "make_train_step", lambda config: step)
    monkeypatch.setattr(loop, "kept", lambda function, **_: function)
    monkeypatch.setattr(loop, "make_validate", lambda *_: lambda params: Validation(None, 0.0, 1.0, np.zeros((1, 8, 8, 1))))
    monkeypatch.setattr(loop, "save_state", lambda *_: None)
    monkeypatch.setattr(loop, "init_state", lambda config, params: TrainState({}, {}, jnp.zeros((), int), jax.random.key(0)))
    monkeypatch.setattr(jax, "block_until_ready", lambda metrics: finished.append(int(metrics.get("number", 0))))
    short = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, steps=6))
    loop.train(short, tmp_path, Images(), progress=False)
    assert [number for number, _ in counted] == [1, 2, 3, 4, 5, 6]
    assert [done for _, done in counted] == [1, 1, 2, 3, 4, 5]


def test_loading_from_a_folder_without_checkpoints_says_so(tmp_path):
    with pytest.raises(InputError, match="no checkpoint here"):
        load(tmp_path)

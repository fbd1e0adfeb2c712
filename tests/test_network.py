"""What the network must be, whatever its weights: size, recurrence, loops, noise, dimensions."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_joint import CONFIG as JOINT
from test_reference import CONFIG, apply, random_params, smooth_pair

from r2n2_jax.config import PRESETS, ModelConfig
from r2n2_jax.models.conv_gru import ConvGRU
from r2n2_jax.models.r2n2 import R2N2, Carry, RegistrationStep, init_params
from r2n2_jax.ops.gaussian import displacement
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.warp import warp


def test_the_paper_preset_has_its_number_of_parameters():
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), PRESETS["paper"].model))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3_593_611


def test_an_untrained_network_does_not_move_anything(key):
    fixed, moving = smooth_pair(key)[:, None]
    config = dataclasses.replace(CONFIG, residual_blocks=1)
    sequence = apply(config, init_params(key, config), fixed, moving)
    np.testing.assert_array_equal(sequence.displacement, 0.0)
    np.testing.assert_allclose(sequence.warped, jnp.broadcast_to(moving[None], sequence.warped.shape), atol=1e-5)
    assert sequence.inside.all()


def test_scan_equals_a_python_loop(key):
    fixed, moving = smooth_pair(key)[:, None]
    params = random_params(CONFIG)
    sequence = apply(CONFIG, params, fixed, moving)
    sizes = ((16, 14), (8, 7), (4, 4))
    states = tuple(jnp.zeros((1, *size, c)) for size, c in zip(sizes, CONFIG.channels, strict=False))
    look = Carry(jnp.zeros((1, 32, 28, 2)), moving, states)
    step = jax.jit(RegistrationStep(CONFIG).apply)
    for t in range(CONFIG.steps):
        look, (gaussian, warped, _) = step({"params": params["step"]}, look, fixed, moving)
        np.testing.assert_allclose(sequence.warped[t], warped, atol=1e-5)
        np.testing.assert_allclose(sequence.gaussians.weight[t], gaussian.weight, atol=1e-5)
    np.testing.assert_allclose(sequence.displacement, look.displacement, atol=1e-5)


def test_the_gaussians_are_the_result(key):
    fixed, moving = smooth_pair(key)[:, None]
    sequence = apply(CONFIG, random_params(CONFIG), fixed, moving)
    field = displacement(jax.tree.map(lambda a: a[:, 0], sequence.gaussians), coordinates((32, 28)))
    np.testing.assert_allclose(field, sequence.displacement[0], atol=1e-5)
    np.testing.assert_allclose(warp(moving[0], field), sequence.warped[-1, 0], atol=1e-4)


def test_remat_changes_the_program_not_the_gradient(key):
    fixed, moving = smooth_pair(key)[:, None]
    config = dataclasses.replace(CONFIG, steps=2, noise=0.3, residual_blocks=1)
    params = random_params(config)

    def gradient(remat):
        network = R2N2(dataclasses.replace(config, remat=remat))

        def loss(p):
            return jnp.mean(network.apply({"params": p}, fixed, moving, noise=True, rngs={"noise": key}).warped ** 2)

        traced = jax.jit(jax.grad(loss)).trace(params)
        assert ("remat" in str(traced.jaxpr)) == remat
        return traced.lower().compile()(params)

    chex.assert_trees_all_close(gradient(remat=False), gradient(remat=True), atol=1e-5)


def test_bfloat16_is_near_and_not_the_same(key):
    """Only the features are of that precision: what the network answers with, and the weights, stay float32."""
    fixed, moving = smooth_pair(key)[:, None]
    params = random_params(CONFIG)
    exact = apply(CONFIG, params, fixed, moving)
    near = apply(dataclasses.replace(CONFIG, precision="bfloat16"), params, fixed, moving)
    chex.assert_trees_all_equal_dtypes(exact, near)
    error = float(jnp.abs(exact.displacement - near.displacement).max())
    assert 0 < error < 0.05 * float(jnp.abs(exact.displacement).max())


@pytest.mark.parametrize("config", [CONFIG, JOINT], ids=["paper", "joint"])
def test_the_same_weights_run_at_any_length(config, key):
    fixed, moving = smooth_pair(key)[:, None]
    params = random_params(config)
    short, long = (apply(config, params, fixed, moving, steps=steps) for steps in (2, 6))
    assert long.warped.shape[0] == 6
    np.testing.assert_allclose(short.warped, long.warped[:2], atol=1e-3 if config.joint else 1e-6)


@pytest.mark.parametrize("config", [CONFIG, JOINT], ids=["paper", "joint"])
def test_pairs_of_a_batch_do_not_see_each_other(config, key):
    pairs = jnp.stack([smooth_pair(k) for k in jax.random.split(key, 3)])
    params = random_params(config)
    together = apply(config, params, pairs[:, 0], pairs[:, 1]).displacement
    for i in range(3):
        alone = apply(config, params, pairs[i : i + 1, 0], pairs[i : i + 1, 1]).displacement
        np.testing.assert_allclose(together[i], alone[0], atol=1e-3 if config.joint else 1e-5)


def test_three_dimensions(key):
    config = ModelConfig(ndim=3, resolution=16, steps=2, channels=(2, 4, 4, 6), hidden=8, remat=False)
    fixed, moving = jax.random.normal(key, (2, 1, 16, 12, 10, 1))
    params = random_params(config)
    sequence = apply(config, params, fixed, moving)
    chex.assert_shape(sequence.displacement, (1, 16, 12, 10, 3))
    chex.assert_shape(sequence.gaussians.rotation, (2, 1, 3))
    assert np.abs(sequence.displacement).max() > 0
    assert np.isfinite(sequence.displacement).all()


def test_noise_is_drawn_anew_at_every_step_and_only_by_request(key):
    """Equal looks (an unmoved pair, no state) at a network whose output ignores the state differ by their noise alone."""
    fixed, moving = smooth_pair(key)[:, None]
    config = dataclasses.replace(CONFIG, noise=0.5)
    still = random_params(config)
    still["step"]["parameters"]["output"]["kernel"] *= 0.0
    still["step"]["parameters"]["output"]["bias"] *= 0.0
    for level, width in enumerate(config.channels[:-1]):
        gru = still["step"][f"gr2u_{level}"]["gru"]
        # z = 1: the state IS the proposal, and with u = 0 the proposal is the same at every step.
        gru["input"]["bias"] = gru["input"]["bias"].at[width : 2 * width].set(50.0)
        gru["state_proposal"] *= 0.0
        gru["state_gates"]["kernel"] *= 0.0
    quiet = apply(config, still, fixed, moving).gaussians.position
    np.testing.assert_allclose(quiet, jnp.broadcast_to(quiet[:1], quiet.shape), atol=1e-6)

    def draw(noise_key):
        return apply(config, still, fixed, moving, noise_key, noise=True).gaussians.position

    loud = draw(key)
    steps = np.asarray(loud[:, 0])
    assert min(np.abs(a - b).max() for i, a in enumerate(steps) for b in steps[:i]) > 1e-4
    np.testing.assert_array_equal(loud, draw(key))
    assert np.abs(np.asarray(loud - draw(jax.random.fold_in(key, 1)))).max() > 1e-4


def test_noise_has_the_configured_deviation(key):
    """Output noise: mean one, deviation as configured; the carried state is free of it."""
    cell = ConvGRU(8, noise=0.7)
    x, h = jnp.ones((1, 64, 64, 8)), jnp.zeros((1, 64, 64, 8))
    variables = ConvGRU(8).init(key, x, h)
    clean, _ = ConvGRU(8).apply(variables, x, h)
    output, state = cell.apply(variables, x, h, rngs={"noise": key})
    np.testing.assert_allclose(state, clean, atol=1e-6)
    factor = np.asarray(output / clean)
    assert abs(factor.mean() - 1.0) < 0.02
    assert abs(factor.std() - 0.7) < 0.02

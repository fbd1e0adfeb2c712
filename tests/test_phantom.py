"""The phantom's ground truth is exact, whatever the patient and the breath."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.data.phantom.anatomy import sample_anatomy
from r2n2_jax.data.phantom.frame import render, sample_batch, sample_breaths
from r2n2_jax.data.phantom.motion import from_tissue, motion, to_tissue
from r2n2_jax.io.geometry import to_px
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.jacobian import determinant
from r2n2_jax.ops.warp import inside, warp
from r2n2_jax.ops.warp import sample as sample_image

CONFIG = PhantomConfig()
SHAPE = (96, 112)


@pytest.fixture(scope="module")
def pairs():
    return sample_batch(jax.random.split(jax.random.key(0), 12), CONFIG, SHAPE)


def test_shapes_and_range(pairs):
    chex.assert_shape([pairs.fixed, pairs.moving], (12, *SHAPE, 1))
    chex.assert_shape(pairs.displacement, (12, *SHAPE, 2))
    chex.assert_equal_shape([pairs.fixed_landmarks, pairs.moving_landmarks])
    chex.assert_tree_all_finite(pairs)
    assert pairs.fixed.min() >= 0
    assert (np.asarray(pairs.fixed).std((1, 2, 3)) > 0.05).all()
    assert (np.abs(pairs.fixed_landmarks) <= 1).all()


def test_the_same_key_gives_the_same_pair_and_another_key_another(key):
    keys = jax.random.split(key, 12)
    one, same = (sample_batch(keys, CONFIG, SHAPE) for _ in range(2))
    other = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), one)
    chex.assert_trees_all_equal(one, same)
    assert np.abs(np.asarray(one.fixed - other.fixed)).mean((1, 2, 3)).min() > 0.05
    assert np.abs(np.asarray(one.displacement - other.displacement)).max((1, 2, 3)).min() > 0.01


def test_the_motion_is_inverted_to_rounding(key):
    points = coordinates((48, 48))

    @jax.jit
    @jax.vmap
    def error(k):
        anatomy = sample_anatomy(k)
        _, breath = sample_breaths(jax.random.fold_in(k, 1), CONFIG)
        there = from_tissue(anatomy, breath, to_tissue(anatomy, breath, points))
        return jnp.max(jnp.abs(there - points)), jnp.max(jnp.abs(motion(anatomy, breath, points)))

    errors, sizes = error(jax.random.split(key, 200))
    assert errors.max() < 2e-6
    assert sizes.min() > 0.005


def test_nothing_folds(pairs):
    assert jax.vmap(determinant)(pairs.displacement).min() > 0.05


def test_the_exact_field_undoes_the_motion(key):
    """Noise-free and without the density's brightness, the warped moving frame IS the fixed frame, up to interpolation."""
    points = coordinates((192, 192))

    @jax.jit
    def frames(k):
        anatomy = sample_anatomy(k)
        tissues = [to_tissue(anatomy, breath, points) for breath in sample_breaths(jax.random.fold_in(k, 1), CONFIG)]
        breaths = sample_breaths(jax.random.fold_in(k, 1), CONFIG)
        fixed, moving = (render(anatomy, b, t, density=False) for b, t in zip(breaths, tissues, strict=True))
        return fixed, moving, from_tissue(anatomy, breaths[1], tissues[0]) - points

    for k in jax.random.split(key, 3):
        fixed, moving, field = frames(k)
        seen = np.asarray(inside(points + field))[..., None]
        before = np.abs(np.asarray(fixed - moving))[seen].mean()
        after = np.abs(np.asarray(fixed - warp(moving, field)))[seen].mean()
        wrong = np.abs(np.asarray(fixed - warp(moving, -field)))[seen].mean()
        assert after < 0.1 * before < 0.1 * wrong
        assert after < 0.005


def test_landmarks_move_with_the_field(pairs):
    for i in range(len(pairs.fixed)):
        moved = pairs.fixed_landmarks[i] + sample_image(pairs.displacement[i], pairs.fixed_landmarks[i])
        error = to_px(np.asarray(moved - pairs.moving_landmarks[i]), SHAPE)
        assert np.linalg.norm(error, axis=-1).mean() < 0.05


def test_ribs_stand_still_while_the_diaphragm_moves(pairs):
    size = np.linalg.norm(to_px(np.asarray(pairs.displacement), SHAPE), axis=-1)
    assert size[:, :, :4].max() < 0.01
    assert size[:, SHAPE[0] // 2 :].max((1, 2)).min() > 1.5


def test_held_out_sets_are_fixed_apart_and_nested():
    validation, test = (held_out_phantoms(CONFIG, 32, split, 6) for split in ("validation", "test"))
    assert np.abs(np.asarray(validation.fixed - test.fixed)).mean() > 0.05
    fewer = held_out_phantoms(CONFIG, 32, "test", 3)
    np.testing.assert_array_equal(fewer.fixed, test.fixed[:3])

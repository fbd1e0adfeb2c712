"""The phantom's ground truth is exact, whatever the patient and the breath, of slices and of volumes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2n2_jax.config import PhantomConfig
from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.data.phantom.anatomy import outline, sample_anatomy
from r2n2_jax.data.phantom.frame import render, sample_batch, sample_breaths
from r2n2_jax.data.phantom.motion import Breath, from_tissue, motion, to_tissue
from r2n2_jax.io.geometry import to_px
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.jacobian import determinant
from r2n2_jax.ops.warp import inside, warp
from r2n2_jax.ops.warp import sample as sample_image

CONFIG = PhantomConfig()
SHAPES = {"slice": (96, 112), "volume": (24, 40, 44)}
COUNT = 8


@pytest.fixture(scope="module", params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture(scope="module")
def pairs(shape):
    return sample_batch(jax.random.split(jax.random.key(0), COUNT), CONFIG, shape)


def test_shapes_and_range(pairs, shape):
    chex.assert_shape([pairs.fixed, pairs.moving], (COUNT, *shape, 1))
    chex.assert_shape(pairs.displacement, (COUNT, *shape, len(shape)))
    chex.assert_equal_shape([pairs.fixed_landmarks, pairs.moving_landmarks])
    chex.assert_tree_all_finite(pairs)
    assert pairs.fixed.min() >= 0
    assert (np.asarray(pairs.fixed).reshape(COUNT, -1).std(1) > 0.05).all()
    assert (np.abs(pairs.fixed_landmarks) <= 1).all()


def test_the_same_key_gives_the_same_pair_and_another_key_another(key):
    keys = jax.random.split(key, COUNT)
    one, same = (sample_batch(keys, CONFIG, SHAPES["slice"]) for _ in range(2))
    other = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), one)
    chex.assert_trees_all_equal(one, same)
    assert np.abs(np.asarray(one.fixed - other.fixed)).mean((1, 2, 3)).min() > 0.05
    assert np.abs(np.asarray(one.displacement - other.displacement)).max((1, 2, 3)).min() > 0.01


@pytest.mark.parametrize("grid", [(48, 48), (14, 14, 14)], ids=SHAPES)
def test_the_motion_is_inverted_to_rounding(key, grid):
    points = coordinates(grid)

    @jax.jit
    @jax.vmap
    def error(k):
        anatomy = sample_anatomy(k, ndim=len(grid))
        _, breath = sample_breaths(jax.random.fold_in(k, 1), CONFIG)
        there = from_tissue(anatomy, breath, to_tissue(anatomy, breath, points))
        return jnp.max(jnp.abs(there - points)), jnp.max(jnp.abs(motion(anatomy, breath, points)))

    errors, sizes = error(jax.random.split(key, 200))
    assert errors.max() < 2e-6
    assert sizes.min() > 0.005


def test_nothing_folds(pairs):
    assert jax.vmap(determinant)(pairs.displacement).min() > 0.05


@pytest.mark.parametrize(("grid", "left"), [((192, 192), 0.1), ((48, 96, 96), 0.2)], ids=SHAPES)
def test_the_exact_field_undoes_the_motion(key, grid, left):
    """Noise-free and without the density's brightness, the warped moving frame IS the fixed frame, up to interpolation."""
    points = coordinates(grid)

    @jax.jit
    def frames(k):
        anatomy = sample_anatomy(k, ndim=len(grid))
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
        assert after < left * before < left * wrong
        assert after < 0.005


def test_landmarks_move_with_the_field(pairs, shape):
    for i in range(len(pairs.fixed)):
        moved = pairs.fixed_landmarks[i] + sample_image(pairs.displacement[i], pairs.fixed_landmarks[i])
        error = to_px(np.asarray(moved - pairs.moving_landmarks[i]), shape)
        # What interpolation between the grid's points leaves: the volume's grid is half as fine.
        assert np.linalg.norm(error, axis=-1).mean() < (0.05 if len(shape) == 2 else 0.15)


def test_ribs_stand_still_while_the_diaphragm_moves(pairs, shape):
    size = np.linalg.norm(to_px(np.asarray(pairs.displacement), shape), axis=-1)
    assert size[..., :4].max() < 0.01
    if len(shape) == 3:  # neither do breastbone and back
        assert size[:, [0, 1, -2, -1]].max() < 0.01
    assert size[..., shape[-2] // 2 :, :].reshape(COUNT, -1).max(1).min() > 1.0


def test_a_volume_is_the_same_on_every_grid(key):
    """On a grid of every second point the tissue, and so the field, is that of every second point."""
    fine, coarse = (sample_batch(key[None], CONFIG, shape) for shape in ((17, 25, 33), (9, 13, 17)))
    np.testing.assert_allclose(coarse.displacement, fine.displacement[:, ::2, ::2, ::2], atol=1e-5)
    np.testing.assert_array_equal(coarse.fixed_landmarks, fine.fixed_landmarks)


def test_a_patients_slice_and_volume_have_the_same_numbers(key):
    of_slice, of_volume = (sample_anatomy(key, ndim=ndim) for ndim in (2, 3))
    chex.assert_trees_all_equal(of_slice.shape, of_volume.shape)
    assert of_volume.landmarks.shape == (len(of_slice.landmarks), 3)
    middle = jnp.stack([jnp.linspace(-0.9, 0.9, 50), jnp.full(50, 0.3)], axis=-1)
    deep = jnp.concatenate([middle, jnp.zeros((50, 1))], axis=-1)
    np.testing.assert_allclose(*(outline(of_slice.shape, points) for points in (middle, deep)), atol=2e-3)
    assert (outline(of_slice.shape, deep.at[:, 2].set(0.99)) < 0).all()  # the body ends before the field of view does


def test_the_front_rises_as_the_diaphragm_falls(key):
    anatomy = sample_anatomy(key, ndim=3)
    breath = Breath(jnp.float32(0.3), jnp.float32(0.0))
    front = jnp.array([[0.0, 0.1, -0.3], [0.3, 0.0, -0.2]])
    moved = motion(anatomy, breath, front)
    assert (moved[:, 1] > 0.03).all()
    assert (moved[:, 2] < -1e-3).all()
    back = motion(anatomy, breath, front * jnp.array([[1.0, 1.0, -1.0]]))
    assert (jnp.abs(back[:, 2]) < jnp.abs(moved[:, 2])).all()


def test_held_out_sets_are_fixed_apart_and_nested():
    validation, test = (held_out_phantoms(CONFIG, (32, 32), split, 6) for split in ("validation", "test"))
    assert np.abs(np.asarray(validation.fixed - test.fixed)).mean() > 0.05
    fewer = held_out_phantoms(CONFIG, (32, 32), "test", 3)
    np.testing.assert_array_equal(fewer.fixed, test.fixed[:3])
    volumes = held_out_phantoms(CONFIG, (8, 12, 12), "test", 2)
    chex.assert_shape(volumes.fixed, (2, 8, 12, 12, 1))

"""Phantom pairs made into pairs of anything: the motion is real and without folds, and nothing else tells the images apart."""

import dataclasses
import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from r2n2_jax.config import Config, ModelConfig, PhantomConfig, TrainingConfig
from r2n2_jax.data import variety
from r2n2_jax.data.dataset import PhantomSource, held_out_phantoms
from r2n2_jax.data.shapes import random_shapes
from r2n2_jax.ops.gaussian import displacement_and_determinant
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.intensity import standardise


@pytest.fixture(scope="module")
def images():
    y, x = jnp.meshgrid(*(jnp.linspace(-1, 1, 32),) * 2, indexing="ij")
    return tuple(standardise(jnp.exp(-4 * ((x - shift) ** 2 + 2 * y**2))[..., None]) for shift in (0.0, 0.3))


def varied(key, images, count=32):
    return jax.vmap(variety.vary, in_axes=(0, None, None))(jax.random.split(key, count), *images)


def test_pairs_are_standardised_and_decided_by_the_key(key, images):
    fixed, moving = varied(key, images)
    chex.assert_shape([fixed, moving], (32, 32, 32, 1))
    for each in (fixed, moving):
        # Outliers are cut before and after, and a background counts no more than the rest.
        np.testing.assert_allclose(each.mean((1, 2, 3)), 0.0, atol=0.25)
        np.testing.assert_allclose(each.std((1, 2, 3)), 1.0, atol=0.5)
    chex.assert_trees_all_equal(varied(key, images), (fixed, moving))
    assert not np.allclose(fixed[0], fixed[1], atol=0.1)


def test_volumes_are_varied_as_slices_are(key, images, monkeypatch):
    """Standardised and moved; without the motion, the control, one frame stays one."""
    depth = jnp.linspace(0.2, 1.0, 12)[None, :, None, None]
    one, _ = (standardise(depth * image[:, None]) for image in images)
    monkeypatch.setattr(variety, "_NOISE", 0.0)
    monkeypatch.setattr(variety, "_ENHANCED", 0.0)
    fixed, moving = varied(key, (one, one), 8)
    chex.assert_shape([fixed, moving], (8, 32, 12, 32, 1))
    np.testing.assert_allclose(fixed.std((1, 2, 3, 4)), 1.0, atol=0.5)
    assert np.abs(np.asarray(fixed - moving)).max() > 0.3
    monkeypatch.setattr(variety, "_STEEPNESS", 0.0)
    chex.assert_trees_all_close(*varied(key, (one, one), 8), atol=1e-5)


def test_one_frame_without_motion_and_noise_stays_one_frame(key, images, monkeypatch):
    """View and contrast are the same in both images: with the random motion, its control, they differ."""
    monkeypatch.setattr(variety, "_NOISE", 0.0)
    monkeypatch.setattr(variety, "_ENHANCED", 0.0)
    one_frame = (images[0], images[0])
    assert np.abs(np.subtract(*varied(key, one_frame))).max() > 0.3
    monkeypatch.setattr(variety, "_STEEPNESS", 0.0)
    chex.assert_trees_all_close(*varied(key, one_frame), atol=1e-5)


def test_half_keep_the_phantoms_motion_and_half_their_contrast(key, images, monkeypatch):
    monkeypatch.setattr(variety, "_NOISE", 0.0)
    monkeypatch.setattr(variety, "_ENHANCED", 0.0)
    monkeypatch.setattr(variety, "_STEEPNESS", 0.0)
    fixed, moving = varied(key, images, 400)
    moved = np.abs(fixed - moving).max((1, 2, 3)) > 1e-4
    assert 0.4 < moved.mean() < 0.6
    pair = np.stack([np.asarray(image) for image in images])
    colours = jax.vmap(variety._recoloured, in_axes=(0, None))(jax.random.split(key, 400), jnp.asarray(pair))
    colours = np.asarray(colours)
    kept = np.abs(colours - ((pair - pair.mean()) / pair.std())[None]).max((1, 2, 3, 4)) < 1e-3
    assert 0.4 < kept.mean() < 0.6


def test_contrast_agent_changes_half_of_the_moving_images_up_to_fourfold(key, images):
    """Above the darkest pixel, which stays; what is not changed is the same number."""
    changed = np.asarray(jax.vmap(variety._enhanced, in_axes=(0, None))(jax.random.split(key, 400), images[1]))
    image = np.asarray(images[1])
    same = (changed == image).all((1, 2, 3))
    assert 0.4 < same.mean() < 0.6
    above = image - image.min()
    factors = ((changed - image.min()) / np.where(above > 0.1, above, np.nan))[~same]
    assert np.nanmin(factors) > 0.249
    assert np.nanmax(factors) < 4.01
    strongest = np.nanmax(np.abs(np.log2(factors)), axis=(1, 2, 3))
    assert 0.2 < np.median(strongest) < strongest.max()
    assert strongest.max() > 1.5
    np.testing.assert_allclose(changed[:, above == 0.0], image.min(), atol=1e-6)


def test_contrast_agent_moves_nothing(key, images, monkeypatch):
    """Without it the fixed images are the same numbers, and the moving ones those of the same view and motion."""
    monkeypatch.setattr(variety, "_NOISE", 0.0)
    fixed, moving = varied(key, images, 64)
    monkeypatch.setattr(variety, "_ENHANCED", 0.0)
    plain = varied(key, images, 64)
    same = np.asarray(jnp.all(moving == plain[1], axis=(1, 2, 3)))
    assert 0.3 < same.mean() < 0.7
    chex.assert_trees_all_equal(fixed[same], plain[0][same])


def test_the_truth_of_held_out_phantoms_knows_no_variety():
    plain, mixed = (held_out_phantoms(PhantomConfig(variety=share), (32, 32), "validation", 2) for share in (0.0, 1.0))
    chex.assert_trees_all_equal(plain, mixed)


@pytest.mark.parametrize("grid", [(64, 64), (20, 20, 20)], ids=["slice", "volume"])
def test_the_random_motion_hardly_ever_folds(key, grid):
    """Six bumps of the largest size may add up to a fold; in training that is one pair in hundreds, not more."""
    points = coordinates(grid)

    @jax.jit
    def least(key):
        return displacement_and_determinant(variety._random_bumps(key, len(grid)), points)[1].min()

    slopes = np.asarray(jax.lax.map(least, jax.random.split(key, 500)))
    assert (slopes < 0.9).mean() > 0.3
    assert (slopes <= 0).mean() < 0.01


@pytest.mark.parametrize("d", [2, 3])
def test_the_view_keeps_angles(key, d):
    """The images of the axes are of one length and at right angles, mirrored in half of the draws."""
    turns = []
    for each in jax.random.split(key, 40):
        view = variety._random_view(each, d)
        origin, *ends = view(jnp.concatenate([jnp.zeros((1, d)), jnp.eye(d)]))
        axes = np.stack([np.asarray(end - origin) for end in ends])
        np.testing.assert_allclose(axes @ axes.T, (axes[0] @ axes[0]) * np.eye(d), atol=1e-5)
        assert 0.4 <= np.linalg.norm(axes[0]) <= 1.1
        turns.append(np.linalg.det(axes) > 0)
    assert 0.25 < np.mean(turns) < 0.75


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 4), (1.0, 8)])
def test_a_training_batch_holds_the_share_asked_for(share, count):
    """The other pairs are those of a batch without variety, which are in both directions."""

    def batch(variety):
        model = ModelConfig(resolution=32, channels=(2, 2, 2, 2), hidden=2)
        config = Config(model=model, phantom=PhantomConfig(variety=variety), training=TrainingConfig(batch=8))
        return next(PhantomSource(config).batches(3))

    plain, mixed = batch(0.0), batch(share)
    same = np.asarray(jnp.all(plain.fixed == mixed.fixed, axis=(1, 2, 3)))
    assert 8 - same.sum() == count
    np.testing.assert_array_equal(same, jnp.all(plain.moving == mixed.moving, axis=(1, 2, 3)))
    chex.assert_trees_all_equal(plain.fixed[:4], plain.moving[4:])


@pytest.mark.parametrize(("size", "share"), [(1, 0.5), (2, 0.25), (3, 0.5)])
def test_a_small_batch_is_varied_as_often_as_asked_for_and_in_both_directions(size, share):
    """Less than a pair a step is one pair in some steps."""
    small = ModelConfig(resolution=16)
    steps = 60

    def source(variety):
        config = Config(model=small, phantom=PhantomConfig(variety=variety), training=TrainingConfig(batch=size))
        return itertools.islice(PhantomSource(config).batches(0), steps)

    changed = [
        np.any(np.asarray(a.fixed != b.fixed), axis=(1, 2, 3)).sum() for a, b in zip(source(0.0), source(share), strict=True)
    ]
    expected, deviation = share * size * steps, np.sqrt(steps) / 2
    assert abs(sum(changed) - expected) < 3 * deviation
    assert set(changed) <= {math.floor(share * size), math.ceil(share * size)}


def test_a_batch_of_one_shows_either_image_as_the_fixed_one():
    """Both were rendered from the same draws: the one nearer the mean position is the first of the sampler's."""
    config = Config(model=ModelConfig(resolution=16), training=TrainingConfig(batch=1))
    one = itertools.islice(PhantomSource(config).batches(0), 30)
    two = itertools.islice(PhantomSource(dataclasses.replace(config, training=TrainingConfig(batch=2))).batches(0), 30)
    same = [bool(jnp.allclose(a.fixed[0], b.fixed[0], atol=1e-4)) for a, b in zip(one, two, strict=True)]
    turned = 30 - sum(same)
    assert 5 < turned < 25


@pytest.mark.parametrize("grid", [(64, 64), (24, 24, 24)], ids=["slice", "volume"])
def test_random_shapes_are_of_many_sizes_and_have_edges(key, grid):
    """Neighbouring pixels are alike but for edges; of one smooth field, the control, no difference stands out."""
    images = np.asarray(jax.vmap(lambda one: random_shapes(one, grid))(jax.random.split(key, 40)))[..., 0]
    assert np.isfinite(images).all()
    steps = np.abs(np.diff(images, axis=-1)).reshape(40, -1)
    assert (steps.mean(1).max() / steps.mean(1).min()) > 3  # coarse ones and fine ones
    stand_out = np.quantile(steps, 0.99, axis=1) / np.median(steps, axis=1)
    smooth = gaussian_filter(np.random.default_rng(0).normal(size=grid), 3)
    differences = np.abs(np.diff(smooth, axis=-1))
    assert np.quantile(stand_out, 0.75) > 2 * np.quantile(differences, 0.99) / np.median(differences)


def test_random_shapes_take_the_place_of_as_many_patients_as_asked_for(key, images):
    """With all of them the patient decides nothing; with none everything is as it was."""
    keys = jax.random.split(key, 60)
    others = tuple(-image for image in images[::-1])

    def pairs(images, **share):
        return jax.vmap(functools.partial(variety.vary, **share), in_axes=(0, None, None))(keys, *images)

    chex.assert_trees_all_equal(pairs(images, shapes=1.0), pairs(others, shapes=1.0))
    chex.assert_trees_all_equal(pairs(images, shapes=0.0), pairs(images))
    half, none = pairs(images, shapes=0.5), pairs(images)
    replaced = np.asarray(jnp.any(half[0] != none[0], axis=(1, 2, 3)))
    assert 0.25 < replaced.mean() < 0.75


def test_shapes_without_variety_are_refused():
    with pytest.raises(ValueError, match=r"phantom\.shapes must be in"):
        PhantomConfig(shapes=0.5)
    assert PhantomConfig(variety=0.5, shapes=1.0).shapes == 1.0

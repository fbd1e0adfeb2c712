"""The public API: any size, any range, the field exact at the image's own resolution."""

import jax
import numpy as np
import pytest
from test_reference import CONFIG as MODEL
from test_reference import random_params

from r2n2_jax import InputError, Registrar
from r2n2_jax.config import Config
from r2n2_jax.ops.gaussian import displacement
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.warp import inside


@pytest.fixture(scope="module")
def registrar():
    return Registrar(Config(model=MODEL), random_params(MODEL))


def images(count=2, shape=(45, 37), seed=0):
    coarse = np.random.default_rng(seed).normal(size=(count, 6, 5))
    return np.asarray(300 + 90 * jax.image.resize(coarse, (count, *shape), "cubic"))


def test_the_field_is_evaluated_at_the_images_own_resolution(registrar):
    fixed, moving = images()
    result = registrar.register(fixed, moving)
    assert result.displacement.shape == (45, 37, 2)
    assert result.steps == len(result.parameters.position) == MODEL.steps
    np.testing.assert_allclose(result.displacement, displacement(result.parameters, coordinates((45, 37))), atol=1e-6)
    assert np.abs(result.displacement).max() > 0.02
    np.testing.assert_array_equal(result.inside, inside(coordinates((45, 37)) + result.displacement))
    assert (result.warped[~result.inside] == 0).all()
    assert moving.min() - 0.01 <= result.warped[result.inside].min() <= result.warped.max() <= moving.max() + 0.01


def test_intensity_scale_and_offset_do_not_matter(registrar):
    fixed, moving = images()
    one, other = registrar.register(fixed, moving), registrar.register(0.01 * fixed - 7, 50 * moving)
    np.testing.assert_allclose(one.displacement, other.displacement, atol=1e-3)


def test_points_follow_the_field(registrar):
    fixed, moving = images()
    result = registrar.register(fixed, moving)
    grid = np.asarray(coordinates((45, 37)))
    np.testing.assert_allclose(result.points(grid[10:20, 5]), grid[10:20, 5] + result.displacement[10:20, 5], atol=1e-5)


def test_a_series_is_its_pairs(registrar):
    frames = images(19)
    result = registrar.register_series(frames, fixed=4)
    assert (result.fixed_frame, result.warped.shape) == (4, (19, 45, 37))
    for t in (0, 17, 18):
        pair = registrar.register(frames[4], frames[t])
        np.testing.assert_allclose(result.displacement[t], pair.displacement, atol=1e-4)
    points = np.zeros((3, 2), np.float32)
    assert result.points(points).shape == (19, 3, 2)
    np.testing.assert_allclose(result.points(points)[18], pair.points(points), atol=1e-4)
    assert 0 <= registrar.register_series(frames[:3]).fixed_frame < 3


def test_steps_can_be_chosen(registrar):
    fixed, moving = images()
    assert registrar.register(fixed, moving, steps=2).parameters.weight.shape == (2, 2)
    with pytest.raises(InputError, match="0 steps"):
        registrar.register(fixed, moving, steps=0)


def test_what_cannot_be_registered_is_refused(registrar):
    fixed, moving = images()
    with pytest.raises(InputError, match="must be equal"):
        registrar.register(fixed, moving[:-1])
    with pytest.raises(InputError, match=r"3D.*registers 2D"):
        registrar.register(fixed[None], moving[None])
    with pytest.raises(InputError, match="fixed image: constant"):
        registrar.register(np.ones((20, 20)), moving)
    with pytest.raises(InputError, match=r"frame 1: .*NaN"):
        registrar.register_series(np.stack([fixed, np.full_like(fixed, np.nan)]))
    with pytest.raises(InputError, match="at least 2"):
        registrar.register_series(fixed[None])
    with pytest.raises(InputError, match="no frame 7"):
        registrar.register_series(images(3), fixed=7)

"""How sure a displacement is, and what it does to lengths and volumes: against float64 NumPy, differences and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from r2n2_jax import load
from r2n2_jax.io.geometry import Geometry
from r2n2_jax.ops.affine import Affine, identity
from r2n2_jax.ops.gaussian import FreeGaussians, Gaussians, displacement, displacement_gradient, from_free, to_free
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.intensity import standardise
from r2n2_jax.ops.strain import principal_strains
from r2n2_jax.registration import posterior as module
from r2n2_jax.registration.contrast import contrast_problem
from r2n2_jax.registration.least_squares import _residuals, flat, linearised, total_variation, unflat
from r2n2_jax.registration.posterior import posterior, spread

SHAPE = (48, 40)
TURN = np.array([[0.9, 0.3], [-0.2, 1.1]], np.float32)


def some(d=2, count=3, seed=1):
    rng = np.random.default_rng(seed)
    return Gaussians(
        *(jnp.asarray(part, jnp.float32) for part in (
            rng.uniform(-0.6, 0.6, (count, d)),
            rng.uniform(0.05, 0.3, (count, d)),
            rng.uniform(-2, 2, (count, d * (d - 1) // 2)),
            rng.uniform(-0.1, 0.1, (count, d)),
        ))
    )  # fmt: skip


def some_points(count, d=2, seed=2):
    return jnp.asarray(np.random.default_rng(seed).uniform(-0.9, 0.9, (count, d)), jnp.float32)


@pytest.fixture(scope="module")
def pair():
    """Two images that differ by noise of their own and by a disc that only one shows."""
    rng = np.random.default_rng(0)
    scene = gaussian_filter(rng.normal(size=SHAPE), 3) * 12
    fixed, moving = (scene + 0.15 * gaussian_filter(rng.normal(size=SHAPE), 1) for _ in range(2))
    moving[8:18, 25:35] += 1.0
    return tuple(standardise(jnp.asarray(image[..., None], jnp.float32)) for image in (fixed, moving))


@pytest.mark.parametrize("d", [2, 3])
def test_the_gradient_is_that_of_the_displacement(d):
    points = some_points(20, d)
    expected = jax.vmap(jax.jacfwd(lambda x: displacement(some(d), x)))(points)
    found = displacement_gradient(some(d), points)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert not np.allclose(np.swapaxes(found, -1, -2), expected, atol=1e-2)


def test_a_turn_strains_nothing_and_a_stretch_what_the_formula_says():
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    np.testing.assert_allclose(principal_strains(jnp.asarray(turn, jnp.float32)), [0, 0], atol=1e-6)
    stretch = turn @ np.diag([1.5, 0.8]) @ turn.T
    np.testing.assert_allclose(principal_strains(jnp.asarray(stretch, jnp.float32)), [0.625, -0.18], atol=1e-6)
    many = np.random.default_rng(0).normal(size=(4, 5, 3, 3))
    singular = np.linalg.svd(many, compute_uv=False)
    np.testing.assert_allclose(principal_strains(jnp.asarray(many, jnp.float32)), 0.5 * (singular**2 - 1), rtol=1e-3, atol=1e-4)


def test_the_covariance_is_the_sandwich_of_tiles(pair):
    gaussians, outlier = some(), 2.0
    free = to_free(gaussians)
    problem = contrast_problem(*pair, outlier=outlier)(free)
    points = np.asarray(problem.points, np.float64)

    def residuals(vector):
        field = displacement(from_free(unflat(vector, free)), problem.points)
        return _residuals(problem, field)[0]

    rows = np.asarray(jax.jacfwd(residuals)(flat(free)), np.float64).T
    left, _, counted = linearised(problem, free)
    left, pixels = np.asarray(left, np.float64), int(counted.sum())
    smooth = 0.1 * np.asarray(total_variation(free)[1], np.float64) + 1e-2 / len(rows) * np.eye(len(rows))
    curvature = rows @ rows.T / pixels + smooth
    tile = np.floor((points + 1) * 6).clip(0, 11) @ [1, 100]
    meat = sum(np.outer(pull, pull) for pull in ((rows * left)[:, tile == one].sum(axis=1) / pixels for one in np.unique(tile)))
    meat = meat + np.mean(left**2) / pixels * smooth
    expected = module._FACTOR**2 * np.linalg.inv(curvature) @ meat @ np.linalg.inv(curvature)
    found = np.asarray(posterior(*pair, gaussians, outlier=outlier))
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.02 * np.abs(expected).max())
    equal = module._FACTOR**2 * np.mean(left**2) / pixels * np.linalg.inv(curvature)
    assert np.abs(equal - expected).max() > 0.2 * np.abs(expected).max(), "residuals are not equal everywhere"


def test_what_is_seen_twice_is_sure_and_what_is_doubted_is_not(pair):
    fixed, moving = pair
    still = some()._replace(weight=jnp.zeros((3, 2)))
    np.testing.assert_allclose(posterior(fixed, fixed, still), 0.0, atol=1e-9)
    sure, less = posterior(fixed, moving, still), posterior(fixed, moving, still, doubt=module._DOUBT_FROM + module._DOUBLED_BY)
    np.testing.assert_allclose(less, 4.0 * sure, rtol=1e-4)
    np.testing.assert_array_equal(posterior(fixed, moving, still, doubt=0.5 * module._DOUBT_FROM), sure)


def test_what_no_pixel_shows_is_unsure(pair):
    fixed, moving = pair
    mask = np.ones(SHAPE, bool)
    mask[26:, :24] = False
    there = jnp.asarray([[2 * 11 / 39 - 1, 2 * 37 / 47 - 1]], jnp.float32)
    one = Gaussians(there, jnp.full((1, 2), 0.02), jnp.zeros((1, 1)), jnp.zeros((1, 2)))
    nothing = jax.tree.map(lambda array: array[0], identity(1, 2))
    seen, unseen = (spread(one, posterior(fixed, moving, one, mask=m), nothing, there)[0] for m in (None, jnp.asarray(mask)))
    assert np.trace(unseen) > 3.0 * np.trace(seen)


@pytest.mark.parametrize("matrix", [np.eye(2, dtype=np.float32), TURN])
def test_the_spread_is_that_of_drawn_gaussians(matrix):
    """Small errors of the numbers, drawn at random, spread the displacement as the covariance says."""
    rng, gaussians, points = np.random.default_rng(3), some(), some_points(4)
    free = to_free(gaussians)
    half = 2e-4 * rng.normal(size=(flat(free).size, flat(free).size))
    draws = jnp.asarray(rng.normal(size=(4000, len(half))) @ half.T, jnp.float32)
    offset = jnp.asarray([0.1, -0.2])

    def carried(change):
        there = points + displacement(from_free(unflat(flat(free) + change, free)), points)
        return there @ matrix.T + jnp.broadcast_to(offset, there.shape)

    many = np.asarray(jax.lax.map(carried, draws), np.float64)
    expected = np.stack([np.cov(many[:, point].T) for point in range(4)])
    found = spread(gaussians, jnp.asarray(half @ half.T, jnp.float32), Affine(jnp.asarray(matrix), offset), points)
    np.testing.assert_allclose(found, expected, rtol=0.15, atol=0.05 * np.abs(expected).max())


@pytest.fixture(scope="module")
def registered(pair):
    """A pair on an anisotropic grid, with a start that turns and stretches put before what was found."""
    result = load().register(*(np.asarray(image[..., 0]) for image in pair), refine=2)
    geometry = Geometry(SHAPE[::-1], (2.0, 0.5), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    started = Affine(TURN, np.array([0.1, 0.05], np.float32))
    parameters = some()._replace(weight=jnp.asarray(some().weight @ TURN.T))
    size = flat(FreeGaussians(*parameters)).size
    return dataclasses.replace(
        result,
        geometry=geometry,
        affine=started,
        parameters=jax.tree.map(np.asarray, parameters),
        posterior=1e-4 * np.eye(size, dtype=np.float32),
    )


def test_the_jacobian_is_that_of_the_carried_points_in_millimetres(registered):
    points, step = np.asarray(some_points(6), np.float64), 1e-3
    half = np.array([39 * 2.0, 47 * 0.5]) / 2
    columns = []
    for axis in np.eye(2):
        ahead, behind = (np.asarray(registered.points(points + sign * step * axis), np.float64) for sign in (1, -1))
        columns.append((ahead - behind) * half / (2 * step * half @ axis))
    expected = np.stack(columns, axis=-1)
    found = registered.jacobian(points)
    np.testing.assert_allclose(found.matrix, expected, atol=2e-3)
    np.testing.assert_allclose(found.determinant, np.linalg.det(expected), atol=5e-3)
    assert not np.allclose(found.matrix * half / half[:, None], expected, atol=0.1), "the spacing counts"


def test_deviations_are_in_millimetres_along_the_axes(registered):
    half = np.array([39 * 2.0, 47 * 0.5]) / 2
    points = some_points(5)
    normalised = np.asarray(spread(some(), registered.posterior, registered.affine, points))
    expected = normalised * half[:, None] * half
    np.testing.assert_allclose(registered.covariance(points), expected, rtol=1e-3)
    np.testing.assert_allclose(registered.deviation(points), np.sqrt(expected[:, 0, 0] + expected[:, 1, 1]), rtol=1e-3)
    whole = registered.uncertainty()
    assert whole.shape == SHAPE
    np.testing.assert_allclose(whole[7, 9], registered.deviation(np.asarray(coordinates(SHAPE))[7, 9]), rtol=1e-3)


def test_a_series_has_them_frame_by_frame(pair):
    frames = np.stack([np.asarray(image[..., 0]) for image in (*pair, pair[0][::-1])])
    result, points = load().register_series(frames, 0, refine=2), some_points(4)
    np.testing.assert_allclose(result.covariance(points)[1], result.frame(1).covariance(points), rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(result.uncertainty(1), result.frame(1).uncertainty())
    np.testing.assert_allclose(result.jacobian(points).strains[1], result.frame(1).jacobian(points).strains, atol=1e-5)
    assert result.deviation(points)[1].min() > result.deviation(points)[0].max()

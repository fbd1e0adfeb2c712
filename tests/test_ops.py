"""The pure functions against SciPy, SimpleITK, closed forms and finite differences, in 2D and 3D."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial.transform
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from r2n2_jax.ops.gaussian import Gaussians, covariance, displacement, local_transformation, rotation_matrix
from r2n2_jax.ops.grid import coordinates, half_extent
from r2n2_jax.ops.intensity import resample, standardise
from r2n2_jax.ops.jacobian import determinant
from r2n2_jax.ops.regularisers import isotropic_tv
from r2n2_jax.ops.similarity import mse, ncc
from r2n2_jax.ops.spatial_softmax import agreement, expected_position, spatial_softmax
from r2n2_jax.ops.warp import inside, sample, sample_nearest, warp

SHAPES = [(9, 14), (7, 8, 11)]
few = settings(max_examples=25, deadline=None, derandomize=True)


def smooth_field(random, shape, size=0.2):
    """A displacement field that varies over a few pixels."""
    noise = random.normal(size=(*shape, len(shape)))
    smooth = scipy.ndimage.gaussian_filter(noise, [1.5] * len(shape) + [0])
    return (size * smooth / np.abs(smooth).max()).astype(np.float32)


# grid


@pytest.mark.parametrize("shape", SHAPES)
def test_coordinates_run_from_corner_to_corner_with_x_last(shape):
    grid = np.asarray(coordinates(shape))
    assert grid.shape == (*shape, len(shape))
    assert grid.dtype == np.float32
    for component, axis in enumerate(reversed(range(len(shape)))):
        along = np.moveaxis(grid[..., component], axis, -1)
        np.testing.assert_allclose(along, np.broadcast_to(np.linspace(-1, 1, shape[axis]), along.shape), atol=1e-6)


def test_half_extent_counts_pixels_per_unit():
    assert half_extent((5, 9)) == (4.0, 2.0)


# warp


def scipy_sample(image, points):
    """Linear interpolation by SciPy, which knows array indices only."""
    spatial = image.shape[:-1]
    index = (points[..., ::-1].astype(np.float64) + 1) * (np.array(spatial) - 1) / 2
    channels = [
        scipy.ndimage.map_coordinates(image[..., c].astype(np.float64), np.moveaxis(index, -1, 0), order=1, cval=0.0)
        for c in range(image.shape[-1])
    ]
    return np.stack(channels, -1)


@pytest.mark.numerical
@pytest.mark.parametrize("shape", SHAPES)
def test_sample_equals_scipy_inside_and_outside(shape):
    random = np.random.default_rng(0)
    image = random.normal(size=(*shape, 2)).astype(np.float32)
    points = random.uniform(-1.3, 1.3, size=(500, len(shape))).astype(np.float32)
    ours = sample(image, points)
    np.testing.assert_allclose(ours, scipy_sample(image, points), atol=1e-5)
    outside = ~np.asarray(inside(points))
    assert 50 < outside.sum() < 450
    assert (np.asarray(ours)[outside] == 0).all()
    swapped = np.roll(points, 1, axis=-1)
    assert np.abs(np.asarray(sample(image, swapped)) - scipy_sample(image, points)).max() > 0.1


@pytest.mark.numerical
@pytest.mark.parametrize("shape", SHAPES)
def test_warp_equals_simpleitk(shape):
    """The same field given to ITK in its units: pixels times spacing, here one millimetre, no rotation."""
    random = np.random.default_rng(1)
    image = random.normal(size=shape).astype(np.float32)
    field = smooth_field(random, shape)
    moving = sitk.GetImageFromArray(image)
    vectors = sitk.GetImageFromArray((field * half_extent(shape)).astype(np.float64), isVector=True)
    transform = sitk.DisplacementFieldTransform(vectors)
    expected = sitk.GetArrayFromImage(sitk.Resample(moving, moving, transform, sitk.sitkLinear, 0.0))
    ours = np.asarray(warp(image[..., None], field))[..., 0]
    # ITK's image reaches half a pixel past the outer centres, ours ends at them.
    seen = np.asarray(inside(coordinates(shape) + field))
    assert seen.mean() > 0.5
    np.testing.assert_allclose(ours[seen], expected[seen], atol=2e-5)
    flipped = np.asarray(warp(image[..., None], field[..., ::-1]))[..., 0]
    assert np.abs(flipped - expected)[seen].max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_displacement_is_the_identity(shape):
    image = np.random.default_rng(2).normal(size=(*shape, 3)).astype(np.float32)
    np.testing.assert_allclose(warp(image, jnp.zeros((*shape, len(shape)))), image, atol=1e-5)


@few
@given(st.integers(0, 2**31), st.integers(-3, 3), st.integers(-3, 3))
def test_whole_pixel_shifts_move_pixels(seed, right, down):
    image = np.random.default_rng(seed).normal(size=(9, 11, 1)).astype(np.float32)
    field = np.broadcast_to(np.array([right / 5, down / 4], np.float32), (9, 11, 2))
    warped = np.asarray(warp(image, field))
    for i in range(9):
        for j in range(11):
            if 0 < i + down < 8 and 0 < j + right < 10:
                np.testing.assert_allclose(warped[i, j], image[i + down, j + right], atol=2e-5)


def test_sample_nearest_keeps_labels():
    labels = np.random.default_rng(3).integers(0, 5, size=(9, 11, 1))
    points = np.asarray(coordinates((9, 11))) + np.array([0.09, -0.11], np.float32)
    values = sample_nearest(labels, points)
    assert set(np.unique(values)) <= set(range(5))
    np.testing.assert_array_equal(values[1:-1, 1:-1], labels[1:-1, 1:-1])


# gaussian


def test_rotation_matrix_in_3d_is_scipys():
    angles = np.random.default_rng(4).uniform(-3, 3, size=(20, 3)).astype(np.float32)
    expected = scipy.spatial.transform.Rotation.from_euler("ZYX", angles).as_matrix()
    np.testing.assert_allclose(rotation_matrix(angles), expected, atol=1e-5)


@few
@given(st.floats(0.01, 0.5), st.floats(0.01, 0.5), st.floats(0, np.pi))
def test_covariance_is_eq_9_in_2d(a, b, angle):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(covariance(jnp.array([a, b]), jnp.array([angle])), turn @ np.diag([a, b]) @ turn.T, atol=1e-6)


@pytest.mark.parametrize("d", [2, 3])
def test_local_transformation_is_eq_8(d):
    random = np.random.default_rng(5)
    points, position = random.uniform(-1, 1, (40, d)), random.uniform(-1, 1, d)
    factor = 0.3 * random.normal(size=(d, d)) + np.eye(d) * 0.3
    sigma, weight = factor @ factor.T + 0.05 * np.eye(d), random.uniform(-1, 1, d)
    expected = np.stack([weight * np.exp(-0.5 * (x - position) @ np.linalg.solve(sigma, x - position)) for x in points])
    arguments = [jnp.asarray(a, jnp.float32) for a in (points, position, sigma, weight)]
    np.testing.assert_allclose(local_transformation(*arguments), expected, atol=1e-5)
    # The covariance is a variance: read as a standard deviation it is another Gaussian.
    squared = local_transformation(*arguments[:2], arguments[2] @ arguments[2], arguments[3])
    assert np.abs(np.asarray(squared) - expected).max() > 1e-2


@pytest.mark.numerical
def test_displacement_is_the_sum_at_any_points():
    random = np.random.default_rng(6)
    gaussians = Gaussians(
        *(jnp.asarray(random.uniform(low, 1, (5, n)), jnp.float32) for low, n in ((-1, 2), (0.05, 2), (0, 1), (-1, 2)))
    )
    points = jnp.asarray(random.uniform(-1, 1, (30, 2)), jnp.float32)
    total = sum(
        local_transformation(points, g.position, covariance(g.variance, g.rotation), g.weight)
        for g in (Gaussians(*(a[t] for a in gaussians)) for t in range(5))
    )
    np.testing.assert_allclose(displacement(gaussians, points), total, atol=1e-6)


# spatial softmax


@pytest.mark.parametrize("shape", SHAPES)
def test_spatial_softmax_and_expected_position(shape):
    features = np.random.default_rng(7).normal(size=(*shape, 3)).astype(np.float32)
    probability = np.asarray(spatial_softmax(features))
    expected = np.exp(features.astype(np.float64))
    expected /= expected.sum(tuple(range(len(shape))))
    np.testing.assert_allclose(probability, expected, atol=1e-6)
    position = expected.reshape(-1, 3).T @ np.asarray(coordinates(shape), np.float64).reshape(-1, len(shape))
    np.testing.assert_allclose(expected_position(probability), position, atol=1e-6)


def test_expected_position_of_one_pixel_is_its_centre():
    probability = jnp.zeros((5, 9, 1)).at[1, 6, 0].set(1.0)
    np.testing.assert_allclose(expected_position(probability), [[0.5, -0.5]], atol=1e-6)


def test_agreement_of_equal_disjoint_and_half_overlapping_maps():
    a = jnp.zeros((4, 4, 1)).at[0, :, 0].set(0.25)
    b = jnp.zeros((4, 4, 1)).at[1, :, 0].set(0.25)
    np.testing.assert_allclose(agreement(a, a), [2.0], atol=1e-6)
    np.testing.assert_allclose(agreement(a, b), [0.0], atol=1e-6)
    np.testing.assert_allclose(agreement(a, 0.5 * a + 0.5 * b), [1.0], atol=1e-6)


# regulariser, similarity, jacobian, intensity


@pytest.mark.parametrize("shape", SHAPES)
def test_isotropic_tv_is_its_formula(shape):
    field = smooth_field(np.random.default_rng(8), shape).astype(np.float64)
    total = 0.0
    for index in np.ndindex(shape):
        squared = 0.0
        for axis, n in enumerate(shape):
            if index[axis] + 1 < n:
                after = list(index)
                after[axis] += 1
                squared += (((field[tuple(after)] - field[index]) * (n - 1) / 255) ** 2).sum()
        total += np.sqrt(squared)
    np.testing.assert_allclose(isotropic_tv(jnp.asarray(field, jnp.float32)), total / np.prod(shape), rtol=1e-5)


def test_isotropic_tv_means_the_same_at_every_resolution():
    ramp = lambda n: 0.3 * coordinates((n, n))  # noqa: E731
    values = [float(isotropic_tv(ramp(n))) for n in (64, 128, 256)]
    np.testing.assert_allclose(values, values[-1], rtol=0.02)


def test_isotropic_tv_has_a_finite_gradient_where_nothing_moves():
    gradient = jax.grad(isotropic_tv)(jnp.zeros((6, 7, 2)))
    np.testing.assert_array_equal(gradient, 0.0)


def test_masked_similarities_count_the_masked_pixels_only():
    random = np.random.default_rng(9)
    a, b = random.normal(size=(2, 8, 9, 1)).astype(np.float32)
    mask = random.random((8, 9)) < 0.6
    np.testing.assert_allclose(mse(a, b, mask), np.mean((a[mask] - b[mask]) ** 2), rtol=1e-5)
    np.testing.assert_allclose(ncc(a, b, mask), np.corrcoef(a[mask].ravel(), b[mask].ravel())[0, 1], atol=1e-5)
    np.testing.assert_allclose(mse(a, b), np.mean((a - b) ** 2), rtol=1e-5)
    assert float(mse(a, b, np.zeros((8, 9), bool))) == 0.0
    assert float(ncc(a, jnp.ones_like(a))) == 0.0
    with pytest.raises(AssertionError):
        mse(a, b[:-1])


@pytest.mark.numerical
@pytest.mark.parametrize("shape", SHAPES)
def test_determinant_of_an_affine_field_is_that_of_its_matrix(shape):
    d = len(shape)
    matrix = np.eye(d) + 0.3 * np.random.default_rng(10).normal(size=(d, d))
    field = np.asarray(coordinates(shape)) @ (matrix - np.eye(d)).T.astype(np.float32)
    np.testing.assert_allclose(determinant(field), np.linalg.det(matrix), atol=1e-4)
    folded = -2.0 * np.asarray(coordinates(shape)) * np.eye(d, dtype=np.float32)[0]
    assert (np.asarray(determinant(folded)) < 0).all()


def test_standardise_has_the_stated_range_and_survives_constants():
    image = np.random.default_rng(11).gamma(0.5, size=(20, 20, 1)).astype(np.float32) * 1000
    ours = np.asarray(standardise(image))
    np.testing.assert_allclose(ours, np.clip((image - image.mean()) / image.std(), -2, 2), atol=1e-4)
    np.testing.assert_array_equal(standardise(jnp.full((5, 5, 1), 7.0)), 0.0)


@pytest.mark.parametrize("shape", [(20, 31), (9, 12, 15)])
def test_resample_keeps_the_corners_and_linear_images(shape):
    ramp = coordinates(shape) @ jnp.arange(1.0, 1.0 + len(shape))[:, None]
    for new in ([2 * n - 1 for n in shape], [n + 5 for n in shape]):
        expected = coordinates(tuple(new)) @ jnp.arange(1.0, 1.0 + len(shape))[:, None]
        np.testing.assert_allclose(resample(ramp, tuple(new)), expected, atol=1e-4)
    smaller = tuple(n // 2 for n in shape)
    middle = (slice(2, -2),) * len(shape)
    expected = coordinates(smaller) @ jnp.arange(1.0, 1.0 + len(shape))[:, None]
    # The anti-aliasing kernel is sampled, so a ramp comes out a little uneven; half a pixel's shift would be 0.05 and more.
    np.testing.assert_allclose(resample(ramp, smaller)[middle], expected[middle], atol=0.015)


# gradients against finite differences, in float64


def gaussian_values(position, sigma, angle, weight):
    points = jnp.asarray(np.random.default_rng(12).uniform(-1, 1, (20, position.shape[0])))
    return local_transformation(points, position, covariance(sigma, angle), weight)


GRADIENTS = {
    "warp_displacement": lambda f: warp(jnp.asarray(np.random.default_rng(13).normal(size=(6, 7, 1))), f),
    "warp_image": lambda f: warp(f, jnp.asarray(smooth_field(np.random.default_rng(14), (6, 7)), jnp.float64)),
    "softmax_position": lambda f: expected_position(spatial_softmax(f)),
    "tv": isotropic_tv,
    "determinant": determinant,
    "ncc": lambda f: ncc(f, jnp.asarray(np.random.default_rng(15).normal(size=(6, 7, 2)))),
}


@pytest.mark.numerical
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_match_finite_differences(name):
    with jax.enable_x64(True):
        channels = 1 if name == "warp_image" else 2
        # Away from pixel centres, where the interpolant has a corner.
        value = jnp.asarray(0.01 + 0.02 * np.random.default_rng(16).random((6, 7, channels)))
        chex.assert_numerical_grads(GRADIENTS[name], (value,), order=1, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("d", [2, 3])
def test_gradients_of_the_gaussian_match_finite_differences(d):
    random = np.random.default_rng(17)
    with jax.enable_x64(True):
        values = [jnp.asarray(random.uniform(0.1, 0.6, n)) for n in (d, d, d * (d - 1) // 2, d)]
        chex.assert_numerical_grads(gaussian_values, values, order=1, atol=1e-4, rtol=1e-4)


def test_one_trace_per_shape():
    @jax.jit
    @chex.assert_max_traces(n=2)
    def warped(image, field):
        return warp(image, field)

    for shape in ((6, 7), (6, 7), (8, 9), (8, 9)):
        warped(jnp.zeros((*shape, 1)), jnp.zeros((*shape, 2)))
    chex.clear_trace_counter()

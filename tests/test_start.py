"""A start for what is far: turned, shifted and stretched images, against the map that made them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter

import r2n2_jax
from r2n2_jax.ops.affine import Affine, carry, identity, shift
from r2n2_jax.ops.intensity import prepare
from r2n2_jax.registration.start import find_start

SIZE = 96


def scene(size, seed=1):
    """Something like a body, larger than the window that is seen of it: ``[3 size, 3 size]``."""
    random = np.random.default_rng(seed)
    return gaussian_filter(random.normal(size=(3 * size, 3 * size)), 4.0) + 0.3 * gaussian_filter(
        random.normal(size=(3 * size, 3 * size)), 12.0
    )


def window(whole, matrix, offset, size):
    """What is seen at ``matrix @ (y, x) + offset``, pixels from the window's centre."""
    middle = np.array(whole.shape) / 2 - 0.5
    corner = matrix @ np.full(2, -(size - 1) / 2) + offset + middle
    return affine_transform(whole, matrix, corner, output_shape=(size, size), order=1).astype(np.float32)


def pair(degrees, offset, stretch=1.0, size=SIZE):
    angle = np.radians(degrees)
    matrix = stretch * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    whole = scene(size)
    return window(whole, matrix, np.asarray(offset), size), window(whole, np.eye(2), np.zeros(2), size), matrix


def missed(found, matrix, offset, size=SIZE):
    """The mean distance, pixels, of the found map from the true one, over the fixed pixels that lie in the moving image."""
    half = (size - 1) / 2
    y, x = np.mgrid[:size, :size] - half
    true_y, true_x = (matrix[i, 0] * y + matrix[i, 1] * x + offset[i] for i in (0, 1))
    points = np.stack([x, y], axis=-1) / half
    ours = half * np.asarray(carry(found, jnp.asarray(points, jnp.float32)))
    there = (np.abs(true_y) <= half) & (np.abs(true_x) <= half)
    return np.hypot(ours[..., 0] - true_x, ours[..., 1] - true_y)[there].mean()


def start(fixed, moving, kind, extent=(1.0, 1.0)):
    images = (prepare(jnp.asarray(image), (64, 64)) for image in (fixed, moving))
    return find_start(*images, jnp.ones((64, 64), bool), jnp.asarray(extent), kind=kind)


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_turns_and_shifts_are_found(kind):
    random = np.random.default_rng(0)
    for _ in range(12):
        degrees, offset = random.uniform(-180, 180), random.uniform(-0.4, 0.4, 2) * SIZE
        fixed, moving, matrix = pair(degrees, offset)
        found = start(fixed, moving, kind)
        assert missed(found.affine, matrix, offset) < 1.0, (degrees, offset)
        assert missed(Affine(jnp.eye(2), jnp.zeros(2)), matrix, offset) > 5.0, "there was nothing to find"


def test_each_kind_finds_what_it_may():
    fixed, moving, matrix = pair(20.0, (9.0, -14.0), stretch=1.1)
    errors = {
        kind: missed(start(fixed, moving, kind).affine, matrix, (9.0, -14.0)) for kind in ("translation", "rigid", "affine")
    }
    assert errors["affine"] < 0.5 < errors["rigid"] < errors["translation"]
    np.testing.assert_array_equal(start(fixed, moving, "translation").affine.matrix, np.eye(2))
    turn = np.asarray(start(fixed, moving, "rigid").affine.matrix)
    np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-4)


def test_a_turn_is_one_of_the_object_and_not_of_the_grid():
    """Of an image twice as high as wide; by the wrong extent it is no rigid motion, and missed."""
    angle, height, width = np.radians(90.0), 120, 60
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    whole = scene(120)
    middle = np.array(whole.shape) / 2 - 0.5
    half = (np.array([height, width]) - 1) / 2
    fixed, moving = (
        affine_transform(whole, m, middle - m @ half, output_shape=(height, width), order=1).astype(np.float32)
        for m in (matrix, np.eye(2))
    )
    true = np.array([[0.0, -half[0] / half[1]], [half[1] / half[0], 0.0]])  # of (x, y), normalised
    ours = start(fixed, moving, "rigid", extent=(width - 1.0, height - 1.0)).affine.matrix
    wrong = start(fixed, moving, "rigid").affine.matrix
    assert min(np.abs(ours - true).max(), np.abs(ours + true).max()) < 0.05
    assert min(np.abs(wrong - true).max(), np.abs(wrong + true).max()) > 0.3


def test_the_shift_of_the_identity_is_exactly_nothing(key):
    points = jax.random.normal(key, (50, 3))
    nothing = jax.tree.map(lambda leaf: leaf[0], identity(1, 3))
    np.testing.assert_array_equal(shift(nothing, points), 0.0)
    map_ = Affine(jax.random.normal(key, (3, 3)), jnp.arange(3.0))
    np.testing.assert_allclose(carry(map_, points), points @ map_.matrix.T + jnp.arange(3.0)[None], atol=1e-5)


@pytest.fixture(scope="module")
def registrar():
    return r2n2_jax.load()


def test_by_default_what_is_far_is_found_and_what_is_near_is_left_alone(registrar):
    fixed, moving, matrix = pair(130.0, (10.0, -20.0))
    result = registrar.register(fixed, moving)
    there = result.inside
    assert np.corrcoef(fixed[there], result.warped[there])[0, 1] > 0.95
    assert missed(Affine(*map(jnp.asarray, result.affine)), matrix, (10.0, -20.0)) < 2.0
    alone = registrar.register(fixed, moving, start="none")
    assert np.corrcoef(fixed[alone.inside], alone.warped[alone.inside])[0, 1] < 0.9
    np.testing.assert_array_equal(alone.affine.matrix, np.eye(2))
    near, other, _ = pair(0.0, (1.5, -1.0))
    np.testing.assert_array_equal(registrar.register(near, other).affine.matrix, np.eye(2))


def test_the_parameters_give_the_field(registrar):
    """``matrix x + offset - x`` and the sum of Gaussians, by NumPy, are the displacement; without the map they are not."""
    fixed, moving, _ = pair(35.0, (6.0, 3.0))
    result = registrar.register(fixed, moving, start="rigid")
    plain = result.describe()
    half = (SIZE - 1) / 2
    y, x = (np.mgrid[:SIZE, :SIZE] - half) / half
    points = np.stack([x, y], axis=-1)
    local = np.zeros_like(points)
    for one in plain["transformations"]:
        c, s = np.cos(one["rotation"][0]), np.sin(one["rotation"][0])
        turn = np.array([[c, -s], [s, c]])
        precision = turn @ np.diag(1 / np.array(one["variance"])) @ turn.T
        offset = points - one["position"]
        local += np.exp(-0.5 * np.einsum("...i,ij,...j", offset, precision, offset))[..., None] * one["weight"]
    field = points @ np.array(plain["matrix"]).T + plain["offset"] - points + local
    np.testing.assert_allclose(result.displacement, field, atol=1e-4)
    assert np.abs(result.displacement - local).max() > 0.1
    np.testing.assert_allclose(result.points(points.astype(np.float32)), points + field, atol=1e-4)


def test_images_of_two_kinds_do_not_match_by_chance_somewhere_else(registrar):
    fixed, moving, _ = pair(0.0, (0.0, 0.0))
    np.testing.assert_array_equal(registrar.register(fixed, -moving).affine.matrix, np.eye(2))

"""The flow under a window against shifts that are known."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from r2n2_jax.models.r2n2 import Carry, _flow_under
from r2n2_jax.ops.flow import flow
from r2n2_jax.ops.gaussian import bell, local_transformation
from r2n2_jax.ops.grid import coordinates

WIDTH = 0.05


def texture(points):
    """A smooth pattern that is known everywhere, with like slopes along every axis."""
    return sum(jnp.sin(6.0 * points[..., i] + 0.7 * i) for i in range(points.shape[-1]))[..., None]


def moved_pair(shape, shift):
    """A moving image, the fixed one that a Gaussian field of that weight makes of it, and the Gaussian's height."""
    points = coordinates(shape)
    d = len(shape)
    shape_of_it = jnp.zeros(d), WIDTH * jnp.eye(d)
    field = local_transformation(points, *shape_of_it, jnp.asarray(shift))
    return texture(points + field), texture(points), bell(points, *shape_of_it)


@pytest.mark.parametrize(("shape", "shift"), [((41, 57), (0.02, -0.01)), ((17, 23, 19), (0.02, -0.01, 0.015))])
def test_a_small_motion_is_found(shape, shift):
    fixed, moving, window = moved_pair(shape, shift)
    found = flow(fixed, moving, window)
    # A damping of a twentieth of the trace shortens all components to 1 / (1 + d / 20) where slopes are even; nearly so here.
    d = len(shape)
    np.testing.assert_allclose(found, np.array(shift) / (1 + d / 20), rtol=0.25)
    assert np.linalg.norm(found) < np.linalg.norm(shift)


def test_it_is_the_least_squares_of_the_pixels():
    """Against float64 equations, one a pixel, with the damping as further rows."""
    rng = np.random.default_rng(3)
    fixed, moving = rng.normal(size=(2, 12, 15))
    window = rng.uniform(size=(12, 15))
    slopes = np.stack(np.gradient((fixed + moving) / 2, 2 / 11, 2 / 14)[::-1], -1)
    rows = (slopes * window[..., None]).reshape(-1, 2)
    damping = np.sqrt(0.05 * (rows**2).sum() + 1e-3)
    expected = np.linalg.lstsq(
        np.concatenate([rows, damping * np.eye(2)]), np.concatenate([(fixed - moving).ravel(), [0, 0]]), rcond=None
    )[0]
    images = (jnp.asarray(image[..., None], jnp.float32) for image in (fixed, moving))
    np.testing.assert_allclose(flow(*images, jnp.asarray(window, jnp.float32)), expected, rtol=1e-4)


def test_it_sees_the_window_alone():
    fixed, moving, window = moved_pair((41, 57), (0.02, -0.01))
    hole = jnp.where(window > 0.5, window, 0.0)
    elsewhere = jnp.where(window[..., None] > 0.5, 0.0, 1.0)
    # The slopes of the pixels beside the hole's rim see across it.
    spoilt = flow(fixed + 0.1 * elsewhere, moving + 0.1 * elsewhere, hole)
    np.testing.assert_allclose(spoilt, flow(fixed, moving, hole), atol=5e-3)
    assert np.abs(flow(fixed + 3.0 * elsewhere, moving, window) - flow(fixed, moving, window)).max() > 0.02


def test_along_an_edge_it_says_nothing():
    """An image of vertical stripes shows motion along x alone."""
    points = coordinates((32, 40))
    window = bell(points, jnp.zeros(2), WIDTH * jnp.eye(2))
    stripes = lambda x: jnp.sin(5.0 * x)[..., None]  # noqa: E731
    found = flow(stripes(points[..., 0] + 0.02 * window), stripes(points[..., 0]), window)
    assert 0.015 < found[0] < 0.02
    assert abs(found[1]) < 1e-6


def test_the_network_leaves_out_what_has_left_the_moving_image():
    fixed, moving, _ = moved_pair((32, 40), (0.02, -0.01))
    points = coordinates((32, 40))
    gone = points[..., 0] > 0.2
    look = Carry(jnp.where(gone[..., None], 3.0, 0.0)[None], jnp.where(gone[..., None], 0.0, moving)[None], ())
    gaussian = jnp.zeros((1, 2)), WIDTH * jnp.eye(2)[None]
    found = _flow_under(points, look, fixed[None], *gaussian)
    spoilt = jnp.where((points[..., 0] > 0.3)[..., None], 5.0, fixed)
    np.testing.assert_array_equal(_flow_under(points, look, spoilt[None], *gaussian), found)
    still = look._replace(displacement=jnp.zeros_like(look.displacement))
    assert np.abs(_flow_under(points, still, spoilt[None], *gaussian) - found).max() > 0.01


def test_no_slope_no_flow_and_a_finite_gradient():
    flat, window = jnp.zeros((16, 16, 1)), jnp.ones((16, 16))
    np.testing.assert_array_equal(flow(flat, flat, window), 0.0)
    gradient = jax.grad(lambda moving: flow(flat + 1.0, moving, window).sum())(flat)
    assert np.isfinite(gradient).all()


def test_gradients_against_finite_differences():
    fixed, moving, window = moved_pair((12, 14), (0.02, -0.01))
    jax.test_util.check_grads(flow, (fixed, moving, window), order=1, modes=["fwd", "rev"], atol=2e-2, rtol=2e-2, eps=1e-2)

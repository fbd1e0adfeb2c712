"""Convolutions and, above all, their hand-written gradients, in 2D and 3D, at every stride and parity of size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate

from r2n2_jax.models import convolution
from r2n2_jax.models.convolution import convolve

SHAPES = [
    ((2, 9, 12, 3), 3, 1),
    ((2, 9, 12, 3), 3, 2),
    ((1, 16, 11, 2), 7, 2),
    ((1, 3, 2, 2), 7, 2),
    ((2, 6, 5, 3), 1, 1),
    ((2, 8, 7, 3), 1, 2),
    ((1, 12, 9, 2), 5, 2),
    ((1, 8, 9, 10, 2), 7, 2),
    ((1, 8, 7, 6, 2), 3, 1),
    ((2, 8, 7, 5, 2), 3, 2),
]


def operands(key, shape, width, dtype=jnp.float32):
    keys = jax.random.split(key)
    kernel = jax.random.normal(keys[1], (*(width,) * (len(shape) - 2), shape[-1], 4), dtype)
    return jax.random.normal(keys[0], shape, dtype), kernel


def ordinary(features, kernel, stride):
    """XLA's convolution with JAX's own gradient."""
    spatial = "DHW"[-(features.ndim - 2) :]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    strides = (stride,) * len(spatial)
    return jax.lax.conv_general_dilated(features, kernel, strides, "SAME", dimension_numbers=layout)


@pytest.mark.parametrize(("shape", "width"), [((2, 9, 12, 3), 3), ((1, 16, 11, 2), 7), ((1, 8, 7, 6, 2), 3)])
def test_is_the_correlation_that_scipy_computes(key, shape, width):
    features, kernel = (np.asarray(a, np.float64) for a in operands(key, shape, width))
    expected = np.zeros((*shape[:-1], kernel.shape[-1]))
    for image, channel, out in np.ndindex(shape[0], shape[-1], kernel.shape[-1]):
        expected[image, ..., out] += correlate(features[image, ..., channel], kernel[..., channel, out], mode="constant")
    np.testing.assert_allclose(convolve(*operands(key, shape, width), 1), expected, atol=1e-4)


@pytest.mark.numerical
@pytest.mark.parametrize(("shape", "width", "stride"), SHAPES)
def test_value_and_gradients_are_the_ordinary_ones(key, shape, width, stride):
    features, kernel = operands(key, shape, width)
    cotangent = jax.random.normal(key, jax.eval_shape(lambda: ordinary(features, kernel, stride)).shape)

    @jax.jit
    def both(features, kernel, cotangent):
        """Of ours and of the ordinary one: the value, then the gradients."""
        made = (jax.vjp(lambda f, k, c=c: c(f, k, stride), features, kernel) for c in (convolve, ordinary))
        return [(value, *pull(cotangent)) for value, pull in made]

    for ours, theirs, error in zip(*both(features, kernel, cotangent), (1e-5, 1e-4, 1e-4), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=error, rtol=1e-5)


@pytest.mark.numerical
def test_gradients_hold_inside_a_loop_and_under_vmap(key):
    features, kernel = operands(key, (2, 8, 8, 4), 3)
    kernel = 0.1 * kernel

    def chain(convolution, features, kernel):
        def body(state, _):
            return jnp.tanh(convolution(state, kernel, 1)), None

        return jnp.sum(jax.lax.scan(body, features, None, length=3)[0] ** 2)

    slopes = (jax.jit(jax.grad(functools.partial(chain, c), (0, 1)))(features, kernel) for c in (convolve, ordinary))
    for ours, theirs in zip(*slopes, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    together = jax.vmap(jax.grad(chain, 1), (None, 0, None))(convolve, features[:, None], kernel)
    np.testing.assert_allclose(together[:, 0], jax.grad(chain, 1)(convolve, features, kernel), atol=1e-4)


@pytest.mark.numerical
@pytest.mark.parametrize("fault", ["turned", "shifted"])
def test_a_wrong_gradient_is_noticed(fault, key, monkeypatch):
    right = convolution._transposed_correlations

    def wrong(features, kernel, cotangent):
        if fault == "turned":
            return right(features, jnp.flip(kernel, (0, 1)), cotangent)
        return right(jnp.roll(features, 1, axis=1), kernel, cotangent)

    operands_ = operands(key, (2, 9, 12, 3), 3)
    cotangent = jnp.ones((2, 9, 12, 4))
    expected = jax.vjp(lambda f, k: ordinary(f, k, 1), *operands_)[1](cotangent)
    monkeypatch.setattr(convolution, "_transposed_correlations", wrong)
    found = jax.vjp(lambda f, k: convolve(f, k, 1), *operands_)[1](cotangent)
    assert max(float(jnp.abs(one - two).max()) for one, two in zip(found, expected, strict=True)) > 0.1
